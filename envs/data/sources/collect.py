"""Roll a behaviour policy out: several environments in lock-step, one policy evaluation for all.

Episode i of a roll-out depends on the seed and on i alone: its start state and its noise come from
SeedSequence([seed, i]). Episodes are handed over in the order of i, never of finishing, which would
prefer short ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from flowmdp.envs.data.sources.behavior import BehaviorPolicy

NUM_ENVS = 4
"""Environments in lock-step. Matrix products this small stay on one thread in OpenBLAS (at most
262,144 multiplications); waking threads for 12,000 larger ones took 150 s instead of 20."""


@dataclass(frozen=True)
class Episode:
    """One recorded episode of n steps."""

    seed: int | None  # the outer environment's reset, from which the actions replay the episode
    observations: NDArray[Any]  # (n + 1, obs_dim), in the environment's own dtype
    actions: NDArray[np.float32]  # (n, action_dim), in [-1, 1]
    rewards: NDArray[np.float64]  # (n,), as the two below
    terminations: NDArray[np.bool_]
    truncations: NDArray[np.bool_]
    infos: dict[str, NDArray[Any]] = field(default_factory=dict)  # (n + 1, ...) each

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.rewards)

    def cut(self, steps: int) -> Episode:
        """The first `steps` steps, truncated there; the episode itself when it is no longer."""
        if steps >= len(self):
            return self
        arrays = self.actions[:steps], self.rewards[:steps], self.terminations[:steps]
        last = np.arange(steps) == steps - 1
        infos = {name: array[: steps + 1] for name, array in self.infos.items()}
        return Episode(self.seed, self.observations[: steps + 1], *arrays, last, infos)


class Recorder:
    """Episode `index` of an environment, with its own start state and its own noise.

    Attributes:
        episode: The whole episode once it has ended.
    """

    def __init__(self, env: gym.Env[Any, Any], seed: int, index: int, horizon: int) -> None:
        state = np.random.SeedSequence([seed, index]).generate_state(2)
        shape = horizon, *(env.action_space.shape or ())
        self.noise = iter(np.random.default_rng(int(state[1])).standard_normal(shape))
        self.env, self.seed, self.horizon = env, int(state[0]), horizon
        self.observations = [np.array(env.reset(seed=self.seed)[0])]
        self.actions: list[NDArray[np.float32]] = []
        self.rewards: list[float] = []
        self.episode: Episode | None = None

    def step(self, action: NDArray[np.float32]) -> None:
        """Take one step of the episode."""
        observation, reward, terminated, truncated, _ = self.env.step(action)
        self.observations.append(np.array(observation))
        self.actions.append(action)
        self.rewards.append(float(reward))
        n = len(self.rewards)
        if terminated or truncated or n == self.horizon:
            last, ended = np.arange(n) == n - 1, bool(terminated)
            arrays = np.array(self.observations), np.array(self.actions), np.array(self.rewards)
            self.episode = Episode(self.seed, *arrays, last & ended, last & (not ended))


def roll_out(
    policy: BehaviorPolicy, envs: Sequence[gym.Env[Any, Any]], seed: int, horizon: int
) -> Iterator[Episode]:
    """Yield whole episodes 0, 1, 2, ... of a policy without end; the caller closes the `envs`."""
    for first in itertools.count(0, len(envs)):
        recorders = [Recorder(env, seed, first + n, horizon) for n, env in enumerate(envs)]
        while not all(recorder.episode for recorder in recorders):
            observations = np.stack([recorder.observations[-1] for recorder in recorders])
            noise = np.stack([next(recorder.noise) for recorder in recorders])
            actions = policy.sample(observations, noise)
            for recorder, action in zip(recorders, actions, strict=True):
                if recorder.episode is None:
                    recorder.step(action)
        yield from (recorder.episode for recorder in recorders if recorder.episode)


def collect_steps(episodes: Iterator[Episode], steps: int) -> Iterator[Episode]:
    """Take episodes until exactly `steps` steps are there; the last one is cut and truncated."""
    while steps > 0:
        episode = next(episodes).cut(steps)
        steps -= len(episode)
        yield episode
