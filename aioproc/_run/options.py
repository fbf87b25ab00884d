"""What run() was asked for, judged once."""

from __future__ import annotations

import functools
import os
import stat
import subprocess
from collections.abc import Container, Iterable, Mapping
from typing import Any

from .._backends import system
from .._notes import add_note
from .._spec.advice import REFUSALS, explain_failure, explain_refusal, refuse_shell, refuse_unknown
from .._spec.limits import die_where_honest
from .._spec.spec import SpawnSpec
from .._text import Encoder, check_pieces, judged_text
from .._trees.steps import DEFAULT_STEPS, GRACE, Step, judged_seconds, judged_steps
from .limiter import Limiter
from .listen import Callback

DEVNULL, PIPE, STDOUT = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT

#: Seconds for the end of the pipes after the exit.
DRAIN = 0.5

#: What to do in place of keywords of subprocess.run() and of asyncio's functions.
INSTEAD = {
    "bufsize": "leave it out: output is read as it comes",
    "capture_output": "run_shell() and run() capture unless stdout, stderr are given",
    "concurrency": "it is for many commands: run_many(), run_all()",
    "kill_after": "use stop=SECONDS",
    "limit": "there is none: output and lines may have any length",
    "loop": "the process belongs to the loop that runs",
    "shell": "use run_shell(command), or leave it out",
    "universal_newlines": "use text=True",
}


class _Default:
    """Stands for what was not given."""

    def __repr__(self) -> str:
        return "..."


DEFAULT: Any = _Default()


class Settings:
    """How one command is run. What is rarely given has its value here."""

    name: str | None = None
    text = False
    encoding = "utf-8"
    errors = "replace"
    check = True
    accepted: Container[int] = (0,)
    timeout: float | None = None
    idle_timeout: float | None = None
    steps: list[Step]
    drain = DRAIN
    ends_leftovers = False
    max_output: int | None = None
    on_output: Callback | None = None
    on_line: Callback | None = None
    #: What goes into stdin: at once, or by and by.
    data: memoryview | None = None
    source: Any = None
    limiter: Limiter | None = None
    _input_errors = "strict"
    #: Whether a stream is given as a path.
    _has_paths = False

    def __init__(
        self,
        function: str,
        program: Any,
        args: tuple[Any, ...],
        *,
        is_shell: bool = False,
        shell_program: Any = None,
        input: Any = None,
        stdin: Any = DEFAULT,
        stdout: Any = DEFAULT,
        stderr: Any = DEFAULT,
        capture_output: bool = True,
        text: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
        check: bool | Container[int] = True,
        timeout: float | None = None,
        idle_timeout: float | None = None,
        stop: Any = GRACE,
        drain: float = DRAIN,
        leftovers: str = "leave",
        tree: bool = True,
        max_output: int | None = None,
        on_output: Callback | None = None,
        on_line: Callback | None = None,
        cwd: Any = None,
        env: Mapping[Any, Any] | None = None,
        env_update: Mapping[Any, Any] | None = None,
        name: str | None = None,
        limiter: Limiter | None = None,
        **options: Any,
    ) -> None:
        self._function = function
        self._shell = is_shell
        refuse_shell(function, options, INSTEAD["shell"])
        if not args and not is_shell and isinstance(program, (list, tuple)):
            raise TypeError(
                f"{function}() takes the program and its arguments one by one: "
                f"{function}(*command)"
            )
        self.user_args: Any = program if is_shell else (program, *args)
        if name is not None:
            self.name = judged_string("name", name)
        if limiter is not None:
            self.limiter = judge_limiter(limiter)
        if text or encoding is not None or errors is not None:
            self._judge_text(encoding, errors)
        if check is not True:
            self._judge_check(check)
        if timeout is not None:
            self.timeout = judged_seconds("timeout", timeout)
        if idle_timeout is not None:
            self.idle_timeout = judged_seconds("idle_timeout", idle_timeout)
        terminal = bool(options.get("pty"))
        usual = stop is GRACE and not terminal
        self.steps = DEFAULT_STEPS if usual else judged_steps(stop, terminal)
        if drain is not DRAIN:
            self.drain = judged_seconds("drain", drain)
            if self.drain < 0:
                raise ValueError(f"drain must be 0 seconds or more, not {drain}")
        if leftovers != "leave":
            self._judge_leftovers(leftovers, tree)
        if max_output is not None:
            self._judge_max_output(max_output)

        streams: tuple[Any, Any, Any]
        if terminal:
            streams = self._judge_terminal(stdin, stdout, stderr, input, capture_output)
        elif stdin is stdout is stderr is DEFAULT and capture_output:
            streams = (DEVNULL if input is None else PIPE, PIPE, PIPE)
            self.captures = True
        else:
            streams = self._judge_streams(stdin, stdout, stderr, input, capture_output)
        if input is not None:
            self._judge_input(input)
        if on_output is not None or on_line is not None:
            self._judge_callbacks(on_output, on_line)
        if idle_timeout is not None:
            self._needs_output("idle_timeout")
        if env_update is not None:
            env = updated(env, env_update)
        if not is_shell:
            command: Any = (judged_program(program, cwd, options), *args)
        else:
            command = program
            if not isinstance(command, (str, bytes)):
                raise TypeError(
                    f"the command must be a string, not {command!r:.100}; "
                    "run() takes a program and its arguments"
                )
            flag = None if shell_program is None else system.shell_flag(shell_program)
            if flag is None:
                options["shell"] = True
                options["executable"] = shell_program and system.find_shell(shell_program)
            else:
                command = (shell_program, *flag, command)
        options["cwd"] = cwd
        options["env"] = env
        options["tree"] = tree = bool(tree)
        die_where_honest(options)
        self.has_tree = tree
        self._command = command
        self._streams: tuple[Any, ...] = streams
        self._options = options
        #: Whether it matters when something comes.
        self.listens = self.on_output is not None or self.on_line is not None
        self.is_in_a_hurry = self.listens or idle_timeout is not None or self.source is not None
        # All is judged before any file is opened.
        self._spec = self._build(without_paths(streams) if self._has_paths else streams)
        self.steps = system.possible_steps(self.steps, self._spec.leads_group)

    # -- one after the other

    def _judge_text(self, encoding: str | None, errors: str | None) -> None:
        self.text = True
        self.encoding, self.errors, self._input_errors = judged_text(encoding, errors)

    def _judge_check(self, check: Any) -> None:
        if isinstance(check, bool):
            self.check = check
        elif hasattr(check, "__contains__") and not isinstance(check, (str, bytes)):
            self.accepted = check
        else:
            raise TypeError(
                "check must be a bool, or a container of the returncodes that are fine: "
                f"check={{0, 1}}; not {check!r:.100}"
            )

    def _judge_leftovers(self, leftovers: Any, tree: bool) -> None:
        if leftovers != "kill":
            raise ValueError(f"leftovers must be 'leave' or 'kill', not {leftovers!r:.100}")
        if not tree:
            raise ValueError("leftovers='kill' needs tree=True: nobody knows them otherwise")
        self.ends_leftovers = True

    def _judge_max_output(self, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"max_output must be a number of bytes, not {value!r:.100}")
        if value <= 0:
            raise ValueError(f"max_output must be at least 1 byte, not {value}")
        self.max_output = value

    def _judge_callbacks(self, on_output: Any, on_line: Any) -> None:
        for which, callback in (("on_output", on_output), ("on_line", on_line)):
            if callback is None:
                continue
            if not callable(callback):
                raise TypeError(f"{which} must be callable, not {callback!r:.100}")
            self._needs_output(which)
        if self.text:
            check_pieces(self.encoding, "callbacks need")
        self.on_output, self.on_line = on_output, on_line

    def _needs_output(self, which: str) -> None:
        if not self.captures:
            raise ValueError(f"{which} needs output: stdout or stderr must be PIPE")

    def _judge_streams(
        self, stdin: Any, stdout: Any, stderr: Any, input: Any, capture_output: bool
    ) -> tuple[Any, Any, Any]:
        if not capture_output:
            if stdout is not DEFAULT or stderr is not DEFAULT:
                raise ValueError(
                    "stdout and stderr may not be given with capture_output=False, "
                    "which is stdout=None, stderr=None"
                )
            stdout = stderr = None
        if input is not None:
            if stdin is not DEFAULT:
                raise ValueError("stdin and input may not both be given")
            stdin = PIPE
        elif stdin is DEFAULT:
            stdin = DEVNULL
        elif isinstance(stdin, int) and stdin == PIPE:
            raise ValueError(
                "stdin=PIPE has nobody who writes: give input, "
                "or use create_subprocess_exec() to write as you go"
            )
        if stdout is DEFAULT:
            stdout = PIPE
        if stderr is DEFAULT:
            stderr = PIPE
        self.captures = stdout == PIPE or stderr == PIPE
        streams = (stdin, stdout, stderr)
        self._has_paths = check_streams(streams)
        return streams

    def _judge_terminal(
        self, stdin: Any, stdout: Any, stderr: Any, input: Any, capture_output: bool
    ) -> tuple[None, None, None]:
        if input is not None:
            # getpass and its kin drop it (TCSAFLUSH), and of a line that is longer than the
            # kernel's buffer the rest.
            raise ValueError(
                "a terminal has no input=: programs drop what is typed before they ask; use "
                "open_process(), read_until() and stdin.write()"
            )
        if not (stdin is stdout is stderr is DEFAULT) or not capture_output:
            raise ValueError(
                "stdin, stdout, stderr and capture_output may not be given with pty: all of them "
                "are the terminal, and what is written there is captured as stdout"
            )
        self.captures = True
        return None, None, None

    def _judge_input(self, input: Any) -> None:
        """Data at once, or a source of chunks."""
        if isinstance(input, str):
            if not self.text:
                error = TypeError("input must be bytes, not str")
                add_note(error, "give text=True, or input=text.encode()")
                raise error
            input = self.encode(input)
        elif self.text and isinstance(input, (bytes, bytearray, memoryview)):
            raise TypeError(f"input must be str with text=True, not {type(input).__name__}")
        try:
            view = memoryview(input)
        except TypeError:
            if any(hasattr(input, name) for name in ("read", "__aiter__", "__iter__")):
                self.source = input
                return
            raise TypeError(
                "input must be bytes, a str with text=True, a file or an iterable of chunks, "
                f"not {input!r:.100}"
            ) from None
        flat = view.contiguous and view.nbytes
        self.data = view.cast("B") if flat else memoryview(bytes(view))

    # -- text

    @functools.cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self.encoding, self._input_errors)

    def encode(self, chunk: Any) -> bytes:
        """A chunk of the input."""
        if isinstance(chunk, str):
            if not self.text:
                error = TypeError("chunks of input must be bytes, not str")
                add_note(error, "give text=True, or encode() them")
                raise error
            return self._encoder.encode(chunk)
        try:
            return bytes(memoryview(chunk))
        except TypeError:
            kind = type(chunk).__name__
            raise TypeError(f"chunks of input must be bytes-like objects, not {kind}") from None

    def decode(self, data: bytes) -> str:
        """All of an output."""
        text = data.decode(self.encoding, self.errors)
        return text.replace("\r\n", "\n").replace("\r", "\n")

    # -- the spawn

    def spec(self, opened: list[Any]) -> SpawnSpec:
        """What to spawn. What is opened for it, to be closed then, goes to `opened`."""
        if not self._has_paths:
            return self._spec
        return self._build(open_paths(self._streams, opened))

    def again(self, program: Any, args: tuple[Any, ...]) -> Settings | None:
        """The same for another command, at a fraction of the cost; None where it has to be
        judged anew."""
        options = self._options
        if self._has_paths or self._shell or options.get("executable") is not None:
            return None
        more: dict[str, Any] = {}
        command = (judged_program(program, options["cwd"], more), *args)
        if more:
            return None  # it is where we are, and not where it is to run
        try:
            spec = self._spec.again(command)
        except REFUSALS as error:
            explain_refusal(error, (program, *args), {}, self._function)
            raise
        if spec is None:
            return None
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.__dict__.pop("_encoder", None)  # it has a state
        other.user_args, other._command, other._spec = (program, *args), command, spec
        return other

    def connect(self, streams: Iterable[Any]) -> None:
        """Has other streams in their place, descriptors; DEFAULT: as it is."""
        pairs = zip(streams, self._streams, strict=True)
        self._streams = tuple(old if new is DEFAULT else new for new, old in pairs)
        if not self._has_paths:
            self._spec = self._build(self._streams)

    def _build(self, streams: Iterable[Any]) -> SpawnSpec:
        stdin, stdout, stderr = streams
        try:
            return SpawnSpec.build(
                self._command, stdin=stdin, stdout=stdout, stderr=stderr, **self._options
            )
        except REFUSALS as error:
            if isinstance(error, TypeError):
                refuse_unknown(self._function, self._options, _OWN, INSTEAD)
            arguments = (self.user_args,) if self._shell else self.user_args
            explain_refusal(error, arguments, self._options, self._function)
            raise

    def explain(self, error: OSError) -> None:
        """Says what may have been meant by a command that could not be started."""
        if not self._shell:
            explain_failure(error, self._spec, "run_shell")


_OWN = frozenset(Settings.__init__.__kwdefaults__ or ()) - {"is_shell", "shell_program"}


def judge_limiter(value: Any) -> Limiter:
    if not isinstance(value, Limiter):
        raise TypeError(f"limiter must be a Limiter, not {value!r:.100}")
    return value


def judged_string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {value!r:.100}")
    return value


def check_streams(streams: tuple[Any, Any, Any], data: str = "input= for data") -> bool:
    """Whether there is a path among them, which is to be opened. TypeError: there is a str.

    data: what to do with data for stdin."""
    has_paths = False
    for which, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
        if stream is None or isinstance(stream, int):
            continue
        if isinstance(stream, os.PathLike):
            has_paths = True
        elif isinstance(stream, (str, bytes)):
            advice = "give a pathlib.Path for a file"
            if which == "stdin":
                advice += f", or {data}"
            raise TypeError(f"{which} cannot be {stream!r:.100}: {advice}")
    return has_paths


def without_paths(streams: Iterable[Any]) -> list[Any]:
    """All can be judged before any file is opened."""
    return [DEVNULL if isinstance(one, os.PathLike) else one for one in streams]


def open_paths(streams: Iterable[Any], opened: list[Any]) -> list[Any]:
    """Opens what is given as a path; those files go to `opened`, too, to be closed."""
    files: list[Any] = []
    given = list(streams)
    for number, stream in enumerate(given):
        if isinstance(stream, os.PathLike):
            if number == 2 and stream == given[1]:
                files.append(files[1])  # opened twice, one would write over the other
                continue
            stream = _open_path(stream, "rb" if number == 0 else "wb")
            opened.append(stream)
        files.append(stream)
    return files


def _open_path(path: Any, mode: str) -> Any:
    try:
        is_fifo = stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        is_fifo = False  # open() says what there is to be said
    if is_fifo:
        raise ValueError(
            f"{os.fspath(path)!r:.200} is a FIFO, and to open it is to wait for its other end: "
            "open it yourself, in a thread, and give the file"
        )
    return open(path, mode)


def judged_program(program: Any, cwd: Any, options: dict[str, Any]) -> Any:
    """A program as the caller sees it, wherever the child is to be."""
    if type(program) is not str:
        program = _named(program)
    program = system.relative(program)
    if cwd is not None and options.get("executable") is None:
        relative = system.from_here(program)
        if relative is not None:
            options["executable"] = relative
    return program


def _named(program: Any) -> Any:
    """A path names a file, not something to be looked for in PATH."""
    if isinstance(program, os.PathLike):
        path = os.fspath(program)
        if path and not os.path.dirname(path):
            here = os.path.join(os.curdir, "")
            return os.fsencode(here) + path if isinstance(path, bytes) else here + path
    return program


def updated(env: Mapping[Any, Any] | None, update: Any) -> dict[Any, Any]:
    if not isinstance(update, Mapping):
        raise TypeError(f"env_update must be a mapping, not {update!r:.100}")
    variables: dict[Any, Any] = dict(os.environ if env is None else env)
    for key, value in update.items():
        if isinstance(key, (str, bytes)):
            for other in system.spellings(key, variables):
                variables.pop(other, None)
        if value is not None:
            variables[key] = value
    return variables
