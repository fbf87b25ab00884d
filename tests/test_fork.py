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
        from aioproc._backends import posix

        if not {"addclosefrom_np", "cloexec_default"} & {
            k for k, v in posix.features().items() if v
        }:
            pytest.skip("posix_spawn cannot close descriptors here, so Popen it is")
    aside.run(COMMON + WHILE_SPAWNING)
