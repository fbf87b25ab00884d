"""What is in use here, for bug reports and for programs."""

from __future__ import annotations

from typing import Any

from . import _backends


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def backend_info() -> dict[str, Any]:
    """Tell which backend makes children here, and why not another.

    It is what ``python -m aioproc --json`` prints. The dictionary is the caller's own.

    Returns:
        A dictionary with strings but for these: ``not_used`` (name to reason, of the
        backends and strategies that were thought of), ``features`` (name to bool or
        string), ``cffi`` and ``uvloop`` (None where they are not installed). The others:
        ``aioproc`` (version), ``backend`` (``"native"`` or ``"pure"``), ``strategy`` (how
        children are made and exits noticed, for people), ``python``, ``system``,
        ``kernel``, ``libc``. More may come.

    Raises:
        RuntimeError: AIOPROC_BACKEND or AIOPROC_STRATEGY asks for what is not to be had.
    """
    # Not at the top: it takes time, of programs that never ask.
    import platform

    from . import __version__

    return {
        "aioproc": __version__,
        **_backends.report(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.platform(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()).strip() or "unknown",
        "cffi": _version("cffi"),
        "uvloop": _version("uvloop"),
    }
