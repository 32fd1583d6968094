"""`flowmdp finetune`: a whole fine-tuning in small, going on after a stop, and what cannot be."""

from __future__ import annotations

import json
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowmdp.agents import FlowPPO, load_agent
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.cli import main
from flowmdp.errors import RobotError
from flowmdp.robots import Robots
from flowmdp.runs import train
from tests.runs.test_faults import Killed, kill, log, raising
from tests.runs.tiny_run import failure, tiny_run

OPTIONS = (
    *("--robot-steps", "240", "--robots", "2", "--episodes", "2"),
    *("--eval-every", "100", "--save-every", "50", "--eval-episodes", "1"),
)
EVERY = "--updates-per-step", "1"
WAYS = {
    "replay": ("--warm-up", "60", *EVERY),
    "latent": ("--by", "latent", "--warm-up", "60", "--critic-steps", "20", *EVERY),
    "ppo": ("--by", "ppo", "--n-steps", "4", "--critic-warmup", "1"),
}
AT_ONCE = {"replay": 8, "latent": 8, "ppo": 32}
"""Robot steps at the end of which something may be saved: a chunk of two robots, or a rollout."""
NAMES = {"replay": "df-dir", "latent": "dsrl", "ppo": "flow-ppo"}


@pytest.fixture(scope="module")
def runs(hopper_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in chunks, `df-dir`, and all its fine-tunings, which nothing interrupts."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(hopper_store))
        patch.setenv("FLOWMDP_CACHE", str(folder / "cache"))
        assert main(tiny_run("df-dir", folder / "df-dir", "--chunk", "4")) == 0
        for way in WAYS.values():
            assert main(["finetune", str(folder / "df-dir"), *OPTIONS, *way]) == 0
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def contents(path: Path) -> dict[str, bytes]:
    """Of a zip, whose own bytes hold the time."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("way", WAYS)
def test_the_folder_is_that_of_a_run(
    way: str, runs: Path, hopper_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, base = runs / f"df-dir-{way}", runs / "df-dir"
    files = {"config.json", "checkpoint.zip", "progress.csv", "history.json", "result.json"}
    files |= {"curves.png"} if way == "ppo" else {"curves.png", "replay.zip"}
    assert files <= {path.name for path in folder.iterdir()}
    result, history = read(folder / "result.json"), read(folder / "history.json")
    assert result["label"] == f"df-dir, {way}" and len(result["returns"]) == 2
    assert result["behavior"]["mean_return"] == read(base / "result.json")["mean_return"]
    steps = [one["step"] for one in history["evaluations"]]
    most = AT_ONCE[way]
    assert steps[0] == 0 and len(steps) == 3
    assert 100 <= steps[1] < 100 + most and 200 <= steps[2] < 200 + most
    agent = load_agent(folder / "checkpoint.zip", device="cpu")
    assert 240 <= agent.robot_steps < 240 + most and agent.name == NAMES[way]
    assert main(["eval", str(folder), "--episodes", "1", "--json"]) == 0
    assert main(["plot", str(folder), "--out", str(runs / f"{way}.png")]) == 0
    capsys.readouterr()
    assert main(["report", str(base), str(folder)]) == 0
    assert f"df-dir, {way}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("way", "cls", "method", "call", "act", "code"),
    [
        ("replay", FlowAlgorithm, "graphed", 71, raising(signal.SIGINT), 130),
        ("replay", FlowAlgorithm, "graphed", 99, kill, None),
        ("replay", FlowAlgorithm, "save", 4, kill, None),  # replay.zip is newer
        ("latent", FlowAlgorithm, "graphed", 9, raising(signal.SIGTERM), 143),  # the critic's fit
        ("latent", FlowAlgorithm, "graphed", 120, kill, None),
        ("ppo", FlowPPO, "train", 3, raising(signal.SIGINT), 130),
        ("ppo", FlowPPO, "train", 5, kill, None),
    ],
)
def test_a_stopped_run_ends_as_an_uninterrupted_one(
    way: str,
    cls: Any,
    method: str,
    call: int,
    act: Callable[[], None],
    code: int | None,
    runs: Path,
    hopper_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(train, "draw_run", lambda *_, **__: None)
    original, calls, reached = getattr(cls, method), 0, 0

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal calls, reached
        calls += 1
        reached = self.robot_steps
        if calls == call:
            act()
        return original(self, *arguments, **options)

    run, whole = tmp_path / "run", runs / f"df-dir-{way}"
    with monkeypatch.context() as patch:
        patch.setattr(cls, method, counted)
        argv = ["finetune", str(runs / "df-dir"), *OPTIONS, *WAYS[way], "--out", str(run)]
        if code is None:
            with pytest.raises(Killed):
                main(argv)
        else:
            assert main(argv) == code
            assert f"continue with: flowmdp finetune --resume {run}" in capsys.readouterr().err
    assert not (run / "result.json").exists()
    kept = load_agent(run / "checkpoint.zip", device="cpu").robot_steps
    assert reached - kept < 50 + 2 * AT_ONCE[way], "at most save-every, and what is half done"
    assert main(["finetune", "--resume", str(run)]) == 0
    assert "return=" in capsys.readouterr().err
    assert log(run) == log(whole)
    for file, names in (
        ("history.json", ("evaluations", "updates", "step", "pretrain_step", "log")),
        ("result.json", ("returns", "best_evaluation", "last_evaluations")),
    ):
        found, expected = read(run / file), read(whole / file)
        assert {name: found[name] for name in names} == {name: expected[name] for name in names}
    for file in ("checkpoint.zip", "replay.zip")[: 1 if way == "ppo" else 2]:
        assert contents(run / file) == contents(whole / file)


@pytest.mark.parametrize("way", ["replay", "ppo"])
def test_a_broken_robot_leaves_what_was_learned(
    way: str, runs: Path, hopper_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    step, calls = Robots.step, 0

    def breaking(self: Robots, actions: Any) -> Any:
        nonlocal calls
        calls += len(actions) == 2
        if calls == 20:
            fault = RobotError("robot 1 raised OSError no power")
            fault.robot = 1
            raise fault
        return step(self, actions)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Robots, "step", breaking)
        words = ("finetune", str(runs / "df-dir"), *OPTIONS, *WAYS[way], "--out", str(run))
        line = failure(capsys, *words)
    assert "robot 1 raised OSError no power (step" in line and "with seed" in line
    assert line.endswith(
        f"what was learned is saved: continue with: flowmdp finetune --resume {run}"
    )
    agent = load_agent(run / "checkpoint.zip", device="cpu")
    assert agent.num_timesteps > 20 and getattr(agent, "transitions", 38) in (0, 38)
    assert main(["finetune", "--resume", str(run), "--robot-steps", "260"]) == 0
    assert load_agent(run / "checkpoint.zip", device="cpu").robot_steps >= 260


REFUSED = {
    "finetune {runs}/df-dir-latent --by latent": "DSRL holds no flow of many steps",
    "finetune {runs}/df-dir-ppo": "keeps nothing to replay: continue with `flowmdp finetune --resu",
    "finetune {runs}/df-dir --by ppo --noise-bounds 0.2 0.1": "the smaller one first",
    "finetune {runs}/df-dir --by ppo --warm-up 3": "--warm-up",
    "finetune {runs}/df-dir --by ppo --robot-steps 0": "robot_steps is 0",
    "finetune {runs}/df-dir --robot-steps 100": "leaves nothing to learn after warm_up=5000",
    "finetune {runs}/df-dir --by dream": "invalid choice 'dream'",
    "finetune {runs}/df-dir --online-share 2": "online_share is 2.0",
    "finetune {runs}/df-dir --by latent --net-arch 8": "it must be the flow's, (16, 16)",
    "finetune {runs}/df-dir --warm-up 10 --out {runs}/df-dir": "already holds a run",
    "finetune {runs}": "holds no run",
    "finetune": "RUN_FOLDER",
    "finetune --resume {runs}/df-dir": "continue with `flowmdp train --resume",
    "finetune --resume {runs}/df-dir-replay --robot-steps 200": "below the run's goal of 240",
    "finetune --resume {runs}/df-dir-replay --warm-up 3": "--warm-up",
    "train --resume {runs}/df-dir-replay": "continue with `flowmdp finetune --resume",
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_words_get_one_line(
    words: str, runs: Path, hopper_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(runs.iterdir())
    assert REFUSED[words] in failure(capsys, *words.format(runs=runs).split())
    assert sorted(runs.iterdir()) == before, "bad input leaves nothing behind"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("replay.zip", None, "no checkpoint at"),
        ("replay.zip", "x", "is damaged"),
        ("config.json", {"online": {}}, "it lacks online.before"),
    ],
)
def test_damaged_files_get_one_line(
    file: str, change: Any, message: str, runs: Path, hopper_data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = Path(shutil.copytree(runs / "df-dir-replay", tmp_path / "run"))
    path = run / file
    if change is None:
        path.unlink()
    elif isinstance(change, dict):
        path.write_text(json.dumps({**read(path), **change}))
    else:
        path.write_text(change)
    assert message in failure(capsys, "finetune", "--resume", str(run))
