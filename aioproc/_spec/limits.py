"""What a child may use and do: rlimits, nice, cpu_affinity and the like, judged once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .._backends.base import (
    STEP_CPUS,
    STEP_DIE,
    STEP_NICE,
    STEP_NO_NEW_PRIVS,
    STEP_OOM,
    STEP_RLIMIT,
)
from .._backends.system import HAS_CPUS, LINUX, WINDOWS
from .._notes import add_note

if TYPE_CHECKING:
    from .spec import SpawnSpec

try:
    import resource
except ImportError:  # Windows, Emscripten
    _RESOURCES: dict[str, int] = {}
    _INFINITY = -1
else:
    _RESOURCES = {
        name.removeprefix("RLIMIT_").lower(): getattr(resource, name)
        for name in sorted(dir(resource))
        if name.startswith("RLIMIT_")
    }
    _INFINITY = resource.RLIM_INFINITY

#: For die_with_parent: where it costs nothing, and means what it says. None of the user's own
#: values.
WHERE_HONEST: Any = object()

#: What the C layer has room for.
MOST_CPUS = 8192

#: Windows' keys of rlimits: those of a job object.
JOB_MEMORY, JOB_PROCESSES, JOB_CPU_RATE = "job_memory", "job_processes", "job_cpu_rate"

#: Windows: priority classes by name (SetPriorityClass), and the lowest nice value that means
#: each; what stands above the system itself has to be asked for by its name.
_CLASSES = {
    "realtime": (0x100, None),
    "high": (0x80, -20),
    "above_normal": (0x8000, -7),
    "normal": (0x20, 0),
    "below_normal": (0x4000, 1),
    "idle": (0x40, 11),
}
_ANY_CLASS = 0x100 | 0x80 | 0x8000 | 0x20 | 0x4000 | 0x40


class Limits:
    """Plain data. What was not given has its value here."""

    #: -20 to 19. On Windows it is among the creationflags.
    nice: int | None = None
    cpus: frozenset[int] = frozenset()
    oom_score_adj: int | None = None
    no_new_privs = False
    #: POSIX: (key, its number, soft, hard) each; -1 is infinity.
    rlimits: tuple[tuple[str, int, int, int], ...] = ()
    #: Windows: by the keys of above; JOB_CPU_RATE in hundredths of a per cent.
    job: Mapping[str, int] = {}

    def option(self, step: int) -> str:
        """Which one has failed."""
        for key, number, _, _ in self.rlimits:
            if step == STEP_RLIMIT + number:
                return f"rlimits[{key!r}]"
        return OPTIONS[step]

    def suspects(self, keys: Iterable[str]) -> list[str]:
        """Those of these limits that were set."""
        given = {key for key, _, _, _ in self.rlimits}
        return [f"rlimits[{key!r}]" for key in keys if key in given]


#: By the step that sets it.
OPTIONS = {
    STEP_NICE: "nice",
    STEP_CPUS: "cpu_affinity",
    STEP_OOM: "oom_score_adj",
    STEP_NO_NEW_PRIVS: "no_new_privs",
    STEP_DIE: "die_with_parent",
}


def judge(
    spec: SpawnSpec,
    rlimits: Any,
    nice: Any,
    cpu_affinity: Any,
    oom_score_adj: Any,
    no_new_privs: Any,
) -> None:
    limits = Limits()
    if nice is not None:
        if WINDOWS:
            _judge_class(spec, nice)
        else:
            limits.nice = _integer("nice", nice, -20, 19)
    if cpu_affinity is not None:
        if not HAS_CPUS:
            raise _not_here("cpu_affinity")
        limits.cpus = _cpus(cpu_affinity)
    if oom_score_adj is not None:
        if not LINUX:
            raise _not_here("oom_score_adj", "Linux")
        limits.oom_score_adj = _integer("oom_score_adj", oom_score_adj, -1000, 1000)
    if no_new_privs:
        if not LINUX:
            raise _not_here("no_new_privs", "Linux")
        limits.no_new_privs = True
    if rlimits is not None:
        if not isinstance(rlimits, Mapping):
            raise TypeError(
                f'rlimits must be a mapping such as {{"nofile": 256}}, not {rlimits!r:.100}'
            )
        if WINDOWS:
            limits.job = {key: _job_limit(key, value) for key, value in rlimits.items()}
        else:
            limits.rlimits = tuple(_rlimit(key, value) for key, value in rlimits.items())
    spec.limits = limits


def die_where_honest(options: dict[str, Any]) -> None:
    """Makes that the default among keywords of SpawnSpec.build()."""
    if options.get("die_with_parent") is None:
        options["die_with_parent"] = WHERE_HONEST


def judge_parent(spec: SpawnSpec, die_with_parent: Any) -> None:
    if die_with_parent is WHERE_HONEST:
        spec.die_if_honest = True
    elif die_with_parent:
        if not LINUX and not WINDOWS:
            raise _not_here("die_with_parent", "Linux and Windows")
        spec.die_with_parent = True


def _not_here(name: str, where: str | None = None) -> ValueError:
    text = f"{name} is not supported on the current platform"
    return ValueError(text if where is None else f"{text}: it needs {where}")


def _integer(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {value!r:.100}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least} to {most}, not {value}")
    return int(value)


def _cpus(value: Any) -> frozenset[int]:
    if isinstance(value, (int, str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(
            f"cpu_affinity must be the numbers of CPUs, such as {{0, 1}}, not {value!r:.100}"
        )
    cpus = frozenset(_integer("a CPU of cpu_affinity", one, 0, MOST_CPUS - 1) for one in value)
    if not cpus:
        raise ValueError("cpu_affinity must have at least one CPU")
    return cpus


def _rlimit(key: Any, value: Any) -> tuple[str, int, int, int]:
    number = _RESOURCES.get(key) if isinstance(key, str) else None
    if number is None:
        error = ValueError(
            f"there is no limit {key!r:.100} here; there is {', '.join(_RESOURCES)}"
        )
        for name, its in _RESOURCES.items():
            if key == its or (isinstance(key, str) and key.lower() == f"rlimit_{name}"):
                add_note(error, f"write {name!r}")
                break
        raise error
    name = f"rlimits[{key!r}]"
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise TypeError(f"{name} must be a number or (soft, hard), not {value!r:.100}")
    # No generator: PyPy takes its TypeError for one of the unpacking, and says so.
    soft, hard = [_bound(name, one, value) for one in pair]
    if soft is None or hard is None:
        # As it is for us; the child has the same.
        own_soft, own_hard = resource.getrlimit(number)
        hard = _plain(own_hard) if hard is None else hard
        soft = _plain(own_soft) if soft is None else soft
    if hard != -1 and not 0 <= soft <= hard:
        raise ValueError(f"{name}: the soft limit {soft} exceeds the hard limit {hard}")
    return key, number, soft, hard


def _plain(value: int) -> int:
    return -1 if value == _INFINITY else value


def _bound(name: str, bound: Any, value: Any) -> int | None:
    if bound is None and isinstance(value, (tuple, list)):
        return None
    if isinstance(bound, bool) or not isinstance(bound, int):
        raise TypeError(f"{name} must be a number or (soft, hard), not {value!r:.100}")
    if bound == _INFINITY:
        return -1
    if not -1 <= bound < 2**63:
        raise ValueError(
            f"{name} must be 0 or more, or resource.RLIM_INFINITY for no limit, not {bound}"
        )
    return int(bound)


# -- Windows


def _judge_class(spec: SpawnSpec, nice: Any) -> None:
    if spec.creationflags & _ANY_CLASS:
        raise ValueError("nice and a priority class among creationflags may not both be given")
    if isinstance(nice, str):
        if nice not in _CLASSES:
            raise ValueError(f"there is no priority {nice!r:.100}; there is {', '.join(_CLASSES)}")
        spec.creationflags |= _CLASSES[nice][0]
        return
    nice = _integer("nice", nice, -20, 19)
    spec.creationflags |= [
        flag for flag, least in _CLASSES.values() if least is not None and least <= nice
    ][-1]


def _job_limit(key: Any, value: Any) -> int:
    if key not in (JOB_MEMORY, JOB_PROCESSES, JOB_CPU_RATE):
        raise ValueError(
            f"there is no limit {key!r:.100} on Windows; there is {JOB_MEMORY} (bytes), "
            f"{JOB_PROCESSES} and {JOB_CPU_RATE} (per cent of all CPUs)"
        )
    name = f"rlimits[{key!r}]"
    if key != JOB_CPU_RATE:
        return _integer(name, value, 1, 2**32 - 1 if key == JOB_PROCESSES else 2**63 - 1)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of per cent, not {value!r:.100}")
    if not 0.01 <= value <= 100:
        raise ValueError(f"{name} must be from 0.01 to 100 per cent, not {value}")
    return round(value * 100)
