"""What a researcher asks first about a dataset: returns, lengths, actions, ends, coverage."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flowmdp.envs.data.reading import flat_dimensions, read_transitions
from flowmdp.envs.data.relabel import as_defined
from flowmdp.envs.data.store import read_metadata
from flowmdp.envs.robots.outer import make_outer
from flowmdp.envs.scores import normalized_score
from flowmdp.envs.tasks import TASKS, Task, get_task
from flowmdp.errors import UnknownTaskError
from flowmdp.transitions import TransitionDataset

CLIPPED = 1 - 1e-6
"""An action component at least this large in magnitude counts as clipped."""

CELLS_PER_DIMENSION = 5
"""Grid of the state-action coverage; ours, the paper counts pairs of discrete environments."""


def dataset_info(
    name: str, source: str | None = None, dataset_id: str | None = None
) -> dict[str, Any]:
    """Describe a dataset of the local store; arguments and errors are those of `open_dataset`.

    Returns:
        JSON-able: numbers, strings and dictionaries of them; see `describe`.
    """
    dataset, row, metadata, notes = open_dataset(name, source, dataset_id)
    return {
        "dataset": dataset.id,
        "task": row.name if row else "none of ours",
        "recorded_by": metadata.get("algorithm_name", "unknown"),
        "episodes": len(dataset.returns),
        "steps": len(dataset),
        **({"notes": notes} if notes else {}),
        **describe(dataset, row),
    }


def open_dataset(
    name: str, source: str | None = None, dataset_id: str | None = None
) -> tuple[TransitionDataset, Task | None, dict[str, Any], list[str]]:
    """Read a dataset of the local store; nothing is built, downloaded or refused.

    Where the task is known the transitions are under its definition, as `load_dataset` gives them.

    Args:
        name: A task, `hopper-medium`, or any Minari id of the local store.
        source: "builtin", "minari" or "d4rl"; None takes the task's default.
        dataset_id: Another Minari id; `name` must then be the task it is scored as.

    Returns:
        The transitions, the task (None where the id belongs to none), the metadata, and what was
        recorded otherwise than the task is defined.

    Raises:
        UnknownTaskError: For an unknown task or source.
        DatasetError: When the dataset is absent, half-written or unreadable.
    """
    row: Task | None
    if "/" in name:
        dataset_id, row = name, _task_of(name)
    else:
        row = get_task(name)
        dataset_id = dataset_id or row.dataset(source)
    metadata = read_metadata(dataset_id)
    dataset = read_transitions(metadata, *flat_dimensions(metadata))
    if row is None:
        return dataset, None, metadata, []
    try:
        outer = make_outer(row.name)
    except UnknownTaskError as error:  # the robot is not installed; the data can be looked at
        return dataset, row, metadata, [f"as recorded: {error}"]
    with contextlib.closing(outer):
        if dataset.observations.shape[1:] != outer.observation_space.shape:
            return dataset, row, metadata, [f"its observations are not those of {row.name}"]
        dataset, notes = as_defined(row, dataset, metadata, outer)
    return dataset, row, metadata, notes


def describe(dataset: TransitionDataset, row: Task | None = None) -> dict[str, Any]:
    """Figures of a dataset; `row` adds its scores.

    `trajectory_quality` is TQ of Schweighofer et al. 2022 (arXiv:2111.04714), (mean return - min) /
    (max - min), with the task's reference scores as min and max. `state_action_coverage` follows
    their SACo, the number of distinct state-action pairs over that of a reference; ours in two
    points: pairs are distinct when they fall into different cells of a grid over the data's range,
    and the reference is the number of transitions (1: no two transitions share a cell).
    """
    starts = dataset.episode_starts
    lengths = np.diff(np.append(starts, len(dataset)))
    actions = np.abs(dataset.actions)
    returns = dataset.returns_within(row.horizon) if row else dataset.returns
    info: dict[str, Any] = {"return": _distribution(returns)}
    scores = normalized_score(row.name, returns) if row else None
    if row and scores is not None:
        info["score"] = _distribution(scores)
        info["score_reference"] = row.reference_origin
        info["trajectory_quality"] = float(scores.mean() / 100)
    return info | {
        "length": _distribution(lengths),
        "episodes_terminated": float(dataset.terminations.sum() / len(starts)),
        "episodes_truncated": float(dataset.truncations.sum() / len(starts)),
        "reward": _distribution(dataset.rewards),
        "action_low": [round(float(v), 4) for v in dataset.actions.min(0)],
        "action_high": [round(float(v), 4) for v in dataset.actions.max(0)],
        "actions_clipped": float((actions >= CLIPPED).any(1).mean()),
        "actions_outside": float((actions > 1).any(1).mean()),
        "state_action_coverage": _coverage(dataset),
    }


def _distribution(values: ArrayLike) -> dict[str, float]:
    array = np.asarray(values, np.float64)
    low, median, high = np.quantile(array, [0.1, 0.5, 0.9])
    return {
        "mean": float(array.mean()),
        "std": float(array.std()),
        "min": float(array.min()),
        "10%": float(low),
        "median": float(median),
        "90%": float(high),
        "max": float(array.max()),
    }


def _coverage(dataset: TransitionDataset) -> float:
    """Distinct grid cells per transition; a cell is one number, hashed from its coordinates."""
    cells = np.zeros(len(dataset), np.uint64)
    for column in (*dataset.observations.T, *dataset.actions.T):
        low, high = float(column.min()), float(column.max())
        scale = CELLS_PER_DIMENSION / (high - low) if high > low else 0.0
        coordinate = np.minimum((column - low) * scale, CELLS_PER_DIMENSION - 1).astype(np.uint64)
        cells = cells * np.uint64(6364136223846793005) + coordinate  # wraps: a 64-bit hash
    return len(np.unique(cells)) / len(dataset)


def _task_of(dataset_id: str) -> Task | None:
    """The task whose dataset this is, for its references."""
    return next((task for task in TASKS.values() if dataset_id in task.datasets.values()), None)
