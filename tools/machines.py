"""Runs the suite in a machine of its own, which QEMU emulates: on another processor, with
another kernel.

    tools/machines.py [--machine NAME] [--suite DEBIAN] [--dist DIR] [-- PYTEST ARGUMENTS]

Userland, kernel and CPython are Debian's of that suite, in one RAM disk. The wheel that
tools/cross.py has made is installed in it; where there is none, the extension is built
there. Needs to be root on Debian or its like: QEMU comes by apt-get, and a foreign Debian is
set up through binfmt_misc. All takes about twenty times as long as here.

Everything lies in the cache folder, is made once, and is made anew with --refresh.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.debian import (
    Failure,
    clean_environment,
    copy_tree,
    enter,
    install_packages,
    make_root,
    must,
    say,
)
from tools.distribution import NAME


class Machine(NamedTuple):
    debian: str
    #: What QEMU calls it and its processor, and the packages with it.
    kind: str
    cpu: str
    packages: tuple[str, ...]
    console: str
    has_wheel: bool


MACHINES = {
    "x86_64": Machine("amd64", "q35", "max", ("qemu-system-x86",), "ttyS0", True),
    "aarch64": Machine("arm64", "virt", "max", ("qemu-system-arm",), "ttyAMA0", True),
    "riscv64": Machine("riscv64", "virt", "rv64", ("qemu-system-misc", "opensbi"), "ttyS0", False),
    # Its bytes are in the other order.
    "s390x": Machine("s390x", "s390-ccw-virtio", "max", ("qemu-system-misc",), "ttysclp0", False),
}

WHEELS = ["anyio>=4.9", "pytest>=8", "pytest-asyncio>=1.4"]
NATIVE_WHEELS = ["cffi>=1.17", "setuptools>=77", "uvloop>=0.21"]
#: Instead of these, of Debian: what builds the extension.
BUILDERS = ["gcc", "libc6-dev", "python3-dev", "python3-cffi", "python3-setuptools"]
#: What only runs in a clone, or measures.
LEFT_OUT = ["test_bench.py", "test_build.py", "test_readme.py", "test_recipes.py"]

#: The first program. What it shall run is a file, since a kernel's command line is short.
INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
cd /srv/tree
uname -srm
python3 -m aioproc
sh /srv/command
echo "ended with $?"
echo o > /proc/sysrq-trigger
sleep 60
"""

#: sh -c KERNEL sh PACKAGE: the kernel out of what that package depends on, as /vmlinuz.
KERNEL = """
set -e
apt-get -q update
name=$(apt-cache depends "$1" | sed -n 's/.*Depends: \\(linux-image-.*\\)/\\1/p' | head -n 1)
cd /tmp
apt-get -q -o APT::Sandbox::User=root download "$name"
dpkg -x ./*.deb kernel
cp kernel/boot/vmlinu[xz]-* /vmlinuz
apt-get clean
rm -rf /var/lib/apt/lists /usr/share/doc /usr/share/man /usr/share/locale
"""


def debian(machine: Machine, foreign: bool, cache: Path, suite: str, mirror: str | None) -> Path:
    root, ready = cache / suite, cache / f"{suite}.ready"
    if ready.exists():
        return root
    log = cache / "debian.log"
    packages = [*machine.packages, "cpio"]
    if foreign:
        packages += ["qemu-user-static", "binfmt-support"]
    say(f"installing {' '.join(packages)}")
    install_packages(log, *packages)
    programs = ["python3", "procps", *([] if machine.has_wheel else BUILDERS)]
    make_root(root, mirror, lambda _: programs, log, machine.debian)
    shutil.copy("/etc/resolv.conf", root / "etc" / "resolv.conf")
    words = ["sh", "-c", KERNEL, "sh", f"linux-image-{machine.debian}"]
    must(enter(root, words, {}), log, "the kernel's download")
    ready.touch()
    return root


def version(root: Path) -> str:
    """Of the CPython there: 3.13."""
    [folder] = (root / "usr" / "lib").glob("python3.*/os.py")
    return folder.parent.name.removeprefix("python")


def install_tests(machine: Machine, name: str, root: Path, dist: Path, log: Path) -> None:
    """What the suite needs, and the suite: without the sources, where there is a wheel."""
    python = version(root)
    site = root / "usr" / "local" / "lib" / f"python{python}" / "dist-packages"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade"]
    pip += ["--disable-pip-version-check", "--root-user-action", "ignore", "--target", site]
    pip += ["--python-version", python, "--implementation", "cp", "--only-binary=:all:"]
    for glibc in ("2_28", "2_17"):
        pip += ["--platform", f"manylinux_{glibc}_{name}"]
    wheels = [*WHEELS, *(NATIVE_WHEELS if machine.has_wheel else [])]
    wheels += ["typing_extensions"] if python < "3.13" else []
    must([*pip, *wheels], log, "pip")
    tree = root / "srv" / "tree"
    copy_tree(tree)
    if machine.has_wheel:
        must([*pip, "--no-deps", "--no-index", "--find-links", dist, NAME], log, "pip")
        for folder in ("aioproc", "csrc"):
            shutil.rmtree(tree / folder)
        (tree / "setup.py").unlink()
    else:
        say("building the extension")
        build = ["env", "-C", "/srv/tree", "AIOPROC_BUILD_EXTENSION=require"]
        build += ["python3", "setup.py", "-q", "build_ext", "--inplace"]
        must(enter(root, build, {}), log, "the build")


def disk(root: Path, image: Path, arguments: list[str]) -> None:
    """The RAM disk: the root, and what is to be run."""
    words = ["python3", "-m", "pytest", "-p", "no:cacheprovider", "--color=no"]
    words += [f"--ignore=tests/{name}" for name in LEFT_OUT]
    (root / "srv" / "command").write_text(shlex.join([*words, *arguments]) + "\n")
    init = root / "init"
    init.write_text(INIT)
    init.chmod(0o755)
    with image.open("wb") as output:
        find = subprocess.Popen(["find", ".", "-xdev"], cwd=root, stdout=subprocess.PIPE)
        words = ["cpio", "--create", "--format=newc", "--quiet"]
        subprocess.run(words, cwd=root, stdin=find.stdout, stdout=output, check=True)
        assert find.stdout is not None
        find.stdout.close()
        if find.wait():
            raise Failure("the RAM disk cannot be made")


def emulate(machine: Machine, name: str, root: Path, image: Path, seconds: float) -> bool:
    """Whether the tests ended well."""
    # Not by KVM: in a virtual machine that does not always work.
    words: list[str | Path] = [f"qemu-system-{name}", "-M", machine.kind, "-accel", "tcg"]
    words += ["-cpu", machine.cpu]
    words += ["-smp", "2", "-m", "4G", "-net", "none", "-nographic", "-no-reboot"]
    words += ["-kernel", root / "vmlinuz", "-initrd", image]
    words += ["-append", f"console={machine.console} quiet rdinit=/init"]
    say("starting the machine")
    process = subprocess.Popen(
        ["timeout", str(seconds), *map(str, words)],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    well = False
    for line in process.stdout:
        # The firmware clears the screen, and more of the kind.
        line = re.sub(rb"\x1b(c|\[[0-9;?]*[A-Za-z])|\r", b"", line)
        sys.stdout.buffer.write(line)
        sys.stdout.flush()
        well |= line.strip() == b"ended with 0"
    code = process.wait()
    if code == 124:  # of timeout(1)
        raise Failure(f"the machine did not end within {seconds:g} seconds")
    if code:
        raise Failure(f"QEMU ended with {code}")
    return well


def main() -> int:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    parser = argparse.ArgumentParser(description="Runs the suite in an emulated machine.")
    add = parser.add_argument
    add("--machine", choices=MACHINES, default="aarch64", help="(default %(default)s)")
    add("--suite", default="trixie", help="of Debian (default %(default)s)")
    add("--dist", type=Path, default=Path("dist"), help="with the wheel (default %(default)s)")
    add("--cache", type=Path, default=Path(caches) / "aioproc-machines", help="(%(default)s)")
    add("--mirror", help="of Debian (default: apt's own)")
    add("--refresh", action="store_true", help="make what is cached anew")
    add("--timeout", type=float, default=7200, help="seconds for the run (default %(default)s)")
    add("pytest", nargs="*", metavar="PYTEST ARGUMENTS")
    options = parser.parse_args()
    machine = MACHINES[options.machine]
    foreign = options.machine != platform.machine()
    cache: Path = options.cache.resolve() / options.machine
    cache.mkdir(parents=True, exist_ok=True)
    if options.refresh:
        (cache / f"{options.suite}.ready").unlink(missing_ok=True)
    try:
        root = debian(machine, foreign, cache, options.suite, options.mirror)
        dist: Path = options.dist.resolve()
        install_tests(machine, options.machine, root, dist, cache / "pip.log")
        with tempfile.TemporaryDirectory(prefix="aioproc-") as folder:
            image = Path(folder) / "disk"
            arguments = [*([] if machine.has_wheel else ["--no-uvloop"]), *options.pytest]
            disk(root, image, arguments)
            well = emulate(machine, options.machine, root, image, options.timeout)
    except Failure as failure:
        raise SystemExit(f"machines: {failure}") from None
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
