"""`flowmdp tasks` and `flowmdp data`: what there is to train on."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from flowmdp.cli.options import Build, Download, Import, Info
from flowmdp.envs.data.sources.build import build_dataset
from flowmdp.envs.data.store import is_present, list_datasets, read_metadata, store_root
from flowmdp.envs.robots.outer import EXTRAS
from flowmdp.envs.tasks import SOURCES, TASKS, Task
from flowmdp.errors import ConfigurationError

GETS = {"builtin": "build", "minari": "download", "d4rl": "import"}
"""Source -> the `flowmdp data` command that brings its datasets here."""


def print_tasks() -> None:
    """One line per task, and one column per source of data."""
    table = Table(box=None, pad_edge=False)  # fits into 80 columns
    for name in ("task", "robot", *SOURCES):
        table.add_column(name, no_wrap=True)
    for task in TASKS.values():
        cells = [_availability(task, source) for source in SOURCES]
        table.add_row(task.name, task.outer_env[task.default_source], *cells)
    Console().print(table)
    print("here: in the local store; build, download, import: what `flowmdp data` can do for it;")
    print("-: there is none; *: the default source. A build runs by itself when it is needed.")
    print("The flow environment of a task is FlowMDP-<task>-v0, made by gymnasium.make.")
    for extra, module in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            names = ", ".join(task.name for task in TASKS.values() if task.extra == extra)
            print(f'not installed: pip install "flowmdp[{extra}]" brings the robots of {names}')


def _availability(task: Task, source: str) -> str:
    """Whether a source's dataset is here, or what gets it."""
    default = "*" if source == task.default_source else ""
    if source not in task.datasets:
        return f"-{default}"
    return ("here" if is_present(task.datasets[source]) else GETS[source]) + default


def build(options: Build) -> None:
    """Build a task's dataset and say where it lies."""
    dataset_id = build_dataset(
        options.task, steps=options.steps, seed=options.seed, force=options.force
    )
    print(f"{dataset_id} is in {store_root()}")


def download(options: Download) -> None:
    """Download a task's published dataset and say where it lies."""
    from flowmdp.envs.data.sources.minari import download_dataset

    print(f"{download_dataset(options.task, options.force)} is in {store_root()}")


def import_file(options: Import) -> None:
    """Import one of D4RL's files and say what came in."""
    from flowmdp.envs.data.sources.d4rl import import_d4rl

    dataset_id = import_d4rl(options.file, options.task, options.clip_actions, options.force)
    metadata = read_metadata(dataset_id)
    episodes, steps = metadata["total_episodes"], metadata["total_steps"]
    print(f"{dataset_id} is in {store_root()}: {episodes:,} episodes, {steps:,} steps")


def print_datasets() -> None:
    """One line per dataset of the local store."""
    found = list_datasets()
    if not found:
        print(f"no datasets in {store_root()}: `flowmdp data build hopper-medium` builds one")
        return
    table = Table(title=f"datasets in {store_root()}", title_justify="left")
    table.add_column("id", no_wrap=True)
    table.add_column("episodes", justify="right")
    table.add_column("steps", justify="right")
    for dataset_id, metadata in found.items():
        if metadata is None:
            table.add_row(dataset_id, "half-written or damaged", "")
        else:
            table.add_row(
                dataset_id, str(metadata["total_episodes"]), f"{metadata['total_steps']:,}"
            )
    Console().print(table)


def print_info(options: Info) -> None:
    """What is known of one dataset."""
    from flowmdp.envs.data.describe import dataset_info, open_dataset

    if options.dataset is not None and "/" in options.name:
        raise ConfigurationError("--dataset needs a task before it: flowmdp data info TASK")
    info = dataset_info(options.name, options.source, options.dataset)
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in info.items():
        table.add_row(name.replace("_", " "), _readable(value))
    Console(file=sys.stdout).print(table)
    if options.plot is not None:
        from flowmdp.envs.data.picture import draw_dataset

        dataset, *_ = open_dataset(options.name, options.source, options.dataset)
        print(f"drawn into {draw_dataset(dataset, options.plot)}")


def _readable(value: Any) -> str:
    """Numbers with few digits, lists and dictionaries on one line each."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_readable(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_readable(entry) for entry in value)
    return str(value)
