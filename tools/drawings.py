"""Draws docs/drawings/*.svg: python tools/drawings.py

Those of docs/design.md are nothing but text and numbers: whoever changes the design changes the
words here. The chart of docs/speed.md shows what docs/performance.json has.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
OUT = DOCS / "drawings"

INK = "#1b1f24"
GREY = "#6a737d"
#: Fills: what is ours in Python, in C, the kernel's, the child's.
PYTHON, C, KERNEL, CHILD, PLAIN = "#dbeafe", "#fef3c7", "#e5e7eb", "#dcfce7", "#ffffff"


class Drawing:
    def __init__(self, width: int, height: int, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" font-family="sans-serif" '
            f'font-size="13" fill="{INK}">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0 10 5 0 10z" fill="{INK}"/></marker>'
            "</defs>",
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
        ]

    def box(self, x: int, y: int, w: int, h: int, text: str, fill: str = PLAIN) -> None:
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="5" fill="{fill}" '
            f'stroke="{GREY}"/>'
        )
        lines = text.split("\n")
        top = y + h / 2 + 4.5 - 8.5 * (len(lines) - 1)
        for i, line in enumerate(lines):
            self.text(x + w // 2, int(top + 17 * i), line, "middle", bold=i == 0)

    def bar(self, x: int, y: int, w: int, h: int, fill: str) -> None:
        self.parts.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="{fill}"/>')

    def text(
        self,
        x: int,
        y: int,
        text: str,
        anchor: str = "start",
        bold: bool = False,
        grey: bool = False,
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        colour = f' fill="{GREY}"' if grey else ""
        self.parts.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}"{weight}{colour}>{escape(text)}</text>'
        )

    def line(
        self, points: Iterable[tuple[int, int]], tip: bool = True, dashed: bool = False
    ) -> None:
        path = " ".join(f"{x},{y}" for x, y in points)
        ink = f'fill="none" stroke="{INK}" stroke-width="1.3"'
        end = ' marker-end="url(#tip)"' if tip else ""
        dashes = ' stroke-dasharray="4 4"' if dashed else ""
        self.parts.append(f'<polyline points="{path}" {ink}{end}{dashes}/>')

    def save(self, name: str) -> None:
        OUT.mkdir(exist_ok=True)
        (OUT / name).write_text("\n".join([*self.parts, "</svg>", ""]), encoding="utf-8")


def layers() -> None:
    """Who stands on whom."""
    draw = Drawing(720, 430, "The layers of aioproc: imports and calls go down only")
    draw.box(20, 20, 330, 52, "run(), run_many(), pipeline()\n_run/", PYTHON)
    draw.box(370, 20, 330, 52, "create_subprocess_exec(), install()\n_api.py, _install.py", PYTHON)
    draw.box(195, 92, 330, 46, "open_process()\n_open.py", PYTHON)
    draw.box(20, 158, 330, 52, "collect, feed, listen, result\n_run/", PYTHON)
    draw.box(370, 158, 330, 52, "transport, streams, Process\n_asyncio/", PYTHON)
    draw.box(20, 230, 330, 46, "SpawnSpec: judges all input, once\n_spec/", PYTHON)
    draw.box(370, 230, 330, 46, "Tree: ending what was started\n_trees/", PYTHON)
    draw.box(20, 296, 680, 46, "Child: one record on every system\n_backends/base.py", PYTHON)
    draw.box(20, 362, 160, 50, "native\nLinux, macOS, BSD", C)
    draw.box(193, 362, 160, 50, "pure\nPOSIX, by Popen", PYTHON)
    draw.box(367, 362, 160, 50, "native\nWindows", C)
    draw.box(540, 362, 160, 50, "pure\nWindows, by Popen", PYTHON)
    draw.save("layers.svg")


def spawn() -> None:
    """What happens when, in whose thread."""
    draw = Drawing(720, 470, "A spawn on Linux: the event loop does not wait for the exec")
    columns = {"loop": 110, "kernel": 360, "child": 610}
    for name, fill, title in (
        ("loop", PYTHON, "our thread\nthe event loop"),
        ("kernel", KERNEL, "kernel\nthe port: an epoll"),
        ("child", CHILD, "the child"),
    ):
        x = columns[name]
        draw.box(x - 90, 14, 180, 44, title, fill)
        draw.line([(x, 58), (x, 455)], tip=False, dashed=True)

    def message(y: int, start: str, end: str, text: str) -> None:
        a, b = columns[start], columns[end]
        draw.line([(a, y), (b, y)])
        draw.text((a + b) // 2, y - 6, text, "middle")

    message(95, "loop", "kernel", "clone(CLONE_VM | CLONE_PIDFD)")
    message(125, "kernel", "loop", "back after 14 µs, with a pidfd")
    message(125, "kernel", "child", "begins, in our memory")
    draw.box(30, 150, 160, 90, "the loop goes on\nother tasks run", PYTHON)
    draw.box(
        520, 150, 180, 90, "signals, stdio, limits\ninline system calls only\nexecve()", CHILD
    )
    message(275, "child", "kernel", "exec: its pipe closes, or has errno")
    message(305, "kernel", "loop", "port readable: STARTED")
    draw.text(118, 330, "await child.started: done", grey=True)
    draw.box(520, 300, 180, 46, "the program runs\nin memory of its own", CHILD)
    message(385, "child", "kernel", "exit: pidfd readable")
    message(415, "kernel", "loop", "port readable: EXITED, by waitid()")
    draw.text(118, 440, "wait() returns", grey=True)
    draw.save("spawn.svg")


def tree() -> None:
    """How members are found, and how they are ended."""
    draw = Drawing(720, 400, "How the members of a tree are found and ended")
    draw.text(20, 28, "Who belongs to it", bold=True)
    draw.box(280, 44, 160, 44, "the child\nleads a session", CHILD)
    draw.box(60, 140, 170, 44, "in its session", CHILD)
    draw.box(275, 140, 170, 44, "setsid(), its parent\nstill lives", CHILD)
    draw.box(490, 140, 190, 44, "setsid(), its parent\nhas ended", CHILD)
    draw.line([(300, 88), (150, 138)])
    draw.line([(360, 88), (360, 138)])
    draw.line([(420, 88), (580, 138)], dashed=True)
    draw.text(145, 205, "by the session", "middle", grey=True)
    draw.text(360, 205, "by the chain of parents", "middle", grey=True)
    draw.text(585, 205, "by AIOPROC_TREE in its environment", "middle", grey=True)

    draw.text(20, 255, "How it is ended", bold=True)
    steps = [
        ("SIGTERM\nto the group, by pidfd", PYTHON),
        ("scan: others\nget it, one by one", C),
        ("grace\ntill the last has ended", PLAIN),
        ("SIGKILL, rounds\nuntil nobody is new", C),
    ]
    for i, (text, fill) in enumerate(steps):
        x = 20 + 174 * i
        draw.box(x, 275, 156, 50, text, fill)
        if i:
            draw.line([(x - 18, 300), (x - 2, 300)])
    draw.line([(446, 325), (446, 360), (540, 360)])
    draw.text(546, 364, "nobody is left: over", grey=True)
    draw.text(20, 364, "Each pid is opened, then checked again, then signalled.", grey=True)
    draw.save("tree.svg")


#: What a user asks for first: a work of tools/bench, a metric of it, and what to call that.
WORKS = (
    ("spawn-32", "time", "start 32 at a time, wait"),
    ("echo-32", "time", "captured output, 32 at a time"),
    ("echo-32", "cpu", "the same, CPU of the parent"),
    ("loop-time", "lost", "time taken from the event loop"),
    ("out", "time", "communicate(), 256 MiB out"),
    ("in", "time", "communicate(), 256 MiB in"),
    ("lines", "time", "a million lines"),
)
#: Their ratios go beyond the chart.
LONGEST = 2.0


def bars() -> None:
    """How fast, by peer."""
    rows = json.loads((DOCS / "performance.json").read_text(encoding="utf-8"))["rows"]
    values = {row["work"]: row["values"] for row in rows if row["user"] is None}
    left, width, step = 250, 400, 46
    height = 60 + step * len(WORKS)
    draw = Drawing(720, height, "Ratios to asyncio, less is better")
    draw.text(left + width // 2, 20, "asyncio = 1 (dashed); less is better", "middle", grey=True)
    one = left + int(width / LONGEST)
    peers = {"native": "#2563eb", "uvloop": "#cbd5e1"}
    for j, (name, fill) in enumerate(zip(("aioproc", "uvloop"), peers.values(), strict=True)):
        draw.bar(20 + 90 * j, 10, 14, 14, fill)
        draw.text(40 + 90 * j, 21, name, bold=not j)
    for i, (work, metric, title) in enumerate(WORKS):
        y = 36 + step * i
        draw.text(left - 12, y + 22, title, "end")
        for j, (peer, fill) in enumerate(peers.items()):
            pairs = zip(values[work][peer][metric], values[work]["asyncio"][metric], strict=True)
            ratio = statistics.median(mine / others for mine, others in pairs)
            length = int(min(ratio, LONGEST) / LONGEST * width)
            draw.bar(left, y + 17 * j, length, 14, fill)
            more = "" if ratio <= LONGEST else " →"
            draw.text(left + length + 6, y + 12 + 17 * j, f"{ratio:.2f}{more}", grey=bool(j))
    draw.line([(one, 28), (one, height - 14)], tip=False, dashed=True)
    draw.save("speed.svg")


if __name__ == "__main__":
    for drawing in (layers, spawn, tree, bars):
        drawing()
