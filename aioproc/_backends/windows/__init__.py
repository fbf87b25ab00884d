"""The two backends of Windows, native and pure, and their parts."""
