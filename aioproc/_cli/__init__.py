"""``python -m aioproc``."""
