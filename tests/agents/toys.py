"""One-step problems whose best flow policy is known, for the agents' tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.env import FlowMDPEnv
from flowmdp.runs import cache
from flowmdp.transitions import TransitionDataset

STEPS = 5


def bandit(actions: NDArray[Any], rewards: NDArray[Any], name: str = "bandit") -> TransitionDataset:
    """Episodes of one step in one (noisy, meaningless) state; actions of shape (n, action_dim)."""
    n = len(actions)
    observations = np.random.default_rng(7).standard_normal((n, 1)).astype(np.float32)
    return TransitionDataset(
        id=name,
        observations=observations,
        actions=actions.astype(np.float32),
        rewards=rewards.astype(np.float32),
        next_observations=observations,
        terminations=np.ones(n, np.bool_),
        truncations=np.zeros(n, np.bool_),
        previous_actions=np.zeros_like(actions, np.float32),
        starts=np.ones(n, np.bool_),
    )


def two_modes(n: int = 4000) -> TransitionDataset:
    """Nine in ten actions near -0.5 earn 0; the rare tenth near 0.5 earns 1."""
    rng = np.random.default_rng(0)
    rare = rng.random(n) < 0.1
    actions = np.where(rare, 0.5, -0.5)[:, None] + 0.05 * rng.standard_normal((n, 1))
    return bandit(actions, np.exp(-10 * (actions[:, 0] - 0.5) ** 2))


def detour(n: int = 2000) -> TransitionDataset:
    """Episodes of one or two steps: a0 near -0.5 ends with 0.4, near 0.5 goes on to `two_modes`.

    Under the data's behaviour going on is worth about 0.1, under the best of its actions 1.
    """
    rng = np.random.default_rng(0)
    on = rng.random(n) < 0.5
    rare = rng.random(n) < 0.1
    first = np.where(on, 0.5, -0.5) + 0.05 * rng.standard_normal(n)
    second = np.where(rare, 0.5, -0.5) + 0.05 * rng.standard_normal(n)
    kept = np.stack([np.ones_like(on), on], 1).ravel()  # episodes that end have no second step
    starts = np.tile([True, False], n)[kept]

    def steps(at_first: NDArray[Any], at_second: NDArray[Any]) -> NDArray[Any]:
        return np.stack([at_first, at_second], 1).ravel()[kept]

    actions = steps(first, second)[:, None].astype(np.float32)
    return TransitionDataset(
        id="detour",
        observations=(~starts)[:, None].astype(np.float32),
        actions=actions,
        rewards=steps(np.where(on, 0, 0.4), rare).astype(np.float32),
        next_observations=np.ones_like(actions),
        terminations=steps(~on, np.ones_like(on)),
        truncations=np.zeros(len(actions), np.bool_),
        previous_actions=np.where(starts[:, None], 0, np.roll(actions, 1, axis=0)),
        starts=starts,
    )


def flow_env(dataset: TransitionDataset, **settings: Any) -> FlowMDPEnv:
    """The flow MDP over the dataset's states."""
    settings = {"flow_steps": STEPS} | settings
    return FlowMDPEnv(states="dataset", reward="data", dataset=dataset, **settings)


class GaussianField(nn.Module):
    """The exact velocity E[x_1 - x_0 | x_t] of the straight path to N(mean, std^2)."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def coefficients(self, t: Any) -> tuple[Any, Any]:
        """Slope and offset of the velocity as a function of x_t."""
        variance = (1 - t) ** 2 + (t * self.std) ** 2
        slope = (t * self.std**2 - (1 - t)) / variance
        return slope, self.mean * (1 - slope * t)

    def forward(self, context: Tensor, x_t: Tensor, t: Tensor | float) -> Tensor:
        slope, offset = self.coefficients(t)
        velocity: Tensor = slope * x_t + offset
        return velocity


class QuadraticCritic(nn.Module):
    """Q(s, a) = A(s, a) = -curvature (a - best)^2; V is 0, and the advantage unit 1."""

    scale = 1.0

    def __init__(self, best: float, curvature: float) -> None:
        super().__init__()
        self.best, self.curvature = best, curvature

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Shape (batch,)."""
        return -self.curvature * (actions - self.best).square().sum(-1)

    advantages = values


def riccati_gains(
    behavior: GaussianField, critic: QuadraticCritic, rho: float
) -> list[tuple[float, float]]:
    """The optimal velocity u_k(x) = slope x + offset of DF-div with the squared norm.

    Backward from V_T(x) = -p x^2 + q x: maximise -rho / T (u - u_v)^2 + V_{k+1}(x + u / T) over u.
    """
    p, q = critic.curvature, 2 * critic.curvature * critic.best
    gains = []
    for k in range(STEPS - 1, -1, -1):
        a, b = behavior.coefficients(k / STEPS)
        # d/du: -2 rho (u - a x - b) - 2 p (x + u / T) + q = 0, after multiplying by T
        slope = (rho * a - p) / (rho + p / STEPS)
        offset = (rho * b + q / 2) / (rho + p / STEPS)
        gains.append((slope, offset))
        # V_k(x) = -rho / T ((slope - a) x + offset - b)^2 - p y^2 + q y with y = m x + c
        m, c = 1 + slope / STEPS, offset / STEPS
        da, db = slope - a, offset - b
        p, q = rho / STEPS * da**2 + p * m**2, -2 * rho / STEPS * da * db - 2 * p * m * c + q * m
    return gains[::-1]


def fixed_point_gains(
    behavior: GaussianField, critic: QuadraticCritic, rho: float
) -> list[tuple[float, float]]:
    """The optimal velocity of DF-dir's endpoint objective: rho (u - u_v)^2 - A(x + (1 - t) u)."""
    gains = []
    for k in range(STEPS):
        a, b = behavior.coefficients(k / STEPS)
        rest, c = 1 - k / STEPS, critic.curvature
        # rho (u - a x - b) + c rest (x + rest u - best) = 0
        total = rho + c * rest**2
        gains.append(((rho * a - c * rest) / total, (rho * b + c * rest * critic.best) / total))
    return gains


def follow(gains: list[tuple[float, float]], x_0: Tensor) -> Tensor:
    """Integrate linear velocities from x_0."""
    x_t = x_0
    for slope, offset in gains:
        x_t = x_t + (slope * x_t + offset) / STEPS
    return x_t


def pretrain(agent: FlowAlgorithm, folder: Path) -> None:
    """Fit the agent's parts, or take them from the folder where equal ones are kept."""
    cache.restore(agent, folder)
    agent.pretrain()
    cache.store(agent, folder)


def noise(n: int = 2000) -> NDArray[np.float32]:
    """The same Gaussian noise every time, shape (n, 1)."""
    return torch.randn((n, 1), generator=torch.Generator().manual_seed(0)).numpy()
