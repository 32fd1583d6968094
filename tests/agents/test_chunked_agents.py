"""Agents with chunks: each learns, acts and is saved; what the data never did clones nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowmdp.agents import ALGORITHMS, load_agent
from flowmdp.agents.core.config import BestOfConfig
from flowmdp.agents.iql import Networks as IQLNetworks
from flowmdp.agents.iql import policy_loss as iql_loss
from flowmdp.agents.rebrac import Networks as ReBRACNetworks
from flowmdp.agents.rebrac import policy_loss as rebrac_loss
from flowmdp.env import FlowMDPEnv
from flowmdp.transitions import TransitionDataset
from tests.agents.reference import ACTION_DIM, dataset
from tests.agents.test_contract import TINY, equal, few, weights

CHUNK = 3
DATA = dataset()
ENDS = np.flatnonzero(DATA.terminations)


def make(name: str, chunk: int = CHUNK, data: TransitionDataset = DATA, **kwargs: Any) -> Any:
    """A tiny agent of this algorithm that learns from these data in chunks."""
    cls = ALGORITHMS[name]
    env = FlowMDPEnv(
        states="dataset",
        reward="data",
        dataset=data,
        flow_steps=cls.only_flow_steps or 2,
        chunk=chunk,
        **cls.environment,
    )
    return cls("MlpPolicy", env, **{**TINY, **few(name), **kwargs})


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_agent_learns_acts_and_is_saved(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = (
        {"best_of": 2} if issubclass(ALGORITHMS[name].config_class, BestOfConfig) else {}
    )
    agent = make(name, **options).learn(3, log_interval=0)
    states = DATA.observations[:4]
    noise = np.random.default_rng(0).standard_normal((4, CHUNK * ACTION_DIM), np.float32)
    chunks = agent.act(states, noise=noise)
    assert chunks.shape == noise.shape and (np.abs(chunks) <= 1).all()
    if hasattr(agent, "critic"):
        assert agent.critic.gamma == agent.config.gamma**CHUNK
    agent.save(tmp_path / "agent.zip")
    again = load_agent(tmp_path / "agent.zip", env=agent.env, device="cpu")
    np.testing.assert_array_equal(again.act(states, noise=noise), chunks)
    assert equal(weights(again.learn(2, log_interval=0)), weights(agent.learn(2, log_interval=0)))
    policy, state = agent.outer_policy(), None
    for step in range(CHUNK + 1):  # a whole chunk, and the first action of the next one
        actions, state = policy.predict(states, state, deterministic=True)
        assert actions.shape == (4, ACTION_DIM), step


def cut_short(agent: Any) -> Any:
    """A batch of chunks of which a termination left one or two actions."""
    data, rows = agent.data, torch.as_tensor(np.concatenate([ENDS, ENDS - 1]))
    sampled = data.sample(len(rows), torch.Generator().manual_seed(0))
    batch = sampled._replace(
        rows=rows,
        observations=data.observations[rows],
        contexts=data.observations[rows],
        actions=data.chunks(rows),
        valid=data.valid(rows),
    )
    assert batch.valid.sum() == 3 * ACTION_DIM * len(ENDS)
    return batch


def otherwise(batch: Any) -> tuple[Any, Any]:
    """Other numbers where no action was taken, and where one was."""
    other = torch.rand(batch.actions.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return (
        batch._replace(actions=torch.where(batch.valid > 0, batch.actions, other)),
        batch._replace(actions=torch.where(batch.valid > 0, other, batch.actions)),
    )


@torch.no_grad()
@pytest.mark.parametrize("name", ["iql", "rebrac"])
def test_cloning_ignores_actions_that_were_never_taken(name: str) -> None:
    agent = make(name)
    batch = cut_short(agent)

    def loss(batch: Any) -> float:
        if name == "iql":  # with beta = 0 every transition weighs the same
            networks = IQLNetworks(agent.policy.field, agent.critic)
            return iql_loss(networks, batch, beta=0.0)[0].item()
        networks_ = ReBRACNetworks(agent.policy.field, agent.critic)
        return rebrac_loss(networks_, batch, actor_bc=1.0)[0].item()

    padding, actions = map(loss, otherwise(batch))
    assert padding == loss(batch) != actions


@torch.no_grad()
def test_rebrac_compares_with_the_next_chunk_as_far_as_it_was_taken() -> None:
    agent = make("rebrac")
    data = agent.data
    rows = torch.as_tensor(np.concatenate([ENDS - CHUNK, ENDS - 2 * CHUNK, ENDS]))
    batch = data.sample(len(rows), torch.Generator().manual_seed(0))._replace(rows=rows)
    actions, penalty = agent.next_actions(batch)
    for row, ours, found in zip(rows.tolist(), actions, penalty, strict=True):
        end = int(ENDS[ENDS >= row].min())
        theirs = DATA.actions[row + CHUNK : min(row + 2 * CHUNK, end + 1)].ravel()
        expected = 0.0 if row == end else ((ours[: len(theirs)].numpy() - theirs) ** 2).sum()
        assert found.item() == pytest.approx(data.reward_scale * expected, rel=1e-5)


@pytest.mark.parametrize("name", ["rql", "rebrac"])
def test_what_follows_a_chunk_is_discounted_as_a_chunk(name: str) -> None:
    """Without rewards, and where V' or Q' is 1 everywhere, targets are gamma ** chunk."""
    agent = make(name, gamma=0.5, **({"value_steps": 0} if name == "rql" else {"critic_bc": 1.0}))
    batch = agent.sample()._replace(
        rewards=torch.zeros(16), masks=torch.ones(16), rows=torch.arange(16)
    )
    if name == "rql":
        for module in (agent.target_value, agent.value):
            for parameter in module.parameters():
                torch.nn.init.zeros_(parameter)
            torch.nn.init.ones_(module.biases[-1])
        torch.testing.assert_close(agent.targets(batch), torch.full((16,), 0.5**CHUNK))
        return
    seen = []

    def learn(loss: Any, batch: Any, actions: Any) -> dict[str, Any]:
        seen.append(batch.rewards)
        return {}

    agent.sample = lambda: batch
    agent.critic_part.learn = learn
    agent.next_actions = lambda batch: (batch.actions, torch.ones(16))
    agent._n_updates = 1  # the critic's turn alone
    agent.update()
    torch.testing.assert_close(seen[0], torch.full((16,), -(0.5**CHUNK)))


def test_an_action_weighs_the_same_in_every_chunk() -> None:
    """FQL's mean over dimensions and the budget would shrink with a chunk, sums do not."""
    agent = make("fql", alpha=2.0)
    passed: dict[str, Any] = {}

    def minimize(*args: Any, **kwargs: Any) -> dict[str, Any]:
        passed.update(kwargs)
        return {}

    agent.pretrain()
    agent.minimize = minimize
    agent.update()
    assert passed["alpha"] == 2.0 * CHUNK
    assert make("df-dir", budget=0.1).anchor.budget == pytest.approx(0.1 * CHUNK)
    assert make("df-dir", budget=0.1, chunk=1).anchor.budget == 0.1
