"""The flow MDP's transition: one step moves the point on the path by velocity / flow_steps.

The transition is known, so the environment, the vectorised environment and the agents all call
these functions and agree bit for bit. They work on NumPy arrays and torch tensors; the density is
NumPy's.
"""

from __future__ import annotations

from math import log, pi, sqrt
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = TypeVar("Array")


def flow_time(k: int, flow_steps: int) -> float:
    """Flow time t_k = k / flow_steps of step k in 0..flow_steps; velocities are asked at t_k."""
    return k / flow_steps


def flow_step(x_t: Array, velocity: Array, flow_steps: int | Array) -> Array:
    """x_{t + 1/flow_steps} = x_t + velocity / flow_steps; both of shape (..., action_dim).

    NumPy divides by an array of flow_steps three times as fast as by an integer, to the same bits.
    """
    return x_t + velocity / flow_steps  # type: ignore[operator, return-value]


def noisy_flow_step(
    x_t: Array, velocity: Array, flow_steps: int, noise_std: float, noise: Array
) -> Array:
    """A stochastic step: `flow_step` plus noise_std sqrt(1 / flow_steps) noise, noise ~ N(0, I).

    The scale is that of a Brownian motion, so that a chain accumulates the variance noise_std^2
    whatever its number of steps. [ours]
    """
    spread = noise * (noise_std * sqrt(1 / flow_steps))  # type: ignore[operator]
    return flow_step(x_t, velocity, flow_steps) + spread  # type: ignore[operator, return-value]


def step_log_density(
    x_next: NDArray[Any], x_t: NDArray[Any], velocity: NDArray[Any], flow_steps: int, std: float
) -> NDArray[Any]:
    """Log-density of x_next after a stochastic step, shape (..., action_dim) -> (...).

    Its gradient in the velocity is the score that likelihood-ratio methods (PPO, REINFORCE) need.

    Args:
        x_next: Where the step ended.
        x_t: Where it began.
        velocity: The velocity whose likelihood is asked.
        flow_steps: Flow steps per chain.
        std: `noise_std` of the step, positive.
    """
    scale = std * sqrt(1 / flow_steps)
    error = (x_next - flow_step(x_t, velocity, flow_steps)) / scale
    density: NDArray[Any] = -0.5 * np.square(error).sum(-1)
    density -= x_t.shape[-1] * (log(scale) + 0.5 * log(2 * pi))
    return density
