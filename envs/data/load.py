"""One loader for every dataset: `load_dataset(task)` gives the transitions an agent trains on."""

from __future__ import annotations

import difflib
import json
import sys
from typing import Any

import gymnasium as gym
import numpy as np

from flowmdp.envs.data.describe import dataset_info
from flowmdp.envs.data.reading import read_transitions
from flowmdp.envs.data.relabel import as_defined
from flowmdp.envs.data.sources.build import build_dataset, is_current
from flowmdp.envs.data.store import is_present, list_datasets, read_metadata, store_root
from flowmdp.envs.robots.outer import make_outer
from flowmdp.envs.tasks import Task, get_task
from flowmdp.errors import DatasetError
from flowmdp.transitions import TransitionDataset

__all__ = ["build_dataset", "dataset_info", "list_datasets", "load_dataset"]

ACTION_TOLERANCE = 1e-5
"""Actions may leave [-1, 1] by this much, through rounding; they are then put back."""


def load_dataset(
    task: str,
    source: str | None = None,
    dataset_id: str | None = None,
    build: bool = True,
    clip_actions: bool = False,
) -> TransitionDataset:
    """Load a dataset of Minari's local store and check it against the task's outer environment.

    Where it was recorded under another definition of rewards, ends or goals than the task's, a note
    on stderr says so, and what was put right.

    Args:
        task: Name of the task, `hopper-medium`.
        source: "builtin", "minari" or "d4rl"; None takes the task's default.
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
    if dataset_id is None:
        dataset_id = row.dataset(source)
    if not is_present(dataset_id):
        _obtain(row, source, dataset_id, build)
    metadata = read_metadata(dataset_id)
    if dataset_id == row.datasets.get("builtin") and not is_current(row, metadata):
        print(
            f"note: dataset {dataset_id} was built from another version of the behaviour policy; "
            f"`flowmdp data build {task} --force` renews it",
            file=sys.stderr,
        )
    outer = make_outer(task, source)
    try:
        obs_dim, action_dim = _check_spaces(row, source, metadata, outer)
        dataset = read_transitions(metadata, obs_dim, action_dim)
        _check_values(dataset, clip_actions)
        dataset, notes = as_defined(row, dataset, metadata, outer)
    finally:
        outer.close()
    for note in notes:
        print(f"note: dataset {dataset_id}: {note}", file=sys.stderr)
    return dataset


def _obtain(row: Task, source: str, dataset_id: str, build: bool) -> None:
    """Build an absent builtin dataset; for all others say how to get it."""
    if dataset_id != row.datasets.get(source):
        near = difflib.get_close_matches(dataset_id, list_datasets(), n=3, cutoff=0.5)
        cure = f"did you mean {' or '.join(near)}?" if near else "`flowmdp data list` shows it"
        raise DatasetError(f"dataset {dataset_id} is not in the local store {store_root()}: {cure}")
    if source == "builtin" and build:
        print(f"dataset {dataset_id} is not there yet: building it (once)", file=sys.stderr)
        build_dataset(row.name)
        return
    cure = {
        "builtin": f"build it with `flowmdp data build {row.name}`",
        "minari": f"download it with `flowmdp data download {row.name}`",
        "d4rl": f"import D4RL's file with `flowmdp data import FILE.hdf5 --task {row.name}`",
    }[source]
    raise DatasetError(f"dataset {dataset_id} is not in the local store {store_root()}: {cure}")


def _check_spaces(
    row: Task, source: str, metadata: dict[str, Any], outer: gym.Env[Any, Any]
) -> tuple[int, int]:
    """Compare the dataset's environment and spaces with the outer env's; (obs_dim, action_dim)."""
    dataset_id, env_id = metadata["dataset_id"], row.outer_env[source]
    recorded = _recorded_on(metadata)
    if recorded is not None and recorded not in (env_id, *row.same_robot):
        fitting = [name for name, env in row.outer_env.items() if env == recorded]
        cure = f"use --source {fitting[0]}" if fitting else "choose a dataset of that environment"
        raise DatasetError(
            f"dataset {dataset_id} was recorded on {recorded}, but task {row.name} with source "
            f"{source} runs {env_id}: {cure}"
        )
    from minari.serialization import deserialize_space

    try:
        spaces = [
            deserialize_space(metadata[f"{name}_space"]) for name in ("observation", "action")
        ]
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise DatasetError(
            f"dataset {dataset_id} has no readable spaces ({type(error).__name__}: {error}): "
            "write it again with its observation and action space"
        ) from error
    for name, theirs, ours in zip(
        ("observation", "action"),
        spaces,
        (outer.observation_space, outer.action_space),
        strict=True,
    ):
        if not isinstance(theirs, gym.spaces.Box | gym.spaces.Dict) or (
            gym.spaces.flatdim(theirs) != gym.spaces.flatdim(ours)
        ):
            raise DatasetError(
                f"dataset {dataset_id} has the {name} space {theirs}, but {env_id} has {ours}: "
                "choose a dataset of this task's environment"
            )
    low, high = getattr(spaces[1], "low", None), getattr(spaces[1], "high", None)
    if low is None or high is None or np.any(low != -1) or np.any(high != 1):
        raise DatasetError(
            f"dataset {dataset_id} has the action space {spaces[1]}, but actions must lie in "
            "[-1, 1]: rescale them and write the dataset again"
        )
    return gym.spaces.flatdim(outer.observation_space), gym.spaces.flatdim(outer.action_space)


def _recorded_on(metadata: dict[str, Any]) -> str | None:
    """Id of the environment the dataset names as its own, or None when it names none."""
    try:
        env_id = json.loads(metadata["env_spec"])["id"]
    except (KeyError, TypeError, json.JSONDecodeError):
        return None
    return str(env_id)


def _check_values(dataset: TransitionDataset, clip_actions: bool) -> None:
    """Refuse NaN and infinite numbers and actions outside the box (or clip them when asked)."""
    for name in ("observations", "next_observations", "actions", "rewards"):
        array = getattr(dataset, name)
        if not np.isfinite(array.sum(dtype=np.float64)):  # one pass, no temporary of the array
            bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
            if len(bad):
                raise DatasetError(
                    f"dataset {dataset.id} has NaN or infinite {name} in {len(bad)} transitions, "
                    f"first in transition {bad[0]}: remove those episodes and write it again"
                )
    low, high = float(dataset.actions.min()), float(dataset.actions.max())
    if low < -1 - ACTION_TOLERANCE or high > 1 + ACTION_TOLERANCE:
        outside = int((np.abs(dataset.actions) > 1 + ACTION_TOLERANCE).any(axis=1).sum())
        if not clip_actions:
            raise DatasetError(
                f"dataset {dataset.id} has actions outside [-1, 1] in {outside} of {len(dataset)} "
                f"transitions (range {low:.4g} to {high:.4g}): pass clip_actions=True to clip them"
            )
    for array in (dataset.actions, dataset.previous_actions):
        np.clip(array, -1, 1, out=array)
