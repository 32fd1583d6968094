"""Probability paths from noise to data.

A path fixes the point x_t between noise x_0 (t = 0) and data action x_1 (t = 1), and the velocity
dx_t/dt that a flow learns to reproduce. All functions take NumPy arrays and torch tensors alike,
points and velocities of shape (batch, action_dim), t in [0, 1], a number or of shape (batch, 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi
from typing import Any

import numpy as np

from flowmdp.errors import ConfigurationError


def linear_path(x_0: Any, x_1: Any, t: Any) -> Any:
    """Point on the straight path, x_t = (1 - t) x_0 + t x_1 (Decision Flow, section 3)."""
    return (1 - t) * x_0 + t * x_1


def linear_velocity(x_0: Any, x_1: Any, t: Any = 0.0) -> Any:
    """Velocity of the straight path, x_1 - x_0; the same at every t."""
    return x_1 - x_0


def linear_endpoint(x_t: Any, velocity: Any, t: Any) -> Any:
    """The x_1 to which a velocity of the straight path belongs, x_t + (1 - t) velocity."""
    return x_t + (1 - t) * velocity


def trigonometric_path(x_0: Any, x_1: Any, t: Any) -> Any:
    """Point on a quarter of an ellipse, x_t = cos(pi t / 2) x_0 + sin(pi t / 2) x_1.

    For standardised data the variance stays 1 along the path (Albergo and Vanden-Eijnden 2023,
    arXiv:2209.15571, section 3).
    """
    cosine, sine = _angle(t)
    return cosine * x_0 + sine * x_1


def trigonometric_velocity(x_0: Any, x_1: Any, t: Any) -> Any:
    """Velocity of the elliptic path, pi/2 (cos(pi t / 2) x_1 - sin(pi t / 2) x_0)."""
    cosine, sine = _angle(t)
    return pi / 2 * (cosine * x_1 - sine * x_0)


def trigonometric_endpoint(x_t: Any, velocity: Any, t: Any) -> Any:
    """The x_1 of the elliptic path, sin(pi t / 2) x_t + 2 / pi cos(pi t / 2) velocity."""
    cosine, sine = _angle(t)
    return sine * x_t + 2 / pi * cosine * velocity


def _angle(t: Any) -> tuple[Any, Any]:
    """Cosine and sine of pi t / 2."""
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
    """The path of that name; an unknown one is a ConfigurationError."""
    if name not in PATHS:
        raise ConfigurationError(f"path is {name!r}: choose one of {', '.join(PATHS)}")
    return PATHS[name]
