"""Where the factory's work is done: processes of this machine, or a Ray cluster."""
