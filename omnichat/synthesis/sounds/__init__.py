"""Where background sounds come from."""
