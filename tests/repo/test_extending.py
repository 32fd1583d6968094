"""A new algorithm is one file and one line, a new task is one row: both are found by everything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import flowmdp
from flowmdp.agents import ALGORITHMS, load_agent
from flowmdp.checks import check_agent, check_flow_env
from flowmdp.cli import main
from flowmdp.env import FlowMDPEnv
from flowmdp.envs.data.sources.collect import Episode
from flowmdp.envs.robots.outer import make_outer
from flowmdp.envs.tasks import TASKS, Task
from tests.agents.toy_algorithm import ToyBC, ToyBCConfig
from tests.envs.datasets_by_hand import write
from tests.mdp.toys import PointRobot, toy_dataset
from tests.repo.test_docs import extension
from tests.runs.tiny_run import tiny_run

TOY = Path(__file__).resolve().parents[1] / "agents" / "toy_algorithm.py"


def test_the_toy_algorithm_is_short_and_named_nowhere_else() -> None:
    assert len(TOY.read_text().splitlines()) < 60
    root = TOY.parents[2]
    sources = [
        path for name in ("agents", "flowmdp", "docs") for path in (root / name).rglob("*.*")
    ]
    texts = [path.read_text() for path in sources if path.suffix in (".py", ".md")]
    assert len(texts) > 80 and not any("toy-bc" in text for text in texts)


def test_the_command_trained_it(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((runs["toy-bc"] / "result.json").read_text())
    assert result["config"]["power"] == 2.0 and result["flow"]["flow_steps"] == 1
    agent = load_agent(runs["toy-bc"] / "checkpoint.zip", device="cpu")
    assert isinstance(agent, ToyBC) and isinstance(agent.config, ToyBCConfig)
    with pytest.raises(SystemExit):
        main(["train", "toy-bc", "--help"])
    assert "--power" in capsys.readouterr().out
    assert main(["train", "toy-bc", "hopper-medium", "--power", "-1"]) == 2
    assert "power is -1.0" in capsys.readouterr().err


def test_the_contract_holds() -> None:
    env = FlowMDPEnv(PointRobot(), dataset=toy_dataset(), flow_steps=1)
    agent = ToyBC("MlpPolicy", env, net_arch=(8,), power=1.5, device="cpu").learn(2)
    check_agent(agent, env)


def test_the_docs_have_its_page() -> None:
    page = extension("generated").algorithm_page("toy-bc", ALGORITHMS["toy-bc"])
    assert "flowmdp train toy-bc" in page and "| `power` |" in page
    assert "Of the distance between actions" in page


@pytest.fixture
def pendulum(monkeypatch: pytest.MonkeyPatch) -> Iterator[Task]:
    """A task that is one row, with data in the local store."""
    row = Task(
        name="pendulum-random",
        outer_env={"minari": "Pendulum-v1"},
        datasets={"minari": "me/pendulum-v0"},
        horizon=200,
        robot="pendulum",
    )
    monkeypatch.setitem(TASKS, row.name, row)
    flowmdp.register_envs()
    yield row
    del gym.registry["FlowMDP-pendulum-random-v0"]


def test_a_new_task_is_one_row(
    pendulum: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outer, rng = make_outer(pendulum.name), np.random.default_rng(0)
    observations, rewards = [outer.reset(seed=0)[0]], []
    actions = rng.uniform(-1, 1, (50, 1)).astype(np.float32)
    for action in actions:
        observation, reward, *_ = outer.step(action)
        observations.append(observation)
        rewards.append(float(reward))
    none, last = np.zeros(50, bool), np.arange(50) == 49
    episode = Episode(0, np.stack(observations), actions, np.array(rewards), none, last)
    write("me/pendulum-v0", [episode], task=pendulum.name)
    check_flow_env(gym.make("FlowMDP-pendulum-random-v0"))
    assert main(["tasks"]) == 0 and "pendulum-random" in capsys.readouterr().out
    assert main(tiny_run("flow-bc", tmp_path / "run", task=pendulum.name)) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["task"] == pendulum.name and result["normalized_score"] is None
