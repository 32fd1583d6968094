"""The flow MDP's transition: one step moves the point on the path by velocity / flow_steps.

The transition is known, so the environments and the agents all call these functions and agree bit
for bit. They work on NumPy arrays and torch tensors.
"""

from __future__ import annotations

from math import log, pi, sqrt
from typing import Any, TypeVar

Array = TypeVar("Array")


def flow_time(k: int, flow_steps: int) -> float:
    """Flow time t_k = k / flow_steps of step k in 0..flow_steps; velocities are asked at t_k."""
    return k / flow_steps


def flow_step(x_t: Array, velocity: Array, flow_steps: int | Array) -> Array:
    """x_{t + 1/flow_steps} = x_t + velocity / flow_steps; both of shape (..., action_dim).

    NumPy divides by an array of flow_steps three times as fast as by an integer, to the same bits.
    """
    return x_t + velocity / flow_steps  # type: ignore[operator, return-value]


def step_log_density(x_next: Any, x_t: Any, velocity: Any, flow_steps: int, std: float) -> Any:
    """Log-density of x_next after a stochastic step from x_t; (..., action_dim) -> (...).

    Its gradient in the velocity is the score that likelihood-ratio methods (PPO, REINFORCE) need.
    The step adds N(0, std^2 / flow_steps), as a Brownian motion does: a chain accumulates the
    variance std^2 whatever its number of steps; `std` is the environment's `noise_std`. [ours]
    """
    scale = std * sqrt(1 / flow_steps)
    error = (x_next - flow_step(x_t, velocity, flow_steps)) / scale
    density = -0.5 * (error**2).sum(-1)
    return density - x_t.shape[-1] * (log(scale) + 0.5 * log(2 * pi))
