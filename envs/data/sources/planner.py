"""A waypoint planner for the point in a maze: the behaviour behind the builtin PointMaze data.

It plans over the maze's own map and steers from cell to cell with a PD controller, noise on top.
Where several ways lead to the goal it draws one per episode, all with the same chance, so that the
recorded behaviour has several modes on purpose.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from flowmdp.envs.data.sources.collect import Episode, Recorder

Cell = tuple[int, int]
Route = tuple[Cell, ...]
XY = NDArray[np.float64]

GAIN, DAMPING = 10.0, 1.0
"""Action per metre to the waypoint and per metre a second (D4RL, maze2d's WaypointController)."""

NOISE = 0.5
"""Standard deviation of the action's Gaussian noise, before clipping (D4RL's maze2d script)."""

REACHED = 0.25
"""Metres from a waypoint within which the next one is taken; ours."""

DETOUR = 4
"""Cells that a route may be longer than the shortest; ours: both ways around a block, no tours."""


@functools.lru_cache
def _graph(free: frozenset[Cell]) -> Any:
    import networkx as nx

    return nx.grid_2d_graph(*np.max(list(free), axis=0) + 1).subgraph(free).copy()


@functools.lru_cache(maxsize=4096)
def routes(free: frozenset[Cell], start: Cell, goal: Cell, detour: int = DETOUR) -> list[Route]:
    """All ways over free cells (row, column), sorted, at most `detour` longer than the shortest.

    A way never passes beside a cell that it left before.

    Raises:
        ValueError: When no way leads there.

    >>> ring = frozenset((i, j) for i in range(3) for j in range(3)) - {(1, 1)}
    >>> [len(route) for route in routes(ring, (0, 1), (2, 1))]
    [5, 5]
    """
    import networkx as nx

    maze = _graph(free)
    try:
        longest = nx.shortest_path_length(maze, start, goal) + detour
    except nx.NetworkXNoPath:
        raise ValueError(f"no way leads from {start} to {goal}") from None
    ways = map(tuple, nx.all_simple_paths(maze, start, goal, longest))
    return sorted(way for way in ways if maze.subgraph(way).size() == len(way) - 1)


class Planner:
    """The behaviour of one episode from `position` to `goal`, metres; `rng` draws the route."""

    def __init__(self, maze: Any, position: XY, goal: XY, rng: np.random.Generator) -> None:
        free = frozenset(
            (i, j) for i, row in enumerate(maze.maze_map) for j, v in enumerate(row) if v != 1
        )
        start, end = (tuple(map(int, maze.cell_xy_to_rowcol(xy))) for xy in (position, goal))
        ways = routes(free, start, end)
        self.route = ways[int(rng.integers(len(ways)))]
        self._waypoints = [maze.cell_rowcol_to_xy(cell) for cell in self.route[1:-1]] + [goal]

    def act(self, position: XY, velocity: XY, noise: XY) -> NDArray[np.float32]:
        """The action in [-1, 1], of standard normal noise; passes on from a waypoint reached."""
        while len(self._waypoints) > 1 and np.hypot(*(self._waypoints[0] - position)) <= REACHED:
            del self._waypoints[0]
        action = GAIN * (self._waypoints[0] - position) - DAMPING * velocity + NOISE * noise
        return np.asarray(action.clip(-1, 1), np.float32)


def planner_recipe() -> dict[str, float]:
    """All numbers that decide what the planner does, for a dataset's metadata."""
    numbers = {"gain": GAIN, "damping": DAMPING, "noise": NOISE}
    return numbers | {"reached": REACHED, "detour": DETOUR}


def plan_episodes(env: gym.Env[Any, Any], seed: int, horizon: int) -> Iterator[Episode]:
    """Yield episodes 0, 1, 2, ... of the planner without end; episode i depends on seed and i only.

    The outer environment observes [achieved, goal, position, velocity], two numbers each.
    """
    for index in itertools.count():
        recorder = Recorder(env, seed, index, horizon)
        rng = np.random.default_rng([seed, index, 1])  # apart from the noise
        _, goal, position, velocity = recorder.observations[0].reshape(4, 2)
        planner = Planner(env.get_wrapper_attr("maze"), position, goal, rng)
        while recorder.episode is None:
            _, _, position, velocity = recorder.observations[-1].reshape(4, 2)
            recorder.step(planner.act(position, velocity, next(recorder.noise)))
        yield recorder.episode
