from typing import Any

# What cffi makes of csrc/posix/aioproc_posix.h or csrc/windows/aioproc_windows.h; Any is
# fenced into the room that imports it, _backends/posix.py or _backends/windows_native.py.
ffi: Any
lib: Any
