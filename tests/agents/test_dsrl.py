"""DSRL: the actor's density, the aliased critic, the entropy that the temperature holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from flowmdp.agents import DSRL
from flowmdp.agents.core.one_step import LOG_STD_RANGE
from flowmdp.agents.dsrl import LatentActor, LatentField, latent_values
from tests.agents.toys import flow_env, two_modes

SMALL: dict[str, Any] = {
    "net_arch": (64, 64),
    "batch_size": 64,
    "behavior_steps": 300,
    "critic_steps": 300,
    "device": "cpu",
    "seed": 0,
}
GENERATOR = torch.Generator().manual_seed(0)


def test_the_actors_density_is_the_one_it_samples() -> None:
    """The change of variables by autograd, in double precision."""
    actor = LatentActor(2, 3, (8,), bound=1.5)
    context, e = (torch.randn((500, n), generator=GENERATOR) for n in (2, 3))
    z, log_prob = actor.sample(context, e)
    mean, log_std = actor.mlp(context)[0].detach().double().chunk(2, -1)
    log_std = log_std.clamp(*LOG_STD_RANGE)
    raw = (mean + log_std.exp() * e).requires_grad_()
    squashed = torch.tanh(raw)
    slope = torch.autograd.grad(squashed.sum(), raw)[0]
    wanted = (Normal(mean, log_std.exp()).log_prob(raw) - slope.log()).sum(-1)
    torch.testing.assert_close(log_prob.double(), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(z.double(), 1.5 * squashed, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def agent() -> Any:
    """On the bandit whose better mode is a tenth of the data."""
    return DSRL("MlpPolicy", flow_env(two_modes(), flow_steps=1), noise_bound=2.0, **SMALL)


def test_the_latent_critic_knows_what_a_noise_becomes(agent: Any) -> None:
    """One network, no bootstrap: Q^z(s, z) is A(s, flow(s, z))."""
    agent.learn(400, log_interval=0)
    batch = agent.data.sample(1000, GENERATOR)
    z, earned = agent.aliased(batch)
    learned = latent_values(agent.latent_critic, batch.contexts, z).detach()
    explained = 1 - (learned - earned).square().mean() / earned.var()
    assert explained > 0.8
    shuffled = 1 - (learned.flip(0) - earned).square().mean() / earned.var()
    assert shuffled < 0


def test_the_temperature_holds_the_entropy() -> None:
    entropies = {}
    for target in (-1.0, 0.3):
        agent = DSRL(
            "MlpPolicy",
            flow_env(two_modes(), flow_steps=1),
            target_entropy=target,
            learning_rate=2e-2,
            **{**SMALL, "behavior_steps": 100, "critic_steps": 100},
        ).learn(250, log_interval=0)
        field = agent.policy.field
        assert isinstance(field, LatentField)
        e = torch.randn((2000, 1), generator=GENERATOR)
        context = torch.zeros(2000, agent.spec.context_dim)
        entropies[target] = -field.actor.sample(context, e)[1].mean().item()
    assert entropies == pytest.approx({-1.0: -1.0, 0.3: 0.3}, abs=0.3)


def test_zero_noise_is_the_actors_mean(agent: Any) -> None:
    states = np.zeros((4, 1), np.float32)
    mean = agent.act(states, noise=np.zeros((4, 1), np.float32))
    context = agent.policy.normalizer(torch.as_tensor(states))
    field = agent.policy.ema
    chain = agent.flow.actions(context, field.actor(context, torch.zeros(4, 1)))
    shifted = agent.act(states, noise=np.ones((4, 1), np.float32))
    np.testing.assert_allclose(mean[:, 0], chain[:, 0].detach().numpy(), atol=1e-5)
    assert np.abs(shifted - mean).max() > 1e-4
