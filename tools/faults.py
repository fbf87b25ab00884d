"""Has every system call that aioproc makes fail once, at each of its occurrences, with each
errno that it can plausibly have; and looks at what becomes of that.

    python tools/faults.py                          all, for half an hour or so
    python tools/faults.py --seconds 50 --seed 7    a sample: what fits that time
    python tools/faults.py --only clone --operation run "time out" --call read write
    python tools/faults.py --again 'clone|run|warm|parent|pipe2|2|EMFILE|refused'

Each of tools/reliability/operations.py is done once without a fault, which gives the system
calls of the parent's threads and of its child before the exec; then once for each of them.
After it there must be the right result, or an exception that says what has failed; nothing
may be left (descriptors, children, processes of a tree, threads, watched descriptors, tasks,
memory of the C layer), no other descriptor closed, none closed twice, and the next run and
the next spawn must work. In a loop that has had a child before (warm) and in one that has not
(cold).

Linux on x86_64, with a C compiler. Exits with 0 only if all is well.
"""

from __future__ import annotations

import argparse
import collections
import errno
import json
import os
import platform
import random
import re
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.reliability import ledger  # noqa: E402
from tools.reliability.operations import OPERATIONS  # noqa: E402

RELIABILITY = ROOT / "tools" / "reliability"

#: What is tested: its environment.
SUBJECTS = {
    "clone": {"AIOPROC_BACKEND": "native", "AIOPROC_STRATEGY": "clone"},
    "portable": {"AIOPROC_BACKEND": "native", "AIOPROC_STRATEGY": "portable"},
    "pure": {"AIOPROC_BACKEND": "pure"},
}

#: What each call can plausibly fail with; "made": it is made, and fails all the same. Both
#: in the parent and in the child.
ERRORS = {
    "access": "EACCES",
    "chdir": "EACCES ENOENT",
    "clone": "EAGAIN ENOMEM EAGAIN:late",
    "clone3": "EAGAIN ENOMEM",
    "close": "EIO:made EINTR:made",
    "close_range": "ENOSYS EPERM",
    "dup": "EMFILE",
    "dup2": "EBUSY EINTR EMFILE",
    "dup3": "EBUSY EINTR EMFILE",
    "epoll_create1": "EMFILE ENOMEM",
    "epoll_ctl": "ENOMEM ENOSPC",
    "epoll_pwait": "EINTR",
    "epoll_wait": "EINTR",
    "eventfd2": "EMFILE",
    "execve": "EACCES ENOMEM ETXTBSY E2BIG EAGAIN",
    "faccessat": "EACCES",
    "faccessat2": "EACCES",
    "fcntl": "EMFILE EPERM ENOMEM",
    "fork": "EAGAIN ENOMEM",
    "fstat": "EIO",
    "getdents64": "EIO ENOMEM",
    "ioctl": "ENOMEM EPERM",
    "kill": "ESRCH EPERM",
    "mmap": "ENOMEM",
    "mprotect": "ENOMEM",
    "mremap": "ENOMEM",
    "newfstatat": "EACCES EMFILE",
    "openat": "EMFILE ENFILE ENOMEM EACCES",
    "pidfd_open": "EMFILE ENOMEM",
    "pidfd_send_signal": "ESRCH EPERM",
    "pipe2": "EMFILE ENFILE",
    "poll": "EINTR ENOMEM",
    "prctl": "EPERM",
    "prlimit64": "EPERM",
    "read": "EINTR EAGAIN EIO",
    "readlink": "ENOENT EACCES",
    "readlinkat": "ENOENT EACCES",
    "readv": "EINTR EAGAIN EIO",
    "recvfrom": "EINTR",
    "sched_setaffinity": "EPERM EINVAL",
    "sendto": "EINTR",
    "setgid": "EPERM",
    "setgroups": "EPERM ENOMEM",
    "setpgid": "EPERM ESRCH",
    "setpriority": "EPERM EACCES",
    "setregid": "EPERM EAGAIN",
    "setreuid": "EPERM EAGAIN",
    "setsid": "EPERM",
    "setuid": "EPERM EAGAIN",
    "stat": "EACCES",
    "timerfd_create": "EMFILE ENOMEM",
    "unlinkat": "EPERM",
    "unlink": "EPERM",
    "vfork": "EAGAIN ENOMEM",
    "wait4": "EINTR ECHILD",
    "waitid": "EINTR ECHILD",
    "write": "EINTR EAGAIN EPIPE EIO",
    "writev": "EINTR EAGAIN EPIPE EIO",
}

#: What cannot fail, or has no result that anybody could look at.
CANNOT_FAIL = {
    "brk",
    "clock_gettime",
    "clock_nanosleep",
    "exit",
    "exit_group",
    "futex",
    "getegid",
    "geteuid",
    "getgid",
    "getgroups",
    "getpgrp",
    "getpid",
    "getppid",
    "getrandom",
    "getresgid",
    "getresuid",
    "getrusage",
    "getsid",
    "gettid",
    "getuid",
    "lseek",
    "madvise",
    "munmap",
    "nanosleep",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "rt_tgsigqueueinfo",
    "sched_getaffinity",
    "sched_yield",
    "set_robust_list",
    "sigaltstack",
    "sysinfo",
    "timerfd_settime",
    "umask",
    "uname",
}

#: Occurrences of a call in an operation that are all tried; of more, which are a scan's of all
#: processes, as many again at random.
MOST = 12


class Case(NamedTuple):
    subject: str
    operation: str
    warmth: str
    role: str
    call: str
    occurrence: int
    error: str
    how: str

    def __str__(self) -> str:
        return "|".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Case:
        subject, operation, warmth, role, call, occurrence, error, how = text.split("|")
        return cls(subject, operation, warmth, role, call, int(occurrence), error, how)


class Gone(Exception):
    """The victim has ended, or says nothing any more."""


# -- the victim


def compiler() -> list[str]:
    found = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(found[0]) is None:
        raise SystemExit(f"there is no C compiler {found[0]!r}")
    return found


def build(directory: Path) -> Path:
    program = directory / "inject"
    warnings = ["-Wall", "-Wextra", "-Werror"]
    source = RELIABILITY / "inject.c"
    subprocess.run([*compiler(), "-O2", *warnings, "-o", program, source], check=True)
    return program


def numbers() -> dict[str, int]:
    """The system calls of this machine, from the compiler's headers."""
    command = [*compiler(), "-E", "-dM", "-x", "c", "-"]
    text = "#include <asm/unistd.h>\n"
    listing = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True)
    found = re.findall(r"^#define __NR_(\w+) (\d+)$", listing.stdout, re.M)
    return {name: int(number) for name, number in found}


class Victim:
    """A process that does what it is told to, made anew when it has been ended by that."""

    #: Seconds for an answer; it ends itself sooner.
    FUSE = 60

    def __init__(self, injector: Path, subject: str, directory: Path) -> None:
        self._command = [str(injector), sys.executable, "-m", "tools.reliability.victim"]
        name = f"{os.getpid()}.{subject}"
        self._mark = f"AIOPROC_FAULTS={name}"
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "AIOPROC_FAULTS": name}
        self._environment.update(SUBJECTS[subject])
        if subject == "pure":
            self._environment.pop("AIOPROC_STRATEGY", None)
        self._log = directory / f"{subject}-{time.monotonic_ns()}.log"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        with open(self._log, "a") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
            )
        try:
            self._read()
        except Gone as gone:
            raise SystemExit(f"nothing can be injected here: {gone}") from None

    def _read(self) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], self.FUSE)
        line = process.stdout.readline() if ready else ""
        if not line:
            self.end()
            raise Gone("".join(self._log.read_text(errors="replace")[-3000:]))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        if self._process is None:
            self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        return self._read()

    def end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()  # and by that all that it traces
        process.wait()
        ledger.end_marked(self._mark)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass


def question(case: Case, by_name: dict[str, int]) -> dict[str, Any]:
    return {
        "operation": case.operation,
        "warm": case.warmth == "warm",
        "role": case.role,
        "call": by_name[case.call],
        "occurrence": case.occurrence,
        "error": getattr(errno, case.error),
        "how": case.how,
    }


def cases_of(
    counts: dict[str, dict[str, int]],
    subject: str,
    operation: str,
    warmth: str,
    names: dict[int, str],
    rng: random.Random,
    unknown: set[str],
) -> Iterator[Case]:
    """Of one operation, in which each call has been made so often."""
    for role, by_call in counts.items():
        for number, count in by_call.items():
            call = names[int(number)]
            if call in CANNOT_FAIL or (role, call) == ("child", "write"):
                continue  # the latter: four bytes into an empty pipe
            if call not in ERRORS:
                unknown.add(call)
                continue
            occurrences = list(range(1, min(count, MOST) + 1))
            if count > MOST:
                more = range(MOST + 1, count + 1)
                occurrences += sorted(rng.sample(more, min(MOST, len(more))))
            for occurrence in occurrences:
                for word in ERRORS[call].split():
                    error, _, how = word.partition(":")
                    if (how == "late" and subject != "clone") or (
                        how == "made" and role == "child"
                    ):
                        continue
                    yield Case(
                        subject, operation, warmth, role, call, occurrence, error, how or "refused"
                    )


# -- the judgement

#: What an error may also be told by. All know OSError with its errno.
ALSO = {
    "ENOMEM": ("MemoryError",),
}

#: What follows from faults that no kernel makes, and so is no fault of ours.
ARTEFACTS = [
    # A pipe cannot be read with EIO: the number is taken for somebody else's (exec_result in
    # csrc/posix/children.c), and not closed.
    ("read", "EIO", r"^descriptor \d+ left open: pipe"),
    # It is said that somebody else has waited for the child, and nobody has.
    ("wait4", "ECHILD", r"^child \d+ left"),
    ("waitid", "ECHILD", r"^child \d+ left"),
    # A child that runs already when its creation fails is ended with its group, and not with
    # who has left its session by then.
    *(
        (call, error, r"^process \d+ left: sleep 1001")
        for call, error in (
            ("close", "EIO"),
            ("close", "EINTR"),
            ("pidfd_open", "ENOMEM"),
            ("pidfd_open", "EMFILE"),
            ("read", "EAGAIN"),
            ("epoll_ctl", "ENOMEM"),
            ("epoll_ctl", "ENOSPC"),
        )
    ),
    # posix_spawn() waits once for a child whose exec has failed, with all signals blocked.
    ("wait4", "EINTR", r"^child \d+ left"),
]

#: Of processes that hang: what is not ours, by their stack.
NOT_OURS = {
    # https://github.com/python/cpython/issues/140746
    r'threading\.py", line \d+ in start\b': "CPython: start() of a thread without memory hangs",
}


def told(case: Case, outcome: dict[str, Any]) -> bool:
    """Whether the exception says what has failed."""
    if outcome["errno"] == getattr(errno, case.error):
        return True
    if outcome["type"] in ALSO.get(case.error, ()):
        return True
    if case.call in ("write", "writev") and outcome["type"] == "ConnectionResetError":
        return True  # drain(), as asyncio's
    if (case.call, case.error, outcome["type"]) == ("read", "EIO", "IncompleteReadError"):
        return True  # of a terminal, whose end it is
    # threading says no more.
    return case.call in ("clone", "clone3", "mmap", "mprotect") and "new thread" in outcome["text"]


def verdict(case: Case, answer: dict[str, Any]) -> list[str]:
    """What is wrong; nothing, as a rule."""
    wrong: list[str] = list(answer["left"])
    if answer["bad_closes"]:
        wrong.append(f"{answer['bad_closes']} descriptors closed that were not open")
    wrong += [f"the next one: {after}" for after in answer["after"] if after["kind"] != "right"]
    for call, error, pattern in ARTEFACTS:
        if (case.call, case.error) == (call, error):
            wrong = [text for text in wrong if not re.search(pattern, text)]
    outcome = answer["outcome"]
    kind = outcome["kind"]
    if kind == "right" or (kind == "raised" and told(case, outcome)):
        return wrong
    if kind == "returned" and (case.call, case.error) in (("write", "EPIPE"), ("writev", "EPIPE")):
        return wrong  # as if the child had read no more
    if kind == "returned" and case.call in ("pidfd_send_signal", "kill"):
        return wrong  # as if it had been gone: it ends by what the next signal does
    wrong.append(f"{kind}: {outcome.get('type', '')} {outcome.get('text', '')}")
    return wrong


# -- the campaign


#: What a machine that is too busy for an operation's times looks like, too: it is tried again.
TIMELY, TRIES = ("returned", "hangs"), 3


class Row(NamedTuple):
    case: Case
    hit: bool
    kind: str
    wrong: list[str]
    notes: list[str]


def try_case(victim: Victim, case: Case, by_name: dict[str, int]) -> Row:
    try:
        answer = victim.ask(question(case, by_name))
    except Gone as gone:
        for pattern, reason in NOT_OURS.items():
            if case.error == "ENOMEM" and re.search(pattern, str(gone)):
                return Row(case, True, f"known: {reason}", [], [])
        return Row(case, True, "ended", [f"the process has ended, or hangs: {gone}"], [])
    wrong = verdict(case, answer) if answer["hits"] else []
    if wrong:
        # What is left would be found again after the next.
        victim.end()
    return Row(case, bool(answer["hits"]), answer["outcome"]["kind"], wrong, answer["notes"])


class Campaign:
    def __init__(self, directory: Path, seed: int) -> None:
        self._injector = build(directory)
        self._directory = directory
        self.by_name = numbers()
        self._names = {number: name for name, number in self.by_name.items()}
        self._rng = random.Random(seed)
        #: Calls that are in no table here.
        self.unknown: set[str] = set()
        self.victims: dict[str, Victim] = {}

    def victim(self, subject: str) -> Victim:
        if subject not in self.victims:
            self.victims[subject] = Victim(self._injector, subject, self._directory)
        return self.victims[subject]

    def cases(self, subject: str, operation: str, warmth: str) -> list[Case]:
        none = Case(subject, operation, warmth, "parent", "read", 0, "EIO", "refused")
        for _ in range(TRIES):
            answer = self.victim(subject).ask(question(none, self.by_name))
            wrong = verdict(none, answer)
            if not wrong:
                break
        else:
            raise SystemExit(f"{none}: without a fault: {wrong}")
        counts = answer["counts"]
        if not counts["parent"]:
            raise SystemExit(f"{none}: no system call was seen")
        found = cases_of(counts, subject, operation, warmth, self._names, self._rng, self.unknown)
        return list(found)

    def end(self) -> None:
        for victim in self.victims.values():
            victim.end()


def show(row: Row) -> None:
    for text in row.wrong:
        print(f"WRONG {row.case}: {text}", flush=True)


def report(rows: list[Row]) -> str:
    """A table by call and errno, over all else."""
    lines = []
    head = "| call | errno | parent | child | right | told | wrong |"
    lines += [head, "|" + "---|" * 7]
    keys = sorted({(row.case.call, row.case.error, row.case.how) for row in rows if row.hit})
    for call, error, how in keys:
        own = [
            row
            for row in rows
            if row.hit and (row.case.call, row.case.error, row.case.how) == (call, error, how)
        ]
        roles = collections.Counter(row.case.role for row in own)
        kinds = collections.Counter(
            "wrong" if row.wrong else "right" if row.kind == "right" else "told" for row in own
        )
        name = f"{error}, {how}" if how != "refused" else error
        numbers = roles["parent"], roles["child"], kinds["right"], kinds["told"], kinds["wrong"]
        lines.append(f"| {call} | {name} | " + " | ".join(str(n or "") for n in numbers) + " |")
    return "\n".join(lines)


def by_operation(rows: list[Row]) -> str:
    lines = ["| operation | " + " | ".join(SUBJECTS) + " |", "|" + "---|" * (len(SUBJECTS) + 1)]
    for operation in dict.fromkeys(row.case.operation for row in rows):
        counts = [
            sum(
                row.hit and (row.case.operation, row.case.subject) == (operation, subject)
                for row in rows
            )
            for subject in SUBJECTS
        ]
        lines.append(f"| {operation} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def chosen(campaign: Campaign, options: argparse.Namespace) -> Iterable[Case]:
    names = options.operation or list(OPERATIONS)
    unknown = set(names) - set(OPERATIONS)
    if unknown:
        raise SystemExit(f"no such operation: {', '.join(sorted(unknown))}")
    groups = [
        (subject, operation, warmth)
        for operation in names
        for subject in options.only or SUBJECTS
        for warmth in options.warmth or ("warm", "cold")
    ]
    if options.seconds is not None:
        # A part of all.
        rng = random.Random(options.seed)
        rng.shuffle(groups)
        while groups:
            found = [campaign.cases(*group) for group in groups[:9]]
            groups = groups[9:] + groups[:9]
            yield from (rng.choice(own) for own in found for _ in range(8) if own)
    for group in groups:
        own = campaign.cases(*group)
        if options.call:
            own = [case for case in own if case.call in options.call]
        if options.role:
            own = [case for case in own if case.role == options.role]
        print(f"{', '.join(group)}: {len(own)} faults", flush=True)
        yield from own


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--seconds", type=float, help="a sample that fits this time")
    add("--seed", type=int, default=0)
    add("--only", nargs="+", choices=list(SUBJECTS), help="the ways to make children")
    add("--operation", nargs="+", help="of tools/reliability/operations.py")
    add("--warmth", nargs="+", choices=["warm", "cold"])
    add("--call", nargs="+", help="system calls")
    add("--role", choices=["parent", "child"])
    add("--again", nargs="+", metavar="CASE", type=Case.parse, help="these alone")
    add("--json", type=Path, help="where all results go")
    options = parser.parse_args()
    if platform.machine() != "x86_64" or sys.platform != "linux":
        raise SystemExit("Linux on x86_64 only")
    rows: list[Row] = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="aioproc-faults-") as directory:
        campaign = Campaign(Path(directory), options.seed)
        try:
            for case in options.again or chosen(campaign, options):
                row = try_case(campaign.victim(case.subject), case, campaign.by_name)
                for _ in range(TRIES - 1):
                    if not row.wrong or not all(text.startswith(TIMELY) for text in row.wrong):
                        break
                    print(f"again: {row.case}: {row.wrong}", flush=True)
                    row = try_case(campaign.victim(case.subject), case, campaign.by_name)
                rows.append(row)
                show(row)
                if options.again:
                    print(row)
                if options.seconds is not None and time.monotonic() - start > options.seconds:
                    break
        finally:
            campaign.end()
    hit = sum(row.hit for row in rows)
    wrong = sum(bool(row.wrong) for row in rows)
    if options.json:
        options.json.write_text(
            "".join(
                json.dumps([str(row.case), row.hit, row.kind, row.wrong, row.notes]) + "\n"
                for row in rows
            )
        )
    print(by_operation(rows), report(rows), sep="\n\n")
    print(f"seed {options.seed}: {hit} faults in {time.monotonic() - start:.0f} s", end="")
    print(f" ({len(rows) - hit} more did not come about), {wrong} wrong")
    if campaign.unknown:
        print(f"calls that no table knows: {', '.join(sorted(campaign.unknown))}")
    return 1 if wrong or campaign.unknown or not hit else 0


if __name__ == "__main__":
    sys.exit(main())
