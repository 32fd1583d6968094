"""One loader for every dataset: `load_dataset(task)` gives the transitions an agent trains on."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import gymnasium as gym
import numpy as np

from flowmdp.envs.data.reading import read_states, read_transitions
from flowmdp.envs.data.sources.build import build_dataset, is_current
from flowmdp.envs.data.store import (
    absent,
    broken,
    is_present,
    read_metadata,
    recorded_robot,
    recorded_spec,
    recorded_wrappers,
)
from flowmdp.envs.robots.outer import make_robot
from flowmdp.envs.tasks import Task, get_task
from flowmdp.errors import DatasetError
from flowmdp.robot import RobotInterface
from flowmdp.transitions import Bool, TransitionDataset, check_values

CHANGING_WRAPPERS = {
    *("AddRenderObservation", "AtariPreprocessing", "DelayObservation", "DiscretizeAction"),
    *("DiscretizeObservation", "FilterObservation", "FrameStackObservation"),
    *("GrayscaleObservation", "MaxAndSkipObservation", "NormalizeObservation", "RepeatAction"),
    *("RescaleObservation", "ResizeObservation", "StickyAction", "TimeAwareObservation"),
    *("TransformAction", "TransformObservation"),
}
"""Gymnasium's wrappers behind which observations or actions are others than the robot's own."""

REWARD_WRAPPERS = {"ClipReward", "NormalizeReward", "TransformReward"}


def load_dataset(
    task: str,
    source: str | None = None,
    dataset_id: str | None = None,
    build: bool = True,
    clip_actions: bool = False,
) -> TransitionDataset:
    """Load a dataset of Minari's local store and check it against the task's outer environment.

    Where it was recorded under another definition of rewards, ends or goals than the task's, a note
    on stderr says so, and what was put right. Data of OGBench serves every goal of its scene:
    rewards and terminations are those of the task, and an episode ends with each step that begins
    in a success.

    Args:
        task: Name of the task, `hopper-medium`.
        source: "builtin", "minari", "d4rl" or "ogbench"; None takes the task's default.
        dataset_id: Any other Minari id of the local store; the task gives the environment.
        build: Whether an absent builtin dataset is built, saying so on stderr.
        clip_actions: Whether actions outside [-1, 1] are clipped; else they are an error.

    Returns:
        The transitions, float32 with shapes as in `TransitionDataset`.

    Raises:
        UnknownTaskError: For an unknown task or source.
        DatasetError: When the dataset is absent, half-written, holds NaN or infinite numbers,
            was recorded on another environment, or its shapes or spaces are not the task's.
    """
    row = get_task(task)
    source = row.source(source)
    dataset_id = row.dataset(source) if dataset_id is None else dataset_id
    if not is_present(dataset_id):
        _obtain(row, source, dataset_id, build)
    metadata = read_metadata(dataset_id)
    with make_robot(task, source) as robot:
        _check_recorded(row, source, metadata, robot)
        dataset = _checked(read_transitions(metadata, robot.observation_space), clip_actions)
        dataset = dataclasses.replace(
            dataset, robot=RobotInterface(robot.observation_space, robot.action_space), check=False
        )
        dataset, notes = as_defined(row, dataset, metadata, robot)
    if dataset_id == row.datasets.get("builtin") and not is_current(row, metadata):
        cure = f"`flowmdp data build {task} --force` renews it"
        notes.append(f"it was built from another version of the behaviour policy; {cure}")
    for note in notes:
        print(f"note: dataset {dataset_id}: {note}", file=sys.stderr)
    return dataset


def load_minari(dataset_id: str, clip_actions: bool = False) -> TransitionDataset:
    """Load any dataset of Minari's local store by its own spaces, whatever its robot.

    Args:
        dataset_id: Its id, `me/pendulum-v0`.
        clip_actions: Whether actions outside the dataset's own action space are clipped; else they
            are an error.

    Returns:
        The transitions: observations flat, actions scaled from the dataset's action space to
        [-1, 1]; see `flowmdp.robot`.

    Raises:
        ConfigurationError: For spaces that a flow policy cannot use.
        DatasetError: When the dataset is absent, half-written, or holds NaN or infinite numbers.
    """
    return _checked(read_transitions(read_metadata(dataset_id)), clip_actions)


def _checked(dataset: TransitionDataset, clip_actions: bool) -> TransitionDataset:
    """The dataset, with its actions brought into [-1, 1] and all else as it was."""
    names = ("observations", "next_observations", "actions", "rewards")
    clip = None if clip_actions else "clip them with clip_actions=True"
    cure = "remove those episodes and write it again"
    check_values(f"dataset {dataset.id}", {n: getattr(dataset, n) for n in names}, cure, clip)
    for array in (dataset.actions, dataset.previous_actions):
        np.clip(array, -1, 1, out=array)
    return dataset


def as_defined(
    row: Task, dataset: TransitionDataset, metadata: dict[str, Any], robot: gym.Env[Any, Any]
) -> tuple[TransitionDataset, list[str]]:
    """The transitions under the task's definition, and a note on every way they deviated from it.

    A wrapper of the robot that has a method `relabel` puts right what was not recorded through it;
    one that has `outcomes` gives rewards and terminations to the states of another goal's data, in
    place. The environment may be reset. Steps beyond the horizon stay in.
    """
    spec, notes = recorded_spec(metadata), list[str]()
    recorded = spec.get("kwargs", {})
    for name, ours in row.options.items() if isinstance(recorded, dict) else ():
        if (theirs := recorded.get(name, ours)) != ours:
            differs = f"{name}={theirs!r}, the task runs with {name}={ours!r}"
            notes.append(f"it was recorded with {differs}")
    wrapper, wrappers = row.wrapper.partition(":")[2], spec.get("additional_wrappers") or ()
    through = [str(w.get("entry_point")).endswith(f":{wrapper}") for w in wrappers]
    if robot.has_wrapper_attr("relabel") and not any(through):
        dataset, note = robot.get_wrapper_attr("relabel")(dataset)
        notes += [note] if note else []
    own = any(through) and robot.spec is not None and spec.get("id") == robot.spec.id
    if robot.has_wrapper_attr("outcomes") and not own:
        dataset = _give_outcomes(dataset, metadata, robot)
    if changed := REWARD_WRAPPERS.intersection(recorded_wrappers(metadata, robot)):
        notes.append(f"its rewards went through {', '.join(sorted(changed))}, the task's do not")
    longest = int(np.diff(np.append(dataset.episode_starts, len(dataset))).max())
    if 0 < row.horizon < longest and not row.success:
        notes.append(
            f"its episodes have up to {longest} steps, the task {row.horizon}: all of them train, "
            f"but returns count the first {row.horizon} of each"
        )
    return dataset, notes


def _give_outcomes(
    dataset: TransitionDataset, metadata: dict[str, Any], robot: gym.Env[Any, Any]
) -> TransitionDataset:
    """The dataset with the task's rewards and ends, computed from recorded states in place."""
    recordings = dataset.starts.copy()
    outcomes = robot.get_wrapper_attr("outcomes")
    bounds = np.append(dataset.episode_starts, len(dataset))
    all_states = read_states(metadata, robot.get_wrapper_attr("state_widths"))
    for start, stop, states in zip(bounds, bounds[1:], all_states, strict=False):
        if {len(array) for array in states.values()} != {stop - start + 1}:
            raise broken(dataset.id, "its infos have not one state per observation")
        before = {name: array[:-1] for name, array in states.items()}
        dataset.rewards[start:stop], dataset.terminations[start:stop] = outcomes(before)
    ends = dataset.terminations.copy()
    ends[bounds[1:] - 1] = True
    dataset.truncations[:] = ends & ~dataset.terminations
    dataset.starts[1:] = ends[:-1]
    dataset.previous_actions[dataset.starts] = 0
    return dataclasses.replace(dataset, recordings=recordings, check=False)


def reached_goal(dataset: TransitionDataset) -> Bool:
    """Whether each episode, as it was recorded, reaches the goal; for tasks that report success.

    With one goal of OGBench's an episode of the data may reach it many times, and ends each time.

    Returns:
        Shape (recorded episodes,), bool.
    """
    recordings = dataset.starts if dataset.recordings is None else dataset.recordings
    return np.logical_or.reduceat(dataset.terminations, np.flatnonzero(recordings))


def _obtain(row: Task, source: str, dataset_id: str, build: bool) -> None:
    """Build an absent builtin dataset; for all others say how to get it."""
    if dataset_id != row.datasets.get("builtin") or source != "builtin" or not build:
        raise not_here(row, dataset_id)
    print(f"dataset {dataset_id} is not there yet: building it (once)", file=sys.stderr)
    build_dataset(row.name)


def not_here(row: Task, dataset_id: str) -> DatasetError:
    """The error for an absent dataset; of the task's own it says how to get it."""
    cures = {
        "builtin": f"build it with `flowmdp data build {row.name}`",
        "minari": f"download it with `flowmdp data download {row.name}`",
        "d4rl": f"import D4RL's file with `flowmdp data import FILE.hdf5 --task {row.name}`",
        "ogbench": f"download it with `flowmdp data download {row.name}`, or import OGBench's file "
        f"with `flowmdp data import {row.ogbench}-v0.npz --task {row.name}`",
    }
    source = next((name for name, own in row.datasets.items() if own == dataset_id), "")
    return absent(dataset_id, cures.get(source, ""))


def _check_recorded(
    row: Task, source: str, metadata: dict[str, Any], robot: gym.Env[Any, Any]
) -> None:
    """Refuse a dataset of another environment, or of other spaces than the robot's."""
    dataset, env_id = f"dataset {metadata['dataset_id']}", row.outer_env[source]
    recorded = recorded_spec(metadata).get("id")
    ids = (env_id, env_id.partition(":")[2], *row.same_robot)
    if recorded not in (None, *ids):
        fitting = [name for name, env in row.outer_env.items() if env == recorded]
        cure = f"use --source {fitting[0]}" if fitting else "choose a dataset of that environment"
        raise DatasetError(
            f"{dataset} was recorded on {recorded}, but task {row.name} with source {source} runs "
            f"{env_id}: {cure}"
        )
    through = recorded_wrappers(metadata, robot)
    if changed := CHANGING_WRAPPERS.intersection(through):
        raise DatasetError(
            f"{dataset} was recorded through {', '.join(sorted(changed))}, the robot is played "
            "without: record it again without, or register the robot with that wrapper and give "
            "that id"
        )
    theirs = recorded_robot(metadata, robot.observation_space)
    if {"RescaleAction", "UnitAction"} & set(through):  # they map as `RobotInterface` does
        theirs = RobotInterface(theirs.observation_space, robot.action_space)
    ours = RobotInterface(robot.observation_space, robot.action_space)
    if difference := ours.difference(theirs):
        raise DatasetError(
            f"{dataset} was recorded in {difference} as {env_id} has: choose a dataset of this "
            "task's environment, or wrap the robot as it was wrapped for the recording"
        )
