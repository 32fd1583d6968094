"""DF-div's adjoint against closed forms: the best policy tilts its behaviour by exp(A / lambda)."""

from __future__ import annotations

from collections.abc import Iterator
from math import exp, log
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowmdp.agents import DFDiv, load_agent
from flowmdp.agents.core.adjoint import (
    FIRST_RHO,
    PATH_KL,
    NoisyChains,
    NoisySteps,
    PathAnchor,
    action_gradient,
    costates,
    matching_loss,
    noisy_chains,
    noisy_steps,
    roll_out,
)
from flowmdp.agents.core.anchor import Anchor
from flowmdp.agents.core.critics import Critic
from flowmdp.agents.df_div import DFDivConfig
from flowmdp.env import FlowMDPEnv
from flowmdp.errors import ConfigurationError
from flowmdp.runs.config import make_config
from tests.agents.test_contract import equal, flow_env, make, weights
from tests.agents.toys import GaussianField, QuadraticCritic, bandit, noise
from tests.agents.toys import flow_env as toy_env
from tests.mdp.toys import PointRobot, toy_dataset

STEPS = 10
BEHAVIOR = GaussianField(mean=-0.2, std=0.3)
CRITIC = QuadraticCritic(best=0.4, curvature=1.5)
GENERATOR = torch.Generator()


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Every test draws the same, whatever ran before."""
    GENERATOR.manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


class MixtureField(nn.Module):
    """The exact velocity of the straight path to Gaussians of one deviation; actions of width 1."""

    def __init__(self, shares: list[float], means: list[float], std: float) -> None:
        super().__init__()
        self.shares, self.means, self.std = torch.tensor(shares), torch.tensor(means), std

    def forward(self, context: Tensor, x_t: Tensor, t: float) -> Tensor:
        variance = (1 - t) ** 2 + (t * self.std) ** 2
        apart = x_t - t * self.means
        of_mode = torch.softmax(self.shares.log() - apart.square() / (2 * variance), -1)
        endpoints = self.means + t * self.std**2 / variance * apart
        velocity: Tensor = ((of_mode * endpoints).sum(-1, keepdim=True) - x_t) / (1 - t)
        return velocity

    def tilted(self, critic: Any, rho: float) -> Tensor:
        """Shares of the modes under pi_b exp(A / rho)."""
        actions = self.means + self.std * randn(20_000, 1)
        gains = critic.values(None, actions.reshape(-1, 1)).reshape(actions.shape) / rho
        return torch.softmax(self.shares.log() + gains.exp().mean(0).log(), 0)


class TableField(nn.Module):
    """u_v plus what is learned: a piecewise linear function of x at each step."""

    def __init__(self, behavior: nn.Module) -> None:
        super().__init__()
        self.behavior, self.added = behavior, nn.Parameter(torch.zeros(STEPS, 81))

    def forward(self, context: Tensor, x_t: Tensor, t: Tensor | float) -> Tensor:
        t = torch.as_tensor(t).expand(len(x_t), 1)
        rows = (t * STEPS).round().long()
        place = (x_t.clamp(-3.99, 3.99) + 4) * 10
        left = place.long()
        low, high = self.added[rows, left], self.added[rows, left + 1]
        velocity: Tensor = self.behavior(context, x_t, t) + torch.lerp(low, high, place - left)
        return velocity


class Hills:
    """A(s, a) of two hills at -0.5 and 0.5 with a valley between."""

    scale = 1.0

    def __init__(self, low: float, high: float, width: float) -> None:
        self.low, self.high, self.width = low, high, width

    def values(self, observations: Any, actions: Tensor) -> Tensor:
        hills = [
            height * (-(actions - at).square() / (2 * self.width**2)).exp()
            for height, at in ((self.low, -0.5), (self.high, 0.5))
        ]
        return torch.stack(hills).amax(0)[:, 0]


class Slope:
    """A(s, a) = slope a."""

    scale = 1.0

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def values(self, observations: Any, actions: Tensor) -> Tensor:
        return self.slope * actions[:, 0]


def matched(
    behavior: nn.Module, critic: Any, rho: float, variance: float, n: int = 1000, updates: int = 150
) -> tuple[TableField, float]:
    """The policy that the loss finds, and its path KL."""
    policy = TableField(behavior)
    steps, context = noisy_steps(STEPS, torch.tensor(variance)), torch.zeros(n, 0)
    path_kl = []
    for adam in descent(policy, updates):
        chains = noisy_chains(policy, behavior, critic, steps, context, context, randn(STEPS, n, 1))
        loss, info = matching_loss(policy, chains, steps=steps, rho=rho)
        path_kl.append(info["path_kl"].item())
        adam.zero_grad()
        loss.backward()
    return policy, float(np.mean(path_kl[-20:]))


def climbed(behavior: nn.Module, critic: Any, rho: float, updates: int = 100) -> TableField:
    """The policy that pays rho / flow_steps ||u - u_v||^2 on chains without noise."""
    policy, context = TableField(behavior), torch.zeros(500, 0)
    for adam in descent(policy, updates):
        x_t, paid = randn(500, 1), torch.zeros(500)
        for k in range(STEPS):
            u = policy(context, x_t, k / STEPS)
            paid = paid + (u - behavior(context, x_t, k / STEPS)).square().sum(-1)
            x_t = x_t + u / STEPS
        adam.zero_grad()
        (rho / STEPS * paid - critic.values(context, x_t)).mean().backward()
    return policy


def descent(policy: TableField, updates: int) -> Iterator[torch.optim.Adam]:
    """Adam, whose gradients the loop sets, with a rate that falls to 0."""
    adam = torch.optim.Adam([policy.added], 0.1)
    for update in range(updates):
        adam.param_groups[0]["lr"] = 0.1 * (1 - update / updates)
        yield adam
        adam.step()


@torch.no_grad()
def played(field: nn.Module, n: int = 20_000) -> Tensor:
    """Actions of chains without noise."""
    x_t = randn(n, 1)
    for k in range(STEPS):
        x_t = x_t + field(torch.zeros(n, 0), x_t, k / STEPS) / STEPS
    return x_t


def tilted_gaussian(rho: float) -> tuple[float, float]:
    """Mean and deviation of BEHAVIOR exp(CRITIC / rho)."""
    precision = BEHAVIOR.std**-2 + 2 * CRITIC.curvature / rho
    mean = BEHAVIOR.mean * BEHAVIOR.std**-2 + 2 * CRITIC.curvature * CRITIC.best / rho
    return mean / precision, precision**-0.5


@pytest.mark.parametrize("rho", [0.05, 0.3])
def test_a_gaussian_is_tilted_exactly(rho: float) -> None:
    """Ten Euler steps of the exact field are too narrow, by a third; the policy is as narrow."""
    policy, path_kl = matched(BEHAVIOR, CRITIC, rho, BEHAVIOR.std**2, n=500)
    mean, std = tilted_gaussian(rho)
    actions, exact = played(policy), played(GaussianField(mean, std))
    assert actions.mean().item() == pytest.approx(mean, abs=0.01)
    assert actions.std().item() == pytest.approx(exact.std().item(), rel=0.03)
    moved = (mean - BEHAVIOR.mean) ** 2
    kl = log(BEHAVIOR.std / std) + (std**2 + moved) / (2 * BEHAVIOR.std**2) - 0.5
    assert path_kl == pytest.approx(kl, rel=0.1)  # nothing of it is lost along the path
    for wrong in (rho / 2, 2 * rho):
        assert abs(tilted_gaussian(wrong)[0] - mean) > 0.03


@pytest.mark.parametrize("flow_steps", [2, 5, 10])
def test_chains_of_a_gaussian_have_the_marginals_of_the_path(flow_steps: int) -> None:
    steps = noisy_steps(flow_steps, torch.tensor(BEHAVIOR.std**2))
    points = roll_out(BEHAVIOR, steps, torch.zeros(40_000, 0), randn(flow_steps, 40_000, 1))
    for k in range(flow_steps):
        t = k / flow_steps
        std = ((1 - t) ** 2 + (t * BEHAVIOR.std) ** 2) ** 0.5
        assert points[k].std().item() == pytest.approx(std, rel=0.02)
        assert points[k].mean().item() == pytest.approx(t * BEHAVIOR.mean, abs=0.02)
    both = torch.stack([points[0][:, 0], points[-1][:, 0]])
    assert abs(torch.corrcoef(both)[0, 1].item()) < 0.02  # memoryless


def test_many_steps_are_girsanovs() -> None:
    steps, t = noisy_steps(1000, torch.tensor(0.09)), torch.arange(1000) / 1000
    middle = slice(100, 900)
    diffusion = 2 * (1 - t) / t
    torch.testing.assert_close(2 * steps.eta[middle], diffusion[middle])
    rate = 2 / 1000 / diffusion
    torch.testing.assert_close(steps.cost[middle], rate[middle], rtol=0.02, atol=0)
    drift = (steps.keep - 1) * 1000  # x' = x + h (2 u - x / t)
    torch.testing.assert_close(drift[middle], -1 / t[middle], rtol=0.02, atol=0)
    torch.testing.assert_close(
        steps.move[middle], torch.full_like(t[middle], 2 / 1000), rtol=0.02, atol=0
    )


def test_the_modes_of_a_mixture_are_weighted_by_their_values() -> None:
    """0.1 becomes 0.51; ten steps are short of it by a fifth."""
    behavior, critic, rho = MixtureField([0.9, 0.1], [-0.5, 0.5], 0.15), Slope(1.0), 0.45
    share = (played(matched(behavior, critic, rho, 0.11)[0]) > 0).float().mean().item()
    before = (played(behavior) > 0).float().mean().item()
    assert before == pytest.approx(0.1, abs=0.03)
    assert share == pytest.approx(behavior.tilted(critic, rho)[1].item(), abs=0.15)
    assert behavior.tilted(critic, 2 * rho)[1] < 0.3 and behavior.tilted(critic, rho / 2)[1] > 0.85


def test_three_narrow_modes_get_the_shares_of_a_discrete_choice() -> None:
    """0.6, 0.3, 0.1 times exp(A / lambda): 0.22, 0.37, 0.41."""
    behavior, critic, rho = MixtureField([0.6, 0.3, 0.1], [-0.6, 0.0, 0.6], 0.1), Slope(1.0), 0.5
    tilted = torch.softmax(behavior.shares.log() + behavior.means / rho, 0)
    actions = played(matched(behavior, critic, rho, 0.16)[0])[:, 0]
    nearest = (actions[:, None] - behavior.means).abs().argmin(1)
    shares = nearest.bincount(minlength=3) / len(actions)
    torch.testing.assert_close(shares, tilted, rtol=0, atol=0.05)
    assert (tilted - behavior.shares).abs().min() > 0.06


def test_mass_moves_between_modes_over_a_valley() -> None:
    """The squared distance keeps chains on their side, whatever its weight."""
    behavior, critic = MixtureField([0.9, 0.1], [-0.5, 0.5], 0.1), Hills(1.0, 2.0, 0.25)
    valley, low = critic.values(None, torch.tensor([[0.0], [-0.5]]))
    assert valley < 0.3 * low
    share = (played(matched(behavior, critic, 0.05, 0.1)[0]) > 0).float().mean()
    stays = (played(climbed(behavior, critic, 0.1)) > 0).float().mean()
    assert share > 0.7 and stays < 0.33


def test_costates_are_the_chains_derivatives() -> None:
    """Of the policy that is the behaviour, by finite differences."""
    first, last = randn(6, 16).double(), randn(16, 3).double()

    def field(context: Tensor, x_t: Tensor, t: float) -> Tensor:
        inputs = torch.cat([context, x_t, torch.full_like(x_t[:, :1], t)], -1)
        return torch.tanh(inputs @ first) @ last

    contexts, noises, final = (randn(*shape).double() for shape in ((4, 2), (5, 4, 3), (4, 3)))
    steps = NoisySteps(*(part.double() for part in noisy_steps(5, torch.tensor(0.2))))
    behavior = cast(nn.Module, field)
    points = roll_out(behavior, steps, contexts, noises)
    found, velocities = costates(behavior, steps, contexts, points, final)

    def end(k: int, x: Tensor) -> Tensor:
        for j in range(k, 5):
            x = steps.keep[j] * x + steps.move[j] * field(contexts, x, j / 5)
            x = x + steps.noise[j] * noises[j + 1] if j < 4 else x
        return (final * x).sum(-1)

    for k in range(1, 5):
        torch.testing.assert_close(velocities[k], field(contexts, points[k], k / 5))
        for i in range(3):
            moved = 1e-5 * torch.eye(3, dtype=torch.float64)[i]
            slope = (end(k, points[k] + moved) - end(k, points[k] - moved)) / 2e-5
            torch.testing.assert_close(found[k, :, i], slope, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found[0], found[1])


def test_the_loss_is_least_at_the_control_and_its_gradient_small_where_rho_is() -> None:
    steps = noisy_steps(4, torch.tensor(0.1))
    points, reference, along = randn(5, 3, 2), randn(4, 3, 2), randn(4, 3, 2)
    chains = NoisyChains(torch.zeros(3, 0), points, reference, along)

    def gradient(velocity: Tensor, rho: float) -> Tensor:
        velocity = velocity.flatten(0, 1).requires_grad_()
        policy = cast(nn.Module, lambda *state: velocity)
        loss, _ = matching_loss(policy, chains, steps=steps, rho=rho)
        (found,) = torch.autograd.grad(loss, velocity)
        return found.reshape(4, 3, 2)

    best = reference - steps.eta[:, None, None] / 0.3 * along
    assert gradient(best, 0.3).abs().max() < 1e-6
    torch.testing.assert_close(gradient(reference, 1e-6), along / 6)  # 2 p, the mean of 12 rows


def test_the_gradient_outside_the_box_is_its_edges() -> None:
    points = torch.tensor([[1.7], [1.0], [-3.0], [0.2]])
    gradient = action_gradient(cast(Critic, CRITIC), torch.zeros(4, 1), points)
    torch.testing.assert_close(gradient, -3.0 * (points.clamp(-1, 1) - 0.4))


def adjoint_agent(**kwargs: Any) -> Any:
    return make("df-div", **({"flow_value": "adjoint"} | kwargs))


@pytest.mark.parametrize("critic", ["td", "iql"])
@pytest.mark.parametrize("chunk", [1, 2])
def test_an_agent_learns_and_resumes_exactly(critic: str, chunk: int, tmp_path: Path) -> None:
    env = flow_env("df-div", chunk=chunk)
    agent = adjoint_agent(env=env, critic=critic).learn(12, log_interval=0)
    assert "value" not in agent.saved.modules
    assert agent.anchor.budget == PATH_KL * chunk
    agent.save(tmp_path / "agent.zip")
    again = load_agent(tmp_path / "agent.zip", env=env, device="cpu")
    for one in (agent, again):
        one.learn(12, reset_num_timesteps=False, log_interval=0)
    assert equal(weights(agent), weights(again))
    assert torch.equal(agent.anchor.rho, again.anchor.rho) and agent.anchor.rho < FIRST_RHO


def test_an_agent_finds_the_tilted_gaussian() -> None:
    agent = adjoint_agent(
        env=toy_env(bandit(np.zeros((64, 1)), np.zeros(64))),
        critic="iql",
        rho=0.3,
        policy_kwargs={"net_arch": (64, 64)},
        learning_rate=2e-3,
        ema_rate=0.02,
        batch_size=64,
    )
    agent.behavior, agent.critic, agent.prepared = BEHAVIOR, CRITIC, 1
    agent.anchor.variance.fill_(BEHAVIOR.std**2)
    agent.learn(250, log_interval=0)
    actions = agent.act(np.zeros((2000, 1), np.float32), noise=noise())
    assert actions.mean() == pytest.approx(tilted_gaussian(0.3)[0], abs=0.05)


def test_lambda_holds_the_path_kl() -> None:
    anchor = PathAnchor.of(DFDivConfig(flow_value="adjoint", budget=0.5), chunk=3)
    anchor.fit(torch.tensor(40.0), randn(500, 2), randn(500, 2))
    assert anchor.allowed == 1.5 and anchor.variance.item() == pytest.approx(1, abs=0.1)
    start = anchor.rho.item()
    anchor.steer(torch.tensor(3.0))
    assert anchor.rho.item() == pytest.approx(start * exp(Anchor.RATE))
    for config, rho in (
        (DFDivConfig(flow_value="adjoint", rho=0.2), 0.2),
        (DFDivConfig(flow_value="adjoint", behavior_weight=0.01), 0.4),
    ):
        fixed = PathAnchor.of(config, chunk=3)
        fixed.fit(torch.tensor(40.0), randn(500, 2), randn(500, 2))
        assert fixed.budget is None and fixed.rho.item() == pytest.approx(rho)


@pytest.mark.parametrize("budget", [0.5, 1.0])
def test_a_policy_that_learns_stays_at_the_budget(budget: float) -> None:
    anchor = PathAnchor.of(DFDivConfig(flow_value="adjoint", budget=budget), chunk=1)
    anchor.fit(torch.tensor(40.0), 0.3 * randn(500, 2), 0.3 * randn(500, 2))
    policy, critic, found = TableField(BEHAVIOR), cast(Critic, CRITIC), []
    steps, context = noisy_steps(STEPS, torch.tensor(BEHAVIOR.std**2)), torch.zeros(200, 0)
    adam = torch.optim.Adam([policy.added], 0.03)
    for _ in range(500):
        noises = randn(STEPS, 200, 1)
        chains = noisy_chains(policy, BEHAVIOR, critic, steps, context, context, noises)
        loss, info = matching_loss(policy, chains, steps=steps, rho=anchor.rho)
        anchor.steer(info["path_kl"])
        found.append(info["path_kl"].item())
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert np.mean(found[-100:]) == pytest.approx(budget, rel=0.05)
    assert found[0] < 0.1 * budget and anchor.rho < 0.5 * FIRST_RHO


def test_what_the_adjoint_excludes_gets_one_line() -> None:
    one_step = FlowMDPEnv(PointRobot(), dataset=toy_dataset(), flow_steps=1)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"divergence": "cosine"}, "pays the KL of paths, not cosine: leave divergence out"),
        ({"path": "trigonometric"}, 'needs path="linear"'),
        ({"env": flow_env("df-div", noise_scale=0.3)}, "noise_scale=1, not 0.3: make the environ"),
        (
            {"env": one_step},
            "flow_steps of at least 2, not 1",
        ),
        ({"behavior": lambda s, x, t: -x}, "leave behavior out"),
        ({"flow_value": "exact"}, "flow_value"),
    ]
    for kwargs, match in cases:
        with pytest.raises(ConfigurationError, match=match) as caught:
            adjoint_agent(**kwargs)
        assert "\n" not in str(caught.value)


def test_the_environment_has_noise_of_one(hopper_data: Path) -> None:
    agent = DFDiv("MlpPolicy", "FlowMDP-hopper-medium-v0", flow_value="adjoint", net_arch=(8,))
    assert agent.spec.noise_scale == 1.0
    config = make_config("df-div", "hopper-medium", flow_value="adjoint")
    assert config["flow"]["noise_scale"] == 1.0
    with pytest.raises(ConfigurationError, match="--noise-scale 1"):
        make_config("df-div", "hopper-medium", flow_value="adjoint", noise_scale=0.3)
