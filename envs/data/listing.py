"""What `flowmdp tasks` and `flowmdp data` do: one function per command, docstrings for `--help`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from flowmdp.cluster import Engine
from flowmdp.envs.data.describe import draw_dataset, open_dataset
from flowmdp.envs.data.sources.build import build_dataset
from flowmdp.envs.data.sources.d4rl import import_d4rl
from flowmdp.envs.data.sources.minari import download_dataset
from flowmdp.envs.data.sources.ogbench import download_ogbench, import_ogbench
from flowmdp.envs.data.store import is_present, list_datasets, read_metadata, store_root
from flowmdp.envs.robots.outer import EXTRAS
from flowmdp.envs.tasks import GOALS, TASKS, Source, families, get_task
from flowmdp.errors import ConfigurationError

GETS = {"builtin": "build", "minari": "download", "d4rl": "import", "ogbench": "download"}
"""Source -> the `flowmdp data` command that brings its datasets here."""


def print_tasks() -> None:
    """List the tasks: robot, and for every source whether the data is here or what gets it.

    A task is a robot and a kind of recorded behaviour. `hopper-medium` is the flow environment
    FlowMDP-hopper-medium-v0 and what `flowmdp train df-div hopper-medium` trains on.

    For example:
      flowmdp tasks
    """
    scenes = {name: tasks for name, tasks in families().items() if tasks[0].ogbench}
    others = {name: tasks for name, tasks in families().items() if name not in scenes}
    for title, listed, sources in (
        ("task", others, ("builtin", "minari", "d4rl")),
        ("OGBench's task", scenes, ("builtin", "ogbench")),
    ):
        columns = [Column(name, no_wrap=True) for name in (title, "robot", *sources)]
        table = Table(*columns, box=None, pad_edge=False)  # fits into 80 columns
        for name, (task, *_) in listed.items():
            cells = dict.fromkeys(sources, "-")
            for source, dataset_id in task.datasets.items():
                cells[source] = "here" if is_present(dataset_id) else GETS[source]
            cells[task.source()] += "*" * (len(task.datasets) > 1)
            table.add_row(name, task.outer_env[task.source()], *cells.values())
        Console().print(table)
        print()
    goals = f"scene-play-task{GOALS[0]} to -task{GOALS[-1]}"
    print(f"OGBench's: scene-play has the default goal, {goals} one each; with -sparse,")
    print("as scene-play-sparse-task1, the goal alone is rewarded; mazes always reward it alone.")
    print("here: in the local store; build, download, import: what `flowmdp data` can do for it;")
    print("-: there is none; *: the default source. A build runs by itself when it is needed.")
    print("The flow environment of a task is FlowMDP-<task>-v0, made by gymnasium.make.")
    for extra, module in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            names = ", ".join(name for name, (row, *_) in families().items() if row.extra == extra)
            print(f'not installed: pip install "flowmdp[{extra}]" brings the robots of {names}')


def build(
    task: str,
    *,
    steps: int | None = None,
    episodes: int | None = None,
    seed: int = 0,
    jobs: int | None = None,
    force: bool = False,
    engine: Engine = "local",
    address: str | None = None,
) -> None:
    """Build a task's dataset from the behaviour that comes with the package.

    Rolls policies, a planner or OGBench's scripted experts out on this machine, without a network,
    into Minari's local store (MINARI_DATASETS_PATH, or ~/.minari/datasets). The same seed gives the
    same bytes. A build that is killed leaves nothing behind that loads as a dataset; just start it
    again. Finished episodes of OGBench's scenes are kept until then.

    For example:
      flowmdp data build hopper-medium
      flowmdp data build hopper-medium --force
      flowmdp data build pointmaze-umaze
      flowmdp data build scene-play --episodes 100
      flowmdp data build scene-play --engine ray

    Args:
        task: Name of the task; `flowmdp tasks` lists them.
        steps: Transitions to record; 200,000 when not given. Not for OGBench's scenes.
        episodes: Episodes of 1,000 transitions to record of one of OGBench's scenes; as many as
            OGBench published when not given, 1,000 or 3,000.
        seed: Seed of the roll-outs.
        jobs: Processes that record one of OGBench's scenes; all cores when not given.
        force: Replace the dataset that is there; else one of another size or seed is kept and
            reported.
        engine: local records on this machine, ray one of OGBench's scenes on a Ray cluster.
        address: HOST:PORT of the cluster's head; RAY_ADDRESS, or the cluster that this machine is a
            node of, when not given.
    """
    built = build_dataset(
        task,
        steps,
        seed,
        force=force,
        episodes=episodes,
        jobs=jobs,
        engine=engine,
        address=address,
    )
    print(f"{built} is in {store_root()}")


def download(
    task: str, *, source: Literal["minari", "ogbench"] | None = None, force: bool = False
) -> None:
    """Download a task's published dataset, for `--source minari` or `--source ogbench`.

    Minari fetches it from Farama's store at Hugging Face, with the extra `hf` (pip install
    "flowmdp[hf]"); OGBench's files come from its own server, with the extra `ogbench`. Both need a
    network. A download that breaks off leaves nothing behind.

    For example:
      flowmdp data download hopper-medium
      flowmdp data download scene-play

    Args:
        task: Name of the task; `flowmdp tasks` lists them.
        source: Where from; the one that has the task's data when not given.
        force: Replace the dataset that is there.
    """
    row = get_task(task)
    theirs = "ogbench" if row.ogbench else "minari"
    fetch = download_ogbench if (source or theirs) == "ogbench" else download_dataset
    print(f"{fetch(task, force)} is in {store_root()}")


def import_file(
    file: Path, *, task: str | None = None, clip_actions: bool = False, force: bool = False
) -> None:
    """Import one of D4RL's or OGBench's original files, for `--source d4rl` or `ogbench`.

    Download the file yourself; d4rl, gym and mujoco_py are not needed. The dataset goes into
    Minari's local store and belongs to the environment of its numbers: -v4 for D4RL's Gym-MuJoCo,
    the hand under D4RL's definitions for Adroit, OGBench's scene or maze for all of its tasks.

    For example:
      flowmdp data import hopper_medium-v2.hdf5
      flowmdp data import pen-human-v1.hdf5 --task pen-human
      flowmdp data import scene-play-v0.npz

    Args:
        file: D4RL's or OGBench's file, best under its own name.
        task: The task it belongs to; known where the file has its own name.
        clip_actions: Clip actions outside [-1, 1] instead of refusing the file.
        force: Replace the dataset that was imported before.
    """
    row = get_task(task or _task_of(file))
    bring = import_ogbench if row.ogbench else import_d4rl
    metadata = read_metadata(bring(file, row.name, clip_actions, force))
    counts = f"{metadata['total_episodes']:,} episodes, {metadata['total_steps']:,} steps"
    print(f"{metadata['dataset_id']} is in {store_root()}: {counts}")


def _task_of(file: Path) -> str:
    """The task that a file belongs to by its name."""
    name = file.name.replace("-val.npz", ".npz")  # refused later, with the reason
    for task in TASKS.values():
        if name == task.d4rl_file or (task.ogbench and name == f"{task.ogbench}-v0.npz"):
            return task.name
    raise ConfigurationError(
        f"the name of {file.name} does not tell which task it belongs to: add --task TASK"
    )


def print_datasets() -> None:
    """List the datasets of Minari's local store.

    For example:
      flowmdp data list
    """
    found = list_datasets()
    if not found:
        print(f"no datasets in {store_root()}: `flowmdp data build hopper-medium` builds one")
        return
    numbers = [Column(name, justify="right") for name in ("episodes", "steps")]
    columns = [Column("id", no_wrap=True), *numbers]
    table = Table(*columns, title=f"datasets in {store_root()}", title_justify="left")
    for dataset_id, metadata in found.items():
        cells = ["`data info` tells", "what is wrong"]
        if metadata is not None:
            cells = [f"{metadata[f'total_{counted}']:,}" for counted in ("episodes", "steps")]
        table.add_row(dataset_id, *cells)
    Console().print(table)


def print_info(
    name: str,
    *,
    source: Source | None = None,
    dataset: str | None = None,
    plot: Path | None = None,
) -> None:
    """Describe a dataset: episodes, steps, returns, spaces, who recorded it and how.

    For example:
      flowmdp data info hopper-medium
      flowmdp data info zoo/hopper/medium-v0 --plot medium.png
      flowmdp data info hopper-medium --dataset zoo/hopper/medium-v0

    Args:
        name: A task, or any dataset id of Minari's local store.
        source: For a task: which of its datasets; the task's default when not given.
        dataset: For a task: any other dataset, by its id, under the task's definition and
            references.
        plot: Draw returns, lengths and actions into this picture as well.
    """
    if dataset is not None and "/" in name:
        raise ConfigurationError("--dataset needs a task before it: flowmdp data info TASK")
    transitions, info = open_dataset(name, source, dataset)
    table = Table(Column(style="bold", no_wrap=True), Column(), show_header=False, box=None)
    for key, value in info.items():
        table.add_row(key.replace("_", " "), _readable(value))
    Console().print(table)
    if plot is not None:
        draw_dataset(transitions, plot)
        print(f"drawn into {plot}")


def _readable(value: Any) -> str:
    """Numbers with few digits, lists and dictionaries on one line each."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_readable(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(_readable, value))
    return escape(str(value).encode("utf-8", "replace").decode())  # from anybody's metadata.json
