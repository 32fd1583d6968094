"""Solvers and paths against analytic fields."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flowmdp.errors import ConfigurationError
from flowmdp.mdp.path import PATHS, Path
from flowmdp.mdp.solver import SOLVERS, integrate

Array = NDArray[np.float64]
STEPS = np.array([8, 16, 32, 64])


def curved(x: Array, t: float) -> Array:
    """dx/dt = 1 + x^2: the solution is tan(t + atan(x_0))."""
    return 1 + x**2


def slope(solver: str, steps: Array = STEPS) -> float:
    """Slope of log error over log step size at t = 1."""
    x_0 = np.array([-0.5, -2.0])
    exact = np.tan(1 + np.arctan(x_0))
    errors = [np.abs(integrate(curved, x_0, int(n), solver) - exact).max() for n in steps]
    return float(np.polyfit(np.log(1 / steps), np.log(errors), 1)[0])


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_order_of_convergence(solver: str, order: int) -> None:
    assert slope(solver) == pytest.approx(order, abs=0.15)


def test_order_tells_the_solvers_apart() -> None:
    """Negative control: Euler does not pass for second order."""
    assert slope("euler") != pytest.approx(2, abs=0.5)


def gaussian_field(x: Array, t: float) -> Array:
    """Velocity of the straight path from N(0, 1) to N(0.6, 0.1^2)."""
    variance = (1 - t) ** 2 + (0.1 * t) ** 2
    return 0.6 + (t * 0.1**2 - (1 - t)) / variance * (x - 0.6 * t)


def test_left_grid_is_unbiased() -> None:
    """From x_0 = 0, the centre of the noise, a flow to mean 0.6 returns 0.6."""
    assert integrate(gaussian_field, np.zeros(1), 10)[0] == pytest.approx(0.6, abs=1e-12)


def test_full_grid_is_biased() -> None:
    """Negative control: times from linspace(0, 1, T) with steps of 1/T miss the mean."""
    x, times = np.zeros(1), np.linspace(0, 1, 10)
    for t in times:
        x = x + gaussian_field(x, float(t)) / 10
    assert abs(x[0] - 0.6) > 0.01


def test_straight_velocity_is_integrated_exactly_by_one_step() -> None:
    rng = np.random.default_rng(0)
    x_0, x_1 = rng.standard_normal((2, 5, 3))
    path = PATHS["linear"]
    velocity = path.velocity(x_0, x_1, 0.0)
    for name in SOLVERS:
        assert integrate(lambda x, t: velocity, x_0, 1, name) == pytest.approx(x_1)
    assert path.point(x_0, x_1, 0.25) == pytest.approx(x_0 + 0.25 * velocity)


@pytest.mark.parametrize("name", sorted(PATHS))
def test_paths_run_from_noise_to_data_with_their_velocity(name: str) -> None:
    """Ends, derivative by central differences, and the same on torch tensors."""
    path, rng = PATHS[name], np.random.default_rng(0)
    x_0, x_1 = rng.standard_normal((2, 5, 3))
    t = np.linspace(0.1, 0.9, 5)[:, None]
    assert path.point(x_0, x_1, 0.0) == pytest.approx(x_0)
    assert path.point(x_0, x_1, 1.0) == pytest.approx(x_1)
    slope = (path.point(x_0, x_1, t + 1e-5) - path.point(x_0, x_1, t - 1e-5)) / 2e-5
    assert path.velocity(x_0, x_1, t) == pytest.approx(slope, abs=1e-6)
    endpoint = path.endpoint(path.point(x_0, x_1, t), path.velocity(x_0, x_1, t), t)
    assert endpoint == pytest.approx(x_1)
    tensors = [torch.from_numpy(array) for array in (x_0, x_1, t)]
    assert path.velocity(*tensors).numpy() == pytest.approx(path.velocity(x_0, x_1, t))


def test_the_trigonometric_path_is_curved() -> None:
    x_0, x_1 = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    middle = PATHS["trigonometric"].point(x_0, x_1, 0.5)
    assert np.linalg.norm(middle) == pytest.approx(1)
    assert np.linalg.norm(PATHS["linear"].point(x_0, x_1, 0.5)) == pytest.approx(0.5**0.5)


def marginal_velocity(path: Path, x: Array, t: float, mean: float, std: float) -> Array:
    """E[dx_t/dt | x_t] on any path x_t = a x_0 + b x_1 from N(0, 1) to N(mean, std^2).

    The path's coefficients a and b and their rates are read off it: it is linear in its ends.
    """
    one, none = np.ones(1), np.zeros(1)
    a, b = path.point(one, none, t), path.point(none, one, t)
    rate_a, rate_b = path.velocity(one, none, t), path.velocity(none, one, t)
    variance = a**2 + (b * std) ** 2
    slope = (a * rate_a + b * rate_b * std**2) / variance
    velocity: Array = rate_b * mean + slope * (x - b * mean)
    return velocity


@pytest.mark.parametrize("solver", ["midpoint", "heun"])
@pytest.mark.parametrize("name", sorted(PATHS))
def test_flow_of_every_path_carries_noise_to_the_data(name: str, solver: str) -> None:
    """Quantiles to quantiles, because a flow in one dimension keeps their order."""
    x_0 = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    x_1 = integrate(lambda x, t: marginal_velocity(PATHS[name], x, t, 0.6, 0.5), x_0, 100, solver)
    assert x_1 == pytest.approx(0.6 + 0.5 * x_0, abs=2e-3)


def test_paths_differ_on_the_way() -> None:
    """Both carry noise to the same data, by other velocities."""
    fields = [marginal_velocity(PATHS[name], np.ones(1), 0.5, 0.6, 0.5) for name in PATHS]
    assert abs(fields[0] - fields[1]) > 0.1


def test_bad_input() -> None:
    with pytest.raises(ConfigurationError, match="solver is 'rk4'"):
        integrate(curved, np.zeros(1), 5, "rk4")
    with pytest.raises(ConfigurationError, match="flow_steps is 0"):
        integrate(curved, np.zeros(1), 0)
