"""One-step problems with several modes, whose best policy is known.

The recorded actions are Gaussian blobs on a circle. The best mode is rare, the others earn less,
and an action between two modes earns about -1: a policy that averages over modes loses. Inside a
mode the reward is smooth and highest a little beside the mode's centre, so that a policy can gain
in two ways, by choosing a mode and by moving within it.

Problems with 1, 2, 4 and 8 modes, and one with two equally good modes among four, are contexts of
one bandit: an agent that has learned it once has learned them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmdp.transitions import TransitionDataset

TURNS = 2
"""Contexts per problem, which differ by a rotation."""
RADIUS, STD = 0.6, 0.07
"""Of the circle, and of the blobs."""
RARE = 0.05
"""Share of the recorded modes that each best one has, where there are others."""
STRAY = 0.05
"""Share of the data that is uniform in the box: the critic can know that it pays badly."""
SHIFT, WIDTH = 0.1, 0.15
"""How far the optimum is from its mode's centre, and how broad the reward's bump around it."""
REACH = 3 * STD
"""An action belongs to the mode whose centre is nearer than this; else it is off every mode."""
KEPT = 0.01
"""A mode is kept when it holds more than this share of the samples."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ModeProblem:
    """A bandit with `modes` modes per context, `best` of which are equally good.

    Arrays over contexts and modes have the shape (TURNS, modes); mode 0 is a best one, and with
    two of them the other lies opposite, so that their average is the circle's centre.
    """

    modes: int
    best: int = 1

    @property
    def name(self) -> str:
        """Such as "4 modes" or "4 modes, 2 best"."""
        plural = "s" if self.modes > 1 else ""
        return f"{self.modes} mode{plural}" + (f", {self.best} best" if self.best > 1 else "")

    @property
    def is_best(self) -> NDArray[np.bool_]:
        """Which modes are best, shape (modes,)."""
        spacing = self.modes // self.best
        order = np.arange(self.modes)
        best: NDArray[np.bool_] = (order % spacing == 0) & (order < spacing * self.best)
        return best

    @property
    def angles(self) -> Array:
        """Of the modes on the circle; every context turns it, and starts at another mode."""
        context, mode = np.arange(TURNS)[:, None], np.arange(self.modes)
        return 2 * np.pi * (mode + context + context / TURNS) / self.modes

    @property
    def centers(self) -> Array:
        """Where the data is, shape (TURNS, modes, 2)."""
        return RADIUS * np.stack([np.cos(self.angles), np.sin(self.angles)], -1)

    @property
    def optima(self) -> Array:
        """Where the reward of each mode is highest: SHIFT farther out than its centre."""
        optima: Array = self.centers * (1 + SHIFT / RADIUS)
        return optima

    @property
    def heights(self) -> Array:
        """Reward at each mode's optimum, shape (modes,): 1 at the best, 0 to 0.5 elsewhere."""
        heights = np.ones(self.modes)
        heights[~self.is_best] = np.linspace(0.0, 0.5, self.modes - self.best)
        return heights

    @property
    def probabilities(self) -> Array:
        """Shares of the modes among the data that is not stray, shape (modes,)."""
        if self.modes == self.best:
            return np.full(self.modes, 1 / self.modes)
        common = (1 - RARE * self.best) / (self.modes - self.best)
        return np.where(self.is_best, RARE, common)

    @property
    def behavior_reward(self) -> float:
        """Mean reward of the data, in closed form (neighbouring bumps neglected)."""
        variance = WIDTH**2 + STD**2
        inside = WIDTH**2 / variance * np.exp(-(SHIFT**2) / (2 * variance))
        stray = 2 * np.pi * WIDTH**2 / 4  # a bump's integral over the box's area
        modes = self.probabilities @ (1 + self.heights) * inside
        return float((1 - STRAY) * modes + STRAY * stray * (1 + self.heights).sum() - 1)

    def rewards(self, contexts: NDArray[Any], actions: NDArray[Any]) -> Array:
        """-1 + max over modes of (1 + height) exp(-|a - optimum|^2 / (2 WIDTH^2)), shape (n,).

        Args:
            contexts: Numbers of the contexts, shape (n,).
            actions: Shape (n, 2).
        """
        squared = np.square(actions[:, None] - self.optima[contexts]).sum(-1)
        bumps: Array = (1 + self.heights) * np.exp(-squared / (2 * WIDTH**2))
        best: Array = bumps.max(-1)
        return best - 1

    def modes_of(self, contexts: NDArray[Any], actions: NDArray[Any]) -> NDArray[np.int64]:
        """The mode of every action, -1 off all modes, shape (n,)."""
        distance = np.linalg.norm(actions[:, None] - self.centers[contexts], axis=-1)
        return np.where(distance.min(-1) < REACH, distance.argmin(-1), -1)

    def sample(self, contexts: NDArray[Any], rng: np.random.Generator) -> Array:
        """Actions of the behaviour in the given contexts, shape (n, 2)."""
        n = len(contexts)
        modes = rng.choice(self.modes, size=n, p=self.probabilities)
        inside = self.centers[contexts, modes] + STD * rng.standard_normal((n, 2))
        stray = rng.random((n, 1)) < STRAY
        return np.where(stray, rng.uniform(-1, 1, (n, 2)), inside.clip(-1, 1))

    def measure(self, contexts: NDArray[Any], actions: NDArray[Any]) -> dict[str, float]:
        """What a policy's samples are worth; contexts (n,), actions (n, 2).

        Returns:
            reward: the mean; best: share in a best mode; off: share off every mode; kept: modes
            with more than KEPT of a context's samples; inside: mean reward of the samples in a best
            mode; smaller: the rarest best mode's part of the samples in best modes, mean over
            contexts. The last two are 0 where a context has no sample in a best mode.
        """
        rewards, found = self.rewards(contexts, actions), self.modes_of(contexts, actions)
        shares = np.stack(
            [
                np.bincount(found[contexts == c] + 1, minlength=self.modes + 1)
                / (contexts == c).sum()
                for c in range(TURNS)
            ]
        )  # (TURNS, 1 + modes), off first
        in_best = (found >= 0) & self.is_best[found]
        best = shares[:, 1:][:, self.is_best]
        smaller = best.min(1) / np.maximum(best.sum(1), 1e-9)
        return {
            "reward": float(rewards.mean()),
            "best": float(in_best.mean()),
            "off": float((found < 0).mean()),
            "kept": float((shares[:, 1:] > KEPT).sum(1).mean()),
            "inside": float(rewards[in_best].mean()) if in_best.any() else 0.0,
            "smaller": float(smaller.mean()),
        }


PROBLEMS = (
    ModeProblem(1),
    ModeProblem(2),
    ModeProblem(4),
    ModeProblem(8),
    ModeProblem(4, best=2),
)


def observe(problem: ModeProblem, contexts: NDArray[Any]) -> NDArray[np.float32]:
    """Indicators of a problem's contexts, shape (n, len(PROBLEMS) * TURNS)."""
    numbers = PROBLEMS.index(problem) * TURNS + contexts
    indicators: NDArray[np.float32] = np.eye(len(PROBLEMS) * TURNS, dtype=np.float32)[numbers]
    return indicators


def make_dataset(n: int, seed: int) -> TransitionDataset:
    """Episodes of one step, `n` in each problem, turn about between its contexts."""
    rng = np.random.default_rng(seed)
    contexts = np.arange(n) % TURNS
    actions = [problem.sample(contexts, rng) for problem in PROBLEMS]
    rewards = [p.rewards(contexts, a) for p, a in zip(PROBLEMS, actions, strict=True)]
    observations = np.concatenate([observe(problem, contexts) for problem in PROBLEMS])
    total = len(observations)
    return TransitionDataset(
        id="modes",
        observations=observations,
        actions=np.concatenate(actions).astype(np.float32),
        rewards=np.concatenate(rewards).astype(np.float32),
        next_observations=observations,
        terminations=np.ones(total, np.bool_),
        truncations=np.zeros(total, np.bool_),
        previous_actions=np.zeros((total, 2), np.float32),
        starts=np.ones(total, np.bool_),
    )
