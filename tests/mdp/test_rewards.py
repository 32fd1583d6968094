"""The divergences, against values known by hand and against the agents' torch versions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowmdp.agents.core import divergences
from flowmdp.mdp import rewards

ONE = np.array([[3.0, 4.0]], np.float32)
ZERO = np.zeros((1, 2), np.float32)


@pytest.mark.parametrize(
    ("name", "value"), [("squared", 25), ("smooth_norm", 4.99001), ("gaussian_kl", 50)]
)
def test_known_values(name: str, value: float) -> None:
    assert rewards.DIVERGENCES[name](ONE, ZERO)[0] == pytest.approx(value, rel=1e-5)


def test_cosine_of_opposite_equal_and_zero_velocities() -> None:
    values = [float(rewards.cosine(ONE, other)[0]) for other in (ONE, -2 * ONE, ZERO)]
    assert values == pytest.approx([0, 2, 1], abs=1e-6)


@pytest.mark.parametrize("name", sorted(rewards.DIVERGENCES))
def test_numpy_and_torch_agree(name: str) -> None:
    rng = np.random.default_rng(0)
    velocity, reference = rng.standard_normal((2, 50, 6), np.float32)
    reference[:5] = velocity[:5]
    array = rewards.DIVERGENCES[name](velocity, reference)
    tensors = torch.from_numpy(velocity), torch.from_numpy(reference)
    tensor = divergences.DIVERGENCES[name](*tensors)
    assert array.dtype == np.float32 and array.shape == (50,)
    assert array == pytest.approx(tensor.numpy(), abs=1e-5)
    assert array[:5] == pytest.approx(0, abs=1e-6) and (array[5:] > 0).all()


def test_the_same_divergences_by_the_same_names() -> None:
    assert rewards.DIVERGENCES.keys() == divergences.DIVERGENCES.keys()
    assert rewards.KL_STD == divergences.KL_STD


def test_divergence_reward_does_not_depend_on_flow_steps() -> None:
    """A chain of constant divergence pays rho D however many steps it has."""
    for flow_steps in (1, 7):
        step = rewards.divergence_reward(ONE, ZERO, rewards.squared, 0.5, flow_steps)
        assert flow_steps * step[0] == pytest.approx(-12.5)
