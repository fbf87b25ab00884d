"""os.fork() while children live: what the forked process does is no concern of theirs.

It shares the parent's epoll instances: to unregister there is to unregister for the parent.
"""

from __future__ import annotations

import pytest

from programs import WINDOWS

if WINDOWS:
    pytest.skip("not on Windows: os.fork", allow_module_level=True)

from aside import Aside

COMMON = """
warnings.simplefilter("ignore", DeprecationWarning)  # "is multi-threaded, use of fork()"

def forked(do):
    # Returns the pid; the forked process never comes back.
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            warnings.simplefilter("ignore", ResourceWarning)
            logging.disable()  # asyncio's "was destroyed but is pending"
            do()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid

def reap(pid):
    assert os.waitpid(pid, 0)[1] == 0, "the forked process failed"
"""

DROP = """
async def main():
    kept = {
        "echo": await aioproc.create_subprocess_exec(
            "cat", stdin=aioproc.PIPE, stdout=aioproc.PIPE),
        "code": await aioproc.create_subprocess_exec(
            "/bin/sh", "-c", "read x; exit 7", stdin=aioproc.PIPE, stderr=aioproc.PIPE),
        "alone": await aioproc.create_subprocess_exec("cat", stdin=aioproc.PIPE),
        "starting": asyncio.ensure_future(aioproc.create_subprocess_exec("true")),
    }
    reading = asyncio.ensure_future(kept["echo"].stdout.readexactly(4))
    await asyncio.sleep(0)
    pids = [kept[name].pid for name in ("echo", "code", "alone")]

    def drop():
        for name in ("echo", "code"):
            try:
                kept[name].kill()
            except ProcessLookupError:
                pass
            else:
                raise AssertionError("killed what is the parent's")
            assert kept[name].returncode is None
            kept[name].stdin.close()
        kept["alone"]._transport.close()
        kept["starting"] = None
        kept.clear()
        collect()
        for pid in pids:
            os.kill(pid, 0)

    reap(forked(drop))
    # The forked process had copies of our ends of the pipes; it is gone.
    kept["echo"].stdin.write(b"some")
    assert await reading == b"some"
    assert await kept["echo"].communicate(b"x" * 300_000) == (b"x" * 300_000, None)
    assert kept["echo"].returncode == 0
    kept["code"].stdin.write(b"\\n")
    assert await kept["code"].wait() == 7
    kept["alone"].terminate()
    assert await kept["alone"].wait() == -signal.SIGTERM
    kept["alone"].stdin.close()
    assert await (await kept["starting"]).wait() == 0
run(asyncio.wait_for(main(), 30))
"""


def test_the_forked_process_drops_everything(aside: Aside) -> None:
    aside.run(COMMON + DROP)


AFRESH = """
async def again():
    process = await aioproc.create_subprocess_exec(
        "/bin/sh", "-c", "cat; exit 5", stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    assert await process.communicate(b"x") == (b"x", None)
    assert process.returncode == 5
    other = await aioproc.create_subprocess_exec("cat", stdin=aioproc.PIPE)
    other.terminate()
    assert await other.wait() == -signal.SIGTERM
    other.stdin.close()

def afresh():
    run(again())
    run(again())

async def main():
    process = await aioproc.create_subprocess_exec(
        "cat", stdin=aioproc.PIPE, stdout=aioproc.PIPE)
    pid = forked(afresh)
    await again()
    assert await process.communicate(b"x") == (b"x", None)
    reap(pid)

import multiprocessing
def in_pool(n):
    afresh()
    return n

if __name__ == "__main__":
    run(asyncio.wait_for(main(), 30))

    async def outer():
        process = await aioproc.create_subprocess_exec(
            "cat", stdin=aioproc.PIPE, stdout=aioproc.PIPE)
        worker = multiprocessing.get_context("fork").Process(target=afresh)
        worker.start()
        worker.join()
        assert worker.exitcode == 0
        assert await process.communicate(b"x") == (b"x", None)
    run(asyncio.wait_for(outer(), 30))
"""


def test_the_forked_process_starts_afresh(aside: Aside) -> None:
    aside.run(COMMON + AFRESH)


COPIES = """
class Worker:
    # A forked process that lives on, as multiprocessing's do.
    def __init__(self):
        reader, self.writer = os.pipe()
        told, tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.writer)
            os.write(tell, repr(self.look()).encode())
            os.close(tell)
            os.read(reader, 1)  # till the parent lets us go
            os._exit(0)
        os.close(tell)
        os.close(reader)
        with open(told) as file:
            self.saw = file.read()

    def look(self):
        return "nothing"

    def end(self):
        os.close(self.writer)
        reap(self.pid)

async def main():
    # The end of its input reaches a child, and the end of its pipes us, though a worker
    # was forked meanwhile.
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), aioproc.PIPE)
    process = await aioproc.create_subprocess_exec("cat", **pipes)
    worker = Worker()
    assert await process.communicate(b"x") == (b"x", b"")
    assert process.returncode == 0
    worker.end()

    # The end of our reading reaches a child that writes.
    process = await aioproc.create_subprocess_exec("yes", stdout=aioproc.PIPE)
    await process.stdout.readexactly(2)
    worker = Worker()
    process._transport.get_pipe_transport(1).close()
    assert await process.wait() == -signal.SIGPIPE
    worker.end()

    # What the worker does with its copies of the objects.
    process = await aioproc.create_subprocess_exec("cat", **pipes)
    numbers = [process._transport.get_pipe_transport(fd).get_extra_info("pipe").fileno()
               for fd in (0, 1, 2)]

    class Using(Worker):
        def look(self):
            warnings.simplefilter("error")
            for fd in numbers:
                try:
                    os.fstat(fd)
                except OSError:
                    pass
                else:
                    return f"{fd} is open"
            zero = os.open("/dev/zero", os.O_RDWR)
            for fd in numbers:
                os.dup2(zero, fd)  # somebody else's now
            pipes = [process._transport.get_pipe_transport(fd) for fd in (0, 1, 2)]
            process.stdin.write(b"not for cat")
            for pipe in pipes:
                assert pipe.get_extra_info("pipe").closed
                pipe.close()
            process._transport.close()
            for fd in numbers:
                os.fstat(fd)
            return "as closed"

    worker = Using()
    assert worker.saw == "'as closed'", worker.saw
    assert await process.communicate(b"for cat") == (b"for cat", b"")
    worker.end()

    # And dropped, in silence, with the loop's epoll instance untouched.
    process = await aioproc.create_subprocess_exec("cat", **pipes)
    reading = asyncio.ensure_future(process.stdout.read())
    await asyncio.sleep(0)
    kept = [process]

    class Dropping(Worker):
        def look(self):
            warnings.simplefilter("error")
            texts = []
            sys.unraisablehook = lambda u: texts.append(str(u.exc_value))
            transport = kept.pop()._transport
            transport.__del__()
            return texts

    worker = Dropping()
    assert worker.saw == "[]", worker.saw
    process.stdin.write(b"y")
    process.stdin.close()
    assert await reading == b"y"
    assert await process.wait() == 0
    worker.end()
logging.disable()
run(asyncio.wait_for(main(), 30))
"""


def test_a_worker_has_no_copies_of_our_ends(aside: Aside) -> None:
    aside.run(COMMON + COPIES)


POPEN = """
import subprocess
async def main():
    # A Popen with a preexec_fn runs the hooks of a fork, and may pass on what is ours.
    process = await aioproc.create_subprocess_exec(
        "echo", "text", stdout=aioproc.PIPE, preexec_fn=lambda: None)
    fd = process._transport.get_pipe_transport(1).get_extra_info("pipe").fileno()
    process._transport.get_pipe_transport(1).pause_reading()
    os.set_blocking(fd, True)
    other = subprocess.run(
        ["cat"], stdin=fd, stdout=subprocess.PIPE, preexec_fn=lambda: None, check=True)
    assert other.stdout == b"text\\n", other
    process._transport.get_pipe_transport(1).resume_reading()
    assert await process.wait() == 0
    # Also while there are others.
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), aioproc.PIPE)
    cats = [await aioproc.create_subprocess_exec("cat", preexec_fn=lambda: None, **pipes)
            for _ in range(3)]
    for cat in cats:
        assert await cat.communicate(b"x") == (b"x", b"")
run(asyncio.wait_for(main(), 30))
"""


def test_popen_with_a_preexec_fn_passes_our_ends_on(aside: Aside) -> None:
    aside.run(COMMON + POPEN)


IN_THE_MAKING = """
# A worker that another thread forks between the making of the pipes and that of the child.
workers = []
def fork(event, args):
    if event == "subprocess.Popen" and making:
        thread = threading.Thread(target=lambda: workers.append(forked(wait)))
        thread.start()
        thread.join()
sys.addaudithook(fork)
making = []
reader, writer = os.pipe()

def wait():
    os.close(writer)
    os.read(reader, 1)

async def main():
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), aioproc.PIPE)
    making.append(True)
    process = await aioproc.create_subprocess_exec("cat", **pipes)
    making.clear()
    assert await process.communicate(b"x") == (b"x", b"")
    os.close(writer)
    reap(workers[0])
run(asyncio.wait_for(main(), 30))
"""


def test_a_worker_that_is_forked_in_the_midst_of_a_spawn(aside: Aside) -> None:
    aside.run(COMMON + IN_THE_MAKING)


WHILE_SPAWNING = """
# Forked processes that live on must not hold up a spawn: they would, by a copy of the pipe
# on which the news of the exec comes.
reader, writer = os.pipe()
stop = False
pids = []

def fork_on():
    while not stop and len(pids) < 40:
        pids.append(forked(lambda: (os.close(writer), os.read(reader, 1))))
        time.sleep(0.002)

async def main():
    thread = threading.Thread(target=fork_on)
    thread.start()
    for _ in range(15):
        processes = await asyncio.gather(
            *(aioproc.create_subprocess_exec("true") for _ in range(10)))
        assert [await process.wait() for process in processes] == [0] * 10
    global stop
    stop = True
    await asyncio.get_running_loop().run_in_executor(None, thread.join)
    assert pids
    os.close(writer)
    for pid in pids:
        reap(pid)
run(asyncio.wait_for(main(), 50))
"""


def test_forks_while_children_are_made(aside: Aside) -> None:
    if aside.subject in ("pure", "thread"):
        pytest.skip("the standard library's Popen has this fault")
    if aside.subject == "portable":
        from aioproc._backends.posix import native as posix

        if not {"addclosefrom_np", "cloexec_default"} & {
            k for k, v in posix.features().items() if v
        }:
            pytest.skip("posix_spawn cannot close descriptors here, so Popen it is")
    aside.run(COMMON + WHILE_SPAWNING)
