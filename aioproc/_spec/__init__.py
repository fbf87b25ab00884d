"""The judge of all input: what a child is to be, checked once, as plain data."""
