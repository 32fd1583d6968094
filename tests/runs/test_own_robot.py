"""Somebody's robot, recordings and flow policy, through the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest

from flowmdp.agents import load_agent
from flowmdp.cli import main
from flowmdp.envs.robots import outer
from flowmdp.envs.robots.outer import make_robot
from flowmdp.errors import RenderingError
from tests.runs.own_robot import Lopsided

ROBOT, FLOW, DATA = "tests.runs.own_robot:Lopsided-v0", "tests.runs.own_robot:policy", "me/lop-v0"
TINY = ("--steps", "4", "--episodes", "1", "--eval-episodes", "1", "--eval-every", "4")
SMALL = ("--net-arch", "8", "--critic-steps", "4", "--batch-size", "8")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Random actions, as Minari's recorder keeps them; the test works in its own folder."""
    recorder = minari.DataCollector(gym.make(ROBOT))
    recorder.action_space.seed(0)
    for seed in range(4):
        recorder.reset(seed=seed)
        while not recorder.step(recorder.action_space.sample())[3]:
            pass
    recorder.create_dataset(DATA, author="me", author_email="me", description="-")
    monkeypatch.chdir(tmp_path)


def command(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run it; what it wrote, to stdout or to stderr if it refused."""
    capsys.readouterr()
    code = main(words)
    out, err = capsys.readouterr()
    assert code in (0, 2)
    return out if code == 0 else err


@pytest.mark.filterwarnings(
    "ignore::UserWarning:minari.utils",  # what the dataset does not tell
    "ignore:Implicitly cleaning up:ResourceWarning",  # the folder of Minari's recorder
)
def test_own_robot_data_and_flow_from_the_command_line(
    recorded: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert DATA in command(capsys, "data", "info", DATA)
    new = ("train", "df-dir", "--env", ROBOT, "--dataset", DATA, "--behavior-from", FLOW)
    said = command(capsys, *new, *TINY, *SMALL)
    run = Path("runs/Lopsided-v0/df-dir-seed0")
    assert f"flowmdp record {run} --trust --out video.mp4" in said
    result = json.loads((run / "result.json").read_text())
    assert result["task"] == ROBOT and result["flow"]["flow_steps"] == 4
    assert result["normalized_score"] is None and result["data"]["episodes"] == 4

    for words in (
        ("train", "--resume", str(run), "--steps", "6"),
        ("eval", str(run), "--episodes", "1"),
        ("record", str(run), "--out", "video.mp4"),
    ):
        refused = command(capsys, *words)
        assert f"{run} imports {ROBOT}, {FLOW}: if you trust that, add --trust\n" in refused
        assert ROBOT in command(capsys, *words, "--trust") or words[0] == "record"
    assert Path("video.mp4").stat().st_size > 0

    agent = load_agent(run / "checkpoint.zip", device="cpu", behavior=FLOW)
    robot = Lopsided()
    observation, _ = robot.reset(seed=0)
    action, _ = agent.outer_policy().predict(observation)
    assert action.dtype == np.float64 and robot.action_space.contains(action)
    assert agent.num_timesteps == 6


def test_without_opengl_only_mujoco_robots_cannot_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(render_mode: str) -> None:
        raise RenderingError("no OpenGL")

    monkeypatch.setattr(outer, "prepare_rendering", missing)
    with pytest.raises(RenderingError, match="no OpenGL"):
        make_robot("InvertedPendulum-v5", render_mode="rgb_array")
    drawn = make_robot(ROBOT, render_mode="rgb_array")
    drawn.reset(seed=0)
    frame: Any = drawn.render()
    assert frame.shape == (16, 16, 3)
