"""The arrays that cross from a dataset to an agent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class TransitionDataset:
    """Transitions of whole episodes, stored one after another in time order.

    Attributes:
        id: Minari id (or another name) of where the transitions come from.
        observations: s_n, shape (n, obs_dim), float32.
        actions: a_n, shape (n, action_dim), float32, in [-1, 1].
        rewards: r_n, shape (n,), float32, unscaled.
        next_observations: s_{n+1}, shape (n, obs_dim), float32; at an episode's last step the
            observation that followed it, never the next episode's first.
        terminations: shape (n,), bool; True where the task ended: nothing is to be bootstrapped.
        truncations: shape (n,), bool; True where only the time limit or the recording ended.
        previous_actions: a_{n-1} of the same episode, shape (n, action_dim), float32; zeros at
            starts.
        starts: shape (n,), bool; True at the first transition of an episode.
    """

    id: str
    observations: Float
    actions: Float
    rewards: Float
    next_observations: Float
    terminations: Bool
    truncations: Bool
    previous_actions: Float
    starts: Bool

    def __len__(self) -> int:
        """Number of transitions."""
        return len(self.rewards)

    @property
    def masks(self) -> Float:
        """Bootstrap factors 1 - terminations, shape (n,), float32."""
        return 1.0 - self.terminations.astype(np.float32)

    @property
    def episode_starts(self) -> NDArray[np.int64]:
        """Index of every episode's first transition, shape (episodes,)."""
        return np.flatnonzero(self.starts)

    @property
    def returns(self) -> NDArray[np.float64]:
        """Undiscounted return of every episode, shape (episodes,)."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.episode_starts)

    def returns_within(self, horizon: int) -> NDArray[np.float64]:
        """Undiscounted return of the first `horizon` steps of every episode, shape (episodes,)."""
        starts = self.episode_starts
        step = np.arange(len(self)) - np.repeat(starts, np.diff(np.append(starts, len(self))))
        return np.add.reduceat(np.where(step < horizon, self.rewards, 0.0), starts)
