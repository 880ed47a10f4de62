"""From a dialogue to token ids and labels, and a view of them."""
