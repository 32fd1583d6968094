"""What `benchmarks.mechanism` measures, against values by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from benchmarks.mechanism import (
    action_gradients,
    along_chains,
    correlations,
    cosines,
    endpoints,
    falls,
    label_of,
    less_mean,
    mean_of,
    value_along_chains,
)
from flowmdp.agents import DFDiv
from flowmdp.agents.core.decision_flow import Rollout
from tests.agents.toys import STEPS, GaussianField, QuadraticCritic, bandit, flow_env

BEHAVIOR = GaussianField(mean=-0.2, std=0.3)
CRITIC = QuadraticCritic(best=0.4, curvature=1.5)


def agent_of(policy: GaussianField) -> tuple[DFDiv, Rollout]:
    """An agent with a known behaviour, critic and policy, and 200 chains of the policy."""
    actions = np.zeros((50, 1))
    settings: dict[str, Any] = {"behavior_steps": 0, "critic_steps": 0, "budget": None, "rho": 0.5}
    small: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "precision": "float32"}
    env = flow_env(bandit(actions, actions[:, 0]))
    agent = DFDiv("MlpPolicy", env, device="cpu", seed=0, **small, **settings)
    agent.behavior, agent.critic = BEHAVIOR, CRITIC  # type: ignore[assignment]
    agent.policy.ema = policy
    x_0 = torch.randn((200, 1), generator=torch.Generator().manual_seed(0))
    states = torch.zeros(200, 1)
    return agent, agent.roll_out(policy, states, states, x_0)


def test_cosines_by_hand() -> None:
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [3.0, 3.0], [1e-9, 0.0]])
    second = torch.tensor([[5.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [1.0, 0.0], [1.0, 0.0]])
    found = cosines(first, second)
    torch.testing.assert_close(found[:4], torch.tensor([1.0, -1.0, 0.0, math.sqrt(0.5)]))
    assert found[4].isnan()  # no direction, so no cosine
    assert mean_of(found[None, :2]) == [0.0] and mean_of(found[None, 3:]) == [0.7071]


def test_endpoints_are_where_the_velocity_leads_if_kept() -> None:
    """With the exact field of a point mass every step already leads to the mean."""
    _, rollout = agent_of(GaussianField(mean=0.4, std=1e-4))
    reached = endpoints(rollout)
    assert reached.shape == (STEPS, 200, 1)
    torch.testing.assert_close(reached, torch.full_like(reached, 0.4), atol=1e-3, rtol=0)
    torch.testing.assert_close(reached[-1], rollout.actions)
    far = rollout._replace(velocities=rollout.velocities + 10)
    assert endpoints(far).max() == 1  # clipped, as the executed action is


def test_gradients_are_those_of_the_critic() -> None:
    actions = torch.tensor([[0.0], [0.4], [1.0]])
    found = action_gradients(CRITIC, torch.zeros(3, 1), actions)  # type: ignore[arg-type]
    torch.testing.assert_close(found, -2 * 1.5 * (actions - 0.4))


def test_a_policy_that_moves_up_is_aligned_and_one_that_moves_down_is_not() -> None:
    for mean, sign in ((0.1, 1.0), (-0.5, -1.0)):  # the behaviour's is -0.2, the best action 0.4
        agent, rollout = agent_of(GaussianField(mean, std=0.01))
        agent.behavior = GaussianField(-0.2, std=0.01)
        found = along_chains(agent, rollout)
        assert np.mean(found["cosine_change"]) * sign > 0.9
        # all chains climb towards one action here, so another state's gradient serves as well
        np.testing.assert_allclose(found["cosine_change_shuffled"], found["cosine_change"])
        assert len(found["gain"]) == STEPS and len(found["rises"]) == STEPS - 1
        np.testing.assert_allclose(found["gain"], -1.5 * (mean - 0.4) ** 2, atol=0.05)


def test_value_is_held_against_the_chains_returns() -> None:
    agent, rollout = agent_of(GaussianField(mean=0.1, std=0.3))
    untrained = value_along_chains(agent, rollout)
    returns = np.array(untrained["return"])
    assert (np.diff(returns) > 0).all()  # the costs ahead shrink; the end earns the same
    assert min(untrained["residual"]) > 0.3

    class Exact(torch.nn.Module):
        """G_k of every point, looked up: what V should be."""

        def forward(self, contexts: Any, points: Any, t: Any) -> Any:
            k = round(float(t[0, 0]) * STEPS)
            gaps = torch.stack(
                [
                    agent.policy.ema(contexts, x, j / STEPS) - BEHAVIOR(contexts, x, j / STEPS)
                    for j, x in enumerate(rollout.points[:-1])
                ]
            )
            ahead = 0.5 / STEPS * gaps.square().sum(-1)[k:].sum(0)
            return CRITIC.advantages(contexts, rollout.actions) - ahead

    agent.value = Exact()  # type: ignore[assignment]
    exact = value_along_chains(agent, rollout)
    assert max(exact["residual"]) < 1e-3 and max(exact["drift"]) < 1e-3
    np.testing.assert_allclose(exact["carried"], exact["carried"][0], atol=1e-3)
    assert min(exact["correlation"]) > 0.999 and min(exact["correlation_within"]) > 0.999


def test_correlation_within_a_state_is_blind_to_states() -> None:
    noise = torch.tensor([[0.1, -0.1, 0.0, 0.2, -0.3, 0.1]])
    states = torch.tensor([[5.0, 5.0, 5.0, -5.0, -5.0, -5.0]])
    assert correlations(states + noise, states - noise)[0] > 0.99
    within = correlations(less_mean(states + noise, 3), less_mean(states - noise, 3))
    assert within == [-1.0]


def test_falls_are_counted() -> None:
    assert falls([1.0, 2.0, 1.5, 1.5, 1.4, 3.0]) == 2
    assert falls([1.0, 2.0, 1.95, 3.0], tolerance=0.1) == 0


def test_labels_of_run_folders() -> None:
    assert label_of("zoo-walker2d-medium-v0_df-dir-paper_seed2", "zoo/walker2d/medium-v0", 2) == (
        "df-dir-paper"
    )
    assert label_of("df-div-seed0", "flowmdp/hopper/medium-v0", 0) == "df-div"
    assert label_of("mine", "flowmdp/hopper/medium-v0", 0) == "mine"
