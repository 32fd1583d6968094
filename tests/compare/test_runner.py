"""`flowmdp bench`: jobs that fail, are killed or interrupted; two benches; changed tables.

Most tests put a stub in the place of `flowmdp train`, so that a job takes milliseconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowmdp.cli import main, parse
from flowmdp.compare import process
from flowmdp.compare.process import Process
from flowmdp.compare.results import key_of
from flowmdp.compare.runner import Bench, lock_log
from flowmdp.compare.table import read_table
from flowmdp.files import put_line, read_lines
from flowmdp.runs.folder import RunFolder
from tests.compare.test_table import DATA, TABLE

STUB = """
import json, os, pathlib, signal, sys, time
words = sys.argv[1:]
resumed = words[1] == "--resume"
folders = [pathlib.Path(words[-1])]
if resumed:
    folders = [pathlib.Path(word) for word in words[2:]]
elif "--seeds" in words:
    seeds = words[words.index("--seeds") + 1 : words.index("--steps")]
    folders = [pathlib.Path(words[-1].replace("{seed}", seed)) for seed in seeds]
else:
    seeds = [words[words.index("--seed") + 1]]
for i, folder in enumerate(folders):
    if resumed:
        break
    if words[1] in os.environ.get("FAIL", ""):
        sys.exit("flowmdp: it cannot be")
    folder.mkdir(parents=True)
    config = dict(algorithm=words[1], task=words[2], seed=int(seeds[i]),
                  source="builtin", dataset_id="flowmdp/hopper/medium-v0",
                  steps=int(words[words.index("--steps") + 1]),
                  flow={"flow_steps": 10, "noise_scale": 1.0 if words[1] == "flow-bc" else 0.3},
                  config={"batch_size": 256})
    (folder / "config.json").write_text(json.dumps(config))
if not resumed and "HANG" in os.environ:
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    print("training", flush=True)
    time.sleep(60)
for folder in folders:
    config = json.loads((folder / "config.json").read_text())
    if f"seed{config['seed']}" in os.environ.get("DIVERGE", ""):
        continue
    result = {**config, "mean_return": 7.0, "data": {"mean_return": 1.0}, "normalized_score": None,
              "resumed": resumed, "threads": os.environ["OMP_NUM_THREADS"], "pid": os.getpid()}
    (folder / "result.json").write_text(json.dumps(result))
if "DIVERGE" in os.environ:
    sys.exit("flowmdp: training diverged")
"""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TABLE as a file in the current folder, with the stub for its jobs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "ENTRY", (sys.executable, "-S", "-c", STUB))
    path = Path("table.toml")
    path.write_text(TABLE)
    return path


RESULTS = Path("results/table.jsonl")


def results() -> dict[str, Any]:
    """The rows of the table: name of the job -> content."""
    return {f"{DATA}_{row['label']}_seed{row['seed']}": row for row in read_lines(RESULTS)}


def bench(path: Path) -> Bench:
    """What `flowmdp bench` has of the table's jobs."""
    return Bench(read_table(path), RESULTS, Path("runs/bench/table"))


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


def test_seeds_of_a_cell_in_one_process(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = bench(table).cell([job for job in bench(table).jobs if job.label == "clone"]).begin
    _, arguments = parse(words[1:])
    assert (arguments["seeds"], arguments["seed"]) == ((1, 2), 0)
    assert str(arguments["out"]) == f"runs/bench/table/{DATA}_clone_seed{{seed}}"
    monkeypatch.setenv("DIVERGE", "seed2")
    assert main(["bench", "table.toml", "--together", "--only", "clone"]) == 1
    assert set(results()) == {f"{DATA}_clone_seed1"}
    said = capsys.readouterr().err
    assert f"done {DATA}_clone_seed1" in said and f"failed {DATA}_clone_seed2" in said
    monkeypatch.delenv("DIVERGE")
    assert main(["bench", "table.toml", "--together"]) == 0
    found = results()
    assert len(found) == 4
    assert found[f"{DATA}_df-div_seed1"]["pid"] == found[f"{DATA}_df-div_seed2"]["pid"]
    assert found[f"{DATA}_clone_seed2"]["resumed"]


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
    assert "flowmdp report results/table.jsonl" in capsys.readouterr().out


def test_list_shows_state_and_command_and_runs_nothing(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["bench", "table.toml", "--only", "df-div_seed1"])
    Path("runs/bench/table").joinpath(f"{DATA}_clone_seed1").mkdir()
    begun = Path("runs/bench/table") / f"{DATA}_clone_seed1" / "config.json"
    begun.write_text(json.dumps(read_table(table)[1].config))
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
    begin = Process.__init__

    def remember(self: Process, *arguments: Any) -> None:
        begin(self, *arguments)
        started.append(self.process.pid)

    monkeypatch.setenv("HANG", "1")
    monkeypatch.setattr(Process, "__init__", remember)
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
    log = lock_log(bench(table).log(read_table(table)[0]))
    assert log is not None
    assert main(["bench", "table.toml"]) == 1, "not all is done"
    said = capsys.readouterr()
    assert f"{DATA}_df-div_seed1 is being run by another bench" in said.err
    assert "results in" not in said.out
    assert len(results()) == 3
    log.close()
    assert main(["bench", "table.toml"]) == 0
    assert len(results()) == 4


def test_the_lock_outlives_a_killed_bench(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job goes on alone, and holds its lock through the log it inherited."""
    monkeypatch.setenv("HANG", "1")
    place, job = bench(table), read_table(table)[0]
    log = lock_log(place.log(job))
    assert log is not None
    running = Process(place.cell([job]), log)
    log.close()  # as the kernel does for a bench that is killed
    assert lock_log(place.log(job)) is None
    running.process.kill()
    running.wait()
    free = lock_log(place.log(job))
    assert free is not None
    free.close()


def test_damaged_results_stop_the_bench_before_it_begins(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RESULTS.parent.mkdir()
    RESULTS.write_text('{"task": "hopper')
    assert main(["bench", "table.toml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "results/table.jsonl, line 1 is damaged" in line and "remove the line" in line
    assert not Path("runs").exists() and RESULTS.read_text() == '{"task": "hopper'


def test_a_finished_run_is_collected_without_a_process(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["bench", "table.toml"]) == 0
    before = results()
    RESULTS.unlink()
    monkeypatch.setattr(process, "ENTRY", ("false",))
    assert main(["bench", "table.toml"]) == 0
    assert results() == before


def test_a_changed_table_does_not_take_old_runs_for_its_own(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "table.toml"]) == 0
    for line, message in (
        ("rho = 0.5", "has rho None, the table 0.5: give"),
        ("noise_scale = 0.5", "has noise_scale 0.3, the table 0.5"),
        ("steps = 6", "has steps 5, the table 6"),
        ("batch_size = 128", "has batch_size 256, the table 128"),
        ("episodes = 21", "has episodes None, the table 21"),
    ):
        table.write_text(TABLE.replace("[algorithms.clone]", f"{line}\n[algorithms.clone]"))
        assert main(["bench", "table.toml"]) == 2
        error = capsys.readouterr().err
        assert f"{DATA}_df-div_seed1 in results/table.jsonl {message}" in error
        assert "another name" in error
        Path("results").rename("elsewhere")
        assert main(["bench", "table.toml"]) == 2
        assert f"df-div_seed1/config.json {message}" in capsys.readouterr().err
        Path("elsewhere").rename("results")


def test_a_changed_default_does_not_either(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As after an upgrade: runs of a table that leaves steps and rates to the defaults."""
    table.write_text(TABLE.replace("steps = 5\n", ""))
    job = read_table(table)[0]

    def bench(config: dict[str, Any], **then: Any) -> int:
        row = {
            **job.config,
            "label": job.label,
            "mean_return": 1.0,
            "data": {"mean_return": 1.0},
            **then,
        }
        put_line(RESULTS, {**row, "config": config}, key_of)
        return main(["bench", "table.toml", "--list"])

    assert bench(job.config["config"]) == 0
    assert bench({}) == 0, "an older version recorded nothing but what was named"
    assert bench({**job.config["config"], "precision": "float32"}) == 0, "of the machine"
    assert bench({}, steps=7) == 2
    assert "has steps 7, the table 9000" in capsys.readouterr().err
    assert bench({"budget": 0.1}) == 2
    assert "has budget 0.1, the table None" in capsys.readouterr().err
    assert bench({"ema_rate": 0.5}) == 2
    assert "has ema_rate 0.5, the table 0.005" in capsys.readouterr().err
    assert bench({"precision": "float32", "gone": 1}) == 2
    assert "has gone 1, the table None" in capsys.readouterr().err
    table.write_text(table.read_text().replace("[run]", '[run]\nprecision = "bfloat16"'))
    assert bench({**job.config["config"], "precision": "float32"}) == 2
    assert "has precision 'float32', the table 'bfloat16'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("table.toml --jobs 0", "--jobs is 0"),
        ("table.toml --threads 0", "--threads is 0"),
        ("table.toml --only walker", "no job has such a name"),
        ("table.toml --results out.json", "--results is out.json, as of one run"),
        ("no.toml", "no.toml does not exist: name a table"),
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
    tiny = "net_arch = [16, 16]\nbatch_size = 32\nbehavior_steps = 4\ncritic_steps = 4\n"
    Path("tiny.toml").write_text(
        "[run]\nseeds = [1, 2]\nsteps = 4\nepisodes = 1\neval_episodes = 1\neval_every = 4\n"
        f"{tiny}[[tasks]]\ntask = 'hopper-medium'\n"
        "[algorithms.clone]\nalgorithm = 'flow-bc'\n[algorithms.df-div]\n"
    )
    begun, finished, *_ = read_table(Path("tiny.toml"))
    runs = Path("runs/bench/tiny")
    with RunFolder(runs / begun.name).created(begun.config):
        pass
    assert main([*finished.command[1:], "--out", str(runs / finished.name)]) == 0
    assert main(["bench", "tiny.toml", "--jobs", "2"]) == 0
    found = read_lines(Path("results/tiny.jsonl"))
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
    assert main(["bench", "tiny.toml", "--list"]) == 0, "every row is recognised as its job's"
