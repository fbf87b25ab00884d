"""Checks the files of a release: tools/release_files.py [--complete] [--tag vX.Y.Z] DIRECTORY

All of one version, all with one list of dependencies (lock files take it from any of
them); every wheel with what its tags say. --complete: and none is missing of what a release
has, which is the sdist, the pure wheel, and the wheels of [tool.cibuildwheel]. --tag: that is
their version, they are this distribution's, and lead to real addresses.
"""

from __future__ import annotations

import argparse
import email.message
import email.parser
import itertools
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import distribution

#: What [project.dependencies] means by its markers, as ends of wheels' platform tags.
PLATFORMS = {
    "manylinux x86_64": r"manylinux_2_\d+_x86_64",
    "manylinux aarch64": r"manylinux_2_\d+_aarch64",
    "musllinux x86_64": r"musllinux_1_\d+_x86_64",
    "musllinux aarch64": r"musllinux_1_\d+_aarch64",
    "macOS x86_64": r"macosx_\d+_\d+_x86_64",
    "macOS arm64": r"macosx_\d+_\d+_arm64",
    "Windows AMD64": r"win_amd64",
    "Windows ARM64": r"win_arm64",
}

#: The wheels of every platform, as the middle of their names, and where there is none.
STABLE = "cp310-abi3"
WHEELS: dict[str, tuple[str, ...]] = {
    STABLE: (),
    "cp314-cp314t": (),
    "cp315-cp315t": (),
    # The PyPy project makes none for these.
    "pp311-pypy311_pp73": ("musllinux x86_64", "musllinux aarch64", "Windows ARM64"),
}

NAME = re.compile(
    rf"{distribution.STEM}-(?P<version>[^-]+)-(?P<python>[^-]+)-(?P<abi>[^-]+)-(?P<platform>[^-]+)\.whl"
)


class Wrong(Exception):
    """A file that must not be released; the message says why."""


def metadata_of(path: Path) -> email.message.Message:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            [name] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
            text = archive.read(name).decode()
    else:
        with tarfile.open(path) as tar:
            [name] = [n for n in tar.getnames() if re.fullmatch(r"[^/]+/PKG-INFO", n)]
            member = tar.extractfile(name)
            assert member is not None
            text = member.read().decode()
    return email.parser.Parser().parsestr(text)


def tags_of(path: Path) -> set[str]:
    """All of the wheel's tags, as its name has them in short."""
    match = NAME.fullmatch(path.name)
    if match is None:
        raise Wrong(f"{path.name}: no name of a wheel")
    parts = (match[group].split(".") for group in ("python", "abi", "platform"))
    return {"-".join(tag) for tag in itertools.product(*parts)}


def check_wheel(path: Path) -> None:
    tags = tags_of(path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        [wheel] = [name for name in names if name.endswith(".dist-info/WHEEL")]
        inner = email.parser.Parser().parsestr(archive.read(wheel).decode())
    if set(inner.get_all("Tag", [])) != tags:
        raise Wrong(f"{path.name}: its WHEEL says {inner.get_all('Tag')}")
    binaries = [name for name in names if name.endswith((".so", ".pyd"))]
    pure = tags == {"py3-none-any"}
    if (inner["Root-Is-Purelib"] == "true") is not pure:
        raise Wrong(f"{path.name}: Root-Is-Purelib is {inner['Root-Is-Purelib']}")
    if pure:
        expected = None
    elif any("-abi3-" in tag for tag in tags):
        windows = any("-win_" in tag for tag in tags)
        expected = r"aioproc/_native\.pyd" if windows else r"aioproc/_native\.abi3\.so"
    else:
        expected = r"aioproc/_native\.[\w.-]+\.(so|pyd)"
    if expected is None:
        if binaries:
            raise Wrong(f"{path.name}: a pure wheel with {binaries}")
    elif len(binaries) != 1 or not re.fullmatch(expected, binaries[0]):
        raise Wrong(f"{path.name}: its binaries are {binaries}")


def missing(names: Iterable[str], wheels: Iterable[str] = WHEELS) -> list[str]:
    """What a release has and these files are not; of the keys of WHEELS these alone."""
    names = list(names)
    wanted = {"sdist": r"\.tar\.gz", "pure wheel": r"-py3-none-any\.whl"}
    for wheel in wheels:
        for platform, pattern in PLATFORMS.items():
            if platform not in WHEELS[wheel]:
                end = rf"-{wheel}-([^-]+\.)?{pattern}(\.[^-]+)?\.whl"
                wanted[f"{wheel} wheel for {platform}"] = end
    return [
        what for what, end in wanted.items() if not any(re.search(f"{end}$", n) for n in names)
    ]


def check(paths: list[Path], complete: Iterable[str] = ()) -> None:
    """Raises Wrong. `complete`: the keys of WHEELS of which none may be missing, nor the
    sdist and the pure wheel; empty if anything may be."""
    versions, dependencies = {}, {}
    for path in paths:
        if path.suffix == ".whl":
            check_wheel(path)
        metadata = metadata_of(path)
        versions[path] = metadata["Version"]
        dependencies[path] = tuple(sorted(metadata.get_all("Requires-Dist", [])))
    for what, found in (("version", versions), ("list of dependencies", dependencies)):
        if len(set(found.values())) != 1:
            said = "; ".join(f"{path.name}: {value}" for path, value in found.items())
            raise Wrong(f"not one {what}: {said}")
    lacking = missing((path.name for path in paths), complete) if complete else []
    if lacking:
        raise Wrong(f"missing: {', '.join(lacking)}")


def check_tag(paths: list[Path], tag: str) -> None:
    """What is published, and cannot be taken back."""
    for path in paths:
        metadata = metadata_of(path)
        if metadata["Name"] != distribution.NAME:
            raise Wrong(f"{path.name}: its name is {metadata['Name']}")
        if f"v{metadata['Version']}" != tag:
            raise Wrong(f"{path.name}: its version is not that of the tag, {tag}")
        for url in metadata.get_all("Project-URL", []):
            # A domain that is nobody's (RFC 2606): the address is not known yet.
            if re.search(r"//([^/]*\.)?(example\.\w+|[^/]*\.(invalid|example))(/|$)", url):
                raise Wrong(f"{path.name}: pyproject.toml has no real address: {url}")


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--complete", action="store_true", help="nothing may be missing")
    parser.add_argument("--tag", help="that of the release")
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    paths = sorted(
        path for path in options.directory.iterdir() if path.name.endswith((".whl", ".tar.gz"))
    )
    if not paths:
        raise SystemExit(f"no files in {options.directory}")
    try:
        check(paths, WHEELS if options.complete else ())
        if options.tag:
            check_tag(paths, options.tag)
    except Wrong as wrong:
        print(wrong, file=sys.stderr)
        return 1
    for path in paths:
        print(f"{path.stat().st_size:>8}  {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
