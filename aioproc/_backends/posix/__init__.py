"""The two backends of POSIX systems, native and pure, and their parts."""
