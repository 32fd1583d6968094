"""What may go wrong around a run: odd files, odd words, signals, two processes, full memory."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray

from flowmdp import cli
from flowmdp.agents import DFDiv
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.evaluation import AT_ONCE, EvaluationResult, evaluate
from flowmdp.cli import main
from flowmdp.envs.data import load_dataset
from flowmdp.errors import ConfigurationError, DatasetError
from flowmdp.files import TEMPORARY, locked
from flowmdp.runs import play, train
from flowmdp.runs.config import check_data, fingerprint, make_config, make_data
from flowmdp.runs.folder import RunFolder, free_folder
from flowmdp.transitions import TransitionDataset
from tests.runs.tiny_run import failure, tiny_run

DEEP = "[" * 100_000


OPTIONS = ("--eval-every", "20", "--save-every", "25")


@pytest.fixture(scope="module")
def whole(hopper_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(hopper_store))
        patch.setenv("FLOWMDP_CACHE", str(folder.parent / "cache"))
        assert main(tiny_run("df-div", folder, *OPTIONS, steps=60)) == 0
    return folder


@pytest.fixture
def run(whole: Path, hopper_data: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


# -- files ----------------------------------------------------------------------------------

ODD: list[tuple[str, str, dict[str, Any] | str, str]] = [
    (
        "train --resume",
        "config.json",
        {"steps": "50"},
        "steps is '50', which should be a valid int",
    ),
    ("train --resume", "config.json", {"seed": True}, "seed is True"),
    ("train --resume", "config.json", {"flow": []}, "flow is []"),
    ("train --resume", "config.json", {"episodes": 0}, "episodes is 0"),
    ("train --resume", "config.json", {"eval_every": float("nan")}, "it holds NaN"),
    ("train --resume", "config.json", {"algorithm": "iql"}, "algorithm df-div instead of iql"),
    ("train --resume", "config.json", {"seed": 7}, "with seed 0 instead of 7"),
    ("train --resume", "config.json", {"fingerprint": "other"}, "has changed since the run began"),
    ("train --resume", "config.json", DEEP, "nested too deeply"),
    ("train --resume", "history.json", {"evaluations": [{"step": 1, "returns": []}]}, "returns is"),
    ("train --resume", "history.json", {"updates": "x"}, "updates is 'x'"),
    ("train --resume", "history.json", {"log": 5}, "log is 5"),
    ("train --resume", "progress.csv", "x,y\n1,2\n", "its first column is not step"),
    ("plot", "history.json", {"evaluations": [{"step": "1", "returns": [1]}]}, "0.step is '1'"),
    ("plot", "progress.csv", "x,y\n1,2\n", "its first column is not step"),
    ("plot", "result.json", {"interval_95": [1]}, "interval_95 is [1]"),
    ("report", "result.json", {"mean_return": "x"}, "mean_return is 'x'"),
    ("report", "result.json", {"mean_return": float("inf")}, "it holds Infinity"),
    ("report", "result.json", {"data": []}, "data is []"),
    ("report", "result.json", {"behavior": {"mean_return": None}}, "behavior.mean_return is None"),
    ("report", "result.json", {"seed": 1.5}, "seed is 1.5"),
    ("report", "result.json", {"label": 4}, "label is 4"),
    ("plot", "result.json", {"mean_return": 1e308}, "mean_return is 1e+308"),
    ("plot", "config.json", {"steps": 10**400}, "steps is 1000"),
    ("plot", "progress.csv", 'step,a\n1,"' + "x" * 200_000 + "\n", "field larger than"),
    ("report", "result.json", {"best_evaluation": 3}, "best_evaluation is 3"),
    ("report", "result.json", DEEP, "nested too deeply"),
]


@pytest.mark.parametrize(("command", "file", "change", "message"), ODD)
def test_odd_files_get_one_line(
    command: str,
    file: str,
    change: dict[str, Any] | str,
    message: str,
    run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = run / file
    if isinstance(change, dict):
        change = json.dumps({**json.loads(path.read_text()), **change})
    path.write_text(change)
    before = path.read_bytes()
    line = failure(capsys, *command.split(), str(run))
    assert message in line and str(path) in line.replace(str(run / "checkpoint.zip"), str(path))
    assert len(line) < 600 and path.read_bytes() == before


def test_a_run_goes_on_on_the_data_it_began_with(hopper_data: Path) -> None:
    data = load_dataset("hopper-medium")
    config = {"fingerprint": fingerprint(data)}
    check_data(config, data, Path("config.json"))
    check_data({}, data, Path("config.json"))  # of an older version
    rewards = data.rewards.copy()
    rewards[7] += 1e-3
    changed = dataclasses.replace(data, rewards=rewards)
    with pytest.raises(DatasetError, match="put the old data back"):
        check_data(config, changed, Path("config.json"))


def test_a_damaged_result_is_made_again(run: Path) -> None:
    before = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text("{")
    left = run / f"{TEMPORARY}abc.zip"
    left.write_bytes(b"half a checkpoint")
    assert main(["train", "--resume", str(run)]) == 0
    assert json.loads((run / "result.json").read_text())["returns"] == before["returns"]
    assert not left.exists()


# -- two processes --------------------------------------------------------------------------


def test_two_runs_never_share_a_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = free_folder(tmp_path / "new" / "df-div", make=True)
    assert free_folder(tmp_path / "new" / "df-div", make=True).name == "df-div-2"
    with RunFolder(first).created({"steps": 3}):
        with pytest.raises(ConfigurationError, match="another process is training"):
            RunFolder(first).created({"steps": 4}).__enter__()
    with pytest.raises(ConfigurationError, match="already holds a run"):
        RunFolder(first).created({"steps": 4}).__enter__()
    assert json.loads((first / "config.json").read_text()) == {"steps": 3}
    with locked(run):
        assert "another process is training in" in failure(capsys, "train", "--resume", str(run))
    with locked(run):
        pass


def test_a_job_ends_with_its_bench() -> None:
    code = (
        "import signal, threading, time; from flowmdp.cli.worker import stop_with_parent\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's `&` ignores it
        "threading.Thread(target=stop_with_parent, daemon=True).start()\n"
        "try: print('ready', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt: print('saved')"
    )
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as job:
        assert job.stdout is not None and job.stdin is not None
        assert job.stdout.readline() == "ready\n"
        job.stdin.close()  # as the kernel does for a bench that is killed
        assert job.stdout.read() == "saved\n"


# -- interruptions --------------------------------------------------------------------------


def log(run: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of progress.csv, without what depends on the clock."""
    with (run / "progress.csv").open(newline="") as file:
        rows = csv.DictReader(file)
        kept = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
        return list(rows.fieldnames or []), kept


class Killed(BaseException):
    """As SIGKILL: nothing is saved."""


def kill() -> None:
    raise Killed


def raising(number: int) -> Callable[[], None]:
    return lambda: signal.raise_signal(number)


@pytest.mark.parametrize(
    ("cls", "method", "call", "act", "code"),
    [
        (FlowAlgorithm, "graphed", 53, raising(signal.SIGTERM), 143),
        (FlowAlgorithm, "graphed", 13, raising(signal.SIGHUP), 129),
        (FlowAlgorithm, "graphed", 37, kill, None),
        (FlowAlgorithm, "graphed", 87, kill, None),
        (FlowAlgorithm, "save", 1, kill, None),  # history.json is there, checkpoint.zip is not
        (FlowAlgorithm, "save", 13, kill, None),  # likewise, after evaluations
    ],
)
def test_a_resumed_run_leaves_the_files_of_an_uninterrupted_one(
    cls: Any,
    method: str,
    call: int,
    act: Callable[[], None],
    code: int | None,
    whole: Path,
    hopper_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FLOWMDP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(train, "draw_run", lambda *_, **__: None)
    original, calls = getattr(cls, method), 0

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            act()
        return original(self, *arguments, **options)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(cls, method, counted)
        argv = tiny_run("df-div", run, *OPTIONS, steps=60)
        if code is None:
            with pytest.raises(Killed):
                main(argv)
        else:
            assert main(argv) == code
            assert f"continue with: flowmdp train --resume {run}" in capsys.readouterr().err
    assert not (run / "result.json").exists()
    assert main(["train", "--resume", str(run)]) == 0
    assert log(run) == log(whole)
    for file, names in (
        ("history.json", ("evaluations", "updates", "step", "pretrain_step", "log")),
        ("result.json", ("returns", "best_evaluation", "last_evaluations")),
    ):
        found, expected = (json.loads((one / file).read_text()) for one in (run, whole))
        assert {name: found[name] for name in names} == {name: expected[name] for name in names}


# -- the command ----------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> int:
    """The exit code of a command that does that."""

    def parse(_: Any) -> tuple[Callable[[], Any], dict[str, Any]]:
        return act, {}

    monkeypatch.setattr(cli, "parse", parse)
    return main(["tasks"])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "there is not enough memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "there is not enough memory"),
        (OSError(28, "No space left on device", "x"), "the disk is full at x"),
    ],
)
def test_errors_of_the_machine_get_one_line(
    error: Exception,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def act() -> None:
        raise error

    assert command(monkeypatch, act) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def act() -> None:
        raise RuntimeError("of our own")

    with pytest.raises(RuntimeError, match="of our own"):
        command(monkeypatch, act)


def test_a_module_that_is_stopped_while_it_loads_is_not_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def act() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            raise ImportError("mujoco is not installed") from None

    assert command(monkeypatch, act) == 143
    assert capsys.readouterr().err == "\nflowmdp: interrupted\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_draws_nothing_runs_under_any_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MUJOCO_GL", "MPLBACKEND"):
        monkeypatch.setenv(name, "nonsense")
    monkeypatch.setenv("COLUMNS", "1")
    seen: dict[str, str] = {}
    assert command(monkeypatch, lambda: seen.update(os.environ)) == 0
    assert "MUJOCO_GL" not in seen and seen["MPLBACKEND"] == "agg" and seen["COLUMNS"] == "80"
    assert os.environ["MUJOCO_GL"] == "nonsense"


@pytest.mark.parametrize("words", ["tasks", "--help", "train --help", "report results/brief.jsonl"])
def test_a_terminal_that_knows_ascii_only(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.chdir(Path(__file__).parents[2])
    try:
        assert main(words.split()) == 0
    except SystemExit as error:
        assert error.code == 0


WORDS = {
    "train df-div hopper-medium --out=": "an argument is empty",
    "train df-div hopper-medium --net-arch": "--net-arch has no value",
    "train df-div hopper-medium --steps 1e3": "'1e3'",
    "train df-div hopper-medium --learning-rate nan": "learning_rate is nan",
    "train df-div hopper-medium --seed 99999999999999999999": "seed is 99999999999999999999",
    "bench table.toml --results .": "a folder: name a file",
    "bench table.toml --results file/x.jsonl": "file is a file: choose another folder",
    "bench table.toml --runs file": "file is a file: choose another folder",
    "bench seeds.toml": "there are 100,000 jobs: a table holds 10,000 at most",
    "bench deep.toml": "nested too deeply",
    "bench arch.toml": "net_arch is empty",
    "report file": "is damaged",
    "record file --steps 1e9": "'1e9'",
    "eval file --episodes 99999999999999999999": "and at most 9,007,199,254,740,991",
    "record file --steps 99999999999999999999": "and at most 9,007,199,254,740,991",
}


@pytest.mark.parametrize("words", WORDS)
def test_odd_words_get_one_line(
    words: str,
    hopper_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = '[[tasks]]\ntask = "hopper-medium"\n[algorithms.df-div]\n'
    for name, text in {
        "table.toml": jobs,
        "seeds.toml": f"[run]\nseeds = {list(range(100_000))}\n{jobs}",
        "deep.toml": f"a = {DEEP}",
        "arch.toml": f"[run]\nnet_arch = []\n{jobs}",
        "file": "x",
    }.items():
        Path(name).write_text(text)
    before = sorted(Path().rglob("*"))
    assert WORDS[words] in failure(capsys, *words.split())
    assert sorted(Path().rglob("*")) == before, "bad input leaves nothing behind"


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"chunk": 301}, "300 steps"), ({"flow_steps": 4}, "flow_steps=1, not 4")],
)
def test_what_cannot_be_is_refused_before_data_are_built(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_config("fql", "pointmaze-umaze", **settings)


def test_episodes_too_short_for_a_chunk_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def recording(*lengths: int) -> TransitionDataset:
        made = [
            {
                "observations": np.zeros((n + 1, 11), np.float32),
                "actions": np.zeros((n, 3), np.float32),
                "rewards": np.zeros(n),
                "terminations": False,
            }
            for n in lengths
        ]
        spaces_ = (spaces.Box(-np.inf, np.inf, (11,)), spaces.Box(-1, 1, (3,)))
        return TransitionDataset.from_episodes(made, *spaces_)

    config = make_config("df-dir", "hopper-medium", chunk=5)
    monkeypatch.setattr("flowmdp.runs.config.load_dataset", lambda *_: recording(3, 9, 4))
    make_data(config)
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("note: dataset") and "2 of 3 episodes are shorter than chunk=5" in note
    make_data({**config, "flow": {}})  # of a version that knew no chunks
    assert not capsys.readouterr().err
    monkeypatch.setattr("flowmdp.runs.config.load_dataset", lambda *_: recording(3, 4))
    line = failure(capsys, *tiny_run("df-dir", tmp_path / "run", "--chunk", "5"))
    assert "2 of 2 episodes are shorter than chunk=5, the longest has 4 steps" in line
    assert not (tmp_path / "run").exists()


def test_an_empty_word_is_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert "is empty" in failure(capsys, "train", "df-div", "hopper-medium", "--out", "")


# -- playing --------------------------------------------------------------------------------


class Counter(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """An episode that begins at its seed and lasts seed % 7 + 1 steps; counts what is open."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    open_now, most = 0, 0

    def __init__(self) -> None:
        Counter.open_now += 1
        Counter.most = max(Counter.most, Counter.open_now)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.start, self.left = float(seed or 0), (seed or 0) % 7 + 1
        return np.array([self.start], np.float32), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        over = self.left == 0
        return np.array([self.start], np.float32), self.start, over, False, {}

    def close(self) -> None:
        Counter.open_now -= 1


class Echo:
    """Acts on nothing; checks that a start is told as one."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, _: bool = False
    ) -> Any:
        fresh = np.ones(len(observation), bool) if state is None else observation[:, 0] != state
        assert (episode_start == fresh).all()
        return np.zeros((len(observation), 1), np.float32), observation[:, 0].copy()


def test_many_episodes_open_few_robots() -> None:
    found = evaluate(Echo(), Counter, 200, seed=3)
    assert found.lengths == [(3 + i) % 7 + 1 for i in range(200)]
    assert found.returns == [(3.0 + i) * ((3 + i) % 7 + 1) for i in range(200)]
    assert Counter.most == AT_ONCE <= 64 and Counter.open_now == 0


def test_large_robots_say_how_many_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counter, "metadata", {"at_once": 3})
    monkeypatch.setattr(Counter, "most", 0)
    assert evaluate(Echo(), Counter, 20, seed=3).lengths == [(3 + i) % 7 + 1 for i in range(20)]
    assert Counter.most == 3 and Counter.open_now == 0


def test_a_diverged_run_keeps_its_last_good_checkpoint(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "checkpoint.zip"
    update = DFDiv.update

    def diverging(agent: DFDiv) -> Any:
        info = update(agent)
        if agent.num_timesteps == 63:
            shutil.copy(run / "checkpoint.zip", good)
            next(agent.policy.parameters()).data.fill_(np.nan)
            return {name: value * np.nan for name, value in info.items()}
        return info

    with monkeypatch.context() as patch:
        patch.setattr(DFDiv, "update", diverging)
        words = ("train", "--resume", str(run), "--steps", "70")
        assert "training diverged at step 64" in failure(capsys, *words)
        assert (run / "checkpoint.zip").read_bytes() == good.read_bytes()
        assert "training diverged at step 64" in failure(capsys, "train", "--resume", str(run))
    assert main(["train", "--resume", str(run)]) == 0


def test_the_seed_of_eval_is_the_noises_too(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def acted(policy: Any, *_: Any, **__: Any) -> EvaluationResult:
        actions, _ = policy.predict(np.zeros((1, 11), np.float32))
        return EvaluationResult([float(actions[0, 0])], [1])

    monkeypatch.setattr(play, "evaluate", acted)

    def noise(seed: str) -> Any:
        capsys.readouterr()
        assert main(["eval", str(run), "--json", "--seed", seed]) == 0
        return json.loads(capsys.readouterr().out)["returns"]

    assert noise("1") == noise("1") != noise("2")
