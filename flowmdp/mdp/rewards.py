"""Rewards of the flow MDP, in NumPy: what a flow step costs, and the models that price it.

The models are plain callables on batches, so that they may come from torch, JAX or a table.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flowmdp.mdp.divergences import Divergence, squared

Float = NDArray[np.float32]

Critic = Callable[[Float, Float], Float]
"""critic(observations (n, obs_dim), actions (n, action_dim)) -> values (n,), in advantage units."""

Behavior = Callable[[Float, Float, Float], Float]
"""behavior(observations (n, obs_dim), x_t (n, action_dim), t (n, 1)) -> (n, action_dim)."""


REWARD_MODELS: dict[str, tuple[str, ...]] = {
    "return": (),
    "direction": ("critic",),
    "divergence": ("critic", "behavior"),
    "data": (),
}
"""Names of the models that each reward needs."""

REWARD_STATES = {"return": "env", "data": "dataset"}
"""The value of `states` to which these rewards are restricted."""


def divergence_reward(
    velocity: Float, reference: Float, divergence: Divergence, rho: float, flow_steps: int
) -> Float:
    """-rho D(u, u_v) / flow_steps, shape (n,) (Decision Flow, section 4.3)."""
    reward: Float = -np.float32(rho / flow_steps) * divergence(velocity, reference)
    return reward


def data_reward(velocity: Float, x_t: Float, x_1: Float, t: Float, flow_steps: int) -> Float:
    """-||u - (x_1 - x_t) / (1 - t)||^2 / flow_steps, shape (n,) [ours].

    The target is the velocity of the straight path from where the chain is to the dataset action
    x_1. On the path it is x_1 - x_0, and the sum over a chain is minus the flow-matching loss.
    """
    reward: Float = -squared(velocity, (x_1 - x_t) / (1 - t)) / np.float32(flow_steps)
    return reward
