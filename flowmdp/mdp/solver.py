"""Fixed-step solvers that carry noise x_0 to an action x_1 along a velocity field.

All evaluate the field on the left grid t_k = k / flow_steps, k = 0..flow_steps-1. Evaluating Euler
on linspace(0, 1, flow_steps) instead is biased: a flow towards mean 0.6 then returns 0.619.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowmdp.arguments import check_choice, check_integers
from flowmdp.mdp.transition import flow_step, flow_time

Velocity = Callable[[Any, float], Any]
"""velocity(x_t, t): x_t of shape (..., action_dim), t a number in [0, 1]; returns x_t's shape."""


def euler(velocity: Velocity, x_t: Any, k: int, flow_steps: int) -> Any:
    """One Euler step from t_k: first order, one evaluation."""
    return flow_step(x_t, velocity(x_t, flow_time(k, flow_steps)), flow_steps)


def midpoint(velocity: Velocity, x_t: Any, k: int, flow_steps: int) -> Any:
    """One explicit midpoint step from t_k: second order, two evaluations."""
    half = flow_step(x_t, velocity(x_t, flow_time(k, flow_steps)), 2 * flow_steps)
    return flow_step(x_t, velocity(half, (k + 0.5) / flow_steps), flow_steps)


def heun(velocity: Velocity, x_t: Any, k: int, flow_steps: int) -> Any:
    """One Heun step (explicit trapezoid) from t_k: second order, two evaluations."""
    start = velocity(x_t, flow_time(k, flow_steps))
    end = velocity(flow_step(x_t, start, flow_steps), flow_time(k + 1, flow_steps))
    return flow_step(x_t, (start + end) / 2, flow_steps)


SOLVERS = {"euler": euler, "midpoint": midpoint, "heun": heun}


def integrate(velocity: Velocity, x_0: Any, flow_steps: int, solver: str = "euler") -> Any:
    """Carry noise to an action in `flow_steps` steps; the caller clips it to the action box.

    Args:
        velocity: The field, velocity(x_t, t).
        x_0: Noise, shape (..., action_dim), NumPy or torch.
        flow_steps: Number of steps, at least 1.
        solver: "euler", "midpoint" or "heun".

    Returns:
        x_1, shape (..., action_dim), not clipped.

    Raises:
        ConfigurationError: For an unknown solver or flow_steps < 1.
    """
    check_choice(SOLVERS, solver=solver)
    check_integers(1, flow_steps=flow_steps)
    x_t = x_0
    for k in range(flow_steps):
        x_t = SOLVERS[solver](velocity, x_t, k, flow_steps)
    return x_t
