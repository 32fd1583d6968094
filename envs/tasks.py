"""The table of tasks: one row holds all that is particular to a task.

Adding a task is adding a row to `TASKS`. The id of any Gymnasium environment, `BipedalWalker-v3` or
`module:Id-v0`, is the name of a task too: a robot of the user's own, without data or references.
The module imports no simulator, so that `import flowmdp` can register every id.

Sources:
    builtin: rolled out here, offline, from small behaviour policies that come with the package, or
        from the maze planner.
    minari: Farama's published datasets, in Minari's local store (`flowmdp data download`).
    d4rl: the original D4RL files, imported into Minari's local store; recorded on `-v4` physics
        (Gym-MuJoCo) or on D4RL's own Adroit environments.
    ogbench: OGBench's original files (Park et al. 2025), imported into Minari's local store.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import gymnasium

from flowmdp.errors import DatasetError, UnknownTaskError

Source = Literal["builtin", "minari", "d4rl", "ogbench"]
SOURCES: tuple[str, ...] = get_args(Source)


@dataclass(frozen=True)
class Task:
    """One outer task: a robot, and the kind of behaviour that was recorded on it.

    Attributes:
        name: What users type, `hopper-medium`; the flow environment is `FlowMDP-<name>-v0`.
        outer_env: Gymnasium id of the robot's environment, per source; the first is the default.
        datasets: Minari id of the recorded behaviour, per source; a missing source has none.
        horizon: Longest episode in outer steps; 0 is the environment's own time limit.
        robot: Tasks of one robot can use each other's critics and flows.
        d4rl_file: Name of D4RL's original file; empty where D4RL has none.
        behaviors: Names of the shipped policies that the builtin dataset is rolled out from, in
            equal shares; empty where the package ships none.
        planner: Whether the builtin dataset is the maze planner's instead.
        ogbench: Name of OGBench's dataset, `scene-play`, that the task shares with others: it is
            stored once, and rewards are computed for the task at load. Empty for all other tasks.
        options: Keyword arguments of the robot's environment, JSON-able: what its id leaves open.
        same_robot: Further ids of the same robot. The first registered one stands in where the
            installed release no longer knows `outer_env`; datasets recorded on any of them fit.
        wrapper: Wrapper around the environment, "module:Class", that mends what the installed
            release does otherwise than the task means it; its method `relabel`, if it has one, does
            so to transitions recorded without it. Empty for none.
        extra: The package's optional extra that brings the environment; empty for none.
        references: Returns that score 0 and 100; None where nobody measured them.
        reference_origin: Who measured the two, and on which environment.
        success: Whether episodes report success, which then is the task's score.
    """

    name: str
    outer_env: Mapping[str, str]
    datasets: Mapping[str, str]
    horizon: int = 0
    robot: str = ""
    d4rl_file: str = ""
    behaviors: tuple[str, ...] = ()
    planner: bool = False
    ogbench: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    same_robot: tuple[str, ...] = ()
    wrapper: str = ""
    extra: str = ""
    references: tuple[float, float] | None = None
    reference_origin: str = ""
    success: bool = False

    def source(self, source: str | None = None) -> str:
        """The named source, or the default one for None; UnknownTaskError for one it lacks."""
        if source is None:
            return next(iter(self.outer_env))
        if source not in self.outer_env:
            known = ", ".join(self.outer_env)
            raise UnknownTaskError(
                f"task {self.name} has no source {source!r}: choose one of {known}"
            )
        return source

    def dataset(self, source: str | None = None) -> str:
        """Minari id of a source's dataset (None: the default source); DatasetError without one."""
        source = self.source(source)
        if source not in self.datasets:
            others = f", or take another source ({', '.join(self.datasets)})" * bool(self.datasets)
            raise DatasetError(
                f"task {self.name} has no {source} dataset: name a Minari dataset of your own "
                f"with --dataset ID (dataset_id=){others}"
            )
        return self.datasets[source]


def _gym_mujoco(
    robot: str, env: str, references: tuple[float, float], ladder: range
) -> Iterator[Task]:
    """Rows of one Gym-MuJoCo robot, each with the shipped policies (envs/behaviors) behind it.

    Kinds: a half-trained policy, the ladder of its earlier snapshots up to it, half medium and half
    expert data, and the trained policy. `ladder` holds the training steps of the snapshots.
    """
    medium, expert = f"{robot}-medium", f"{robot}-expert"
    snapshots = tuple(f"ladder/{robot}/step-{steps:07d}" for steps in ladder)
    kinds = {
        "medium": (medium,),
        "medium-replay": (*snapshots, medium),
        "medium-expert": (medium, expert),
        "expert": (expert,),
    }
    for kind, behaviors in kinds.items():
        datasets = {"builtin": f"flowmdp/{robot}/{kind}-v0", "d4rl": f"d4rl/{robot}/{kind}-v2"}
        if kind in ("medium", "expert"):  # Farama has published no others
            datasets["minari"] = f"mujoco/{robot}/{kind}-v0"
        yield Task(
            name=f"{robot}-{kind}",
            outer_env={"builtin": f"{env}-v5", "minari": f"{env}-v5", "d4rl": f"{env}-v4"},
            datasets=datasets,
            horizon=1000,
            robot=robot,
            d4rl_file=f"{robot}_{kind.replace('-', '_')}-v2.hdf5",
            behaviors=behaviors,
            references=references,
            reference_origin="D4RL infos.py: random and expert policies on the -v2 Gym-MuJoCo "
            "environments",
        )


MAZES = {
    "open": ("Open", 300, (8.11, 218.74), (53.71, 230.13)),
    "umaze": ("UMaze", 300, (15.05, 242.41), (69.58, 250.64)),
    "medium": ("Medium", 600, (10.21, 476.73), (58.13, 486.99)),
    "large": ("Large", 800, (5.60, 587.22), (40.45, 595.71)),
}
"""Maze -> its name in the environment's id, the id's own horizon, and the reference returns
(random, planner) for the sparse and for the dense reward."""

MAZE_OPTIONS = {"continuing_task": True, "reset_target": False}
"""An episode keeps its goal and goes on after reaching it, until the horizon: the return counts the
steps at the goal, as in D4RL's maze2d. Ending at the goal would make the dense return fall with
skill; a new goal after each would leave the horizon to decide how many there are."""


def _point_maze() -> Iterator[Task]:
    """Rows of the point in its mazes, sparse and dense."""
    for maze, (env, horizon, sparse, dense) in MAZES.items():
        for suffix, reward, references in (("", "", sparse), ("-dense", "Dense", dense)):
            env_id = f"PointMaze_{env}{reward}-v3"
            yield Task(
                name=f"pointmaze-{maze}{suffix}",
                outer_env={"builtin": env_id, "minari": env_id},
                datasets={
                    "builtin": f"flowmdp/pointmaze/{maze}{suffix}-v0",
                    "minari": f"D4RL/pointmaze/{maze}{suffix}-v2",
                },
                horizon=horizon,
                robot="pointmaze",
                planner=True,
                options=MAZE_OPTIONS,
                wrapper="flowmdp.envs.robots.point_maze:PointMaze",
                extra="robotics",
                references=references,
                reference_origin="ours: uniform random actions and the planner "
                "(benchmarks.pointmaze_references)",
            )


def _adroit(robot: str, name: str, horizon: int, references: tuple[float, float]) -> Iterator[Task]:
    """Rows of one task of the Adroit hand; horizon, reward and ends are D4RL's in all sources."""
    env_id = f"AdroitHand{name}-v1"
    for kind in ("human", "cloned", "expert"):
        yield Task(
            name=f"{robot}-{kind}",
            outer_env={"minari": env_id, "d4rl": env_id},
            datasets={"minari": f"D4RL/{robot}/{kind}-v2", "d4rl": f"d4rl/{robot}/{kind}-v1"},
            horizon=horizon,
            robot=robot,
            d4rl_file=f"{robot}-{kind}-v1.hdf5",
            same_robot=(f"AdroitHand{name}-v2",),
            wrapper=f"flowmdp.envs.robots.adroit:D4RL{name}",
            extra="robotics",
            references=references,
            reference_origin="D4RL infos.py: random and expert policies on the -v0 Adroit "
            "environments",
        )


SCENES = {
    "cube-single": 200,
    "cube-double": 500,
    "cube-triple": 1000,
    "scene": 750,
    "puzzle-3x3": 500,
    "puzzle-4x4": 500,
}
"""OGBench's manipulation scenes, and the horizons that it registers them with."""

GOALS = range(1, 6)
"""OGBench's goals of every scene and maze; a name without one is its own default goal."""


def _ogbench() -> Iterator[Task]:
    """Rows of OGBench's single-task environments: scenes dense and sparse, mazes sparse only."""
    for scene, horizon in SCENES.items():
        for kind in ("play", "noisy"):
            yield from _goals(scene, kind, "", horizon, "Manipulation", ("builtin", "ogbench"))
            yield from _goals(
                scene, kind, "-sparse", horizon, "SparseManipulation", ("builtin", "ogbench")
            )
    for robot in ("pointmaze", "antmaze"):
        for maze in ("medium", "large", "giant", "teleport"):
            yield from _goals(f"{robot}-{maze}", "navigate", "", 1000, "Maze", ("ogbench",))


def _goals(
    scene: str, kind: str, reward: str, horizon: int, wrapper: str, sources: tuple[str, ...]
) -> Iterator[Task]:
    """Rows of one scene or maze and one kind of data, for the default goal and for each."""
    goals = ("", *(f"-task{number}" for number in GOALS))
    ids = [f"{scene}-singletask{goal}-v0" for goal in goals]
    stored = {"builtin": "flowmdp/ogbench", "ogbench": "ogbench"}
    for goal, env_id in zip(goals, ids, strict=True):
        yield Task(
            name=f"{scene}-{kind}{reward}{goal}",
            outer_env=dict.fromkeys(sources, env_id),
            datasets={source: f"{stored[source]}/{scene}-{kind}-v0" for source in sources},
            horizon=horizon,
            robot=f"ogbench-{scene}",
            ogbench=f"{scene}-{kind}",
            same_robot=(f"{scene}-v0", *ids),
            wrapper=f"flowmdp.envs.robots.ogbench:{wrapper}",
            extra="ogbench",
            success=True,
        )


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *_gym_mujoco("hopper", "Hopper", (-20.272305, 3234.3), range(20_000, 120_000, 20_000)),
        *_gym_mujoco(
            "halfcheetah", "HalfCheetah", (-280.178953, 12135.0), range(100_000, 400_000, 100_000)
        ),
        *_gym_mujoco("walker2d", "Walker2d", (1.629008, 4592.3), range(100_000, 500_000, 100_000)),
        *_point_maze(),
        *_adroit("pen", "Pen", 100, (96.262799, 3076.8331017826877)),
        *_adroit("hammer", "Hammer", 200, (-274.856578, 12794.134825156867)),
        *_adroit("door", "Door", 200, (-56.512833, 2880.5693087298737)),
        *_adroit("relocate", "Relocate", 200, (-6.425911, 4233.877797728884)),
        *_ogbench(),
    )
}


def families() -> dict[str, list[Task]]:
    """The tasks by the name to list them under: those that share OGBench's data are one family."""
    found: dict[str, list[Task]] = {}
    for task in TASKS.values():
        found.setdefault(task.ogbench or task.name, []).append(task)
    return found


VERSIONED = re.compile(r"([\w.-]+:)?([\w-]+/)?[\w.-]+-v\d+")
"""Names that can only be an environment's id."""

FOREIGN = re.compile(r"-singletask|-v\d+$")
"""What the names of D4RL's and OGBench's datasets have, and those of tasks lack."""


def get_task(name: str) -> Task:
    """The task of that name, or one made of an environment's id.

    Raises:
        UnknownTaskError: With the nearest names when there is none.
    """
    if name in TASKS:
        return TASKS[name]
    bare = name.partition(":")[2] or name
    if bare.startswith("FlowMDP-"):
        raise UnknownTaskError(
            f"{name} is a flow environment: name its task, {bare[8:].rpartition('-v')[0]!r}, or a "
            "robot's own environment"
        )
    ours = FOREIGN.sub("", name)  # as in D4RL's and OGBench's names of their datasets
    if ours in TASKS and name not in gymnasium.registry:
        raise UnknownTaskError(f"unknown task {name!r}: here its name is {ours}")
    if VERSIONED.fullmatch(name) or ":" in name or name in gymnasium.registry:
        return Task(name=name, outer_env={"minari": name}, datasets={}, robot=name)
    scene, _, goal = name.partition("-task")
    if (moved := f"{scene}{goal[1:]}-task{goal[:1]}") in TASKS:
        raise UnknownTaskError(f"unknown task {name!r}: did you mean {moved}?")
    if scene in TASKS and TASKS[scene].ogbench:
        raise UnknownTaskError(
            f"unknown task {name!r}: {scene} has tasks {GOALS[0]} to {GOALS[-1]}, "
            f"{scene}-task{GOALS[0]} to {scene}-task{GOALS[-1]}"
        )
    alike = [known for known in TASKS if ("-task" in known) == ("-task" in name)]
    near = difflib.get_close_matches(name, alike, n=3, cutoff=0.4)
    listed = ", ".join(families())
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {listed}"
    raise UnknownTaskError(
        f"unknown task {name!r}: {hint} Or give the id of a Gymnasium environment, as Pendulum-v1"
    )
