"""The maze planner: its ways, its behaviour, and the data built from it."""

from __future__ import annotations

import itertools
from typing import Any

import minari
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import pointmaze_references
from flowmdp.envs.data import load_dataset
from flowmdp.envs.data.sources import planner as maze_planner
from flowmdp.envs.data.sources.build import build_dataset
from flowmdp.envs.data.sources.collect import Episode
from flowmdp.envs.data.sources.planner import Cell, plan_episodes, routes
from flowmdp.envs.data.store import read_metadata
from flowmdp.envs.robots.outer import make_outer
from flowmdp.envs.scores import normalized_score
from flowmdp.envs.tasks import get_task
from tests.envs.built import digests

pytest.importorskip("gymnasium_robotics")
TASK, ID = "pointmaze-umaze", "flowmdp/pointmaze/umaze-v0"


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
        assert row.references is not None
        assert row.references[0] == pytest.approx(random, abs=35)
        assert row.references[1] == pytest.approx(planner, abs=25)
        score = normalized_score(task, row.references[1])
        assert score is not None and float(score) == pytest.approx(100)
        assert "ours" in row.reference_origin


def test_same_seed_same_bytes() -> None:
    assert build_dataset(TASK, steps=700, progress=False) == ID
    first = digests(ID)
    build_dataset(TASK, steps=700, progress=False, force=True)
    assert digests(ID) == first
    build_dataset(TASK, steps=700, seed=1, progress=False, force=True)
    assert digests(ID)["main_data.hdf5"] != first["main_data.hdf5"]


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
