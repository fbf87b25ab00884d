"""Those who are measured, with one way of calling for all: what a peer cannot do, it does
not define. Nothing is imported before a peer is made."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import shlex
import subprocess
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from . import programs

T = TypeVar("T")
Job = Callable[[], Awaitable[object]]

PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL


class Conversation:
    """A child that stays alive, with pipes."""

    async def ask(self, line: bytes) -> bytes:
        """Writes a line, reads a line."""
        raise NotImplementedError

    async def end(self) -> None:
        """Kills it and waits for it."""
        raise NotImplementedError


class Peer:
    """What the works are made of. Every child must succeed."""

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        raise NotImplementedError

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError

    async def at_once(self, width: int, jobs: Iterable[Job]) -> None:
        """Does the jobs, `width` at a time."""
        raise NotImplementedError

    async def call(self, argv: list[str], stdout: int | None = None) -> None:
        """Starts a child and waits for it."""
        raise NotImplementedError

    async def output(self, argv: list[str]) -> bytes:
        """What a child writes."""
        raise NotImplementedError

    async def exchange(self, argv: list[str], data: bytes) -> bytes:
        """What a child writes when it gets data on stdin."""
        raise NotImplementedError

    async def feed(self, argv: list[str], data: bytes) -> None:
        """Gives data to a child that writes nothing."""
        raise NotImplementedError

    async def stream(self, argv: list[str], size: int) -> int:
        """Reads what a child writes in pieces of up to `size`; returns how much it was."""
        raise NotImplementedError

    async def lines(self, argv: list[str]) -> int:
        """The number of lines that a child writes, one at a time."""
        raise NotImplementedError

    async def open(self, argv: list[str]) -> Conversation:
        """Starts a child with three pipes."""
        raise NotImplementedError

    # What run() does, of whoever has one; of the others, what does as much.

    async def silent(self, argv: list[str]) -> None:
        """Runs a child whose streams are all /dev/null."""
        raise NotImplementedError

    async def capture(self, argv: list[str], data: bytes | None = None) -> bytes:
        """What a child writes to stdout, with its stderr captured as well. It gets data on
        stdin, or /dev/null."""
        raise NotImplementedError

    async def tree(self, argv: list[str], stdout: int) -> Job:
        """Starts a child; returns what ends it by SIGTERM, with all that it has started,
        and waits until all are gone."""
        raise NotImplementedError

    # Many, by whoever has something of the kind.

    async def many_silent(self, argv: list[str], count: int, width: int) -> None:
        """Runs so many children, so many at a time. Their stdin is /dev/null."""
        raise NotImplementedError

    async def many_capture(self, argv: list[str], count: int, width: int) -> list[bytes]:
        """The same; what each writes to stdout, with its stderr captured as well."""
        raise NotImplementedError

    async def pipe(self, commands: list[list[str]]) -> bytes:
        """What the last of them writes, each reading what the one before it writes."""
        raise NotImplementedError

    @classmethod
    def can(cls, operation: str) -> bool:
        return getattr(cls, operation) is not getattr(Peer, operation)


def _check(returncode: int | None) -> None:
    if returncode != 0:
        raise RuntimeError(f"a child ended with {returncode}")


async def _each(jobs: Iterable[Job]) -> None:
    for job in jobs:
        await job()


# -- asyncio's API: asyncio, uvloop, aioproc


class AsyncioConversation(Conversation):
    def __init__(self, process: Any) -> None:
        self._process = process

    async def ask(self, line: bytes) -> bytes:
        self._process.stdin.write(line)
        await self._process.stdin.drain()
        answer: bytes = await self._process.stdout.readline()
        return answer

    async def end(self) -> None:
        self._process.kill()
        await self._process.communicate()


class OnAsyncio(Peer):
    """On asyncio's loop or uvloop's."""

    def __init__(self, loop: str) -> None:
        self._run: Callable[..., Any] = asyncio.run
        if loop == "uvloop":
            import uvloop

            self._run = uvloop.run

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        result: T = self._run(main())
        return result

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def at_once(self, width: int, jobs: Iterable[Job]) -> None:
        shared = iter(jobs)
        await asyncio.gather(*(_each(shared) for _ in range(width)))


class AsyncioPeer(OnAsyncio):
    def __init__(self, module: str, loop: str) -> None:
        super().__init__(loop)
        self._module: Any = importlib.import_module(module)
        self._create: Any = self._module.create_subprocess_exec

    async def call(self, argv: list[str], stdout: int | None = None) -> None:
        process = await self._create(*argv, stdout=stdout)
        _check(await process.wait())

    async def output(self, argv: list[str]) -> bytes:
        process = await self._create(*argv, stdout=PIPE)
        output: bytes = (await process.communicate())[0]
        _check(process.returncode)
        return output

    async def exchange(self, argv: list[str], data: bytes) -> bytes:
        process = await self._create(*argv, stdin=PIPE, stdout=PIPE)
        output: bytes = (await process.communicate(data))[0]
        _check(process.returncode)
        return output

    async def feed(self, argv: list[str], data: bytes) -> None:
        process = await self._create(*argv, stdin=PIPE)
        await process.communicate(data)
        _check(process.returncode)

    async def stream(self, argv: list[str], size: int) -> int:
        process = await self._create(*argv, stdout=PIPE)
        total = 0
        while chunk := await process.stdout.read(size):
            total += len(chunk)
        _check(await process.wait())
        return total

    async def lines(self, argv: list[str]) -> int:
        process = await self._create(*argv, stdout=PIPE)
        count = 0
        async for _ in process.stdout:
            count += 1
        _check(await process.wait())
        return count

    async def open(self, argv: list[str]) -> Conversation:
        return AsyncioConversation(await self._create(*argv, stdin=PIPE, stdout=PIPE, stderr=PIPE))

    async def silent(self, argv: list[str]) -> None:
        process = await self._create(*argv, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
        _check(await process.wait())

    async def capture(self, argv: list[str], data: bytes | None = None) -> bytes:
        stdin = DEVNULL if data is None else PIPE
        process = await self._create(*argv, stdin=stdin, stdout=PIPE, stderr=PIPE)
        output: bytes = (await process.communicate(data))[0]
        _check(process.returncode)
        return output

    async def many_silent(self, argv: list[str], count: int, width: int) -> None:
        turn = asyncio.Semaphore(width)

        async def one() -> None:
            async with turn:
                process = await self._create(*argv, stdin=DEVNULL)
                _check(await process.wait())

        await asyncio.gather(*(one() for _ in range(count)))

    async def many_capture(self, argv: list[str], count: int, width: int) -> list[bytes]:
        turn = asyncio.Semaphore(width)

        async def one() -> bytes:
            async with turn:
                return await self.capture(argv)

        return await asyncio.gather(*(one() for _ in range(count)))

    async def pipe(self, commands: list[list[str]]) -> bytes:
        processes = []
        source: int = DEVNULL
        for command in commands[:-1]:
            reader, writer = os.pipe()
            processes.append(await self._create(*command, stdin=source, stdout=writer))
            os.close(writer)
            if source != DEVNULL:
                os.close(source)
            source = reader
        last = await self._create(*commands[-1], stdin=source, stdout=PIPE)
        os.close(source)
        output: bytes = (await last.communicate())[0]
        for process in (*processes, last):
            _check(await process.wait())
        return output


class AioprocPeer(AsyncioPeer):
    """With run(), which asyncio has not."""

    async def silent(self, argv: list[str]) -> None:
        await self._module.run(*argv, stdout=DEVNULL, stderr=DEVNULL)

    async def capture(self, argv: list[str], data: bytes | None = None) -> bytes:
        output: bytes = (await self._module.run(*argv, input=data)).stdout
        return output

    async def many_silent(self, argv: list[str], count: int, width: int) -> None:
        commands = (argv for _ in range(count))
        async with self._module.run_many(
            commands, concurrency=width, stdout=None, stderr=None
        ) as runs:
            async for result in runs:
                _check(result.returncode)

    async def many_capture(self, argv: list[str], count: int, width: int) -> list[bytes]:
        commands = (argv for _ in range(count))
        results = await self._module.run_all(commands, concurrency=width, check=True)
        return [result.stdout for result in results]

    async def pipe(self, commands: list[list[str]]) -> bytes:
        output: bytes = (await self._module.pipeline(*commands)).stdout
        return output

    async def tree(self, argv: list[str], stdout: int) -> Job:
        run = self._module.run(*argv, stdout=stdout, stderr=DEVNULL)
        task = asyncio.ensure_future(run)

        async def end() -> None:
            task.cancel()
            try:
                await task
            except asyncio.CancelledError as error:
                result = self._module.partial_result(error)
                if (result.forced, result.left) != ("stop", []):
                    raise RuntimeError(f"forced: {result.forced}; left: {result.left}") from None

        return end


class LimitedPeer(AsyncioPeer):
    """Its children are limited, as aioproc alone can do it without a preexec_fn."""

    OPTIONS: ClassVar[dict[str, Any]] = {
        "rlimits": {"nofile": 256, "core": 0, "cpu": 60},
        "nice": 5,
        "umask": 0o22,
        "no_new_privs": True,
    }

    async def call(self, argv: list[str], stdout: int | None = None) -> None:
        process = await self._create(*argv, stdout=stdout, **self.OPTIONS)
        _check(await process.wait())


# -- subprocess.run in a thread pool


class ThreadsPeer(OnAsyncio):
    THREADS = 32

    def __init__(self) -> None:
        super().__init__("asyncio")
        from concurrent.futures import ThreadPoolExecutor

        self._pool = ThreadPoolExecutor(self.THREADS)

    async def _subprocess(self, argv: list[str], **options: Any) -> bytes:
        def run() -> bytes:
            output: bytes = subprocess.run(argv, check=True, **options).stdout
            return output

        return await asyncio.get_running_loop().run_in_executor(self._pool, run)

    async def call(self, argv: list[str], stdout: int | None = None) -> None:
        await self._subprocess(argv, stdout=stdout)

    async def output(self, argv: list[str]) -> bytes:
        return await self._subprocess(argv, stdout=PIPE)

    async def exchange(self, argv: list[str], data: bytes) -> bytes:
        return await self._subprocess(argv, input=data, stdout=PIPE)

    async def feed(self, argv: list[str], data: bytes) -> None:
        await self._subprocess(argv, input=data)

    async def silent(self, argv: list[str]) -> None:
        await self._subprocess(argv, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)

    async def capture(self, argv: list[str], data: bytes | None = None) -> bytes:
        options: dict[str, Any] = {"stdin": DEVNULL} if data is None else {"input": data}
        return await self._subprocess(argv, stdout=PIPE, stderr=PIPE, **options)


class ShellPeer(ThreadsPeer):
    """What the shell has for it: xargs, and pipelines."""

    async def many_silent(self, argv: list[str], count: int, width: int) -> None:
        xargs = ["xargs", "-P", str(width), "-n", "1", *argv]
        await self._subprocess(xargs, input=b"x\n" * count)

    async def pipe(self, commands: list[list[str]]) -> bytes:
        line = " | ".join(map(shlex.join, commands))
        return await self._subprocess(["/bin/sh", "-c", line], stdout=PIPE)


# -- trio and anyio


class StreamConversation(Conversation):
    """By byte streams; the calls have other names in trio and in anyio."""

    def __init__(self, process: Any, write: Any, read: Any) -> None:
        self._process = process
        self._write = write
        self._read = read

    async def ask(self, line: bytes) -> bytes:
        await self._write(line)
        answer: bytes = b""
        while not answer.endswith(b"\n"):
            answer += await self._read()
        return answer

    async def end(self) -> None:
        process = self._process
        process.kill()
        await process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            await stream.aclose()


class TrioPeer(Peer):
    def __init__(self) -> None:
        import trio

        self._trio: Any = trio

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        result: T = self._trio.run(main)
        return result

    async def sleep(self, seconds: float) -> None:
        await self._trio.sleep(seconds)

    async def at_once(self, width: int, jobs: Iterable[Job]) -> None:
        shared = iter(jobs)
        async with self._trio.open_nursery() as nursery:
            for _ in range(width):
                nursery.start_soon(_each, shared)

    async def call(self, argv: list[str], stdout: int | None = None) -> None:
        await self._trio.run_process(argv, stdin=None, stdout=stdout)

    async def output(self, argv: list[str]) -> bytes:
        output: bytes = (
            await self._trio.run_process(argv, stdin=None, capture_stdout=True)
        ).stdout
        return output

    async def exchange(self, argv: list[str], data: bytes) -> bytes:
        output: bytes = (
            await self._trio.run_process(argv, stdin=data, capture_stdout=True)
        ).stdout
        return output

    async def feed(self, argv: list[str], data: bytes) -> None:
        await self._trio.run_process(argv, stdin=data)

    async def stream(self, argv: list[str], size: int) -> int:
        process = await self._trio.lowlevel.open_process(argv, stdout=PIPE)
        total = 0
        async with process.stdout:
            while chunk := await process.stdout.receive_some(size):
                total += len(chunk)
        _check(await process.wait())
        return total

    async def open(self, argv: list[str]) -> Conversation:
        process = await self._trio.lowlevel.open_process(
            argv, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        return StreamConversation(process, process.stdin.send_all, process.stdout.receive_some)

    async def silent(self, argv: list[str]) -> None:
        await self._trio.run_process(argv, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)

    async def capture(self, argv: list[str], data: bytes | None = None) -> bytes:
        stdin = DEVNULL if data is None else data
        done = await self._trio.run_process(
            argv, stdin=stdin, capture_stdout=True, capture_stderr=True
        )
        output: bytes = done.stdout
        return output


class AnyioPeer(Peer):
    """On asyncio's loop."""

    def __init__(self) -> None:
        import anyio

        self._anyio: Any = anyio

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        result: T = self._anyio.run(main)
        return result

    async def sleep(self, seconds: float) -> None:
        await self._anyio.sleep(seconds)

    async def at_once(self, width: int, jobs: Iterable[Job]) -> None:
        shared = iter(jobs)
        async with self._anyio.create_task_group() as group:
            for _ in range(width):
                group.start_soon(_each, shared)

    async def call(self, argv: list[str], stdout: int | None = None) -> None:
        await self._anyio.run_process(argv, stdout=stdout, stderr=None)

    async def output(self, argv: list[str]) -> bytes:
        output: bytes = (await self._anyio.run_process(argv, stderr=None)).stdout
        return output

    async def exchange(self, argv: list[str], data: bytes) -> bytes:
        output: bytes = (await self._anyio.run_process(argv, input=data, stderr=None)).stdout
        return output

    async def feed(self, argv: list[str], data: bytes) -> None:
        await self._anyio.run_process(argv, input=data, stdout=None, stderr=None)

    async def stream(self, argv: list[str], size: int) -> int:
        total = 0
        async with await self._anyio.open_process(argv, stdin=None, stderr=None) as process:
            while True:
                try:
                    chunk = await process.stdout.receive(size)
                except self._anyio.EndOfStream:
                    break
                total += len(chunk)
            _check(await process.wait())
        return total

    async def open(self, argv: list[str]) -> Conversation:
        process = await self._anyio.open_process(argv)
        return StreamConversation(process, process.stdin.send, process.stdout.receive)

    async def silent(self, argv: list[str]) -> None:
        await self._anyio.run_process(argv, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)

    async def capture(self, argv: list[str], data: bytes | None = None) -> bytes:
        options: dict[str, Any] = {"stdin": DEVNULL} if data is None else {"input": data}
        output: bytes = (await self._anyio.run_process(argv, **options)).stdout
        return output


# -- all of them


@dataclass(frozen=True)
class Entry:
    """A peer's name, how it is made, what it needs."""

    name: str
    title: str
    kind: type[Peer] | None
    arguments: tuple[str, ...] = ()
    #: What has to be installed.
    package: str | None = None
    #: AIOPROC_BACKEND of its process.
    backend: str | None = None
    #: One of Programs, instead of `kind`: a compiled peer. `arguments` are its own.
    program: str | None = None
    #: Of the C program.
    threads: int = 0
    #: Whether it needs Go.
    go: bool = False
    #: All that it is measured at, where it is another peer at all else.
    only: tuple[str, ...] | None = None

    @property
    def modules(self) -> set[str]:
        """What its user imports."""
        return {*self.arguments[:1], *([self.package] if self.package else [])}

    def make(self) -> Peer:
        assert self.kind is not None
        return self.kind(*self.arguments)

    def can(self, operations: Iterable[str]) -> bool:
        return self.kind is not None and all(
            self.kind.can(name) and (self.only is None or name in self.only) for name in operations
        )


def _on_asyncio(name: str, title: str, module: str, backend: str | None = None) -> list[Entry]:
    """The same on asyncio's loop and on uvloop's."""
    on_uvloop = name + "+uvloop" if backend else "uvloop"
    kind = AioprocPeer if backend else AsyncioPeer
    return [
        Entry(name, title, kind, (module, "asyncio"), backend=backend),
        Entry(
            on_uvloop,
            f"{title} on uvloop's loop" if backend else "uvloop",
            kind,
            (module, "uvloop"),
            backend=backend,
            package="uvloop",
        ),
    ]


_NATIVE, _NATIVE_ON_UVLOOP = _on_asyncio("native", "aioproc native", "aioproc", "native")

#: In the order of a round: those who are compared are near each other.
ENTRIES = [
    Entry("go", "Go's os/exec", None, program="os_exec", go=True),
    Entry("c1", "C, one thread", None, ("-t", "1"), program="limit", threads=1),
    Entry("c2", "C, two threads", None, ("-t", "2"), program="limit", threads=2),
    _NATIVE_ON_UVLOOP,
    Entry(
        "communicate",
        "aioproc native without its run(): create_subprocess_exec() and communicate()",
        AsyncioPeer,
        ("aioproc", "asyncio"),
        backend="native",
        only=("silent", "capture"),
    ),
    Entry(
        "limited",
        "aioproc native, with three rlimits, nice, umask and no_new_privs",
        LimitedPeer,
        ("aioproc", "asyncio"),
        backend="native",
        only=("call",),
    ),
    _NATIVE,
    *_on_asyncio("asyncio", "asyncio", "asyncio"),
    *_on_asyncio("pure", "aioproc pure", "aioproc", "pure"),
    Entry("trio", "trio", TrioPeer, package="trio"),
    Entry("anyio", "anyio on asyncio's loop", AnyioPeer, package="anyio"),
    Entry("threads", "subprocess.run in a thread pool", ThreadsPeer),
    Entry("shell", "xargs -P, and sh", ShellPeer, only=("many_silent", "pipe")),
]
PEERS = {entry.name: entry for entry in ENTRIES}


def without_go(names: Iterable[str]) -> list[str]:
    """Those that need no Go."""
    return [name for name in names if not PEERS[name].go]


def missing(names: Iterable[str]) -> str | None:
    """What is not installed for these peers and how to get it, or None."""
    names = list(names)
    if without_go(names) != names and not programs.has_go():
        return (
            "Go is not installed here, needed for go: apt-get install golang-go\n"
            "(or leave it out: --peers names those to measure)"
        )
    absent: dict[str, list[str]] = {}
    for name in names:
        package = PEERS[name].package
        if package is not None and importlib.util.find_spec(package) is None:
            absent.setdefault(package, []).append(name)
    if absent:
        who = ", ".join(name for users in absent.values() for name in users)
        return (
            f"not installed here, needed for {who}: pip install {' '.join(absent)}\n"
            "(or leave them out: --peers names those to measure)"
        )
    if any(PEERS[name].backend == "native" for name in names) and not _has_extension():
        return (
            "aioproc's extension is not built: python setup.py build_ext --inplace\n"
            "(or leave native out: --peers names those to measure)"
        )
    return None


def _has_extension() -> bool:
    return importlib.util.find_spec("aioproc._native") is not None


def versions(names: Iterable[str]) -> dict[str, str]:
    import importlib.metadata

    names = list(names)
    packages = {entry.package for name in names if (entry := PEERS[name]).package}
    found = {name: importlib.metadata.version(name) for name in sorted(packages)}
    if without_go(names) != names:
        found["Go"] = programs.go_version()
    return found
