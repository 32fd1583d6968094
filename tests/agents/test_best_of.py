"""The best of several actions in a critic's target: by hand, and where nothing else finds it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowmdp.agents.core.best_of import shifted_noises
from flowmdp.agents.core.critics import favourites
from flowmdp.mdp.solver import integrate
from flowmdp.runs.config import get_algorithm
from tests.agents.test_contract import few, make
from tests.agents.toys import STEPS, detour, flow_env, pretrain

BATCH, N = 16, 5
GENERATOR = torch.Generator().manual_seed(0)


def estrange(network: torch.nn.Module) -> None:
    """Make a target network another one than the network it follows."""
    for weight in network.parameters():
        weight.add_(torch.randn(weight.shape, generator=GENERATOR))


def check(agent: Any, observations: Tensor, candidates: Tensor, found: Tensor) -> None:
    """In a loop: what was found is one of the candidates, and none has a higher value."""
    for state, actions, one in zip(observations, candidates, found, strict=True):
        q = [agent.critic.values(state[None], a[None], target=True).item() for a in (one, *actions)]
        assert q[0] == pytest.approx(max(q), abs=1e-5)
        assert (actions - one).abs().amax(1).min() < 1e-5


@torch.no_grad()
def test_the_favourite_is_the_candidate_of_the_highest_target_value() -> None:
    agent = make("fql")
    estrange(agent.critic.target_q)
    observations, candidates = (
        torch.randn(shape, generator=GENERATOR) for shape in ((BATCH, 2), (BATCH, N, 2))
    )
    found = favourites(agent.critic, observations, candidates, target=True)
    check(agent, observations, candidates, found)
    assert not torch.equal(found, favourites(agent.critic, observations, candidates))
    assert torch.equal(favourites(None, observations, candidates[:, :1]), candidates[:, 0])  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("name", ["fql", "df-dir", "df-div", "qc", "rql", "dsrl"])
def test_the_target_is_the_best_of_the_policy_s_actions(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    option: dict[str, Any] = {"samples": N} if name == "qc" else {"best_of": N}
    still: dict[str, Any] = {"value_steps": 0} if name == "rql" else {"smoothing": 0.0}
    agent = make(name, batch_size=BATCH, precision="float32", **option, **still)
    with torch.enable_grad():
        agent.learn(2)
    estrange(agent.target_value if name == "rql" else agent.critic.target_q)
    drawn: list[Tensor] = []
    seen: dict[str, Any] = {}

    def noise_like(actions: Tensor) -> Tensor:
        drawn.append(torch.randn(actions.shape, generator=GENERATOR))
        return drawn[-1]

    def learn(loss: Any, batch: Any, next_actions: Tensor) -> dict[str, Tensor]:
        seen["actions"] = next_actions
        raise StopIteration

    monkeypatch.setattr(agent, "noise_like", noise_like)
    monkeypatch.setattr(agent.critic_part if name != "rql" else agent, "learn", learn)
    batch = agent.sample()
    monkeypatch.setattr(agent, "sample", lambda: batch)
    if name == "rql":
        targets = agent.targets(batch)
    else:
        with pytest.raises(StopIteration):
            agent.update()
    x_0 = agent.spec.noise_scale * drawn[0]
    if name == "qc":
        noises = shifted_noises(x_0, agent.choice.shifts, agent.spec.noise_scale)
    elif name in ("fql", "rql", "dsrl"):
        noises = x_0.reshape(BATCH, N, 2)
    else:
        noises = x_0.reshape(N, BATCH, 2).transpose(0, 1)
    observations, contexts = batch.flow_states if "df" in name else batch[5:7]
    if name == "rql":
        zero = torch.zeros(BATCH, 1)
        values = [
            agent.critic.aggregate(
                agent.target_value(torch.cat([contexts, noises[:, i], zero], 1)).squeeze(-1)
            )
            for i in range(N)
        ]
        best = torch.stack(values).max(0).values
        expected = batch.rewards + agent.config.gamma * batch.masks * best
        torch.testing.assert_close(targets, expected)
        return
    field: Any = agent.flow if name == "qc" else agent.policy.field if name == "fql" else None
    candidates = []
    for i in range(N):
        if name == "fql":
            actions = field.actions(contexts, noises[:, i])
        elif name == "dsrl":
            z = agent.policy.field.actor(contexts, noises[:, i] / agent.spec.noise_scale)
            actions = agent.flow.actions(contexts, z)
        else:
            flow, steps = field or agent.policy.ema, 10 if name == "qc" else agent.rollout_steps
            actions = integrate(partial(flow, contexts), noises[:, i], steps)
        candidates.append(actions.clamp(-1, 1))
    check(agent, observations, torch.stack(candidates, 1), seen["actions"])


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where behaviour flows and critics are kept between tests."""
    return tmp_path_factory.mktemp("pretrained")


@pytest.mark.parametrize(
    ("name", "option", "near"),
    [
        ("qc", "samples", {}),
        ("df-dir", "best_of", {"rho": 1000.0, "smoothing": 0.0}),
    ],
)
def test_what_only_the_best_of_the_actions_to_come_makes_worth_while(
    name: str, option: str, near: dict[str, Any], pretrained: Path
) -> None:
    """Two policies that stay with the behaviour: what differs is what the critic expects of it."""

    def gain(n: int) -> float:
        cls: Any = get_algorithm(name)
        env = flow_env(detour(), flow_steps=cls.only_flow_steps or STEPS)
        steps = few(name, behavior_steps=300, critic_steps=200)
        rates = {"behavior_learning_rate": 2e-3, "critic_learning_rate": 1e-3}
        settings = {**steps, **rates, **near, option: n, "critic_members": 2, "pessimism": 0.0}
        agent = cls(
            "MlpPolicy", env, net_arch=(32, 32), batch_size=32, seed=0, device="cpu", **settings
        )
        pretrain(agent, pretrained)
        agent.critic.tau = 0.05
        agent.learn(150, log_interval=0)
        state = agent.policy.normalizer(torch.zeros(2, 1))
        actions = torch.tensor([[-0.5], [0.5]])
        with torch.no_grad():
            ends, goes_on = agent.critic.values(state, actions)
        return float((goes_on - ends) / agent.data.reward_scale)

    assert gain(1) < -0.05  # -0.3 when it has learned all: 0.1 - 0.4
    assert gain(16) > 0.3  # 0.4 and more: 0.8 to 1 - 0.4
