"""The flow MDP's transition: one step moves the point on the path by velocity / flow_steps.

The transition is deterministic and known, so the environment, the vectorised environment and the
agents all call this one function and agree bit for bit. Works on NumPy arrays and torch tensors.
"""

from __future__ import annotations

from typing import TypeVar

Array = TypeVar("Array")


def flow_time(k: int, flow_steps: int) -> float:
    """Flow time t_k = k / flow_steps of step k in 0..flow_steps; velocities are asked at t_k."""
    return k / flow_steps


def flow_step(x_t: Array, velocity: Array, flow_steps: int) -> Array:
    """x_{t + 1/flow_steps} = x_t + velocity / flow_steps; both of shape (..., action_dim)."""
    return x_t + velocity / flow_steps  # type: ignore[operator, return-value]
