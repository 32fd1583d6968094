"""Probability paths from noise to data.

A path fixes the point x_t between noise x_0 (t = 0) and data action x_1 (t = 1), and the velocity
dx_t/dt that a flow learns to reproduce. All functions work on NumPy arrays and torch tensors alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi
from typing import Any, TypeVar

import numpy as np

from flowmdp.errors import ConfigurationError

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


def linear_velocity(x_0: Array, x_1: Array, t: Array | float = 0.0) -> Array:
    """Velocity of the straight path, x_1 - x_0, shape (batch, action_dim); the same at every t."""
    return x_1 - x_0  # type: ignore[operator, no-any-return]


def linear_endpoint(x_t: Array, velocity: Array, t: Array | float) -> Array:
    """The x_1 to which a velocity of the straight path belongs, x_t + (1 - t) velocity.

    Args:
        x_t: Point on the path, shape (batch, action_dim).
        velocity: Shape (batch, action_dim).
        t: Flow time in [0, 1], a number or shape (batch, 1).

    Returns:
        Shape (batch, action_dim).
    """
    return x_t + (1 - t) * velocity  # type: ignore[operator, return-value]


def trigonometric_path(x_0: Array, x_1: Array, t: Array | float) -> Array:
    """Point on a quarter of an ellipse, x_t = cos(pi t / 2) x_0 + sin(pi t / 2) x_1.

    For standardised data the variance stays 1 along the path (Albergo and Vanden-Eijnden 2023,
    arXiv:2209.15571, section 3). Arguments and result as `linear_path`.
    """
    cosine, sine = _angle(t)
    return cosine * x_0 + sine * x_1  # type: ignore[no-any-return]


def trigonometric_velocity(x_0: Array, x_1: Array, t: Array | float) -> Array:
    """Velocity of the elliptic path, pi/2 (cos(pi t / 2) x_1 - sin(pi t / 2) x_0)."""
    cosine, sine = _angle(t)
    return pi / 2 * (cosine * x_1 - sine * x_0)  # type: ignore[no-any-return]


def trigonometric_endpoint(x_t: Array, velocity: Array, t: Array | float) -> Array:
    """The x_1 of the elliptic path, sin(pi t / 2) x_t + 2 / pi cos(pi t / 2) velocity."""
    cosine, sine = _angle(t)
    return sine * x_t + 2 / pi * cosine * velocity  # type: ignore[no-any-return]


def _angle(t: Any) -> tuple[Any, Any]:
    """Cosine and sine of pi t / 2, for a number, an array or a tensor."""
    angle = t * (pi / 2)
    return (angle.cos(), angle.sin()) if hasattr(angle, "cos") else (np.cos(angle), np.sin(angle))


@dataclass(frozen=True)
class Path:
    """A probability path.

    Attributes:
        point: x_t of (x_0, x_1, t).
        velocity: Its derivative in t, of (x_0, x_1, t).
        endpoint: x_1 of (x_t, velocity, t).
    """

    point: Callable[[Any, Any, Any], Any]
    velocity: Callable[[Any, Any, Any], Any]
    endpoint: Callable[[Any, Any, Any], Any]


PATHS = {
    "linear": Path(linear_path, linear_velocity, linear_endpoint),
    "trigonometric": Path(trigonometric_path, trigonometric_velocity, trigonometric_endpoint),
}


def get_path(name: str) -> Path:
    """The path of that name.

    Raises:
        ConfigurationError: For an unknown name.
    """
    if name not in PATHS:
        raise ConfigurationError(f"unknown path {name!r}: choose one of {', '.join(PATHS)}")
    return PATHS[name]
