"""Builds the documentation's site and checks it: python tools/site.py [--online] [OUT]

Every warning of Sphinx is an error. Then, in what was built: each link within the site leads to a
page, and an anchor, that is there; the reference has each public name with a whole signature, and
no private one. Needs the extra "docs".
"""

from __future__ import annotations

import argparse
import inspect
import re
import subprocess
import sys
import tempfile
import urllib.parse
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Methods that are public by their names alone: the side that feeds a stream, say.
NOT_FOR_USERS = {
    "StreamReader": {
        *("exception", "feed_data", "feed_eof", "set_exception", "set_transport"),
    },
    "StreamWriter": {"start_tls"},
    "SubprocessTransport": {"resize"},
    "Limiter": {"room", "is_short", "has_others"},
}


class Wrong(Exception):
    """What must not be published; the message says why."""


class Page(HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if value is None:
                continue
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            elif name in ("href", "src"):
                self.links.append(value)


def build(out: Path, online: bool) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E"]
    command += ["-t", "online"] if online else []
    done = subprocess.run([*command, "docs", str(out)], cwd=ROOT, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise Wrong("Sphinx warns, see above")


def check_links(out: Path) -> int:
    pages = {path: Page(path) for path in sorted(out.rglob("*.html"))}
    count = 0
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            count += 1
            target = path
            if parts.path:
                target = (path.parent / urllib.parse.unquote(parts.path)).resolve()
            anchor = urllib.parse.unquote(parts.fragment)
            if not target.is_file():
                broken.append(f"{path.relative_to(out)}: {link}")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                broken.append(f"{path.relative_to(out)}: {link}: no such anchor")
    if broken:
        raise Wrong("\n".join(sorted(set(broken))))
    return count


def described(out: Path) -> set[str]:
    """The names of the reference: those of the inventory that others refer to it by."""
    data = (out / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(data).decode().splitlines()
    found = (re.match(r"(aioproc\S*) py:(?!module)", line) for line in lines)
    names = {match[1] for match in found if match}
    # Where a public class is defined is another name of it, for references alone.
    aliases = {name for name in names if f"aioproc.{name.rpartition('.')[2]}" in names - {name}}
    return names - aliases


def public() -> Iterator[str]:
    import aioproc

    for name in aioproc.__all__:
        yield f"aioproc.{name}"
        value = getattr(aioproc, name)
        if not inspect.isclass(value) or not value.__module__.startswith("aioproc"):
            continue
        for member, thing in vars(value).items():
            is_ours = inspect.isfunction(thing) or isinstance(thing, (property, classmethod))
            if member.startswith("_") or not is_ours:
                continue
            if member not in NOT_FOR_USERS.get(name, ()):
                yield f"aioproc.{name}.{member}"


def check_reference(out: Path) -> int:
    names = described(out)
    missing = sorted(set(public()) - names)
    if missing:
        raise Wrong(f"not in the reference: {', '.join(missing)}")
    private = sorted(name for name in names if re.search(r"\._", name))
    if private:
        raise Wrong(f"private, and in the reference: {', '.join(private)}")
    for page in (out / "reference").glob("*.html"):
        if "(*args, **kwargs)" in page.read_text(encoding="utf-8"):
            raise Wrong(f"{page.name}: a signature that says nothing")
    return len(names)


def main() -> int:
    parser = argparse.ArgumentParser(description="Builds the documentation's site and checks it.")
    parser.add_argument("--online", action="store_true", help="ask docs.python.org for its names")
    parser.add_argument("out", nargs="?", type=Path, help="where to leave it")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(prefix="aioproc-site-") as folder:
        out = (options.out or Path(folder)).resolve()
        try:
            build(out, options.online)
            links, names = check_links(out), check_reference(out)
        except Wrong as error:
            print(error, file=sys.stderr)
            return 1
        pages = len(list(out.rglob("*.html")))
        print(f"{pages} pages, {links} links within, {names} names in the reference")
    return 0


if __name__ == "__main__":
    sys.exit(main())
