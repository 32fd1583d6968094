"""Action chunks in recorded data: which transitions begin one, and how far it reaches.

A chunk of h actions is one decision (Li et al. 2025, "Reinforcement Learning with Action Chunking",
arXiv:2507.07969). It may begin at every transition, so chunks overlap:

- where h actions of the episode are left;
- where fewer are left and the episode terminates: the chunk ends there, and what stands for its
  later actions are those of the next transitions in the data.

Where fewer are left and the episode is truncated, nobody knows what h actions would have led to: no
chunk begins there.

Cloning asks for less. Where a task was laid over longer recordings (`TransitionDataset.recordings`)
the robot went on after it had terminated: those actions were taken, and are cloned, in the same way
for every task.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmdp.errors import ConfigurationError, DatasetError
from flowmdp.transitions import TransitionDataset

Flags = NDArray[np.bool_]


def check_fits(chunk: int, longest: int | None) -> None:
    """Raise ConfigurationError for a chunk that no episode of the robot can hold.

    Args:
        chunk: Actions per chunk.
        longest: Steps of the longest episode; 0 or None where there is no limit.
    """
    if longest and chunk > longest:
        raise ConfigurationError(
            f"chunk={chunk} is longer than an episode of the robot, {longest} steps: take a "
            "shorter chunk"
        )


class Chunks:
    """The chunks of a dataset, by index: nothing is copied.

    Args:
        dataset: The transitions.
        chunk: Actions per chunk, h, at least 1.

    Attributes:
        lengths: Actions from each transition on within its episode, 1 .. h, shape (n,), int32.
        starts: The transitions at which a chunk may begin, shape (m,), int64.
        recorded: `lengths` and `starts` within recordings, for cloning.
        short: Recordings in which no chunk may begin, and all recordings.

    Raises:
        DatasetError: If no chunk may begin anywhere.
    """

    def __init__(self, dataset: TransitionDataset, chunk: int) -> None:
        self.lengths, self.starts = self.recorded = cut(dataset.starts, dataset.terminations, chunk)
        starts, ended = recordings(dataset)
        if dataset.recordings is not None:
            self.recorded = cut(starts, ended, chunk)
        sizes = np.diff(np.append(np.flatnonzero(starts), len(starts)))
        short = (sizes < chunk) & ~ended[np.cumsum(sizes) - 1]
        self.short = int(short.sum()), len(sizes)
        if short.all():
            raise DatasetError(
                f"dataset {dataset.id}: {len(sizes)} of {len(sizes)} episodes are shorter than "
                f"chunk={chunk}, the longest has {sizes.max()} steps: take a shorter chunk"
            )
        self._actions, self._steps = dataset.actions, np.arange(chunk)

    def placed(self, place: Callable[[NDArray[Any]], Any]) -> Chunks:
        """The same chunks in arrays of another kind, of which `place` makes each."""
        other = copy.copy(self)
        other.recorded = place(self.recorded[0]), place(self.recorded[1])
        other.starts = place(self.starts)
        other._actions, other._steps = place(self._actions), place(self._steps)
        return other

    def actions(self, rows: Any) -> Any:
        """The actions of the chunks that begin at some rows, the first action first.

        Args:
            rows: Shape (m,), in the same kind of array as the chunks.

        Returns:
            Shape (m, h * action_dim); NaN for actions that were never taken.
        """
        index = (rows[:, None] + self._steps).clip(max=len(self._actions) - 1)
        chosen = self._actions[index]
        chosen[self._steps >= self.recorded[0][rows][:, None]] = np.nan
        return chosen.reshape(len(rows), len(self._steps) * chosen.shape[-1])

    def actions_at(self, row: int) -> NDArray[np.float32]:
        """Those of one row, shape (h * action_dim,); faster."""
        h = len(self._steps)
        whole = self.recorded[0][row] == h
        part = self._actions[row : row + h] if whole else self.actions(np.array([row]))
        flat: NDArray[np.float32] = part.ravel()
        return flat


def recordings(dataset: TransitionDataset) -> tuple[Flags, Flags]:
    """Where recordings begin, and where one terminates; the chunks that are cloned follow from it.

    Returns:
        Both of shape (n,), bool.
    """
    if dataset.recordings is None:
        return dataset.starts, dataset.terminations
    return dataset.recordings, np.zeros_like(dataset.terminations)


def cut(
    starts: Flags, terminations: Flags, chunk: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """How far chunks reach, (n,), and where they may begin, (m,).

    Args:
        starts: Where an episode begins, shape (n,).
        terminations: Whether a transition terminates, shape (n,).
        chunk: Actions per chunk.
    """
    bounds = np.append(np.flatnonzero(starts), len(starts))
    lengths, begins = np.full(len(starts), chunk, np.int32), np.ones(len(starts), np.bool_)
    for left in range(1, chunk):
        rows = bounds[1:] - left
        inside = rows >= bounds[:-1]
        lengths[rows[inside]] = left
        begins[rows[inside]] = terminations[bounds[1:][inside] - 1]
    return lengths, np.flatnonzero(begins)
