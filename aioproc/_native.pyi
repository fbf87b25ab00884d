from typing import Any

# What cffi makes of csrc/posix/aioproc_posix.h; Any is fenced into the room that
# imports it, _backends/posix.py.
ffi: Any
lib: Any
