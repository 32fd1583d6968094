"""`flowmdp bench`: bad tables; jobs that fail, are killed or interrupted; two benches; all of it.

Most tests put a stub in the place of `flowmdp train`, so that a job takes milliseconds.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowmdp.cli import main, parse
from flowmdp.cli.options import Train
from flowmdp.compare import jobs as bench_job
from flowmdp.compare.jobs import Workspace, lock_log
from flowmdp.compare.table import read_table
from flowmdp.runs.config import make_config
from flowmdp.runs.folder import RunFolder

DATA = "flowmdp-hopper-medium-v0"
TABLE = """
[run]
seeds = [1, 2]
steps = 5
[[tasks]]
task = "hopper-medium"
[algorithms.df-div]
[algorithms.clone]
algorithm = "flow-bc"
"""
STUB = """
import json, os, pathlib, signal, sys, time
words = sys.argv[1:]
resumed = words[1] == "--resume"
folder = pathlib.Path(words[-1])
if not resumed:
    if words[1] in os.environ.get("FAIL", ""):
        sys.exit("flowmdp: it cannot be")
    folder.mkdir(parents=True)
    config = dict(algorithm=words[1], task=words[2], seed=int(words[words.index("--seed") + 1]),
                  source="builtin", dataset_id="flowmdp/hopper/medium-v0",
                  steps=int(words[words.index("--steps") + 1]), flow_steps=10,
                  arguments={} if words[1] == "flow-bc" else {"noise_scale": 0.3})
    (folder / "config.json").write_text(json.dumps(config))
    if "HANG" in os.environ:
        signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
        print("training", flush=True)
        time.sleep(60)
config = json.loads((folder / "config.json").read_text())
result = {**config, "mean_return": 7.0, "normalized_score": None, "resumed": resumed,
          "threads": os.environ["OMP_NUM_THREADS"], "pid": os.getpid()}
(folder / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TABLE as a file in the current folder, with the stub for its jobs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_job, "ENTRY", (sys.executable, "-S", "-c", STUB))
    path = Path("table.toml")
    path.write_text(TABLE)
    return path


def results() -> dict[str, Any]:
    """What lies among the results: name -> content."""
    files = Path("results/table").glob("*.json")
    return {path.stem: json.loads(path.read_text()) for path in sorted(files)}


def when(condition: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """A started thread that acts as soon as the condition holds."""

    def wait() -> None:
        while not condition():
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def log_says(name: str, text: str, runs: Path = Path("runs/bench/table")) -> bool:
    """Whether a job's log holds a text."""
    path = runs / f"{name}.log"
    return path.exists() and text in path.read_text()


def test_runs_what_is_missing(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "table.toml", "--only", "seed1", "--threads", "3", "--jobs", "1"]) == 0
    first = results()
    assert set(first) == {f"{DATA}_df-div_seed1", f"{DATA}_clone_seed1"}
    assert {result["label"] for result in first.values()} == {"df-div", "clone"}
    assert {result["threads"] for result in first.values()} == {"3"}
    assert f"done {DATA}_clone_seed1: return 7" in capsys.readouterr().err
    assert main(["bench", "table.toml"]) == 0
    assert len(results()) == 4
    assert {name: results()[name] for name in first} == first, "a job that is done is not repeated"
    assert "flowmdp report results/table" in capsys.readouterr().out


def test_list_shows_state_and_command_and_runs_nothing(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["bench", "table.toml", "--only", "df-div_seed1"])
    Path("runs/bench/table").joinpath(f"{DATA}_clone_seed1").mkdir()
    begun = Path("runs/bench/table") / f"{DATA}_clone_seed1" / "config.json"
    begun.write_text(json.dumps(read_table(table)[1].expected))
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert main(["bench", "table.toml", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    states = [line.split() for line in lines[0:-1:2]]
    assert states == [
        ["done", f"{DATA}_df-div_seed1"],
        ["partial", f"{DATA}_clone_seed1"],
        ["missing", f"{DATA}_df-div_seed2"],
        ["missing", f"{DATA}_clone_seed2"],
    ], "seeds outermost, then algorithms"
    run = f"runs/bench/table/{DATA}"
    assert lines[3] == f"    flowmdp train --resume {run}_clone_seed1"
    assert (
        lines[7]
        == f"    flowmdp train flow-bc hopper-medium --seed 2 --steps 5 --out {run}_clone_seed2"
    )
    assert lines[-1] == "4 jobs: 1 done, 1 partial, 2 missing"
    assert sorted(Path().rglob("*")) == before


def test_a_failing_job_stops_no_other(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIL", "flow-bc")
    assert main(["bench", "table.toml", "--jobs", "1"]) == 1
    assert set(results()) == {f"{DATA}_df-div_seed1", f"{DATA}_df-div_seed2"}
    error = capsys.readouterr().err
    assert f"failed {DATA}_clone_seed1: exit code 1: flowmdp: it cannot be" in error
    assert "2 of 4 jobs failed" in error and f"table/{DATA}_clone_seed2.log" in error
    monkeypatch.delenv("FAIL")
    assert main(["bench", "table.toml"]) == 0
    assert len(results()) == 4


def test_a_killed_job_is_continued(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{DATA}_df-div_seed1"
    started: list[int] = []
    start = bench_job.Process.start.__func__  # type: ignore[attr-defined]

    def remember(cls: Any, *arguments: Any) -> bench_job.Process:
        process: bench_job.Process = start(cls, *arguments)
        started.append(process.popen.pid)
        return process

    monkeypatch.setenv("HANG", "1")
    monkeypatch.setattr(bench_job.Process, "start", classmethod(remember))
    when(lambda: log_says(name, "training"), lambda: os.kill(started[0], signal.SIGKILL))
    assert main(["bench", "table.toml", "--only", "df-div_seed1"]) == 1
    assert f"failed {name}: killed by SIGKILL: training" in capsys.readouterr().err
    assert main(["bench", "table.toml", "--only", "df-div_seed1"]) == 0
    assert results()[name]["resumed"]


def test_ctrl_c_reaches_every_job_and_the_next_bench_goes_on(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{DATA}_df-div_seed1", f"{DATA}_clone_seed1"]
    monkeypatch.setenv("HANG", "1")
    monkeypatch.setattr(sys, "argv", ["flowmdp", "bench", "table.toml", "--jobs", "2"])
    handler = signal.getsignal(signal.SIGINT)
    when(
        lambda: all(log_says(name, "training") for name in names),
        lambda: os.kill(os.getpid(), signal.SIGINT),
    )
    assert main(["bench", "table.toml", "--jobs", "2"]) == 130
    error = capsys.readouterr().err
    assert "continue with: flowmdp bench table.toml --jobs 2" in error and "failed" not in error
    assert signal.getsignal(signal.SIGINT) is handler
    assert results() == {} and not log_says(f"{DATA}_df-div_seed2", "")
    monkeypatch.delenv("HANG")
    assert main(["bench", "table.toml", "--jobs", "2"]) == 0
    assert [result["resumed"] for result in results().values()] == [True, False, True, False]


def test_a_job_of_another_bench_is_left_to_it(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Workspace(Path("results/table"), Path("runs/bench/table"))
    log = lock_log(place.log(read_table(table)[0]))
    assert log is not None
    assert main(["bench", "table.toml"]) == 0
    assert f"{DATA}_df-div_seed1 is being run by another bench" in capsys.readouterr().err
    assert len(results()) == 3
    log.close()
    assert main(["bench", "table.toml"]) == 0
    assert len(results()) == 4


def test_the_lock_outlives_a_killed_bench(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job goes on alone, and holds its lock through the log it inherited."""
    monkeypatch.setenv("HANG", "1")
    place = Workspace(Path("results/table"), Path("runs/bench/table"))
    job = read_table(table)[0]
    log = lock_log(place.log(job))
    assert log is not None
    process = bench_job.Process.start(job, place, log, threads=1)
    log.close()  # as the kernel does for a bench that is killed
    assert lock_log(place.log(job)) is None
    process.popen.kill()
    process.popen.wait()
    free = lock_log(place.log(job))
    assert free is not None
    free.close()


def test_a_finished_run_is_collected_without_a_process(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["bench", "table.toml"]) == 0
    before = results()
    for path in Path("results/table").iterdir():
        path.unlink()
    monkeypatch.setattr(bench_job, "ENTRY", ("false",))
    assert main(["bench", "table.toml"]) == 0
    assert results() == before


def test_a_changed_table_does_not_take_old_runs_for_its_own(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "table.toml"]) == 0
    table.write_text(TABLE.replace("[algorithms.clone]", "set = {rho = 0.5}\n[algorithms.clone]"))
    assert main(["bench", "table.toml"]) == 2
    error = capsys.readouterr().err
    assert "has arguments {'noise_scale': 0.3}, the table {'noise_scale': 0.3, 'rho': 0.5}" in error
    assert "another name" in error


def test_a_changed_default_does_not_either(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As after an upgrade: runs of a table that leaves steps and rates to the defaults."""
    table.write_text(TABLE.replace("steps = 5\n", ""))
    job = read_table(table)[0]
    path = Path("results/table") / f"{job.name}.json"
    path.parent.mkdir(parents=True)

    def bench(**then: Any) -> int:
        names = {"seed": 1, "precision": "float32", **job.defaults, **then}
        steps = names.pop("steps", job.expected["steps"])
        path.write_text(json.dumps({**job.expected, "steps": steps, "hyperparameters": names}))
        return main(["bench", "table.toml", "--list"])

    assert bench() == 0
    assert bench(steps=7) == 2
    assert "has steps 7, the table 9000" in capsys.readouterr().err
    assert bench(budget=0.1) == 2
    assert "has budget 0.1, the table None" in capsys.readouterr().err
    assert bench(ema_rate=0.5) == 2
    assert "has ema_rate 0.5, the table 0.005" in capsys.readouterr().err


def test_the_listed_command_is_the_job(table: Path) -> None:
    table.write_text(
        TABLE.replace("[run]", '[run]\nepisodes = 20\ndevice = "cpu"')
        + 'flow_steps = 5\n[algorithms."df/div, T"]\nalgorithm = "df-dir"\n'
        'set = { net_arch = [16, 16], critic = "iql", rho = 0.5, budget = "None" }\n'
    )
    jobs = read_table(table)
    assert jobs[2].name == f"{DATA}_df-div-T_seed1"
    for job in jobs:
        options = parse(shlex.split(shlex.join(job.command))[1:])
        assert isinstance(options, Train)
        config = make_config(options)
        assert {name: config[name] for name in job.expected} == job.expected
        assert config["episodes"] == 20 and "--episodes 20" in shlex.join(job.command)
    assert jobs[2].expected["arguments"] == {
        "noise_scale": 0.3,
        "net_arch": [16, 16],
        "critic": "iql",
        "rho": 0.5,
        "budget": None,
    }
    assert jobs[1].expected["flow_steps"] == 5


def test_what_all_algorithms_share_is_said_once(table: Path) -> None:
    shared = "[run]\nset = { net_arch = [16], ema_rate = 0.1 }"
    table.write_text(TABLE.replace("[run]", shared) + "set = { ema_rate = 0.2 }\n")
    df_div, clone = (read_table(table)[n].expected["arguments"] for n in (0, 1))
    assert df_div == {"noise_scale": 0.3, "net_arch": [16], "ema_rate": 0.1}
    assert clone == {"net_arch": [16], "ema_rate": 0.2}


TASK, AGENT = '[[tasks]]\ntask = "hopper-medium"\n', "[algorithms.df-div]\n"
BAD = {
    "": "there is no [[tasks]]",
    TASK: "there is no [algorithms.NAME]",
    AGENT: "there is no [[tasks]]",
    "[run\n": "is no TOML file",
    "[runs]\n" + TASK + AGENT: "unknown key 'runs'",
    "[run]\nseed = 1\n" + TASK + AGENT: "[run] has the unknown key 'seed'",
    "[run]\nseeds = []\n" + TASK + AGENT: "[run] seeds is []",
    "[run]\nseeds = [1, true]\n" + TASK + AGENT: "[run] seeds is [1, True]",
    "[run]\nseeds = [1, 2, 1]\n" + TASK + AGENT: "the seed 1 occurs twice",
    "[run]\nseeds = [-1]\n" + TASK + AGENT: "--seed is -1",
    "[run]\nepisodes = 0\n" + TASK + AGENT: "--episodes is 0",
    '[run]\nepisodes = "5"\n' + TASK + AGENT: "[run] episodes is '5'",
    '[run]\ndevice = "tpu"\n' + TASK + AGENT: "device is 'tpu'",
    "run = 5\n" + TASK + AGENT: "write [run]",
    "[run]\nset = 5\n" + TASK + AGENT: "[run] set is 5: write a table",
    '[tasks]\ntask = "hopper-medium"\n' + AGENT: "write [[tasks]]",
    'tasks = ["hopper-medium"]\n' + AGENT: "[[tasks]] is 'hopper-medium'",
    '[[tasks]]\nsource = "minari"\n' + AGENT: "names no task",
    '[[tasks]]\ntask = "hoper-medium"\n' + AGENT: "did you mean hopper-medium",
    '[[tasks]]\ntask = "hopper-medium"\nsource = "web"\n' + AGENT: "no source 'web'",
    '[[tasks]]\ntask = "hopper-medium"\ndataset = "mine"\n' + AGENT: "malformed dataset id",
    '[[tasks]]\ntask = "hopper-medium"\nsteps = 5\n' + AGENT: "[[tasks]] has the unknown key",
    TASK + TASK + AGENT: "the dataset flowmdp/hopper/medium-v0 occurs twice",
    TASK + "[algorithms.df-dvi]\n": "unknown algorithm 'df-dvi'",
    TASK + "[algorithms]\ndf-div = 5\n": "[algorithms.df-div] is 5",
    TASK + AGENT + "rho = 0.3\n": "unknown key 'rho'",
    TASK + AGENT + "steps = 1.5\n": "steps is 1.5",
    TASK + AGENT + "set = { roh = 1 }\n": "--set roh: no such argument",
    TASK + AGENT + 'set = "rho=1"\n': "write a table",
    TASK + AGENT + "set = { rho = { a = 1 } }\n": "rho cannot be a dict",
    TASK + AGENT + '[algorithms."a/b"]\nalgorithm="df-div"\n[algorithms."a-b"]\nalgorithm="df-div"'
    "": "the file name flowmdp-hopper-medium-v0_a-b_seed0 occurs twice",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_tables_get_one_line(
    text: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table.write_text(text)
    assert main(["bench", "table.toml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("flowmdp: table.toml") and BAD[text] in line
    assert list(Path().iterdir()) == [table], "a bad table starts nothing"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("table.toml --jobs 0", "--jobs is 0"),
        ("table.toml --threads 0", "--threads is 0"),
        ("table.toml --only walker", "no job has such a name"),
        ("no.toml", "No such file or directory: no.toml"),
    ],
)
def test_bad_options_get_one_line(
    options: str, message: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *options.split()]) == 2
    assert message in capsys.readouterr().err


def test_the_real_thing(hopper_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two algorithms, one task, two seeds; of two jobs a killed bench has left something."""
    monkeypatch.chdir(tmp_path)
    tiny = "net_arch = [16, 16], batch_size = 32"
    Path("tiny.toml").write_text(
        "[run]\nseeds = [1, 2]\nsteps = 4\nepisodes = 1\neval_episodes = 1\neval_every = 4\n"
        f"{TASK}[algorithms.clone]\nalgorithm = 'flow-bc'\nset = {{ {tiny} }}\n"
        f"{AGENT}set = {{ {tiny}, behavior_steps = 4, critic_steps = 4 }}\n"
    )
    begun, finished, *_ = read_table(Path("tiny.toml"))
    runs = Path("runs/bench/tiny")
    RunFolder(runs / begun.name).create(make_config(Train(**begun.options)))
    assert main([*finished.command[1:], "--out", str(runs / finished.name)]) == 0
    assert main(["bench", "tiny.toml", "--jobs", "2"]) == 0
    files = sorted(Path("results/tiny").iterdir())
    found = [json.loads(path.read_text()) for path in files]
    assert [(result["label"], result["seed"]) for result in found] == [
        ("clone", 1),
        ("clone", 2),
        ("df-div", 1),
        ("df-div", 2),
    ]
    assert all(len(result["returns"]) == 1 and result["steps"] == 4 for result in found)
    assert found[1]["command"].startswith("flowmdp train flow-bc hopper-medium --seed 2 --steps 4")
    assert log_says(begun.name, "train --resume", runs)
    assert not log_says(finished.name, "train", runs)
