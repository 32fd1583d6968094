"""Tasks whose episodes report success: rates with intervals, in every file and table of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box
from scipy.stats import binomtest

from flowmdp.agents.evaluation import EvaluationResult, evaluate
from flowmdp.cli import main
from flowmdp.envs.data.sources.collect import Episode
from flowmdp.envs.scores import success_interval
from flowmdp.envs.tasks import TASKS, Task
from flowmdp.errors import RobotError
from flowmdp.files import read_json
from flowmdp.runs.folder import read_progress
from flowmdp.runs.hub import model_card
from flowmdp.runs.summary import episodes_of, summarize_evaluations
from flowmdp.schemas import Result
from tests.envs.datasets_by_hand import write
from tests.runs.tiny_run import tiny_run


class Reach(gym.Env[Any, Any]):
    """Three steps along a line; says in each whether the place is on the right, and may lose it."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place, self.left = float(self.np_random.uniform(-1, 1)), 3
        return self.observed(), {"success": False}

    def step(self, action: Any) -> Any:
        self.place, self.left = self.place + 0.1 * float(action[0]), self.left - 1
        success = np.bool_(self.place > 0 or self.left == 2)
        return self.observed(), float(success) - 1, False, self.left == 0, {"success": success}

    def observed(self) -> Any:
        return np.array([self.place, self.left], np.float32)


gym.register("Reach-v0", f"{__name__}:Reach")
TASK, DATA = "reach-play-task1", "me/reach-v0"


class Still:
    """Stays where it is, so that the start decides."""

    def predict(self, observation: Any, *_: Any) -> Any:
        return np.zeros((len(observation), 1), np.float32), None


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> Task:
    """A task that reports success, with recordings in the local store."""
    row = Task(TASK, {"minari": "Reach-v0"}, {"minari": DATA}, robot="reach", success=True)
    monkeypatch.setitem(TASKS, TASK, row)
    rng, last = np.random.default_rng(0), np.arange(40) == 39
    observations = rng.uniform(-1, 1, (41, 2)).astype(np.float32)
    actions = rng.uniform(-1, 1, (40, 1)).astype(np.float32)
    episode = Episode(0, observations, actions, -np.ones(40), last & False, last)
    installed = type("Reach", (Reach,), {"__module__": "gymnasium"})  # datasets name the package
    write(DATA, [episode], env=installed())
    return row


def test_success_is_that_of_the_last_step() -> None:
    played = evaluate(Still(), Reach, 100, seed=5)
    starts = [float(np.random.default_rng(5 + i).uniform(-1, 1)) for i in range(100)]
    assert played.successes == [start > 0 for start in starts]
    assert all(type(one) is bool for one in played.successes)
    assert played.returns == [0.0 if one else -2.0 for one in played.successes]


@pytest.mark.parametrize(("successes", "episodes"), [(0, 7), (1, 1), (3, 20), (48, 50), (50, 50)])
def test_the_interval_is_wilsons(successes: int, episodes: int) -> None:
    wanted = binomtest(successes, episodes).proportion_ci(0.95, "wilson")
    assert success_interval(successes, episodes) == pytest.approx(tuple(wanted), abs=1e-6)


def test_a_robot_that_breaks_its_tasks_word(reach: Task) -> None:
    with pytest.raises(RobotError, match="reach-play-task1 reports success, but its robot has no"):
        episodes_of(TASK, EvaluationResult([1.0], [1]))
    assert episodes_of("hopper-medium", EvaluationResult([1.0], [1], [True])) == {"returns": [1.0]}


def test_the_best_evaluation_is_that_of_most_successes(reach: Task) -> None:
    found = [(1, [0.0, -9.0], [True, False]), (2, [-1.0, -1.0], [False, False])]
    found += [(3, [0.0, -2.0], [True, False])]
    during = [{"step": s, "returns": r, "successes": k} for s, r, k in found]
    summary = summarize_evaluations(TASK, during)
    assert summary["best_evaluation"]["step"] == 3 and summary["best_evaluation"]["mean_return"] < 0
    assert summary["last_evaluations"]["success_rate"] == pytest.approx(2 / 6)
    assert summary["last_evaluations"]["normalized_score"] == pytest.approx(200 / 6)


def test_a_run_is_measured_by_success(
    reach: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(tiny_run("flow-bc", run, "--episodes", "6", steps=4, task=TASK)) == 0
    table = capsys.readouterr().out
    assert "success" in table and " % " in table and "score" not in table
    assert "0.0 to 79.3 %" in table, "the data's one episode does not reach the goal"

    result = read_json(run / "result.json", Result)
    for way in (result, result["sampled"], result["noiseless"]):
        rate = np.mean(way["successes"])
        assert len(way["successes"]) == 6 and way["success_rate"] == rate
        assert way["normalized_score"] == pytest.approx(100 * rate)
        low, high = way["success_interval_95"]
        assert 0 <= low <= rate <= high <= 1
        assert way["mean_return"] == np.mean(way["returns"])
    history = json.loads((run / "history.json").read_text())["evaluations"]
    shares = [(one["step"], np.mean(one["successes"])) for one in history]
    assert read_progress(run / "progress.csv")["evaluation/success_rate"] == shares
    assert (run / "curves.png").exists()

    assert main(["eval", str(run), "--episodes", "3", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["success_rate"] == sum(shown["successes"]) / 3 and len(shown["returns"]) == 3
    assert main(["eval", str(run), "--episodes", "3"]) == 0
    assert "success" in capsys.readouterr().out
    assert main(["report", str(run)]) == 0
    assert f"| {TASK} | minari | {DATA} | flow-bc | 1 † | 0.0 |" in capsys.readouterr().out
    card = model_card(result, "me/reach", "mit")
    assert "| Success rate |" in card and "type: success_rate" in card
    assert "Normalised score" not in card and "Return of the data" not in card


@pytest.mark.parametrize(
    "change", [{"successes": [1]}, {"success_rate": 1.5}, {"success_interval_95": [0.5]}]
)
def test_odd_successes_get_one_line(
    change: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"task": TASK, "source": "minari", "dataset_id": DATA, "algorithm": "iql", "seed": 0}
    row |= {"mean_return": 1.0, "data": {}}
    (tmp_path / "result.json").write_text(json.dumps(row))
    assert main(["report", str(tmp_path / "result.json")]) == 0
    (tmp_path / "result.json").write_text(json.dumps({**row, **change}))
    assert main(["report", str(tmp_path / "result.json")]) == 2
    assert f"{next(iter(change))}" in capsys.readouterr().err
