"""The agents' formulas against closed forms and values computed by hand."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from flowmdp.agents import DFDir, DFDiv
from flowmdp.agents.core.anchor import Anchor
from flowmdp.agents.core.batch import Batch, lambda_returns, reward_scale
from flowmdp.agents.core.critics import (
    Critic,
    average_value,
    return_targets,
    smoothed,
    value_loss,
)
from flowmdp.agents.core.flow_matching import FlowNoise, flow_matching_loss
from flowmdp.agents.core.networks import (
    Descent,
    EnsembleMlp,
    FlowCritic,
    Info,
    Normalizer,
    VelocityField,
    polyak,
)
from flowmdp.agents.df_dir import FlowPairs, Networks, endpoint_objective, flow_critic_loss
from flowmdp.agents.df_div import flow_returns, learned_steps
from flowmdp.errors import ConfigurationError
from flowmdp.mdp.divergences import DIVERGENCES, direction, smooth_norm, squared
from flowmdp.mdp.path import PATHS
from tests.agents.toys import QuadraticCritic
from tests.mdp.toys import toy_dataset

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR)


def test_an_ensemble_is_its_members() -> None:
    ensemble = EnsembleMlp(3, 2, [8, 8], members=4, layer_norm=True)
    inputs = randn(5, 3)
    together = ensemble(inputs)
    assert together.shape == (4, 5, 2)
    for i in range(4):
        hidden = inputs
        for layer, (weight, bias) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
            hidden = hidden @ weight[i] + bias[i]
            if layer < 2:
                hidden = nn.functional.gelu(nn.functional.layer_norm(hidden, (8,)))
        torch.testing.assert_close(together[i], hidden)
    assert not torch.allclose(together[0], together[1])


def test_polyak_moves_by_its_rate() -> None:
    source, target = [torch.ones(3)], [torch.zeros(3)]
    polyak(source, target, 0.25)
    torch.testing.assert_close(target[0], torch.full((3,), 0.25))


def test_a_field_without_time_does_not_see_it() -> None:
    blind = VelocityField(2, 2, [8], include_time=False)
    seeing = VelocityField(2, 2, [8])
    context, x_t = randn(4, 2), randn(4, 2)
    assert torch.equal(blind(context, x_t, 0.1), blind(context, x_t, 0.9))
    assert not torch.allclose(seeing(context, x_t, 0.1), seeing(context, x_t, 0.9))


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("length", [1, 7, 400])
def test_lambda_returns_are_the_recursion_to_the_last_bit(
    chunk: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across blocks, many episodes at once and few long ones."""
    monkeypatch.setattr("flowmdp.agents.core.batch.BLOCK", 500)
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, n := 1201, generator=generator)
    masks, continues = torch.rand(2, n, generator=generator) > 0.001
    continues[length - 1 :: length] = False
    wanted = [0.0] * (n + chunk)
    mix = 0.9 * continues.float()
    discounts = 0.99 * masks.float()
    constant = (rewards + discounts * (1 - mix) * values).tolist()
    for i, factor in reversed([*enumerate((discounts * mix).tolist())]):
        wanted[i] = constant[i] + factor * wanted[i + chunk]
    found = lambda_returns(rewards, values, masks, continues, 0.99, 0.9, chunk)
    assert found.tolist() == torch.tensor(wanted[:n]).tolist()


def test_lambda_returns_by_hand() -> None:
    # two episodes: one truncated after two steps, one terminated after three
    rewards = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    next_values = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])
    masks = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    continues = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    gamma = 0.5
    monte_carlo = lambda_returns(rewards, next_values, masks, continues, gamma, 1.0)
    second = 2 + gamma * 20  # truncated: bootstraps
    fourth = 4 + gamma * 5  # the episode ends with 5, terminated
    expected = torch.tensor([1 + gamma * second, second, 3 + gamma * fourth, fourth, 5])
    torch.testing.assert_close(monte_carlo, expected)
    one_step = lambda_returns(rewards, next_values, masks, continues, gamma, 0.0)
    torch.testing.assert_close(one_step, rewards + gamma * masks * next_values)
    half = lambda_returns(rewards, next_values, masks, continues, gamma, 0.5)
    assert half[0] == pytest.approx(1 + gamma * (0.5 * 10 + 0.5 * second))
    as_one_episode = lambda_returns(rewards, next_values, masks, torch.ones(5), gamma, 1.0)
    assert not torch.allclose(as_one_episode, monte_carlo)  # boundaries matter


def test_flow_returns_by_hand() -> None:
    divergences = torch.tensor([[1.0], [2.0], [3.0]])
    terminal, rho = torch.tensor([10.0]), 0.6
    returns = flow_returns(divergences, terminal, rho)
    step = rho / 3
    expected = torch.tensor([[10 - 6 * step], [10 - 5 * step], [10 - 3 * step]])
    torch.testing.assert_close(returns, expected)
    # G_0 is the sum of the flow MDP's rewards and the terminal value
    assert returns[0].item() == pytest.approx(-step * divergences.sum().item() + 10)


def test_expectile_regression_finds_the_expectile() -> None:
    targets = torch.tensor([0.0, 1.0])
    value = torch.tensor(0.5, requires_grad=True)
    critic: Any = SimpleNamespace(expectile=0.8, state_values=lambda _: value.expand(2))
    batch: Any = SimpleNamespace(observations=None)
    optimizer = torch.optim.SGD([value], lr=0.1)
    for _ in range(300):
        loss = value_loss(critic, batch, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert value.item() == pytest.approx(0.8, abs=1e-3)  # of 0 and 1 the expectile is itself


def test_no_gradient_from_advantages_to_the_critic() -> None:
    critic = Critic(2, 2, [8])
    actions = randn(4, 2).requires_grad_()
    gradient = torch.autograd.grad(critic.advantages(randn(4, 2), actions).sum(), actions)[0]
    assert gradient.abs().sum() > 0
    assert all(parameter.grad is None for parameter in critic.parameters())


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_are_zero_only_apart(name: str) -> None:
    divergence = DIVERGENCES[name]
    velocity = randn(6, 3).requires_grad_()
    assert divergence(velocity, velocity.detach()).abs().max() < 1e-6
    assert (divergence(velocity, -velocity.detach()) > 0).all()
    divergence(velocity, velocity.detach()).sum().backward()  # the warm start
    assert velocity.grad is not None and torch.isfinite(velocity.grad).all()


def test_divergences_sum_over_dimensions() -> None:
    one, zero = torch.ones(1, 4), torch.zeros(1, 4)
    assert squared(one, zero).item() == 4
    assert smooth_norm(one, zero).item() == pytest.approx(2, abs=0.02)


def test_the_direction_is_a_unit_vector_and_safe_at_zero() -> None:
    velocity = randn(5, 3).requires_grad_()
    unit = direction(velocity, 1e-6)
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(5))
    weights = randn(5, 3)
    gradient = torch.autograd.grad((unit * weights).sum(), velocity)[0]
    assert (gradient * velocity).sum(-1).abs().max() < 1e-4  # it only rotates
    assert ((weights * velocity).sum(-1).abs() > 1e-2).any()  # control: other gradients do not
    zero = torch.zeros(1, 3, requires_grad=True)
    gradient = torch.autograd.grad(direction(zero, 1e-2).sum(), zero)[0]
    assert torch.isfinite(gradient).all()


def test_the_flow_critic_learns_the_endpoint_oracle() -> None:
    """On data pairs Q^f(s, x_t, u, t) is A(s, x_t + (1 - t) u)."""
    torch.manual_seed(0)
    critic = QuadraticCritic(best=0.3, curvature=1.0)
    flow_q, flow_v = (FlowCritic(1, 1, [64, 64], sees_velocity=True) for _ in range(2))
    networks = Networks(flow_q, flow_q, critic, flow_q, flow_v)  # type: ignore[arg-type]
    descent = Descent(nn.ModuleList([flow_q, flow_v]), 3e-3, 10.0)

    def pairs(n: int) -> FlowPairs:
        x_0, x_1, t = randn(n, 1), 0.4 * randn(n, 1), torch.rand((n, 1), generator=GENERATOR) * 0.9
        context = torch.zeros(n, 1)
        values = critic.advantages(context, x_1.clamp(-1, 1))
        path = PATHS["linear"]
        return FlowPairs(
            context, context, path.point(x_0, x_1, t), t, path.velocity(x_0, x_1, t), values
        )

    for _ in range(400):
        descent.step(flow_critic_loss(networks, pairs(256))[0])
    held_out = pairs(1000)
    oracle = endpoint_objective(networks, held_out, held_out.velocities)
    torch.testing.assert_close(oracle, held_out.values, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        learned = flow_q(held_out.contexts, held_out.points, held_out.t, held_out.velocities)
        blind = flow_v(
            held_out.contexts, held_out.points, held_out.t, direction(held_out.velocities, 1e-2)
        )
    explained = 1 - (learned - oracle).square().mean() / oracle.var()
    explained_blind = 1 - (blind - oracle).square().mean() / oracle.var()
    assert explained > 0.9
    assert explained_blind < explained  # the direction alone knows less


def test_flow_matching_loss_is_zero_for_the_exact_field() -> None:
    class ToPoint(nn.Module):
        """The velocity of straight lines to one point."""

        def forward(
            self, context: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor
        ) -> torch.Tensor:
            return (0.5 - x_t) / (1 - t)

    x_1, x_0 = torch.full((64, 2), 0.5), randn(64, 2)
    t = torch.rand((64, 1), generator=GENERATOR) * 0.9
    near, far = (
        cast(Batch, SimpleNamespace(contexts=x_1, actions=x, valid=None)) for x in (x_1, -x_1)
    )
    assert flow_matching_loss(ToPoint(), near, FlowNoise(x_0, t))[0] < 1e-8
    assert flow_matching_loss(ToPoint(), far, FlowNoise(x_0, t))[0] > 0.1


def test_targets_of_the_data_bootstrap_where_nothing_terminated() -> None:
    from flowmdp.env import FlowMDPEnv

    env = FlowMDPEnv(states="dataset", reward="data", dataset=toy_dataset(), flow_steps=2)
    agent = DFDiv("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, gamma=0.5, device="cpu")
    critic = agent.critic
    targets = return_targets(critic, agent.data, lam=1.0)
    with torch.no_grad():
        next_values = critic.target_v(agent.data.states_after(torch.arange(len(agent.data))))[
            0, :, 0
        ]
    torch.testing.assert_close(targets.q, agent.data.rewards + 0.5 * next_values)
    last = np.flatnonzero(agent.data.continues.numpy() == 0)
    torch.testing.assert_close(targets.v[last], targets.q[last])
    before = last - 1
    torch.testing.assert_close(
        targets.v[before], agent.data.rewards[before] + 0.5 * targets.v[last]
    )


@pytest.mark.parametrize("length", [1, 10, 200])
def test_values_do_not_depend_on_where_a_time_limit_cuts(length: int) -> None:
    """One state, reward 0 or 1 at random: with gamma 0.99 the behaviour is worth 50."""
    from flowmdp.env import FlowMDPEnv

    n = 2000
    ends = np.arange(n) % length == length - 1
    data = dataclasses.replace(
        toy_dataset(n),
        observations=np.zeros((n, 2), np.float32),
        next_observations=np.zeros((n, 2), np.float32),
        rewards=np.random.default_rng(0).permutation(np.arange(n) % 2),
        truncations=ends,
        starts=np.roll(ends, 1),
    )
    env = FlowMDPEnv(states="dataset", reward="data", dataset=data, flow_steps=2)
    agent = DFDiv("MlpPolicy", env, net_arch=(16,), behavior_steps=0, critic_steps=30, seed=0)
    scale = agent.data.reward_scale
    average = average_value(agent.data, 0.99)
    assert average / scale == pytest.approx(50, rel=0.02)
    first = return_targets(agent.critic, agent.data, 1.0, average)
    assert first.v.mean() / scale == pytest.approx(50, rel=0.02)
    agent.pretrain()
    states = np.zeros((8, 2), np.float32)
    values = agent.q_values(states, data.actions[:8])
    assert values == pytest.approx(50 * scale, abs=2)  # a new network answers about 0 +- 2


def test_constant_coordinates_and_rewards_keep_their_unit() -> None:
    values = torch.randn((100, 4), generator=GENERATOR)
    values[:, 0] = 3.0
    values[:, 1] = 0.1 + 1e-9 * values[:, 1]
    values[:, 2] *= 1e-5
    normalizer = Normalizer(4)
    normalizer.fit(values)
    assert normalizer.std.tolist()[:2] == [1.0, 1.0]
    assert normalizer.std[2] == pytest.approx(1e-3) and normalizer.std[3] < 1.5
    moved = values + torch.tensor([0.01, 0.01, 0, 0])
    assert (normalizer(moved) - normalizer(values)).abs().max() < 0.02
    normalizer.fit(values[:1])  # one transition
    assert normalizer.std.tolist() == [1.0] * 4
    masks, continues = torch.ones(100), (torch.arange(100) % 10 != 9).float()
    constant = torch.full((100,), 0.1) + 1e-9 * values[:, 3]
    assert reward_scale(constant, masks, continues, 0.99) == 1
    assert reward_scale(values[:, 3], masks, continues, 0.99) != 1
    assert reward_scale(1e-6 * values[:, 3], masks, continues, 0.99) > 1e4  # small, not constant


def test_half_of_the_pairs_come_from_the_data() -> None:
    from flowmdp.env import FlowMDPEnv

    env = FlowMDPEnv(states="dataset", reward="data", dataset=toy_dataset(), flow_steps=4)
    agent = DFDir(
        "MlpPolicy",
        env,
        policy_kwargs={"net_arch": [8]},
        batch_size=32,
        objective="advantage",
        precision="float32",
        device="cpu",
        seed=0,
    )
    batch = agent.sample()
    x_0 = agent.noise_like(batch.actions)
    rollout = agent.roll_out(agent.policy.ema, *batch.flow_states, x_0).first(16)
    pairs = agent.pairs(batch, rollout)
    ends = pairs.points + (1 - pairs.t) * pairs.velocities
    torch.testing.assert_close(ends[16:], batch.actions[16:], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ends[:16], batch.actions[:16], atol=0.1)
    assert pairs.values is not None
    torch.testing.assert_close(
        pairs.values[:16], agent.critic.advantages(rollout.observations, rollout.actions)
    )


def test_smoothing_adds_clipped_noise_within_the_box() -> None:
    actions, noise = torch.full((5000, 2), 0.7), randn(5000, 2)
    noisy = smoothed(actions, noise, 0.1)
    assert noisy.max() == pytest.approx(0.95) and noisy.min() == pytest.approx(0.45)
    assert (noisy - actions).std().item() == pytest.approx(0.1, rel=0.05)
    assert smoothed(actions, noise, 1.0).max() == 1
    assert torch.equal(smoothed(actions, noise, 0.0), actions)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_critic_learns_of_smoothed_actions(
    smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowmdp.env import FlowMDPEnv

    env = FlowMDPEnv(states="dataset", reward="data", dataset=toy_dataset(), flow_steps=2)
    tiny = {"policy_kwargs": {"net_arch": [8]}, "behavior_steps": 1, "critic_steps": 1}
    agent = DFDir("MlpPolicy", env, smoothing=smoothing, device="cpu", **tiny)  # type: ignore[arg-type]
    agent.pretrain()
    chains: list[Any] = []
    targets: list[Any] = []
    roll_out, learn = agent.roll_out, agent.critic_part.learn

    def rolled(*args: object) -> object:
        chains.append(roll_out(*args))  # type: ignore[arg-type]
        return chains[-1]

    def learned(loss: Any, batch: Batch, next_actions: Any = None) -> Info:
        targets.append(next_actions)
        return learn(loss, batch, next_actions)

    monkeypatch.setattr(agent, "roll_out", rolled)
    monkeypatch.setattr(agent.critic_part, "learn", learned)
    agent.learn(1, log_interval=0)
    moved = (targets[0] - chains[0].actions).abs()
    assert moved.max() <= 2.5 * smoothing + 1e-6
    assert (moved.mean() > 0.1) == (smoothing > 0)


def test_a_noised_critic_judges_otherwise_by_the_same_state_values() -> None:
    from flowmdp.env import FlowMDPEnv

    env = FlowMDPEnv(states="dataset", reward="data", dataset=toy_dataset(), flow_steps=2)
    tiny = {"policy_kwargs": {"net_arch": [8]}, "behavior_steps": 1, "critic_steps": 20}
    clean, noised = (
        DFDir("MlpPolicy", env, critic="iql", critic_noise=noise, seed=0, device="cpu", **tiny)  # type: ignore[arg-type]
        for noise in (0.0, 0.5)
    )
    for agent in (clean, noised):
        agent.pretrain()
    batch = clean.sample()
    states = batch.observations
    assert torch.equal(clean.critic.v(states), noised.critic.v(states))
    values = torch.stack([agent.critic.values(states, batch.actions) for agent in (clean, noised)])
    assert torch.corrcoef(values)[0, 1] < 0.99
    with pytest.raises(ConfigurationError, match="iql"):
        DFDir("MlpPolicy", env, critic_noise=0.5)


@pytest.mark.parametrize(("chains", "flow_steps"), [(64, 10), (20, 10), (7, 3), (4, 1), (9, 2)])
def test_every_chain_is_learned_from_at_different_steps(chains: int, flow_steps: int) -> None:
    steps, chain, last = learned_steps(chains, flow_steps, torch.device("cpu"))
    rows = min(4, flow_steps)
    assert torch.equal(chain, torch.arange(chains).repeat(rows))
    assert len(set(zip(steps.tolist(), chain.tolist(), strict=True))) == rows * chains
    assert torch.equal(last, torch.nonzero(steps == flow_steps - 1)[:, 0])
    counts = torch.bincount(steps, minlength=flow_steps)
    assert counts.max() - counts.min() <= rows


def test_the_anchor_holds_its_budget() -> None:
    anchor = Anchor(rho=1.0, budget=0.5, behavior_weight=0.1)
    first, second = 2 * randn(20_000, 3), 2 * randn(20_000, 3)
    anchor.fit(torch.tensor(50.0), first, second)
    assert anchor.rho.item() == 1
    assert anchor.allowed.item() == pytest.approx(0.5 * 4, rel=0.05)  # 4: of each coordinate
    for _ in range(3000):  # a policy that moves as far as a quadratic value lets it
        anchor.steer(10 / anchor.rho**2)
    assert (10 / anchor.rho**2).item() == pytest.approx(anchor.allowed.item(), rel=0.01)


def test_with_a_budget_the_policy_starts_at_its_clone() -> None:
    anchor = Anchor(rho=None, budget=0.1, behavior_weight=0.1)
    anchor.fit(torch.tensor(50.0), randn(10, 3), randn(10, 3))
    assert anchor.rho.item() == pytest.approx(100)


@pytest.mark.parametrize(("rho", "expected"), [(3.0, 3.0), (None, 0.1 * 50)])
def test_without_a_budget_rho_stays(rho: float | None, expected: float) -> None:
    anchor = Anchor(rho, budget=None, behavior_weight=0.1)
    anchor.fit(torch.tensor(50.0), randn(10, 3), randn(10, 3))
    anchor.steer(torch.tensor(100.0))
    assert anchor.rho.item() == pytest.approx(expected)


def still_agent(cls: type[DFDir], **kwargs: Any) -> DFDir:
    """An agent whose policy and critic stay as they are."""
    from flowmdp.env import FlowMDPEnv

    env = FlowMDPEnv(states="dataset", reward="data", dataset=toy_dataset(), flow_steps=2)
    still: Any = {"learning_rate": 0.0, "critic_learning_rate": 0.0, "behavior_steps": 1}
    small: Any = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "critic_steps": 1}
    return cls("MlpPolicy", env, **small, **still, **kwargs)


@pytest.mark.parametrize(
    ("cls", "given", "weight"), [(DFDir, 0.5, 0.5), (DFDiv, 0.5, 0.5), (DFDir, None, 0.025)]
)
def test_rho_is_a_share_of_the_mean_q(cls: type[DFDir], given: float | None, weight: float) -> None:
    agent = still_agent(cls, behavior_weight=given).learn(1, log_interval=0)
    batch = agent.data.sample(4096, agent.generator)
    q = agent.critic.values(batch.observations, batch.actions).abs().mean()
    expected = weight * (q / agent.critic.scale).item()
    assert agent.anchor.rho.item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("cls", [DFDir, DFDiv])
def test_rho_falls_while_actions_have_not_moved(cls: type[DFDir]) -> None:
    agent = still_agent(cls, budget=0.1).learn(31, log_interval=0)
    assert agent.anchor.rho.item() == pytest.approx(100 * np.exp(-4 * Anchor.RATE), rel=1e-4)
