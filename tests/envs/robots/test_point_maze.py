"""PointMaze: the order of the Dict observation, goals that stay, goals as others recorded them."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from flowmdp.envs.data import dataset_info, load_dataset
from flowmdp.envs.data.sources.build import build_dataset
from flowmdp.envs.data.sources.collect import Episode
from flowmdp.envs.data.sources.planner import plan_episodes
from flowmdp.envs.data.store import read_metadata
from flowmdp.envs.robots.outer import make_outer
from flowmdp.envs.tasks import TASKS, get_task
from flowmdp.errors import DatasetError

pytest.importorskip("gymnasium_robotics")
TASK, ID = "pointmaze-umaze", "flowmdp/pointmaze/umaze-v0"
KEYS = ("achieved_goal", "desired_goal", "observation")


def planned(task: str, episodes: int, seed: int = 0) -> list[Episode]:
    env = make_outer(task)
    found = list(itertools.islice(plan_episodes(env, seed, get_task(task).horizon), episodes))
    env.close()
    return found


def test_observations_are_flattened_by_sorted_key() -> None:
    row = get_task(TASK)
    bare = gym.make(row.outer_env["builtin"], **row.options)
    outer = make_outer(TASK)
    assert isinstance(bare.observation_space, gym.spaces.Dict)
    assert tuple(bare.observation_space.spaces) == KEYS
    theirs, ours = bare.reset(seed=4)[0], outer.reset(seed=4)[0]
    for _ in range(20):
        np.testing.assert_array_equal(ours, np.concatenate([theirs[key] for key in KEYS]))
        action = outer.action_space.sample()
        theirs, ours = bare.step(action)[0], outer.step(action)[0]
    np.testing.assert_array_equal(ours[:2], ours[4:6])
    bare.close()
    outer.close()


@pytest.mark.parametrize("task", [TASK, f"{TASK}-dense"])
def test_an_episode_keeps_its_goal_and_goes_on_after_it(task: str) -> None:
    (episode,) = planned(task, 1)
    assert len(episode) == get_task(task).horizon == 300
    assert not episode.terminations.any() and np.flatnonzero(episode.truncations).tolist() == [299]
    assert (episode.observations[:, 2:4] == episode.observations[0, 2:4]).all()
    distance = np.linalg.norm(episode.observations[1:, :2] - episode.observations[1:, 2:4], axis=1)
    sparse = (distance <= 0.45).astype(float)
    expected = np.exp(-distance) if task.endswith("dense") else sparse
    np.testing.assert_allclose(episode.rewards, expected)
    assert sparse[-50:].all() and not sparse[0]


def test_goal_and_start_can_be_chosen_through_the_flow_environment() -> None:
    env = gym.make("FlowMDP-pointmaze-umaze-v0")
    options = {"goal_cell": np.array([1, 1]), "reset_cell": np.array([3, 1])}
    observation, _ = env.reset(seed=0, options=options)
    assert np.abs(observation[2:4] - [-1, 1]).max() <= 0.25
    assert np.abs(observation[4:6] - [-1, -1]).max() <= 0.25
    assert not hasattr(env.unwrapped, "compute_reward"), "it must not pass for a GoalEnv"
    env.close()


def test_the_environment_leaves_no_file_and_tells_its_true_rate() -> None:
    outer = make_outer(TASK)
    bare: Any = outer.unwrapped
    assert not Path(bare.tmp_xml_file_path).exists()
    assert outer.metadata["render_fps"] == 100
    outer.close()


def write_as_minari(env_id: str = "PointMaze_UMaze-v3") -> list[EpisodeBuffer]:
    """A recording laid out as `D4RL/pointmaze/umaze-v2`: Dict observations, cut at the goal."""
    env = gym.make(env_id, continuing_task=True, reset_target=True, max_episode_steps=10**6)
    observations, actions = [env.reset(seed=0)[0]], []
    buffers: list[EpisodeBuffer] = []
    for n in range(60):
        action = env.action_space.sample()
        actions.append(action)
        observations.append(env.step(action)[0])
        if n % 20 == 19:  # Farama's script truncates where a goal was reached, and goes on
            columns = {key: np.stack([o[key] for o in observations]) for key in KEYS}
            ends = [False] * 19 + [True]
            buffers.append(
                EpisodeBuffer(
                    id=len(buffers),
                    observations=columns,
                    actions=np.stack(actions),
                    rewards=[0.0] * 19 + [1.0],
                    terminations=[False] * 20,
                    truncations=ends,
                )
            )
            env.unwrapped.goal = env.unwrapped.goal + 0.5  # type: ignore[attr-defined]
            observations, actions = observations[-1:], []
            observations[0] = {**observations[0], "desired_goal": env.unwrapped.goal.copy()}  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Minari misses an author
        minari.create_dataset_from_buffers("D4RL/pointmaze/umaze-v2", buffers, env=env)
    env.close()
    return buffers


def test_goals_are_those_the_dataset_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    buffers = write_as_minari()
    data = load_dataset(TASK, "minari")
    expected = np.concatenate(
        [np.concatenate([b.observations[key] for key in KEYS], axis=1)[:-1] for b in buffers]
    )
    np.testing.assert_array_equal(data.observations, expected.astype(np.float32))
    goals = data.observations[:, 2:4]
    assert len(np.unique(goals, axis=0)) == 3
    np.testing.assert_array_equal(goals, data.next_observations[:, 2:4])  # no goal of the next
    assert np.flatnonzero(data.truncations).tolist() == [19, 39, 59]
    assert not data.terminations.any()
    error = capsys.readouterr().err
    assert "recorded with reset_target=True, the task runs with reset_target=False" in error
    assert "reset_target=True" in str(dataset_info(TASK, "minari")["notes"])


def test_a_recording_of_the_other_reward_is_refused() -> None:
    write_as_minari(env_id="PointMaze_UMazeDense-v3")
    with pytest.raises(DatasetError, match=r"PointMaze_UMazeDense-v3, but task pointmaze-umaze"):
        load_dataset(TASK, "minari")


def test_options_are_recorded_with_the_data() -> None:
    build_dataset(TASK, steps=10, progress=False)
    options = json.loads(read_metadata(ID)["env_spec"])["kwargs"]
    for row in TASKS.values():
        if row.planner:
            assert set(row.options) == {"continuing_task", "reset_target"}
    assert options["continuing_task"] is True and options["reset_target"] is False
