"""tools/bench: that it measures, compares and reports. Its figures decide nothing here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import aioproc
from conftest import settle
from marks import proc_only
from programs import WINDOWS

if WINDOWS:
    pytest.skip("not on Windows: the benchmark", allow_module_level=True)

from tools.bench import chart, peers, programs, report, targets
from tools.bench.__main__ import QUICK_PEERS
from tools.bench.results import Range, Results, Row
from tools.bench.works import CURVES, WORKS, Setting

ROOT = Path(__file__).parents[1]


needs_go = pytest.mark.skipif(not programs.has_go(), reason="there is no Go here")


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.bench", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=env)


@pytest.fixture
def ours(pytestconfig: pytest.Config) -> str:
    """A peer that is sure to be here."""
    return "pure" if pytestconfig.getoption("--no-native") else "native"


def test_a_run_from_end_to_end(ours, tmp_path):
    saved, table = tmp_path / "results.json", tmp_path / "table.md"
    run = bench(
        *("--only", "spawn-1,out", "--peers", f"{ours},asyncio,c1", "--pairs", "2"),
        *("--count", "3", "--json", str(saved), "--markdown", str(table)),
    )
    assert run.returncode == 0, run.stderr
    data = json.loads(saved.read_text())
    assert data["peers"] == sorted(["c1", ours, "asyncio"], key=list(peers.PEERS).index)
    spawn, out = data["rows"]
    assert (spawn["work"], out["work"]) == ("spawn-1", "out")
    assert set(spawn["values"]) == {"c1", ours, "asyncio"}
    assert set(out["values"]) == {ours, "asyncio"}
    for row in (spawn, out):
        for by_metric in row["values"].values():
            assert set(by_metric) == set(row["units"])
            assert all(len(values) == 2 for values in by_metric.values())
    ours_time, base_time = (spawn["values"][peer]["time"] for peer in (ours, "asyncio"))
    pairs = [a / b for a, b in zip(ours_time, base_time, strict=True)]
    ratio = spawn["ratios"][ours]["time"]
    assert (ratio["low"], ratio["high"]) == (min(pairs), max(pairs))
    assert ratio["median"] == pytest.approx(sum(pairs) / 2)
    for title in ("spawn+wait, 1 at a time", "communicate(), 3 MiB out"):
        assert title in run.stdout
        assert title in table.read_text()
    assert "10 measurements" in run.stderr

    # Once more from what was saved, with nothing measured.
    again = bench("--load", str(saved), "--check")
    assert again.returncode in (0, 1)
    assert run.stdout in again.stdout
    assert ("MISS" in again.stdout) == (again.returncode == 1)
    assert "measurements" not in again.stderr


def test_large_outputs_and_many_at_once(ours, tmp_path):
    saved = tmp_path / "results.json"
    run = bench(
        *("--only", "100k,mib,gather", "--peers", f"{ours},asyncio,c1", "--pairs", "1"),
        *("--count", "3", "--json", str(saved)),
    )
    assert run.returncode == 0, run.stderr
    rows = {row["work"]: row for row in json.loads(saved.read_text())["rows"]}
    assert set(rows["100k"]["values"]) == set(rows["mib"]["values"]) == {"c1", ours, "asyncio"}
    assert set(rows["gather"]["values"]) == {ours, "asyncio"}
    assert all(gap > 0 for by in rows["gather"]["values"].values() for gap in by["gap"])


def test_run_against_what_others_have_of_the_kind(ours, tmp_path):
    saved = tmp_path / "results.json"
    works = "run-true-1,run-echo-32,run-cat-1,run-out,run-in,stream"
    others = [
        "c1",
        "c2",
        "asyncio",
        "threads",
        *(name for name in ("trio", "anyio") if peers.missing([name]) is None),
        *(["communicate"] if ours == "native" else []),
    ]
    run = bench(
        *("--only", works, "--peers", ",".join([ours, *others]), "--pairs", "1", "--count", "3"),
        *("--json", str(saved)),
    )
    assert run.returncode == 0, run.stderr
    rows = {row["work"]: row for row in json.loads(saved.read_text())["rows"]}
    everybody = {ours, *others}
    for work, absent in (
        ("run-true-1", {"c2"}),
        ("run-echo-32", set()),
        ("run-cat-1", {"c2"}),
        ("run-out", {"c1", "c2"}),
        ("run-in", {"c1", "c2"}),
        ("stream", {"c1", "c2", "threads", "communicate"}),
    ):
        assert set(rows[work]["values"]) == everybody - absent
    assert all(peak > 0 for by in rows["run-in"]["values"].values() for peak in by["peak"])


def test_many_and_pipelines_against_the_shell(ours, tmp_path):
    saved = tmp_path / "results.json"
    works = "many-true-2,many-echo-32,pipeline"
    run = bench(
        *("--only", works, "--peers", f"{ours},asyncio,shell", "--pairs", "1", "--count", "3"),
        *("--json", str(saved)),
    )
    assert run.returncode == 0, run.stderr
    rows = {row["work"]: row for row in json.loads(saved.read_text())["rows"]}
    assert set(rows["many-true-2"]["values"]) == {ours, "asyncio", "shell"}
    assert set(rows["many-echo-32"]["values"]) == {ours, "asyncio"}
    assert set(rows["pipeline"]["values"]) == {ours, "asyncio", "shell"}
    for row in rows.values():
        assert all(value > 0 for by in row["values"].values() for value in by["time"])


@pytest.mark.parametrize("work", ["run-true-1", "run-echo-1"])
def test_who_has_a_run_is_measured_by_it(ours, work, monkeypatch):
    calls = []

    async def noted(*command, **options):
        calls.append(options)
        return await run(*command, **options)

    run = aioproc.run
    monkeypatch.setattr(aioproc, "run", noted)
    setting = Setting(ours, programs.Programs("/nowhere"), 2)
    WORKS[work].measure(peers.PEERS[ours].make(), setting)
    assert len(calls) == 2
    # But for the streams, by its defaults.
    assert all(options.keys() <= {"stdout", "stderr", "input"} for options in calls)


@proc_only
def test_endings_of_trees(ours, tmp_path):
    saved = tmp_path / "results.json"
    run = bench(
        *("--only", "end-200,end-many", "--peers", f"{ours},asyncio", "--pairs", "1", "--quick"),
        *("--count", "3", "--json", str(saved)),
        TMPDIR=str(tmp_path),
    )
    assert run.returncode == 0, run.stderr
    assert processes_of(tmp_path) == []
    large, many = json.loads(saved.read_text())["rows"]
    # Whoever cannot end a tree has no part in it.
    assert set(large["values"]) == set(many["values"]) == {ours}
    large, many = ({m: v for m, (v,) in row["values"][ours].items()} for row in (large, many))
    assert 0 < large["time"] <= large["worst"]
    assert all(large[which] > 0 for which in ("gap", "held", "signal gap", "idle gap"))
    assert large["processes"] > 100  # some others may have ended meanwhile
    assert many["processes"] > 200
    assert all(many[which] > 0 for which in ("round", "scans", "rounds", "one round", "cpu"))


def processes_of(directory: Path) -> list[str]:
    """The arguments of those that run a program in there; zombies have none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words[0].startswith(f"{directory}/"):
            found.append(" ".join(words[1:]))
    return found


@proc_only
@pytest.mark.parametrize("what", ["crowd", "tree"])
def test_idle_processes_stay_no_longer_than_the_benchmark(what, tmp_path):
    programs.build(tmp_path)
    # What the kernel does for whoever is killed: it closes their pipes.
    command = [tmp_path / "child", what, "5"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.read(1) == b"+"
        assert len(processes_of(tmp_path)) == 5
        (first.stdin if what == "crowd" else first.stdout).close()
        assert first.wait(60) == 0
        # The crowd's first has waited for the others.
        assert settle(lambda: not processes_of(tmp_path), 0 if what == "crowd" else 60)


@needs_go
def test_go(tmp_path):
    saved = tmp_path / "results.json"
    run = bench(
        *("--only", "spawn-1,cat-32,run-true-1,run-cat-32,mib,heap", "--peers", "go,c1"),
        *("--pairs", "1"),
        *("--count", "3", "--json", str(saved)),
    )
    assert run.returncode == 0, run.stderr
    data = json.loads(saved.read_text())
    assert "Go" in data["machine"]["packages"]
    rows = {row["work"]: row for row in data["rows"]}
    for name in ("spawn-1", "cat-32", "run-true-1", "run-cat-32", "mib"):
        assert all(value > 0 for (value,) in rows[name]["values"]["go"].values())
    assert set(rows["heap"]["values"]) == {"c1"}


def test_go_is_left_out_where_it_is_not_installed(tmp_path):
    # The wrong user ends it before anything is measured.
    everybody = bench("--user", "nobody-at-all", PATH=str(tmp_path))
    assert "the peer go is left out" in everybody.stderr
    assert "needed for go" not in everybody.stderr
    by_name = bench("--user", "nobody-at-all", "--peers", "go,asyncio", PATH=str(tmp_path))
    assert by_name.returncode == 1
    assert "needed for go: apt-get install golang-go" in by_name.stderr


@pytest.mark.parametrize("program", ["limit", pytest.param("os_exec", marks=needs_go)])
def test_compiled_peers_check_what_they_read(program, tmp_path):
    programs.build(tmp_path, go=program == "os_exec")
    size = 200_000
    flood = [str(tmp_path / "child"), "flood", str(size)]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(tmp_path / program), "-n", "3", "-w", "2", *arguments]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )

    good = run("-o", str(size), *flood)
    assert good.returncode == 0, good.stderr
    assert set(json.loads(good.stdout)) == {"wall", "cpu"}
    for wrong in (size - 1, size + 1):
        bad = run("-o", str(wrong), *flood)
        assert (bad.returncode, bad.stdout) == (1, "")
    loud = ["/bin/sh", "-c", "echo >&2"]
    assert run("-o", "0", "-e", "/bin/sh", "-c", ":").returncode == 0
    bad = run("-o", "0", "-e", *loud)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert run("-d", *loud).stderr == ""
    # No such thing to do: it fails.
    assert run(str(tmp_path / "child")).returncode == 1


def test_a_failure_is_told(tmp_path):
    saved = tmp_path / "results.json"
    # The time per child of no child.
    run = bench(
        *("--only", "spawn-1", "--peers", "asyncio", "--pairs", "2", "--count", "0"),
        *("--json", str(saved)),
    )
    assert run.returncode == 1
    assert "FAILED: spawn+wait, 1 at a time: asyncio: ZeroDivisionError" in run.stderr
    assert "failed" in run.stdout
    (row,) = json.loads(saved.read_text())["rows"]
    assert row["values"]["asyncio"]["time"] == [None, None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "spawn-2"], "there is no work 'spawn-2'"),
        (["--peers", "asyncio,twisted"], "there is no peer 'twisted'"),
        (["--user", "nobody-at-all", "--peers", "asyncio"], "there is no user 'nobody-at-all'"),
    ],
)
def test_wrong_names(arguments, message):
    run = bench(*arguments)
    assert run.returncode == 1
    assert message in run.stderr


def test_list_names_everything():
    words = bench("--list").stdout.split()
    assert {*WORKS, *CURVES, *peers.PEERS} <= set(words)


def test_what_is_missing_is_named_with_the_remedy(monkeypatch):
    def find_spec(name):
        return None if name in ("trio", "uvloop") else object()

    monkeypatch.setattr(peers.importlib.util, "find_spec", find_spec)
    message = peers.missing(["native+uvloop", "asyncio", "uvloop", "trio", "anyio"])
    assert "needed for native+uvloop, uvloop, trio: pip install uvloop trio" in message
    assert peers.missing(["asyncio", "anyio", "pure"]) is None


def test_every_target_is_about_something_that_is_measured():
    for target in targets.TARGETS:
        work = WORKS[target.work]
        assert target.metric in work.units
        assert target.peer in peers.PEERS
        assert target.base is None or target.base in peers.PEERS
        # Only what is stated as it is has a bound in its own unit.
        assert (target.base is None) == (target.metric in work.absolute)
        assert {target.peer, target.base or target.peer} <= {*QUICK_PEERS}


def test_every_peer_has_a_colour():
    assert set(chart.COLOURS) == set(peers.PEERS)


def make_row(**values: list[float | None]) -> Row:
    row = Row("spawn-32", "spawning", {"time": "us"}, [], 1)
    row.values = {peer: {"time": list(times)} for peer, times in values.items()}
    return row


def make_results(row: Row) -> Results:
    machine = dict.fromkeys(("cpu", "cores", "system", "libc", "python", "date"), "")
    return Results({**machine, "packages": {}}, {"pairs": 3}, list(row.values), [row])


def test_ratios_are_taken_within_a_round():
    row = make_row(native=[1, 8, 3, None], asyncio=[2, 4, 4, 4], c2=[1, 1, 0, 1])
    assert row.ratio("native", "asyncio", "time") == Range(0.75, 0.5, 2)
    # A round without a base has no ratio.
    assert row.ratio("native", "c2", "time") == Range(4.5, 1, 8)
    assert row.ratio("native", "trio", "time") is None
    assert row.value("native", "time") == Range(3, 1, 8)


@pytest.mark.parametrize(("ours", "hit"), [(0.77, True), (0.79, False)])
def test_verdicts(ours, hit):
    results = make_results(make_row(native=[ours] * 3, asyncio=[1] * 3))
    target = targets.Target("spawn-32", "time", 0.78)
    (verdict,) = [found for found in targets.verdicts(results) if found.target == target]
    assert verdict.hit is hit
    text = report.as_text(report.check_table([verdict]))
    assert text.endswith("hit" if hit else "MISS")


def test_results_survive_saving(tmp_path):
    row = make_row(native=[1, None, 2], asyncio=[2, 2, 2])
    row.failures["native"] = "once"
    results = make_results(row)
    results.save(tmp_path / "file.json")
    assert Results.load(tmp_path / "file.json") == results
