"""Probability paths from noise to data.

A path fixes the point x_t between noise x_0 (t = 0) and data action x_1 (t = 1), and the velocity
dx_t/dt that a flow learns to reproduce. `PATHS` holds

- "linear": the straight path, x_t = (1 - t) x_0 + t x_1 (Decision Flow, section 3);
- "trigonometric": a quarter of an ellipse, x_t = cos(pi t / 2) x_0 + sin(pi t / 2) x_1. For
  standardised data the variance stays 1 along it (Albergo and Vanden-Eijnden 2023,
  arXiv:2209.15571, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Path:
    """A probability path, as functions of NumPy arrays or torch tensors.

    Points and velocities have shape (batch, action_dim); t is in [0, 1], a number or of shape
    (batch, 1).

    Attributes:
        point: x_t of (x_0, x_1, t).
        velocity: Its derivative in t, of (x_0, x_1, t).
        endpoint: The x_1 to which a velocity belongs, of (x_t, velocity, t).
    """

    point: Callable[[Any, Any, Any], Any]
    velocity: Callable[[Any, Any, Any], Any]
    endpoint: Callable[[Any, Any, Any], Any]


def _cos(t: Any) -> Any:
    angle = t * (pi / 2)
    return angle.cos() if hasattr(angle, "cos") else np.cos(angle)


def _sin(t: Any) -> Any:
    angle = t * (pi / 2)
    return angle.sin() if hasattr(angle, "sin") else np.sin(angle)


PATHS = {
    "linear": Path(
        point=lambda x_0, x_1, t: (1 - t) * x_0 + t * x_1,
        velocity=lambda x_0, x_1, t: x_1 - x_0,
        endpoint=lambda x_t, velocity, t: x_t + (1 - t) * velocity,
    ),
    "trigonometric": Path(
        point=lambda x_0, x_1, t: _cos(t) * x_0 + _sin(t) * x_1,
        velocity=lambda x_0, x_1, t: pi / 2 * (_cos(t) * x_1 - _sin(t) * x_0),
        endpoint=lambda x_t, velocity, t: _sin(t) * x_t + 2 / pi * _cos(t) * velocity,
    ),
}
