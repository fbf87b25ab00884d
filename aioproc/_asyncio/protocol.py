"""The protocol of a Process: joins its transport to its streams."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from .._backends.base import READS_NO_MORE
from .._sink import Sink
from .streams import StreamReader
from .transport import SubprocessTransport
from .writer import Flow, StreamWriter


class StreamProtocol(asyncio.subprocess.SubprocessStreamProtocol):
    """Joins a SubprocessTransport to the streams of a Process.

    asyncio's class is the base for ``isinstance`` only. Names that code in the wild reads
    or derived classes use are asyncio's: _paused, _limit, _transport, _process_exited.
    """

    def __init__(self, limit: int | None, loop: asyncio.AbstractEventLoop) -> None:
        if limit is not None and limit <= 0:
            raise ValueError("Limit cannot be <= 0")
        self._limit = limit
        self._loop = loop
        #: By the numbers of the streams: what is there for the user, made when he asks for
        #: it. Most children are for communicate(), which needs none of it.
        self._streams: dict[int, Any] = {}
        #: What communicate() collects of pipes that have no reader.
        self._sinks: dict[int, Sink] = {}
        #: What broke pipes that had no stream then.
        self._errors: dict[int, Exception] = {}
        #: Of the writer, if there is one.
        self._flow: Flow | None = None
        self._pipes: Mapping[int, Any] = {}
        self._transport: SubprocessTransport | None = None
        self._process_exited = False
        self._readers_open = 0

    def __repr__(self) -> str:
        info = [type(self).__name__]
        for name in ("stdin", "stdout", "stderr"):
            stream = getattr(self, name)
            if stream is not None:
                info.append(f"{name}={stream!r}")
        return f"<{' '.join(info)}>"

    # -- the streams

    @property
    def stdin(self) -> StreamWriter | None:  # type: ignore[override]
        if 0 not in self._streams:
            self._streams[0] = self._make_writer()
        stream: StreamWriter | None = self._streams[0]
        return stream

    @property
    def stdout(self) -> StreamReader | None:  # type: ignore[override]
        return self._reader(1)

    @property
    def stderr(self) -> StreamReader | None:  # type: ignore[override]
        return self._reader(2)

    def _reader(self, fd: int) -> StreamReader | None:
        if fd not in self._streams:
            self._streams[fd] = self._make_reader(fd)
        stream: StreamReader | None = self._streams[fd]
        return stream

    def _make_reader(self, fd: int) -> StreamReader | None:
        pipe = self._pipes.get(fd)
        if pipe is None:
            return None
        reader = StreamReader(self._limit, self._loop)
        reader.set_transport(pipe)
        reader._sink = self._sinks.get(fd)  # so that nobody reads in the midst of it
        if not pipe._lost:
            pipe.deliver_to(reader.feed_data)
        elif fd in self._errors:
            reader.set_exception(self._errors[fd])
        else:
            reader.feed_eof()
        return reader

    def _make_writer(self) -> StreamWriter | None:
        pipe = self._pipes.get(0)
        if pipe is None:
            return None
        flow = self._flow = Flow(self._loop)
        if pipe._protocol_paused:
            flow.pause()
        if pipe._lost:
            flow.end(self._errors.get(0))
        return StreamWriter(pipe, flow, None, self._loop)

    # -- asyncio.SubprocessProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, SubprocessTransport)
        self._transport = transport
        pipes = self._pipes = transport._pipes
        self._readers_open = len(pipes) - (0 in pipes)
        # Straight to where they belong, unless a derived class wants to see the data.
        transport._in_person = (
            type(self).pipe_data_received is not StreamProtocol.pipe_data_received
        )

    def pipe_data_received(self, fd: int, data: Any) -> None:
        reader = self._reader(fd)
        if reader is not None:
            reader.feed_data(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if exc is not None:
            self._errors[fd] = exc
        if fd == 0:
            if self._flow is not None:
                self._flow.end(exc)
        else:
            reader = self._streams.get(fd)
            if reader is not None:
                if exc is None:
                    reader.feed_eof()
                else:
                    reader.set_exception(exc)
            self._readers_open -= 1
        self._progress()

    def pipe_out_of_memory(self, fd: int, exc: MemoryError) -> None:
        """A read of the pipe has failed, and has taken nothing out of it."""
        reader = self._reader(fd)
        assert reader is not None
        reader._out_of_memory(exc)
        if self._transport is not None:
            self._transport._out_of_memory(exc)

    def process_exited(self) -> None:
        self._process_exited = True
        self._progress()

    def connection_lost(self, exc: Exception | None) -> None:
        pass

    def _progress(self) -> None:
        if not self._process_exited or self._readers_open:
            return
        transport, self._transport = self._transport, None
        if transport is not None and transport._pipes_open:
            transport.close()  # stdin, if nobody did

    def pause_writing(self) -> None:
        if self._flow is not None:
            self._flow.pause()

    def resume_writing(self) -> None:
        if self._flow is not None:
            self._flow.resume()

    @property
    def _paused(self) -> bool:
        return self._flow is not None and self._flow._paused

    # -- for Process.communicate

    def _start_collecting(self, fd: int) -> None:
        """All that is to come of a pipe is kept, out of the reach of others.

        MemoryError, OSError: it cannot be done, and nothing has changed.
        """
        if fd in self._streams:
            reader = self._streams[fd]
            if reader is not None:
                reader._check()
                reader._start_collecting()
        elif fd in self._pipes:
            if fd in self._errors:
                raise self._errors[fd]
            sink = self._sinks[fd] = Sink()
            self._pipes[fd].collect(sink)

    def _stop_collecting(self) -> None:
        """What was collected is where it can be read."""
        for fd in (1, 2):
            if fd in self._sinks:
                reader = self._reader(fd)
                assert reader is not None
            else:
                reader = self._streams.get(fd)
            if reader is not None and reader._sink is not None:
                reader._stop_collecting()
        self._sinks.clear()

    def take_all(self) -> tuple[bytes | None, bytes | None]:
        """What was collected.

        MemoryError, or what broke a pipe: all of it stays where it is.
        """
        for fd, error in self._errors.items():
            if fd in self._pipes and not (fd == 0 and isinstance(error, READS_NO_MORE)):
                raise error
        outputs: list[Any] = [None, None]
        readers = []
        for fd in (1, 2):
            reader = self._streams.get(fd)
            if reader is not None:
                reader._stop_collecting()
                reader._join()
                readers.append((fd, reader))
            elif fd in self._sinks:
                outputs[fd - 1] = self._sinks[fd].value()
        # Nothing fails from here on.
        self._sinks.clear()
        for fd, reader in readers:
            outputs[fd - 1] = reader._take_all()
        return outputs[0], outputs[1]
