"""What the guards have to know of Windows: handles, children, who lives."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from ctypes import wintypes

_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
_ntdll = ctypes.WinDLL("ntdll")  # type: ignore[attr-defined]

WINE = hasattr(_ntdll, "wine_get_version")


def wine_version() -> tuple[int, ...]:
    get = _ntdll.wine_get_version
    get.restype = ctypes.c_char_p
    return tuple(map(int, get().decode().split(".")[:2]))


_pointer = ctypes.c_size_t

_kernel32.OpenProcess.argtypes = [wintypes.DWORD, wintypes.BOOL, wintypes.DWORD]
_kernel32.OpenProcess.restype = wintypes.HANDLE
_kernel32.WaitForSingleObject.argtypes = [wintypes.HANDLE, wintypes.DWORD]
_kernel32.CloseHandle.argtypes = [wintypes.HANDLE]
_kernel32.CreateToolhelp32Snapshot.argtypes = [wintypes.DWORD, wintypes.DWORD]
_kernel32.CreateToolhelp32Snapshot.restype = wintypes.HANDLE
_kernel32.CreateIoCompletionPort.argtypes = [_pointer, _pointer, _pointer, wintypes.DWORD]
_kernel32.CreateIoCompletionPort.restype = wintypes.HANDLE
_kernel32.CreateJobObjectW.restype = wintypes.HANDLE
_kernel32.GetStdHandle.argtypes = [wintypes.DWORD]
_kernel32.GetStdHandle.restype = wintypes.HANDLE
_kernel32.SetStdHandle.argtypes = [wintypes.DWORD, wintypes.HANDLE]


class _Handle(ctypes.Structure):
    """SYSTEM_HANDLE_TABLE_ENTRY_INFO_EX"""

    _fields_ = [
        ("object", _pointer),
        ("process", _pointer),
        ("value", _pointer),
        ("access", wintypes.ULONG),
        ("creator", wintypes.USHORT),
        ("type", wintypes.USHORT),
        ("attributes", wintypes.ULONG),
        ("reserved", wintypes.ULONG),
    ]


class _ProcessHandle(ctypes.Structure):
    """PROCESS_HANDLE_TABLE_ENTRY_INFO"""

    _fields_ = [
        ("value", _pointer),
        ("count", _pointer),
        ("pointers", _pointer),
        ("access", wintypes.ULONG),
        ("type", wintypes.ULONG),
        ("attributes", wintypes.ULONG),
        ("reserved", wintypes.ULONG),
    ]


class _Process(ctypes.Structure):
    """PROCESSENTRY32W"""

    _fields_ = [
        ("size", wintypes.DWORD),
        ("usage", wintypes.DWORD),
        ("pid", wintypes.DWORD),
        ("heap", _pointer),
        ("module", wintypes.DWORD),
        ("threads", wintypes.DWORD),
        ("parent", wintypes.DWORD),
        ("priority", wintypes.LONG),
        ("flags", wintypes.DWORD),
        ("name", wintypes.WCHAR * 260),
    ]


_buffer = ctypes.create_string_buffer(1 << 16)


def _query(function: object, *arguments: object) -> bool:
    """Fills the buffer, which grows as need be."""
    global _buffer
    while True:
        needed = wintypes.ULONG()
        status = function(*arguments, _buffer, len(_buffer), ctypes.byref(needed))  # type: ignore[operator]
        if status & 0xFFFFFFFF != 0xC0000004:  # STATUS_INFO_LENGTH_MISMATCH
            return status == 0  # type: ignore[no-any-return]
        _buffer = ctypes.create_string_buffer(2 * max(needed.value, len(_buffer)))


def _all_handles() -> dict[int, int]:
    """All handles of this process, and their types' numbers."""
    offset = 2 * ctypes.sizeof(_pointer)
    process = ctypes.c_void_p(-1)
    if not WINE and _query(_ntdll.NtQueryInformationProcess, process, 51):
        count = _pointer.from_buffer(_buffer).value
        mine = (_ProcessHandle * count).from_buffer(_buffer, offset)
        return {entry.value: entry.type for entry in mine}
    assert _query(_ntdll.NtQuerySystemInformation, 64)
    count = _pointer.from_buffer(_buffer).value
    pid = os.getpid()
    everybodys = (_Handle * count).from_buffer(_buffer, offset)
    return {entry.value: entry.type for entry in everybodys if entry.process == pid}


def count_handles() -> int:
    """Of every kind. (GetProcessHandleCount gives 0 under Wine.)"""
    return len(_all_handles())


def _interesting_types() -> dict[int, str]:
    """Of processes, files (pipes among them), completion ports and jobs. What the C library and
    the system open for themselves is mostly of other kinds."""
    port = _kernel32.CreateIoCompletionPort(-1 & (2**64 - 1), 0, 0, 0)
    file = os.open(os.devnull, os.O_RDONLY)
    process = _kernel32.OpenProcess(0x1000, False, os.getpid())
    job = _kernel32.CreateJobObjectW(None, None)
    import msvcrt

    types = _all_handles()
    handle: int = msvcrt.get_osfhandle(file)  # type: ignore[attr-defined]
    found = {types[process]: "process", types[handle]: "file", types[port]: "port"}
    found[types[job]] = "job"
    os.close(file)
    _kernel32.CloseHandle(port)
    _kernel32.CloseHandle(job)
    _kernel32.CloseHandle(process)
    return found


_types: dict[int, str] | None = None


def open_handles() -> dict[int, str]:
    global _types
    if _types is None:
        _types = _interesting_types()
    return {value: _types[kind] for value, kind in _all_handles().items() if kind in _types}


def children() -> set[int]:
    """Children of this process that live."""
    snapshot = _kernel32.CreateToolhelp32Snapshot(2, 0)  # TH32CS_SNAPPROCESS
    entry = _Process(size=ctypes.sizeof(_Process))
    found = set()
    pid = os.getpid()
    more = _kernel32.Process32FirstW(wintypes.HANDLE(snapshot), ctypes.byref(entry))
    while more:
        # On Windows the console's host is a child of the process whose console it is.
        if entry.parent == pid and entry.name.lower() != "conhost.exe":
            found.add(entry.pid)
        more = _kernel32.Process32NextW(wintypes.HANDLE(snapshot), ctypes.byref(entry))
    _kernel32.CloseHandle(snapshot)
    return {pid for pid in found if is_alive(pid)}


def assign(process: int, job: int) -> None:
    """Puts a process into a job."""
    handles = wintypes.HANDLE(job), wintypes.HANDLE(process)
    assert _kernel32.AssignProcessToJobObject(*handles), ctypes.get_last_error()  # type: ignore[attr-defined]


def is_alive(pid: int) -> bool:
    handle = _kernel32.OpenProcess(0x100000, False, pid)  # SYNCHRONIZE
    if not handle:
        return False
    try:
        return _kernel32.WaitForSingleObject(handle, 0) != 0  # type: ignore[no-any-return]
    finally:
        _kernel32.CloseHandle(handle)


@contextlib.contextmanager
def standard_handle(number: int, handle: int) -> Iterator[None]:
    """Another one of ours for stdin, stdout or stderr."""
    name = 2**32 - 10 - number  # STD_INPUT_HANDLE and so on
    former = _kernel32.GetStdHandle(name)
    assert _kernel32.SetStdHandle(name, handle)
    try:
        yield
    finally:
        assert _kernel32.SetStdHandle(name, former)
