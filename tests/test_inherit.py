"""What a child has from the thread that made it: that thread's, not another's."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from programs import HAS_PROC

if not HAS_PROC:
    pytest.skip("Linux: attributes of threads, /proc", allow_module_level=True)

from aside import Aside
from conftest import loops

# In a thread of a helper process, where what cannot be taken back does no harm; the main
# thread keeps what it has.
CODE = """
import ctypes, json, seccomp

FIELDS = ("SigBlk", "SigIgn", "NoNewPrivs", "Seccomp", "Cpus_allowed_list", "Umask")

def parse(status, stat):
    found = dict(line.split(":\\t", 1) for line in status.splitlines() if ":\\t" in line)
    fields = {name: found[name] for name in FIELDS if name in found}
    fields["nice"] = stat.rpartition(")")[2].split()[16]
    return fields

async def spawn():
    process = await aioproc.create_subprocess_exec(
        "cat", "/proc/self/status", "/proc/self/stat", stdout=aioproc.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    status, _, stat = output.decode().rstrip().rpartition("\\n")
    return parse(status, stat)

def read(name):
    with open("/proc/thread-self/" + name) as file:
        return file.read()

def special():
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 7)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGRTMIN + 3])
    if seccomp.SUPPORTED:
        seccomp.deny({"timerfd_create": 1} if subject == "oracle" else {"getdents64": 1})
    else:
        ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
    result["thread"] = parse(read("status"), read("stat"))
    result["child"] = run(spawn())

run(asyncio.sleep(0))
os.umask(0o027)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
result = {}
thread = threading.Thread(target=special)
thread.start()
thread.join()
result["main"] = parse(read("status"), read("stat"))
result["main's child"] = run(spawn())
print(json.dumps(result))
"""


def check(aside: Aside) -> None:
    found: dict[str, dict[str, Any]] = json.loads(aside.run(CODE))
    for maker, child in (("thread", "child"), ("main", "main's child")):
        made, maker_had = found[child], found[maker]
        # restore_signals gives these back to the child (subprocess.Popen's documentation):
        # SIGPIPE, SIGXFSZ. And glibc's posix_spawn ignores its own signals, 32 and 33.
        others = ~(1 << 12 | 1 << 24 | 1 << 31 | 1 << 32)
        ignored = int(maker_had.pop("SigIgn"), 16) & others
        assert int(made.pop("SigIgn"), 16) & others == ignored
        assert ignored & 1 << 11  # SIGUSR2
        assert made == maker_had
    assert found["thread"]["nice"] == "7"
    assert found["main"]["nice"] == str(os.nice(0))
    assert found["thread"]["NoNewPrivs"] == "1"
    assert found["thread"]["SigBlk"] != found["main"]["SigBlk"]
    assert int(found["main"]["Umask"], 8) == 0o027


def test_the_calling_threads_attributes(aside: Aside) -> None:
    check(aside)


def test_as_with_asyncio() -> None:
    check(Aside("oracle"))


BLOCKING = """
if subject == "oracle":
    create = asyncio.create_subprocess_exec
else:
    create = aioproc.create_subprocess_exec
saved, (reader, writer), (given, other) = os.dup(1), os.pipe(), os.pipe()
os.dup2(writer, 1)
tell = "import os; os.write(1, b'%d' % sum(os.get_blocking(i) << i for i in (0, 1, 2)))"

async def main():
    seen = []
    for number in range(2 if subject == "oracle" else 3):
        os.set_blocking(given, False)
        os.set_blocking(1, False)
        options = {"preexec_fn": lambda: None} if number == 1 else {}
        if number == 2:
            aioproc.install()
        make = create if number < 2 else asyncio.create_subprocess_exec
        options["stderr"] = asyncio.subprocess.STDOUT
        process = await make(*python(tell), stdin=given, **options)
        assert await process.wait() == 0
        seen.append((int(os.read(reader, 100)), os.get_blocking(given), os.get_blocking(1)))
    assert len(set(seen)) == 1, seen
    os.write(saved, repr(seen[0]).encode())
run(main())
for fd in (saved, reader, writer, given, other):
    os.close(fd)
"""


def check_blocking(aside: Aside) -> None:
    seen = aside.run(BLOCKING)
    assert seen == ("(7, True, True)" if aside.loop == "uvloop" else "(0, False, False)")


def test_streams_that_do_not_block(aside: Aside) -> None:
    """As uvloop's own children on uvloop, as asyncio's elsewhere."""
    check_blocking(aside)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_streams_that_do_not_block_with_asyncio(loop: str, request: pytest.FixtureRequest) -> None:
    if loop not in loops(request.config):
        pytest.skip("waived")
    check_blocking(Aside("oracle", loop))


LIMITS = """
import resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))

async def main():
    process = await aioproc.create_subprocess_shell(
        "ulimit -n; ulimit -c; pwd; echo $NAME", stdout=aioproc.PIPE)
    output, _ = await process.communicate()
    print(output.decode(), end="")
os.chdir("/usr")
os.environ["NAME"] = "value"
run(main())
"""


@pytest.mark.parametrize("subject", ["", "oracle"])
def test_the_processs_attributes(subject: str) -> None:
    assert Aside(subject).run(LIMITS).split() == ["200", "0", "/usr", "value"]
