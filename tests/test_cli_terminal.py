"""``aioproc run`` in a real terminal: that of tmux."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import aioproc as aioproc_package
from aside import PROC
from conftest import FUSE, is_alive, settle
from programs import WINDOWS

if WINDOWS:
    pytest.skip("no terminal as POSIX has it", allow_module_level=True)

pytestmark = pytest.mark.skipif(not PROC, reason="tmux is asked for on Linux")

ROOT = Path(aioproc_package.__file__).parent.parent
#: As the shell there knows it.
RUN = f"{shlex.quote(sys.executable)} -m aioproc run"


class Terminal:
    """A shell in a terminal. What is typed before its prompt is there may be lost: so each
    prompt is waited for, by how many there are on the screen."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("tmux")
        assert program, "tmux is missing: tools/setup.sh installs it"
        self._tmux = [program, "-f", "/dev/null", "-S", str(folder / "tmux")]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PS1": "$ ", "TERM": "xterm", "HISTFILE": ""}
        shell = ["bash", "--norc", "--noprofile", "-i"]
        options = ["-x", "90", "-y", "40", *shell]
        subprocess.run([*self._tmux, "new-session", "-d", *options], env=env, check=True)
        self.server = int(self._ask("display-message", "-p", "#{pid}"))
        self.shell = int(self._ask("display-message", "-p", "#{pane_pid}"))
        self.wait_for("$")

    def _ask(self, *command: str) -> str:
        done = subprocess.run([*self._tmux, *command], check=True, capture_output=True, text=True)
        return done.stdout

    def type(self, *keys: str) -> None:
        self._ask("send-keys", *keys)

    def enter(self, line: str) -> None:
        self._ask("send-keys", "-l", line)
        self.type("Enter")

    def screen(self) -> str:
        return self._ask("capture-pane", "-p")

    def wait_for(self, text: str, count: int = 1) -> str:
        """Until it stands at the beginning of so many lines."""
        end = time.monotonic() + FUSE
        while f"\n{self.screen()}".count(f"\n{text}") < count:
            assert time.monotonic() < end, self.screen()
            time.sleep(0.02)
        return self.screen()

    def hang_up(self) -> None:
        self._ask("kill-pane")

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], capture_output=True)
        assert settle(lambda: not is_alive(self.server) and not is_alive(self.shell))


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


def pids_in(file: Path) -> list[int]:
    assert settle(file.exists)
    return [int(pid) for pid in file.read_text().split()]


def family(file: Path, then: str = "wait") -> str:
    """A command that says who it is, and goes on."""
    script = f"sleep 1000 & echo $! $$ >{file}.new; mv {file}.new {file}; echo there; {then}"
    return f"sh -c {shlex.quote(script)}"


def test_an_interrupt_stops_the_shells_loop(terminal: Terminal, tmp_path: Path) -> None:
    """As it does if the command runs without us."""
    terminal.enter(f"for i in 1 2 3; do {RUN} {family(tmp_path / 'pids')}; echo next; done")
    terminal.wait_for("there")
    terminal.type("C-c")
    terminal.wait_for("$", 2)
    terminal.enter('echo "code $?"')
    screen = terminal.wait_for("code 130")
    assert "\nnext" not in screen
    assert "Traceback" not in screen
    # A shell's own background job does not mind Ctrl-C, with us or without.
    job, leader = pids_in(tmp_path / "pids")
    assert not is_alive(leader)
    assert is_alive(job)
    os.kill(job, signal.SIGKILL)


def test_a_command_that_takes_interrupts(terminal: Terminal) -> None:
    script = "trap 'echo caught; exit 3' INT; echo there; while :; do sleep 0.05; done"
    terminal.enter(f'for i in 1 2; do {RUN} sh -c {shlex.quote(script)}; echo "code $?"; done')
    for count in (1, 2):
        terminal.wait_for("there", count)
        terminal.type("C-c")
        terminal.wait_for("code 3", count)
    assert terminal.screen().count("^Ccaught\n") == 2


def test_a_stop_and_going_on(terminal: Terminal) -> None:
    terminal.enter(f"{RUN} --timeout 1000 sh -c 'echo there; exec cat'")
    terminal.wait_for("there")
    terminal.enter("before")
    terminal.wait_for("before\nbefore")
    terminal.type("C-z")
    terminal.wait_for("[1]+  Stopped")
    terminal.enter("fg")
    # The shell says so once the terminal is no more as its line editor has it, for which a line
    # ends otherwise.
    terminal.wait_for(RUN[:40])
    terminal.enter("after")
    terminal.wait_for("after\nafter")
    terminal.type("C-d")
    terminal.wait_for("$", 3)
    terminal.enter('echo "code $?"')
    terminal.wait_for("code 0")


def test_an_editor(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "text"
    terminal.enter(f"{RUN} vi -u NONE {file}")
    terminal.wait_for("~")
    terminal.type("i")
    terminal.type("-l", "hello")
    terminal.type("Escape")
    terminal.wait_for("hello")
    terminal.enter(":wq")
    terminal.wait_for("$", 2)
    terminal.enter('echo "code $?"')
    terminal.wait_for("code 0")
    assert file.read_text() == "hello\n"


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hang_up(terminal: Terminal, tmp_path: Path, ignored: bool) -> None:
    """Nobody is left, also of those who do not mind it."""
    trap = "trap '' HUP; " if ignored else ""
    file = tmp_path / "pids"
    script = f"{trap}setsid sleep 1000 & echo $! $$ >{file}.new; mv {file}.new {file}; sleep 1000"
    terminal.enter(f"{RUN} --kill-after 0.2 sh -c {shlex.quote(script)}")
    pids = pids_in(file)
    assert all(map(is_alive, pids))
    terminal.hang_up()
    assert settle(lambda: not any(map(is_alive, pids)))


def test_a_timeout_in_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    """It is ended where it may read the terminal; the terminal stays as it was."""
    terminal.enter(
        f"{RUN} --timeout 0.5 {family(tmp_path / 'pids', 'cat')}; stty -a | grep -c icanon"
    )
    terminal.wait_for("aioproc: timed out after 0.5 seconds")
    terminal.wait_for("1")
    assert not any(map(is_alive, pids_in(tmp_path / "pids")))


def test_a_background_job(terminal: Terminal, tmp_path: Path) -> None:
    """Ctrl-C is not for it; what is sent to us alone is passed on."""
    file = tmp_path / "pids"
    terminal.enter(f"{RUN} --kill-after 0.2 {family(file)} &")
    pids = pids_in(file)
    terminal.wait_for("$", 2)
    terminal.type("C-c")
    terminal.wait_for("$", 3)
    terminal.enter("kill -INT $!; wait %1; echo code $?")
    terminal.wait_for("code 130")
    assert not any(map(is_alive, pids))
