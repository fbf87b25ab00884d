"""What the tools that run the suite elsewhere share: a log, a Debian in a folder, a copy
of the tree.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent


class Failure(Exception):
    """Something that ends the work on one interpreter, or on all; said in one line."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(
    command: Iterable[str | Path],
    log: Path,
    *,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
) -> int:
    """The exit code; all output goes to the log. Nothing of it survives a timeout."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(timeout)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise Failure(f"no end after {timeout:g} seconds, see {log}") from None
            raise


def must(command: Iterable[str | Path], log: Path, what: str) -> None:
    code = run(command, log)
    if code:
        raise Failure(f"{what} failed with {code}, see {log}")


#: Enters a Debian root: sh -c ENTER sh ROOT [SOURCE TARGET]... -- COMMAND...
#: The mounts are in a namespace of their own and vanish with it.
ENTER = """
set -e
root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
while [ "$1" != -- ]; do
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    shift 2
done
shift
exec chroot "$root" "$@"
"""


def enter(root: Path, words: list[str], mounts: dict[Path, str]) -> list[str | Path]:
    unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"]
    binds = [word for pair in mounts.items() for word in pair]
    return [*unshare, root, *binds, "--", *words]


def clean_environment(**more: str) -> dict[str, str]:
    """Without this machine's settings of Python and of the suite itself."""
    kept = {"PATH", "HOME", "LANG", "TMPDIR", "http_proxy", "https_proxy"}
    kept |= {name for name in os.environ if name.startswith("PYENV")}
    return {name: os.environ[name] for name in kept if name in os.environ} | more


def mirror() -> str:
    """Where apt here gets Debian from."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)"],
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in listed.stdout.splitlines():
        if line.startswith("Debian Debian "):
            return line.split()[2]
    raise Failure("apt here knows no Debian archive; name one with --mirror")


def install_packages(log: Path, *packages: str) -> None:
    """On this system. Needs to be root."""
    apt: list[str | Path] = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
    # The lists may be old, or not there at all.
    must([*apt, "update"], log, "apt-get update")
    must([*apt, "install", "-y", "--no-install-recommends", *packages], log, "apt-get install")


def make_root(
    root: Path,
    archive: str | None,
    choose: Callable[[set[str]], list[str]],
    log: Path,
    architecture: str | None = None,
) -> list[str]:
    """A fresh Debian of the suite that the folder is named after, with what `choose`
    picks out of the names of all packages; returns that. Needs to be root, and for an
    architecture other than our own QEMU's user mode, known to binfmt_misc."""
    if shutil.which("debootstrap") is None:
        say("installing debootstrap")
        install_packages(log, "debootstrap")
    if root.exists():
        shutil.rmtree(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    say(f"making {root} (a minute or two)")
    words: list[str | Path] = ["debootstrap", "--variant=minbase"]
    words += [f"--arch={architecture}"] if architecture else []
    must([*words, root.name, root, archive or mirror()], log, "debootstrap")
    # The lists are debootstrap's: no update is needed.
    names = subprocess.run(
        enter(root, ["apt-cache", "pkgnames"], {}), stdout=subprocess.PIPE, text=True
    ).stdout.split()
    chosen = choose(set(names))
    install = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y"]
    install += ["--no-install-recommends", *chosen]
    must(enter(root, install, {}), log, "apt in the Debian root")
    return chosen


def copy_tree(target: Path) -> None:
    """What git would commit, so that no build touches the tree itself."""
    if target.exists():
        shutil.rmtree(target)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=TREE,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (TREE / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TREE / name, target / name)
