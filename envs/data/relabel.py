"""Whether a dataset was recorded under the task's definition, and what is done where it was not.

Nothing is changed in silence: every deviation becomes a note of one line for the user.
"""

from __future__ import annotations

import importlib
import json
from typing import Any

import gymnasium as gym
import numpy as np

from flowmdp.envs.tasks import Task
from flowmdp.transitions import TransitionDataset


def as_defined(
    row: Task, dataset: TransitionDataset, metadata: dict[str, Any], outer: gym.Env[Any, Any]
) -> tuple[TransitionDataset, list[str]]:
    """The transitions under the task's definition, and the notes on what they were recorded under.

    Args:
        row: The task.
        dataset: Its transitions as recorded.
        metadata: The dataset's metadata.
        outer: The task's outer environment; may be reset.

    Returns:
        The transitions and one note per deviation; steps beyond the horizon stay in.
    """
    notes = [
        f"it was recorded with {name}={recorded!r}, the task runs with {name}={row.options[name]!r}"
        for name, recorded in _recorded_options(metadata).items()
        if name in row.options and recorded != row.options[name]
    ]
    if row.relabel and row.wrapper not in _recorded_wrappers(metadata):
        module, _, name = row.relabel.partition(":")
        dataset, note = getattr(importlib.import_module(module), name)(dataset, outer)
        notes += [note] if note else []
    longest = int(np.diff(np.append(dataset.episode_starts, len(dataset))).max())
    if longest > row.horizon:
        notes.append(
            f"its episodes have up to {longest} steps, the task {row.horizon}: all of them train, "
            f"but returns count the first {row.horizon} of each"
        )
    return dataset, notes


def _recorded_options(metadata: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the environment that the dataset names as its own."""
    options = _recorded_spec(metadata).get("kwargs")
    return options if isinstance(options, dict) else {}


def _recorded_wrappers(metadata: dict[str, Any]) -> list[str]:
    """Entry points of the wrappers it was recorded through: ours had already put things right."""
    wrappers = _recorded_spec(metadata).get("additional_wrappers")
    return [str(wrapper.get("entry_point")) for wrapper in wrappers or ()]


def _recorded_spec(metadata: dict[str, Any]) -> dict[str, Any]:
    """The dataset's environment as Gymnasium described it; empty where there is no description."""
    try:
        spec = json.loads(metadata["env_spec"])
    except (KeyError, TypeError, json.JSONDecodeError):
        return {}
    return spec if isinstance(spec, dict) else {}
