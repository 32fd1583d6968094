"""Probability paths from noise to data.

A path fixes the point x_t between noise x_0 (t = 0) and data action x_1 (t = 1), and the velocity
dx_t/dt that a flow learns to reproduce. All functions work on NumPy arrays and torch tensors alike.
"""

from __future__ import annotations

from typing import TypeVar

Array = TypeVar("Array")


def linear_path(x_0: Array, x_1: Array, t: Array | float) -> Array:
    """Point on the straight path, x_t = (1 - t) x_0 + t x_1 (Decision Flow, section 3).

    Args:
        x_0: Noise, shape (batch, action_dim).
        x_1: Data actions, shape (batch, action_dim).
        t: Flow time in [0, 1], a number or shape (batch, 1).

    Returns:
        x_t, shape (batch, action_dim).
    """
    return (1 - t) * x_0 + t * x_1  # type: ignore[operator, return-value]


def linear_velocity(x_0: Array, x_1: Array) -> Array:
    """Velocity of the straight path, x_1 - x_0, shape (batch, action_dim); the same at every t."""
    return x_1 - x_0  # type: ignore[operator, return-value]
