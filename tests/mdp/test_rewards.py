"""The divergences of arrays and tensors against values known by hand, and the step's rewards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flowmdp.mdp.divergences import DIVERGENCES, KL_STD, cosine, direction
from flowmdp.mdp.spec import FlowSettings
from tests.mdp.toys import make_toy

ONE = np.array([[3.0, 4.0]], np.float32)
ZERO = np.zeros((1, 2), np.float32)
TORCH: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared": lambda u, v: (u - v).square().sum(-1),
    "smooth_norm": lambda u, v: ((u - v).square().sum(-1) + 1e-4).sqrt() - 1e-2,
    "cosine": lambda u, v: 1 - F.cosine_similarity(u, v, dim=-1, eps=1e-6),
    "gaussian_kl": lambda u, v: (u - v).square().sum(-1) / 0.5,
}
"""What every recorded run of DF-div was trained with."""


@pytest.mark.parametrize(
    ("name", "value"), [("squared", 25), ("smooth_norm", 4.99001), ("gaussian_kl", 50)]
)
def test_known_values(name: str, value: float) -> None:
    assert DIVERGENCES[name](ONE, ZERO)[0] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["NumPy", "torch"])
def test_cosine_of_opposite_equal_and_zero_velocities(kind: Callable[..., Tensor]) -> None:
    values = [float(cosine(kind(ONE), kind(other))[0]) for other in (ONE, -2 * ONE, ZERO)]
    assert values == pytest.approx([0, 2, 1], abs=1e-6)


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_numpy_and_torch_agree(name: str) -> None:
    rng = np.random.default_rng(0)
    velocity, reference = rng.standard_normal((2, 50, 6), np.float32)
    reference[:5] = velocity[:5]
    array = DIVERGENCES[name](velocity, reference)
    tensor = DIVERGENCES[name](torch.from_numpy(velocity), torch.from_numpy(reference))
    assert array.dtype == np.float32 and array.shape == (50,)
    assert array == pytest.approx(tensor.numpy(), abs=1e-5)
    assert array[:5] == pytest.approx(0, abs=1e-6) and (array[5:] > 0).all()


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_tensors_get_torchs_own_values_and_gradients_bit_for_bit(name: str) -> None:
    torch.manual_seed(0)
    velocity, reference = torch.randn(2, 10, 50, 6)
    results = []
    for divergence in (DIVERGENCES[name], TORCH[name]):
        leaf = velocity.clone().requires_grad_()
        value = divergence(leaf, reference)
        results.append((value, *torch.autograd.grad(value.sum(), leaf)))
    assert all(torch.equal(ours, torchs) for ours, torchs in zip(*results, strict=True))


def test_direction_of_arrays_and_tensors() -> None:
    for velocity in (ONE, ONE[0], 0 * ONE):
        array = direction(velocity, 0.1)
        assert array == pytest.approx(velocity / np.sqrt(np.square(velocity).sum() + 0.01))
        assert array == pytest.approx(direction(torch.from_numpy(velocity), 0.1).numpy())
        assert array.shape == velocity.shape


def test_settings_name_every_divergence() -> None:
    hints = get_type_hints(FlowSettings)
    assert get_args(hints["divergence"]) == tuple(DIVERGENCES)
    assert KL_STD == 0.5


def test_the_environments_import_no_torch() -> None:
    code = "import sys, flowmdp.env, flowmdp.vector, numpy as np; x = np.ones((2, 3));"
    code += "from flowmdp.mdp.divergences import DIVERGENCES as D;"
    code += "[d(x, x) for d in D.values()]; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize("flow_steps", [1, 7])
def test_divergence_reward_does_not_depend_on_flow_steps(flow_steps: int) -> None:
    """A chain of constant divergence pays rho D however many steps it has."""
    env = make_toy(
        reward="divergence",
        rho=0.5,
        flow_steps=flow_steps,
        velocity_scale=5.0,
        behavior=lambda s, x, t: np.zeros_like(x),
    )
    env.reset(seed=0)
    infos = [env.step(ONE[0] / 5)[-1] for _ in range(flow_steps)]
    assert sum(info["reward_divergence"] for info in infos) == pytest.approx(-12.5)
