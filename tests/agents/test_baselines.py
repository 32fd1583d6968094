"""The baselines: their formulas against hand-computed values, and what they learn on a toy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from flowmdp.agents import FQL, IFQL, IQL, QC, RQL, ReBRAC
from flowmdp.agents.core.best_of import BestOfField, shifted_noises
from flowmdp.agents.core.flow_matching import FlowNoise
from flowmdp.agents.core.one_step import GaussianField, SampledField
from flowmdp.agents.iql import MAX_WEIGHT, advantage_weights
from flowmdp.agents.rql import Networks as RQLNetworks
from flowmdp.agents.rql import Reversed, policy_loss, reverse, value_loss
from flowmdp.behavior import as_behavior
from flowmdp.env import FlowMDPEnv
from flowmdp.errors import ConfigurationError
from flowmdp.mdp.path import PATHS
from flowmdp.runs.config import get_algorithm
from flowmdp.transitions import TransitionDataset
from tests.agents import toys as agent_toys
from tests.agents.toys import STEPS, bandit, flow_env, noise, pretrain, two_modes
from tests.mdp.toys import PointRobot, toy_dataset

SMALL: dict[str, Any] = {
    "policy_kwargs": {"net_arch": [64, 64]},
    "batch_size": 64,
    "device": "cpu",
    "seed": 0,
    "learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "behavior_learning_rate": 2e-3,
    "behavior_steps": 1000,
    "critic_steps": 400,
    "ema_rate": 0.01,
}
FLOW = agent_toys.GaussianField(mean=0.2, std=0.2)


def known(cls: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Without the hyper-parameters that the algorithm does not have."""
    others = {*cls.config_class.names(), "policy_kwargs", "device", "seed"}
    return {name: value for name, value in values.items() if name in others}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where behaviour flows and critics of the bandit are kept between tests."""
    return tmp_path_factory.mktemp("pretrained")


def share_of_rare_mode(name: str, pretrained: Path, **kwargs: Any) -> float:
    """After learning on the bandit whose better mode is a tenth of the data."""
    cls = get_algorithm(name)
    env = flow_env(two_modes(), flow_steps=cls.only_flow_steps or STEPS)
    agent = cls("MlpPolicy", env, **{**known(cls, SMALL), **kwargs})
    pretrain(agent, pretrained)
    agent.learn(600, log_interval=0)
    actions = agent.act(np.zeros((2000, 1), np.float32), noise=noise())
    return float((actions[:, 0] > 0.2).mean())


@pytest.mark.parametrize(
    ("name", "improving", "cloning"),
    [
        pytest.param("iql", {"beta": 3.0}, {"beta": 0.0}, marks=pytest.mark.slow),
        ("rebrac", {"actor_bc": 0.1}, {"actor_bc": 1000.0}),
        pytest.param("fql", {"alpha": 0.1}, {"alpha": 1000.0}, marks=pytest.mark.slow),
        pytest.param(*("dsrl", {"noise_bound": 2.0}, {"noise_bound": 0.1}), marks=pytest.mark.slow),
        ("ifql", {"samples": 32}, {"samples": 1}),
        pytest.param(
            *("rql", {"alpha": 0.003, "value_steps": 200}, {"alpha": 1000.0, "value_steps": 200}),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_rare_better_mode_is_found_unless_the_data_hold_it_back(
    name: str, improving: dict[str, Any], cloning: dict[str, Any], pretrained: Path
) -> None:
    assert share_of_rare_mode(name, pretrained, **improving) > 0.4
    assert share_of_rare_mode(name, pretrained, **cloning) < 0.25


def test_advantage_weights_do_not_depend_on_the_rewards_scale() -> None:
    advantages = torch.tensor([-1.0, 0.0, 1.0, 2.0])  # their mean magnitude is 1
    weights = advantage_weights(advantages, beta=1.0)
    torch.testing.assert_close(weights, advantages.exp())
    torch.testing.assert_close(advantage_weights(1000 * advantages, beta=1.0), weights)
    assert advantage_weights(advantages, beta=50.0).max() == MAX_WEIGHT
    assert torch.equal(advantage_weights(torch.zeros(3), 1.0), torch.ones(3))


def test_the_gaussian_is_the_density_it_samples() -> None:
    field = GaussianField(2, 1, [8])
    torch.nn.init.constant_(field.log_std, -0.5)
    context = torch.randn(1, 2, generator=torch.Generator().manual_seed(0)).expand(20_000, 2)
    x_0 = torch.as_tensor(np.random.default_rng(0).standard_normal((20_000, 1), np.float32))
    samples = field.actions(context, x_0)
    torch.testing.assert_close(samples.mean(), field.mean(context)[0, 0], atol=0.02, rtol=0)
    entropy = -field.log_prob(context, samples).mean().item()
    assert entropy == pytest.approx(0.5 * np.log(2 * np.pi * np.e) - 0.5, abs=0.02)
    torch.testing.assert_close(x_0 + field(context, x_0, 0.0), samples)  # one step arrives


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_every_shifted_noise_is_gaussian(scale: float) -> None:
    normal = np.random.default_rng(0).standard_normal((20_000, 2), np.float32)
    x_0 = scale * torch.as_tensor(normal)
    shifts = torch.tensor([[0.0, 0.0], [0.25, 0.7], [0.9, 0.5]])
    noises = shifted_noises(x_0, shifts, scale)
    assert torch.equal(noises[:, 0], x_0)
    torch.testing.assert_close(noises.mean(0) / scale, torch.zeros(3, 2), atol=0.03, rtol=0)
    torch.testing.assert_close(noises.std(0) / scale, torch.ones(3, 2), atol=0.03, rtol=0)
    assert (noises[:, 1] - x_0).abs().mean() > 0.5 * scale  # and it is another one


def test_best_of_n_chooses_among_samples_of_the_noise_that_is_set() -> None:
    env = FlowMDPEnv(PointRobot(), dataset=toy_dataset(), flow_steps=1, noise_scale=0.5)
    steps: dict[str, Any] = {"behavior_steps": 4, "critic_steps": 4}
    agent = IFQL("MlpPolicy", env, samples=64, device="cpu", **steps).learn(2)
    states = np.zeros((500, 2), np.float32)
    field = agent.policy.ema
    assert isinstance(field, BestOfField)
    spread = {}
    for scale in (0.5, 0.1, 0.0):
        if scale != 0.5:
            agent.set_noise_scale(scale)
        x_0 = torch.as_tensor(agent.chain(states)[0])
        spread[scale] = shifted_noises(x_0, field.shifts, field.noise_scale).std().item()
    assert spread == pytest.approx({0.5: 0.5, 0.1: 0.1, 0.0: 0.0}, rel=0.05)
    contexts, x_0 = torch.randn(50, agent.spec.context_dim), torch.zeros(50, 2)
    one_sample = SampledField.actions(field, contexts, x_0)
    assert torch.allclose(field.actions(contexts, x_0), one_sample), "without noise all are one"
    agent.set_noise_scale(0.5)
    assert not torch.allclose(field.actions(contexts, x_0), one_sample)


def points_before(actions: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Where the chains of `FLOW` that end at the actions are at times t."""
    width = ((1 - t) ** 2 + (t * FLOW.std) ** 2).sqrt()
    return FLOW.mean * t + width * (actions - FLOW.mean) / FLOW.std


def test_reversed_points_lead_to_the_action() -> None:
    """Backward Euler steps find the exact flow's points, up to the error of the step."""
    actions, t = torch.linspace(-0.4, 0.8, 50)[:, None], torch.linspace(0, 1, 50)[:, None]
    errors = []
    for steps in (20, 40, 80):
        points = reverse(FLOW, actions, actions, t, steps)
        assert torch.equal(points[-1], actions[-1]), "no step is left at t = 1"
        errors.append((points - points_before(actions, t)).abs().mean().item())
    assert 0.2 > errors[0] > 1.6 * errors[1] > 2.5 * errors[2]  # first order


def rql(dataset: TransitionDataset, **kwargs: Any) -> RQL:
    """An RQL agent whose policy starts as `FLOW`, with steps as small as backward steps need."""
    own = as_behavior(lambda s, x_t, t: FLOW(s, x_t, t), flow_steps=20)
    few = known(RQL, {**SMALL, "critic_steps": 0, "critic_members": 2, "expectile": 0.5})
    env = flow_env(dataset, flow_steps=20)
    return RQL("MlpPolicy", env, behavior=own, **{**few, **kwargs})


def test_the_value_of_a_point_is_q_of_the_action_it_becomes() -> None:
    actions = FLOW.mean + FLOW.std * np.random.default_rng(0).standard_normal((2000, 1))
    agent = rql(bandit(actions, -((actions[:, 0] - 0.7) ** 2)), value_steps=500)
    agent.learn(500, log_interval=0)
    wanted = torch.linspace(-0.2, 0.6, 40)[:, None]
    q = -agent.data.reward_scale * (wanted - 0.7).square()
    for time in (0.0, 0.5, 0.95, 1.0):
        t = torch.full_like(wanted, time)
        inputs = torch.cat([torch.zeros_like(wanted), points_before(wanted, t), t], 1)
        found = agent.value(inputs).mean(0)
        assert (found - q).abs().mean() < 0.15 * q.std(), time


def test_half_of_the_batch_is_reversed_to_where_chains_stand() -> None:
    agent = rql(two_modes(), batch_size=2000)
    batch = agent.sample()
    rows = agent.reversal(batch)
    free, grid = rows.t[:1000, 0].sort().values, 20 * rows.t[1000:, 0]
    torch.testing.assert_close(free, torch.linspace(0, 1, 1000), atol=0.06, rtol=0)
    torch.testing.assert_close(grid.unique(), torch.arange(21.0))
    assert torch.equal(rows.points[1000:][grid == 20], batch.actions[1000:][grid == 20])


@pytest.mark.parametrize("expectile", [0.5, 0.9])
def test_every_value_network_finds_the_expectile_of_its_targets(expectile: float) -> None:
    class Constants(torch.nn.Module):
        """Three values, whatever the point."""

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return values[:, None, None].expand(-1, len(inputs), 1)

    targets, one = torch.arange(5.0), torch.zeros(5, 1)
    values = torch.tensor([0.0, 1.0, 4.0], requires_grad=True)
    optimizer = torch.optim.SGD([values], lr=0.5)
    for _ in range(300):
        loss, _ = value_loss(Constants(), Reversed(one, one, one, targets), expectile=expectile)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    above, below = (targets - values[:, None]).relu(), (values[:, None] - targets).relu()
    torch.testing.assert_close(expectile * above.sum(1), (1 - expectile) * below.sum(1))
    torch.testing.assert_close(values, values[:1].expand(3), rtol=0, atol=1e-4)


@pytest.mark.parametrize("path", PATHS)
def test_the_policy_climbs_from_points_of_the_path_while_it_matches_the_flow(path: str) -> None:
    """Against the gradient of alpha ||u - dx_t/dt||^2 - V(x_t + h u) / mean |V| by hand."""

    class Quadratic(torch.nn.Module):
        """V is -(x - 0.7)^2 - t, by two members that are one too high and one too low."""

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            value = -(inputs[:, 1:3] - 0.7).square().sum(1, keepdim=True) - inputs[:, 3:]
            return torch.stack([value + 1, value - 1])

    class Given(torch.nn.Module):
        """The velocities below."""

        def forward(self, context: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> Any:
            return velocity

    generator = torch.Generator().manual_seed(0)
    velocity, x_0, x_1 = torch.randn((3, 64, 2), generator=generator)
    velocity.requires_grad_()
    t = torch.linspace(0, 1, 64)[:, None]
    valid = torch.ones(64, 2)
    valid[::2, 1] = 0  # every second chunk lacks its last action
    batch: Any = SimpleNamespace(contexts=torch.zeros(64, 1), actions=x_1, valid=valid)
    networks = RQLNetworks(Given(), Quadratic())
    loss, info = policy_loss(
        networks, batch, FlowNoise(x_0, t), alpha=0.3, flow_steps=5, path=PATHS[path]
    )
    loss.backward()
    h = torch.minimum(torch.tensor(0.2), 1 - t)
    following = PATHS[path].point(x_0, x_1, t) + h * velocity
    away = valid * (velocity - PATHS[path].velocity(x_0, x_1, t))
    scale = ((following - 0.7).square().sum(1) + (t + h)[:, 0]).mean()
    expected = (0.3 * 2 * away + 2 * h * (following - 0.7) / scale) / 64
    torch.testing.assert_close(velocity.grad, expected)
    torch.testing.assert_close(info["bc_loss"], away.square().sum(1).mean())


def test_rebrac_pays_for_leaving_the_recorded_next_action() -> None:
    data = toy_dataset()
    env = FlowMDPEnv(PointRobot(), dataset=data, flow_steps=1)
    agent = ReBRAC("MlpPolicy", env, **known(ReBRAC, {**SMALL, "critic_steps": 0}))
    batch = agent.data.sample(512, torch.Generator().manual_seed(0))
    actions, penalty = agent.next_actions(batch)
    rows = batch.rows.numpy()
    last = np.append(data.starts[1:], True)[rows]
    expected = ((actions.numpy() - data.actions[(rows + 1) % len(data)]) ** 2).sum(-1)
    np.testing.assert_allclose(
        penalty.numpy(), agent.data.reward_scale * expected * ~last, rtol=1e-4
    )
    assert last.any() and (penalty[torch.as_tensor(~last)] > 0).all()


@pytest.mark.parametrize(("cls", "fits"), [(ReBRAC, False), (FQL, False), (IQL, True)])
def test_a_state_value_that_nothing_reads_is_not_fitted(cls: Any, fits: bool) -> None:
    env = FlowMDPEnv(PointRobot(), dataset=toy_dataset(), flow_steps=1)
    options = known(cls, {**SMALL, "behavior_steps": 0, "critic_steps": 0})
    agent = cls("MlpPolicy", env, **options)
    before = {name: value.clone() for name, value in agent.critic.state_dict().items()}
    agent.learn(2, log_interval=0)
    moved = {
        name for name, value in agent.critic.state_dict().items() if (value != before[name]).any()
    }
    assert any(name.startswith("v.") for name in moved) == fits
    assert any(name.startswith("q.") for name in moved)


@pytest.mark.parametrize("cls", [IQL, ReBRAC, FQL, IFQL, QC])
def test_one_step_agents_want_one_flow_step(cls: Any) -> None:
    env = FlowMDPEnv(PointRobot(), dataset=toy_dataset(), flow_steps=3)
    with pytest.raises(ConfigurationError, match="flow_steps=1, not 3"):
        cls("MlpPolicy", env, **known(cls, SMALL))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("iql", {"beta": -1.0}),
        ("rebrac", {"actor_bc": -1.0}),
        ("rebrac", {"critic_bc": -1.0}),
        ("fql", {"alpha": -1.0}),
        ("ifql", {"samples": 0}),
        ("qc", {"samples": 0}),
        ("fql", {"best_of": 0}),
        ("df-dir", {"critic": "iql", "best_of": 2}),
        ("rql", {"alpha": -1.0}),
        ("rql", {"value_steps": -1}),
        ("rql", {"expectile": 0.4}),
        ("rql", {"critic_members": 1, "pessimism": 1.0}),
    ],
)
def test_arguments_out_of_range_are_refused(name: str, kwargs: dict[str, Any]) -> None:
    cls = get_algorithm(name)
    env = flow_env(two_modes(), flow_steps=cls.only_flow_steps or STEPS)
    with pytest.raises(ConfigurationError, match=next(reversed(kwargs))):
        cls("MlpPolicy", env, **{**known(cls, SMALL), **kwargs})
