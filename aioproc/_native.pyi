from typing import Any

# What cffi makes of csrc/posix/aioproc_posix.h or csrc/windows/aioproc_windows.h; Any is
# fenced into the files that import it, in _backends/posix/ and _backends/windows/.
ffi: Any
lib: Any
