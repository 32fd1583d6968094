"""The vectorised environment on tensors, against itself on NumPy arrays."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn
from torch.distributions import Normal
from torch.utils._python_dispatch import TorchDispatchMode

from flowmdp.backends import NumpyBackend
from flowmdp.behavior import as_behavior
from flowmdp.errors import ActionError, ConfigurationError, ResetNeededError
from flowmdp.mdp.divergences import DIVERGENCES
from flowmdp.sb3 import FlowVecEnv
from flowmdp.vector import FlowMDPVectorEnv
from tests.mdp.test_vector import VARIANTS, vector
from tests.mdp.toys import toy_dataset

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
N, DIM = 5, 2


def critic(observations: Any, actions: Any) -> Any:
    """-||a - s||^2, of arrays or tensors."""
    return -((actions - observations) ** 2).sum(-1)


def behavior(observations: Any, x_t: Any, t: Any) -> Any:
    """The velocity from x_t to the action s / 2, of arrays or tensors."""
    return (observations / 2 - x_t) / (1 - t).clip(min=0.05)


def tensors(variant: str = "data", device: str = "cpu", **arguments: Any) -> FlowMDPVectorEnv:
    models = {"critic": critic, "behavior": behavior}
    return vector(variant, backend="torch", device=device, **{**models, **arguments})


def twins(device: str, variant: str, **arguments: Any) -> tuple[FlowMDPVectorEnv, FlowMDPVectorEnv]:
    """On tensors and on arrays; the first draws what the second does."""
    ours = tensors(variant, device, **arguments)
    theirs = vector(variant, **{"critic": critic, "behavior": behavior, **arguments})
    draws = NumpyBackend(N)
    draws.seed(7, slice(None))
    for name in ("integers", "normal"):
        setattr(ours._on, name, partial(drawn, getattr(draws, name), device))
    return ours, theirs


def drawn(draw: Any, device: str, rows: Any, *args: int) -> Tensor:
    rows = rows if isinstance(rows, slice) else rows.cpu().numpy()
    return torch.as_tensor(draw(rows, *args), device=device)


def assert_same(ours: Any, theirs: Any, device: str, where: str = "") -> None:
    """Tensors on the device against arrays: up to the rounding of float32."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            assert_same(ours[key], theirs[key], device, f"{where}[{key!r}]")
    elif isinstance(theirs, tuple):
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other, device, where)
    else:
        assert isinstance(ours, Tensor) and ours.device.type == device, where
        if theirs.dtype == object:  # final_obs: rows of ended chains
            rows = [i for i, row in enumerate(theirs) if row is not None]
            ours, theirs = ours[rows], np.stack(list(theirs[rows]))
        assert ours.dtype == {"f": torch.float32, "b": torch.bool}[theirs.dtype.kind], where
        np.testing.assert_allclose(ours.cpu(), theirs, rtol=1e-5, atol=1e-5, err_msg=where)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("chunk", [1, 3])
def test_agrees_with_arrays(variant: str, mode: AutoresetMode, device: str, chunk: int) -> None:
    """In step at first, then after a reset of some chains."""
    fit: dict[str, Any] = {}
    if chunk > 1:  # the models of the toys act in the plane of the state
        fit = {"critic": lambda s, a: critic(s, a[:, :2]), "behavior": lambda s, x, t: -x}
    ours, theirs = twins(device, variant, autoreset_mode=mode, chunk=chunk, **fit)
    assert_same(ours.reset(seed=7), theirs.reset(seed=7), device)
    rng = np.random.default_rng(0)
    for step in range(24):
        if step == 11:
            mask = {"reset_mask": np.arange(N) % 2 == 0}
            assert_same(ours.reset(options=mask), theirs.reset(options=mask), device)
        actions = rng.uniform(-1.1, 1.1, (N, DIM * chunk)).astype(np.float32)
        given = torch.as_tensor(actions, device=device)
        assert_same(ours.step(given), theirs.step(actions), device, f"step {step}")
    assert_same(ours.reset(), theirs.reset(), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
def test_agrees_from_given_noise_and_states(divergence: str, device: str) -> None:
    """The caller resets, by a mask on the device; nothing is drawn."""
    settings: dict[str, Any] = {"divergence": divergence, "autoreset_mode": "Disabled"}
    ours = tensors("divergence", device, **settings)
    theirs = vector("divergence", critic=critic, behavior=behavior, **settings)
    rng = np.random.default_rng(0)
    for mask in (np.ones(N, np.bool_), np.arange(N) < 2, np.arange(N) == 3):
        given = {"noise": rng.standard_normal((N, DIM)), "state": rng.standard_normal(2)}
        options = {"reset_mask": mask, **given}
        placed = {name: torch.as_tensor(value, device=device) for name, value in options.items()}
        assert_same(ours.reset(options=placed), theirs.reset(options=options), device)
        actions = rng.uniform(-1.1, 1.1, (N, DIM))
        result = theirs.step(actions)
        assert_same(ours.step(torch.as_tensor(actions, device=device)), result, device)
    assert result[2].tolist() == [False, False, True, False, True]
    with pytest.raises(ResetNeededError, match=r"call reset\(\)"):
        ours.step(actions)


@pytest.mark.parametrize("device", DEVICES)
def test_one_generator_draws_for_all_chains(device: str) -> None:
    env = tensors("noisy", device, num_envs=4000, noise_std=0.5, noise_scale=0.4)
    first, _ = env.reset(seed=3)
    assert first[:, 2:4].std().item() == pytest.approx(0.4, rel=0.05)
    seen = {tuple(row) for row in first[:, :2].tolist()}
    assert seen == {tuple(row) for row in toy_dataset().observations.tolist()}
    moved = env.step(torch.zeros(4000, 2))[0][:, 2:4] - first[:, 2:4]
    assert moved.std().item() == pytest.approx(0.5, rel=0.05)
    again, _ = env.reset()
    assert not torch.equal(first, again)
    assert torch.equal(first, env.reset(seed=3)[0])


class Tracer(nn.Module):
    """A linear behaviour that remembers what it was asked with."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, *parts: Tensor) -> Tensor:
        self.asked = parts
        answer: Tensor = self.layer(torch.cat(parts, 1))
        return answer


@pytest.mark.parametrize("device", DEVICES)
def test_models_get_tensors_and_take_no_gradient(device: str) -> None:
    module, value = Tracer().to(device), nn.Linear(4, 1).to(device)
    env = tensors(
        "divergence",
        device,
        behavior=module,
        critic=lambda s, a: value(torch.cat([s, a], 1))[:, 0],
    )
    observations, _ = env.reset(seed=0)
    actions = nn.Parameter(torch.zeros(N, 2, device=device))
    for _ in range(3):
        observations, rewards, *_ = env.step(actions)
        assert all(part.device.type == device and len(part) == N for part in module.asked)
    assert not observations.requires_grad and not rewards.requires_grad
    loss = (nn.Linear(4, 1).to(device)(observations)[:, 0] - rewards).square().mean()
    loss.backward()  # a policy learns from what the environment gives


def test_a_flow_of_arrays_with_its_own_times_serves_tensors() -> None:
    times = [1.0, 0.5, 0.2, 0.0]

    def own(s: Any, x: Any, t: Any) -> Any:
        return np.asarray(np.tanh(s) - x * t, np.float32)

    def of_tensors(s: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return s.tanh() - x * t

    played = []
    for velocity in (own, of_tensors):
        flow = as_behavior(velocity, flow_steps=3, times=times)
        env = tensors("residual", behavior=flow, flow_steps=3)
        env.reset(seed=0)
        played.append([env.step(np.zeros((N, 2)))[0] for _ in range(3)])
    for one, other in zip(*played, strict=True):
        torch.testing.assert_close(one, other)


class Operations(TorchDispatchMode):
    """Which operations torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_no_step_waits_for_a_gpu(variant: str, mode: str) -> None:
    """Only the end of a chain asks for a value, once: whether its points are finite."""
    env = tensors(variant, autoreset_mode=mode, flow_steps=3)
    env._on.lazy = True  # as on a GPU
    env.reset(seed=0)
    actions = torch.full((N, 2), 1.05)
    waited = []
    for _ in range(8):
        with Operations() as operations:
            _, _, terminations, _, _ = env.step(actions)
        assert "mul" in operations.seen or "clone" in operations.seen
        waits = operations.seen & {"_local_scalar_dense", "nonzero", "_to_copy", "is_nonzero"}
        waited.append((bool(waits), bool(terminations.all())))
    assert {waits == ended for waits, ended in waited} == {True}
    assert 0 < sum(ended for _, ended in waited) < 8


def test_fresh_tensors() -> None:
    env = tensors()
    observations = [env.reset(seed=0)[0]]
    observations += [env.step(torch.zeros(N, 2))[0] for _ in range(5)]
    assert len({one.data_ptr() for one in observations}) == 6


def test_stable_baselines_gets_arrays() -> None:
    settings: dict[str, Any] = {"autoreset_mode": "SameStep"}
    ours, theirs = twins("cpu", "direction", **settings)
    adapted, wanted = FlowVecEnv(ours), FlowVecEnv(theirs)
    for env in (adapted, wanted):
        env.seed(7)
    np.testing.assert_allclose(np.asarray(adapted.reset()), np.asarray(wanted.reset()))
    for _ in range(4):
        actions = np.full((N, 2), 0.2, np.float32)
        found, right = adapted.step(actions), wanted.step(actions)
        for one, other in zip(found[:3], right[:3], strict=True):
            assert isinstance(one, np.ndarray) and one.dtype == np.asarray(other).dtype
            np.testing.assert_allclose(one, np.asarray(other), rtol=1e-5)
        for one, other in zip(found[3], right[3], strict=True):
            assert one.keys() == other.keys()
            for name in one:
                np.testing.assert_allclose(one[name], other[name], rtol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_a_loop_of_ones_own_learns_on_the_device(device: str) -> None:
    """REINFORCE; the best action earns 0, no action at all -0.5."""
    torch.manual_seed(0)
    goal = torch.tensor([0.5, -0.5], device=device)
    env = tensors(
        "direction",
        device,
        num_envs=256,
        critic=lambda s, a: -(a - goal).square().sum(-1),
        flow_steps=2,
        velocity_scale=3.0,
        autoreset_mode="SameStep",
    )
    width = env.flow_spec.flow_observation_dim
    policy = nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, 2)).to(device)
    adam = torch.optim.Adam(policy.parameters(), lr=1e-2)
    observations, _ = env.reset(seed=0)
    earned = []
    for _ in range(120):
        densities, chains = torch.zeros(256, device=device), torch.zeros(256, device=device)
        for _ in range(env.flow_steps):
            distribution = Normal(policy(observations), 0.2)
            actions = distribution.sample()
            densities = densities + distribution.log_prob(actions).sum(-1)
            observations, rewards, *_ = env.step(actions)
            chains += rewards
        advantages = (chains - chains.mean()) / chains.std()
        adam.zero_grad()
        (-advantages * densities).mean().backward()
        adam.step()
        earned.append(chains.mean())
    assert earned[0].item() < -1.5 and torch.stack(earned[-20:]).mean().item() > -0.4


def test_made_by_id_with_the_models_that_ship(hopper_data: Any) -> None:
    settings: dict[str, Any] = {"reward": "divergence", "flow_steps": 2}
    ours: Any = gym.make_vec(
        "FlowMDP-hopper-medium-v0", num_envs=3, backend="torch", device="cpu", **settings
    )
    theirs = gym.make_vec("FlowMDP-hopper-medium-v0", num_envs=3, **settings)
    states, noise = np.zeros(11, np.float32), np.ones(3, np.float32)
    given = {"state": states, "noise": noise}
    for env in (ours, theirs):
        env.reset(seed=0, options=dict(given))
    actions = np.full((3, 3), 0.1, np.float32)
    for _ in range(2):
        tensor, array = ours.step(torch.as_tensor(actions)), theirs.step(actions)
        np.testing.assert_allclose(tensor[0], array[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(tensor[1], array[1], rtol=1e-3, atol=1e-5)
    assert ours.unwrapped.device.type == "cpu" and array[2].all()


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (torch.zeros(4, 2), r"shape \(4, 2\)"),
        (torch.zeros(5, 2, dtype=torch.int32), "dtype torch.int32"),
        (torch.full((5, 2), torch.nan), "not finite"),
        ("left", "no tensor"),
    ],
)
def test_bad_actions(actions: Any, message: str) -> None:
    env = tensors()
    env.reset(seed=0)
    with pytest.raises(ActionError, match=message):
        env.step(actions)
    env.step(torch.zeros(5, 2))


def test_a_gpu_is_asked_for_nan_at_the_ends_of_chains() -> None:
    env = tensors(flow_steps=2)
    env._on.lazy = True
    env.reset(seed=0)
    env.step(torch.full((5, 2), torch.nan))
    with pytest.raises(ActionError, match="not finite"):
        env.step(torch.zeros(5, 2))
    observations, _ = env.reset(seed=0)
    assert observations.isfinite().all()


def test_bad_arguments() -> None:
    with pytest.raises(ConfigurationError, match="backend is 'jax'"):
        vector(backend="jax")
    with pytest.raises(ConfigurationError, match="add backend='torch'"):
        vector(device="cuda")
    for device in ("toaster", 3.5):
        with pytest.raises(ConfigurationError, match="choose auto, cpu or cuda"):
            tensors(device=device)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="one generator: pass one seed"):
        tensors().reset(seed=[1, 2, 3, 4, 5])
    with pytest.raises(ConfigurationError, match="seed is -1"):
        tensors().reset(seed=-1)
    with pytest.raises(ResetNeededError):
        tensors().step(torch.zeros(5, 2))
    with pytest.raises(ConfigurationError, match="the critic fails on"):
        tensors("direction", critic=lambda s, a: s @ "a")
    for options in ({"noise": torch.zeros(3)}, {"noise": torch.full((2,), torch.nan)}):
        with pytest.raises(ConfigurationError, match="it must be finite and of shape"):
            tensors().reset(options=options)
