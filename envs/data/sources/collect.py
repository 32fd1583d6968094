"""Roll a behaviour policy out: several environments in lock-step, one policy evaluation for all.

Episode i of a roll-out depends on the seed and on i alone, whichever environment happens to run it:
its start state and its noise come from SeedSequence([seed, i]). Episodes are handed over in the
order of i, never in the order of finishing, which would prefer short ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from flowmdp.envs.data.sources.behavior import BehaviorPolicy

NUM_ENVS = 16
"""Environments in lock-step; ours: more save no time, since the simulator takes most of it."""


@dataclass(frozen=True)
class Episode:
    """One recorded episode of n steps.

    Attributes:
        seed: What the outer environment was reset with, from which the actions replay the episode;
            None where nobody recorded it.
        observations: Shape (n + 1, obs_dim), in the environment's own dtype.
        actions: Shape (n, action_dim), float32, in [-1, 1].
        rewards: Shape (n,), float64.
        terminations: Shape (n,), bool.
        truncations: Shape (n,), bool.
    """

    seed: int | None
    observations: NDArray[Any]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float64]
    terminations: NDArray[np.bool_]
    truncations: NDArray[np.bool_]

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.rewards)

    def cut(self, steps: int) -> Episode:
        """The first `steps` steps, truncated there; the episode itself when it is no longer."""
        if steps >= len(self):
            return self
        kept, last = slice(steps), np.arange(steps) == steps - 1
        arrays = self.actions[kept], self.rewards[kept], self.terminations[kept]
        return Episode(self.seed, self.observations[: steps + 1], *arrays, last)


class Recorder:
    """One environment and the episode that runs in it."""

    def __init__(self, env: gym.Env[Any, Any], seed: int, horizon: int) -> None:
        self.env, self.seed, self.horizon = env, seed, horizon
        space = env.observation_space
        self.observations = np.empty((horizon + 1, *(space.shape or ())), space.dtype)
        self.actions = np.empty((horizon, *(env.action_space.shape or ())), np.float32)
        self.rewards = np.empty(horizon, np.float64)

    def begin(self, index: int) -> None:
        """Start episode `index` with its own start state and its own noise."""
        state = np.random.SeedSequence([self.seed, index]).generate_state(2)
        self.index, self.length, self.env_seed = index, 0, int(state[0])
        self.noise = np.random.default_rng(int(state[1])).standard_normal(self.actions.shape)
        self.observations[0], _ = self.env.reset(seed=self.env_seed)

    def step(self, action: NDArray[np.float32]) -> Episode | None:
        """Take one step; the whole episode once it has ended."""
        n = self.length
        self.actions[n] = action
        self.observations[n + 1], reward, terminated, truncated, _ = self.env.step(action)
        self.rewards[n] = reward
        self.length = n = n + 1
        if not (terminated or truncated or n == self.horizon):
            return None
        last, ended = np.arange(n) == n - 1, bool(terminated)
        arrays = self.observations[: n + 1].copy(), self.actions[:n].copy(), self.rewards[:n].copy()
        return Episode(self.env_seed, *arrays, last & ended, last & (not ended))


def roll_out(
    policy: BehaviorPolicy, envs: Sequence[gym.Env[Any, Any]], seed: int, horizon: int
) -> Iterator[Episode]:
    """Yield whole episodes 0, 1, 2, ... of a policy without end.

    Args:
        policy: The behaviour.
        envs: Environments to run in lock-step, all of the same task; the caller closes them.
        seed: Non-negative; the same seed gives the same episodes on the same kind of processor.
        horizon: Longest episode in steps.
    """
    recorders = [Recorder(env, seed, horizon) for env in envs]
    for index, recorder in enumerate(recorders):
        recorder.begin(index)
    started, handed_over = len(recorders), 0
    finished: dict[int, Episode] = {}
    while True:
        observations = np.stack([r.observations[r.length] for r in recorders])
        actions = policy.sample(observations, np.stack([r.noise[r.length] for r in recorders]))
        for recorder, action in zip(recorders, actions, strict=True):
            episode = recorder.step(action)
            if episode is not None:
                finished[recorder.index] = episode
                recorder.begin(started)
                started += 1
        while handed_over in finished:
            yield finished.pop(handed_over)
            handed_over += 1


def collect_steps(episodes: Iterator[Episode], steps: int) -> Iterator[Episode]:
    """Take episodes until exactly `steps` steps are there; the last one is cut and truncated."""
    while steps > 0:
        episode = next(episodes).cut(steps)
        steps -= len(episode)
        yield episode
