"""The scanner of the pure backend, by Linux' /proc.

A listing of /proc is a thousand names at a time, and so of a moment ago: who forks and
ends without a pause is not met alive by it. Such a process is the youngest there is, and
/proc/loadavg has the number of that (proc(5)).
"""

from __future__ import annotations

import errno
import os
import signal
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, NamedTuple

from ..trees import LEADER_HAS_IT, NAMED, RESUME, VARIABLE

_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
_SPARE = 2
_PIECE = 1 << 15
_ENTRY = VARIABLE.encode() + b"="
#: The most that an exec takes is 6 MiB (execve(2)).
_ENVIRONMENT = 16 << 20
#: How many looks at the youngest process a round has.
_CHASE = 200
#: As far as parents are followed.
_GENERATIONS = 64

#: Not in every Python, and refused by some containers. It takes a descriptor of /proc/PID
#: as well (Linux 3eb39f47934f), so that the process which was looked at is the one that gets
#: the signal.
_by_descriptor: Callable[[int, int], None] | None = getattr(signal, "pidfd_send_signal", None)


class Facts(NamedTuple):
    """Of /proc/PID/stat."""

    pid: int
    parent: int
    group: int
    session: int
    start: int
    alive: bool
    stopped: bool


def parse(pid: int, text: bytes) -> Facts:
    # The name, its second field, may have blanks and parentheses in it; the others not.
    fields = text.rpartition(b")")[2].split()
    if len(fields) < 20:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    state = fields[0]
    return Facts(
        pid,
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        start=int(fields[19]),
        # The state is that of the first thread, which can end before the others.
        alive=state not in (b"Z", b"X", b"x") or int(fields[17]) > 1,
        stopped=state == b"T",
    )


def is_in_exec(text: bytes) -> bool:
    """By /proc/PID/stat: whether it has new memory (vsize), and in it no environment yet
    (env_end), which is written at the end of an exec (create_elf_tables() in fs/binfmt_elf.c).
    One that is empty has an end, and what has no memory is of the kernel, or about to have
    ended."""
    fields = text.rpartition(b")")[2].split()
    return len(fields) > 48 and fields[20] != b"0" and fields[48] == b"0"


def marks_in(environment: bytes) -> set[int]:
    """All marks of all entries that have any."""
    found = set()
    for entry in environment.split(b"\0"):
        if entry.startswith(_ENTRY):
            for mark in entry[len(_ENTRY) :].split(b":"):
                if len(mark) == 16 and not mark.strip(b"0123456789abcdef"):
                    found.add(int(mark, 16))
    return found


class _Gone(Exception):
    """There is no such process any more."""


class _Proc:
    """The files of /proc. Some descriptors are kept for when no others are to be had."""

    def __init__(self) -> None:
        flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0)
        try:
            self.root = os.open("/proc", flags)
        except FileNotFoundError:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP)) from None
        self._spare: list[int] = []
        #: Open just now.
        self._files: list[int] = []
        try:
            # It may be that of another pid namespace, with other numbers, and none of procfs.
            own = os.getpid()
            try:
                if int(os.readlink("self", dir_fd=self.root)) != own:
                    raise ValueError
                self.facts(own)
                # We have an environment; not every system that has a /proc says where.
                self._tells_ends = not is_in_exec(self._read("self/stat", self.root, 2048))
            except (_Gone, ValueError, IndexError, OSError) as error:
                if isinstance(error, OSError) and error.errno in _NO_DESCRIPTOR:
                    raise
                raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP)) from None
            self._restock()
        except BaseException:
            self.close()
            raise

    def _restock(self) -> None:
        try:
            while len(self._spare) < _SPARE:
                self._spare.append(os.dup(self.root))
        except OSError:
            pass  # later, then

    def close(self) -> None:
        """Also in a forked process, even if the fork came in the midst of a call below."""
        for fd in [*self._files, *self._spare, self.root]:
            try:
                os.close(fd)
            except OSError:
                pass  # closed, but not noted yet, when the fork came
        self._files, self._spare = [], []

    def _open(self, name: str, where: int, flags: int = 0) -> int:
        while True:
            try:
                fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=where)
            except (FileNotFoundError, ProcessLookupError):
                raise _Gone from None
            except OSError as error:
                if error.errno not in _NO_DESCRIPTOR or not self._spare:
                    raise
                os.close(self._spare.pop())
            else:
                self._files.append(fd)
                return fd

    def _close(self, fd: int) -> None:
        self._files.remove(fd)
        if len(self._spare) < _SPARE:
            # In one step: no other thread can take the place meanwhile.
            try:
                os.dup2(self.root, fd, inheritable=False)
            except OSError:
                pass  # EBUSY, EINTR (dup(2)): fd is as it was, and is closed instead
            else:
                self._spare.append(fd)
                return
        os.close(fd)

    def _read(self, name: str, where: int, most: int) -> bytes:
        fd = self._open(name, where)
        try:
            pieces = [os.read(fd, min(most, _PIECE))]
            # What is small comes at once.
            while most > _PIECE and pieces[-1] and len(pieces) < most // _PIECE:
                pieces.append(os.read(fd, _PIECE))
        except ProcessLookupError:
            raise _Gone from None
        finally:
            self._close(fd)
        return b"".join(pieces)

    def facts(self, pid: int) -> Facts:
        return parse(pid, self._read(f"{pid}/stat", self.root, 512))

    def marks(self, pid: int) -> set[int] | None:
        """None: it is in the midst of an exec, and has no environment. _Gone. OSError: it may
        be another user's, who does not let us read it."""
        for _ in range(2):
            environment = self._read(f"{pid}/environ", self.root, _ENVIRONMENT)
            if environment:
                return marks_in(environment)
            if self._tells_ends and is_in_exec(self._read(f"{pid}/stat", self.root, 2048)):
                return None
            # It has come to the end of that meanwhile, or there is none.
        return set()

    def numbers(self) -> list[int]:
        self._restock()
        while True:
            try:
                names = os.listdir(self.root)  # opens another descriptor
            except OSError as error:
                if error.errno not in _NO_DESCRIPTOR or not self._spare:
                    raise
                os.close(self._spare.pop())
            else:
                return [int(name) for name in names if name.isdecimal()]

    def youngest(self) -> int:
        """The last number that was given to a process or a thread; 0: not to be had."""
        try:
            return int(self._read("loadavg", self.root, 512).split()[4])
        except (_Gone, OSError, IndexError, ValueError):
            return 0

    def _is_own_thread(self, number: int) -> bool:
        """Threads have files as well, which are not listed."""
        try:
            os.stat(f"self/task/{number}", dir_fd=self.root)
        except OSError:
            return False
        return True

    def kill_marked(self, pid: int, wanted: Container[int]) -> set[int]:
        """Ends a process that has one of these marks, by as few calls as can be. Returns
        those it has."""
        fd = -1
        try:
            fd = self._open(str(pid), self.root, os.O_DIRECTORY)
            text = self._read("environ", fd, _PIECE)
            found = {mark for mark in marks_in(text) if mark in wanted}
            if not found or self._is_own_thread(pid) or _by_descriptor is None:
                return set()
            _by_descriptor(fd, signal.SIGKILL)
            return found
        except (_Gone, OSError):
            return set()
        finally:
            if fd >= 0:
                self._close(fd)

    def send(self, who: Facts, signals: Iterable[int], resume: bool) -> None:
        """_Gone: it has ended, or the number is another's. OSError."""
        fd = -1
        try:
            try:
                fd = self._open(str(who.pid), self.root, getattr(os, "O_DIRECTORY", 0))
                now = parse(who.pid, self._read("stat", fd, 512))
            except OSError:
                if fd >= 0:
                    raise
                now = self.facts(who.pid)
            if now.start != who.start or not now.alive:
                raise _Gone
            for number in signals:
                _send(fd, who.pid, number)
            if resume and now.stopped:
                _send(fd, who.pid, signal.SIGCONT)
        except ProcessLookupError:
            raise _Gone from None
        finally:
            if fd >= 0:
                self._close(fd)


def _send(fd: int, pid: int, number: int) -> None:
    if _by_descriptor is not None and fd >= 0:
        try:
            _by_descriptor(fd, number)
        except ProcessLookupError:
            raise
        except OSError:
            pass  # EPERM is the answer of a seccomp filter as well
        else:
            return
    os.kill(pid, number)


class PureSought:
    """As ap_tree in C."""

    def __init__(self) -> None:
        self.leader = self.session = self.mark = self.start = self.born = 0
        self.signal = self.step = self.flags = self.group = self.group_time = 0
        self.alive = self.newcomers = self.signalled = self.denied = self.in_exec = 0
        self.pids: list[int] = []
        self.anchored = False
        #: In an earlier round.
        self.seen = False

    def has_it(self, who: Facts) -> bool:
        """The signal of this step, by another way."""
        if self.flags & LEADER_HAS_IT and who.pid == self.leader:
            return True
        return bool(self.group) and who.group == self.group and who.start <= self.group_time


class _Member:
    """Of one tree or more: the last step of each that it has the signal of."""

    __slots__ = ("alive", "facts", "in_exec", "is_read", "steps", "was_others")

    def __init__(
        self, facts: Facts, steps: dict[PureSought, int], was_others: bool = False
    ) -> None:
        self.facts = facts
        self.alive = facts.alive
        self.steps = steps
        #: It has been seen with another parent than us.
        self.was_others = was_others
        #: What is known of its environment: that there is none yet; which marks are in it.
        self.in_exec = self.is_read = False


class PureScanner:
    def __init__(self) -> None:
        """OSError: ENOTSUP where processes cannot be seen."""
        self._proc = _Proc()
        self._own = os.getpid()
        #: By number, as the last round saw them.
        self._before: dict[int, _Member] = {}
        self._now: dict[int, _Member] = {}
        self._begin(())

    def sought(self) -> PureSought:
        return PureSought()

    def pids(self, tree: Any, /) -> list[int]:
        return list(tree.pids)

    def close(self) -> None:
        self._proc.close()

    def round(self, trees: Sequence[Any], /) -> int:
        youngest = self._proc.youngest()
        numbers = self._proc.numbers()
        self._begin(trees)
        for pid in numbers:
            self._visit(pid)
        self._anchor_by_members()
        self._join_the_rest()
        for one in self._now.values():
            self._act(one, one.steps)
            for tree in one.steps if one.alive else ():
                tree.alive += 1
                if tree.alive <= NAMED:
                    tree.pids.append(one.facts.pid)
            if one.in_exec and one.alive:
                for tree in trees:
                    tree.in_exec += bool(tree.mark) and self._may_be_member(tree, one)
            self._reap_orphan(one)
        self._chase(youngest)
        self._before, self._now = self._now, {}
        return len(numbers)

    def _begin(self, trees: Sequence[PureSought]) -> None:
        self._trees = set(trees)
        self._by_leader: defaultdict[int, list[PureSought]] = defaultdict(list)
        self._by_session: defaultdict[int, list[PureSought]] = defaultdict(list)
        self._by_mark: defaultdict[int, list[PureSought]] = defaultdict(list)
        self._fresh = {tree for tree in trees if not tree.seen}
        for tree in trees:
            tree.seen = True
            self._by_leader[tree.leader].append(tree)
            if tree.session:
                self._by_session[tree.session].append(tree)
            if tree.mark:
                self._by_mark[tree.mark].append(tree)
            tree.alive = tree.newcomers = tree.signalled = tree.denied = tree.in_exec = 0
            tree.pids = []
            tree.anchored = False
            if tree.leader > 0:
                try:
                    start = self._proc.facts(tree.leader).start
                except (_Gone, OSError):
                    continue
                tree.anchored = (
                    start == tree.start if tree.start else start <= (tree.born or start)
                )
                if tree.anchored:
                    tree.start = start
        self._oldest = min((tree.start for tree in trees), default=0)

    def _visit(self, pid: int) -> None:
        if pid in (1, self._own):
            return
        before = self._before.get(pid)
        steps = before.steps if before is not None else {}
        steps = {tree: step for tree, step in steps.items() if tree in self._trees}
        try:
            facts = self._proc.facts(pid)
            if facts.start < self._oldest:  # than any member could be
                return
        except _Gone:
            return
        except OSError:
            if before is not None:
                self._now[pid] = _Member(before.facts, steps)
            return
        if before is None or before.facts.start != facts.start:
            before, steps = None, {}
        was_others = facts.parent != self._own or (before is not None and before.was_others)
        one = self._now[pid] = _Member(facts, steps, was_others)
        self._join_by_leader(one)
        self._join_by_parent(one)
        came = self._join_by_session(one)
        if facts.alive and self._by_mark and len(one.steps) < len(self._trees):
            try:
                marks = self._proc.marks(pid)
            except (_Gone, OSError):
                marks = set()
            else:
                one.in_exec, one.is_read = marks is None, marks is not None
            for mark in marks or ():
                came |= self._join(one, self._by_mark.get(mark, ()))
        if came:
            # A member that has come since the last round: it may not live long.
            self._act(one, one.steps.keys() - self._fresh)

    def _chase(self, last: int) -> None:
        """Ends those that are younger than this one, if they have the mark of a tree that is
        to be killed. They are noted like others: the next round sees what has become of them."""
        wanted = defaultdict(list)
        for tree in self._trees:
            if tree.signal == signal.SIGKILL and tree.mark:
                wanted[tree.mark].append(tree)
        for _ in range(_CHASE if wanted else 0):
            youngest = self._proc.youngest()
            if youngest == last:
                return
            # After the highest number that there can be the lowest that is free comes.
            first = max(last + 1, youngest - 2) if last < youngest else youngest
            for pid in range(first, youngest + 1):
                ended = [
                    tree for mark in self._proc.kill_marked(pid, wanted) for tree in wanted[mark]
                ]
                for tree in ended:
                    tree.newcomers += 1
                    tree.alive += 1
                if ended and pid not in self._now:
                    self._note(pid, ended)
            last = youngest

    def _note(self, pid: int, trees: Iterable[PureSought]) -> None:
        try:
            facts = self._proc.facts(pid)
        except (_Gone, OSError):
            return
        steps = {tree: tree.step for tree in trees}
        self._now[pid] = _Member(facts, steps, facts.parent != self._own)

    # -- what makes a process a member

    def _join(self, one: _Member, trees: Iterable[PureSought]) -> bool:
        """Whether it was not one before."""
        new = [t for t in trees if t not in one.steps and one.facts.start >= t.start]
        for tree in new:
            one.steps[tree] = 0
            tree.newcomers += one.alive
        return bool(new)

    def _join_by_leader(self, one: _Member) -> None:
        pid, start = one.facts.pid, one.facts.start
        leads = self._by_leader.get(pid, ())
        self._join(one, [t for t in leads if t.anchored and t.start == start])

    def _join_by_session(self, one: _Member) -> bool:
        trees = self._by_session.get(one.facts.session, ())
        return self._join(one, [tree for tree in trees if tree.anchored])

    def _join_by_parent(self, one: _Member) -> bool:
        parent = self._now.get(one.facts.parent)
        if parent is None or not parent.steps.keys() - one.steps.keys():
            return False
        # The same before and after: it was so when the other named it as its parent.
        try:
            if self._proc.facts(parent.facts.pid).start != parent.facts.start:
                return False
        except (_Gone, OSError):
            return False
        return self._join(one, list(parent.steps))

    def _anchor_by_members(self) -> None:
        """A member that was in the session before vouches for its number when the leader
        is gone."""
        for one in self._now.values():
            for tree in one.steps if one.alive else ():
                if tree.session and one.facts.session == tree.session:
                    tree.anchored = True

    def _join_the_rest(self) -> None:
        """What the order of the numbers has hidden: children that were seen before their
        parents."""
        more = True
        while more:
            more = False
            for one in self._now.values():
                joined = self._join_by_session(one)
                if self._join_by_parent(one) or joined:
                    more = True

    # -- who is in the midst of an exec

    def _may_adopt(self, pid: int) -> bool:
        """Whether it is given children whose parents have ended, as far as that can be told."""
        if pid <= 1 or pid == self._own:
            return True
        ancestor = os.getppid()
        for _ in range(_GENERATIONS):
            if ancestor <= 1:
                break
            if ancestor == pid:
                return True
            try:
                ancestor = self._proc.facts(ancestor).parent
            except (_Gone, OSError):
                return True
        return False

    def _may_be_member(self, tree: PureSought, one: _Member) -> bool:
        """It has no mark to be read. Who has lost his parent is given to the first process, or
        to an ancestor of him that is a member, we or an ancestor of ours. With any other
        parent, which is no member, he is none; on a busy machine there is one of those at any
        time."""
        if tree in one.steps or one.facts.start < tree.start:
            return False
        for _ in range(_GENERATIONS):
            pid = one.facts.parent
            if self._may_adopt(pid):
                return True
            try:
                parent = self._proc.facts(pid)
            except (_Gone, OSError):
                return True
            if parent.start > one.facts.start:
                return True  # another one has the number now
            if parent.start < tree.start:
                return False
            known = self._now.get(pid)
            if known is None or known.facts.start != parent.start or tree in known.steps:
                return True
            if not known.in_exec:
                return not known.is_read
            one = known
        return True

    # -- orphans

    def _reap_orphan(self, one: _Member) -> None:
        """As in C (reap_orphan): where orphans are given to us nobody else waits for them."""
        facts = one.facts
        if one.alive or facts.parent != self._own or not one.steps:
            return
        if any(facts.pid == tree.leader for tree in one.steps):
            return
        if one.was_others or any(tree.leader >= 0 for tree in one.steps):
            try:
                os.waitpid(facts.pid, os.WNOHANG)
            except ChildProcessError:
                pass  # somebody was first

    # -- signals

    def _act(self, one: _Member, trees: Iterable[PureSought]) -> None:
        """What these want. Of those that have just begun, and of members that are known by
        their parents, only when all have been seen: whose parent has ended does not tell
        any more whose child it was."""
        if not one.alive:
            return
        signals: set[int] = set()
        resume = False
        told = [tree for tree in trees if tree.signal > 0]
        for tree in told:
            if tree.signal == signal.SIGKILL:
                signals.add(signal.SIGKILL)
            else:
                if one.steps[tree] != tree.step and not tree.has_it(one.facts):
                    signals.add(tree.signal)
                resume = resume or bool(tree.flags & RESUME)
        if signal.SIGKILL in signals:
            signals = {signal.SIGKILL}
        if not signals and not (resume and one.facts.stopped):
            return
        error: OSError | None = None
        try:
            self._proc.send(one.facts, sorted(signals), resume)
        except _Gone:
            one.alive = False
            return
        except OSError as raised:
            error = raised
        for tree in told:
            if error is None or error.errno == errno.EPERM:
                one.steps[tree] = tree.step
            tree.signalled += error is None and bool(signals)
            tree.denied += error is not None
