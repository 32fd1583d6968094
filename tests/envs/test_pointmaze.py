"""PointMaze: one order of the Dict observation, the planner, its data, goals as recorded."""

from __future__ import annotations

import hashlib
import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer

from benchmarks import pointmaze_references
from flowmdp.envs.data import dataset_info, load_dataset
from flowmdp.envs.data.sources import planner as maze_planner
from flowmdp.envs.data.sources.build import build_dataset
from flowmdp.envs.data.sources.collect import Episode
from flowmdp.envs.data.sources.planner import Cell, plan_episodes, routes
from flowmdp.envs.data.store import dataset_folder, read_metadata
from flowmdp.envs.robots.outer import make_outer
from flowmdp.envs.scores import normalized_score
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


def maze_of(task: str) -> tuple[Any, frozenset[Cell]]:
    """The maze and its free cells."""
    env = make_outer(task)
    maze: Any = env.get_wrapper_attr("maze")
    env.close()
    rows = enumerate(maze.maze_map)
    return maze, frozenset((i, j) for i, row in rows for j, value in enumerate(row) if value != 1)


# -- the environment --------------------------------------------------------------------------


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


# -- the planner ------------------------------------------------------------------------------


mazes = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=4, max_size=4)


@settings(max_examples=60, deadline=None)
@given(grid=mazes, detour=st.integers(0, 4))
def test_routes_are_connected_short_and_distinct(grid: list[list[bool]], detour: int) -> None:
    free = frozenset((i, j) for i in range(4) for j in range(4) if grid[i][j]) | {(0, 0), (3, 3)}
    try:
        found = routes(free, (0, 0), (3, 3), detour)
    except ValueError:
        assert (3, 3) not in reachable(free)
        return
    assert len(set(found)) == len(found) > 0
    shortest = min(map(len, found))
    for route in found:
        assert route[0] == (0, 0) and route[-1] == (3, 3) and set(route) <= free
        assert len(set(route)) == len(route) <= shortest + detour
        for n, (cell, following) in enumerate(itertools.pairwise(route)):
            assert abs(cell[0] - following[0]) + abs(cell[1] - following[1]) == 1
            for later in route[n + 2 :]:
                assert abs(cell[0] - later[0]) + abs(cell[1] - later[1]) > 1


def reachable(free: frozenset[Cell]) -> set[Cell]:
    seen: set[Cell] = set()
    wave = [(0, 0)]
    while wave:
        cell = wave.pop()
        seen.add(cell)
        i, j = cell
        around = {(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)}
        wave += list((around & free) - seen)
    return seen


@pytest.mark.parametrize("maze", ["open", "umaze", "medium", "large"])
def test_every_goal_has_a_route(maze: str) -> None:
    _, free = maze_of(f"pointmaze-{maze}")
    counts = [len(routes(free, start, goal)) for start in free for goal in free if start != goal]
    assert min(counts) == 1
    assert (max(counts) > 1) == (maze != "umaze")


def test_where_two_ways_lead_to_the_goal_both_are_taken() -> None:
    """Around the block of the large maze: about half of the episodes each way."""
    maze, free = maze_of("pointmaze-large")
    start, goal = (1, 2), (3, 3)
    assert [len(route) for route in routes(free, start, goal)] == [6, 6]
    position, target = maze.cell_rowcol_to_xy(start), maze.cell_rowcol_to_xy(goal)
    left = 0
    for seed in range(200):
        planner = maze_planner.Planner(maze, position, target, np.random.default_rng(seed))
        left += (2, 1) in planner.route
    assert 70 < left < 130


def test_the_planner_arrives() -> None:
    for episode in planned("pointmaze-large", 8):
        assert episode.rewards[-100:].all()
        assert np.abs(episode.actions).max() <= 1


def test_references_are_reproduced_in_small() -> None:
    """The recorded figures come from 200 episodes; 20 lie within what chance allows."""
    found = pointmaze_references.main(pointmaze_references.Config(episodes=20, mazes=("umaze",)))
    assert set(found) == {TASK, f"{TASK}-dense"}
    for task, (random, planner) in found.items():
        row = get_task(task)
        assert row.reference_min == pytest.approx(random, abs=35)
        assert row.reference_max == pytest.approx(planner, abs=25)
        score = normalized_score(task, row.reference_max or 0.0)
        assert score is not None and float(score) == pytest.approx(100)
        assert "ours" in row.reference_origin


# -- the builtin data -------------------------------------------------------------------------


def digests() -> dict[str, str]:
    data = dataset_folder(ID) / "data"
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(data.iterdir())}


def test_same_seed_same_bytes() -> None:
    assert build_dataset(TASK, steps=700, progress=False) == ID
    first = digests()
    build_dataset(TASK, steps=700, progress=False, force=True)
    assert digests() == first
    build_dataset(TASK, steps=700, seed=1, progress=False, force=True)
    assert digests()["main_data.hdf5"] != first["main_data.hdf5"]


def test_what_is_built_loads_and_says_how_it_was_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build_dataset(TASK, steps=700, progress=False)
    data = load_dataset(TASK)
    assert capsys.readouterr().err == ""
    assert data.observations.shape == (700, 8) and data.actions.shape == (700, 2)
    assert np.flatnonzero(data.truncations).tolist() == [299, 599, 699]
    metadata = read_metadata(ID)
    assert metadata["algorithm_name"] == "waypoint planner"
    assert metadata["flowmdp_build"]["planner"] == maze_planner.planner_recipe()
    assert any(line.startswith("gymnasium-robotics==") for line in metadata["requirements"])
    monkeypatch.setattr(maze_planner, "GAIN", 5.0)
    load_dataset(TASK)
    assert "built from another version of the behaviour" in capsys.readouterr().err


def test_actions_replay_an_episode_bit_for_bit() -> None:
    build_dataset(TASK, steps=300, progress=False)
    (episode,) = minari.load_dataset(ID).iterate_episodes()
    (metadata,) = minari.load_dataset(ID).storage.get_episode_metadata([0])
    outer = make_outer(TASK)
    observation, _ = outer.reset(seed=metadata["seed"])
    for n, action in enumerate(episode.actions):
        np.testing.assert_array_equal(observation, episode.observations[n])
        observation, *_ = outer.step(action)
    outer.close()


# -- datasets of others -----------------------------------------------------------------------


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
