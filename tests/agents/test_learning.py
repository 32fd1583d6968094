"""The agents find the known optimum of small problems, and miss it when the cause is taken away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.mechanism import FlowPolicyIteration
from flowmdp.agents import DFDir, DFDiv, FlowBC
from flowmdp.agents.core.decision_flow import DecisionFlow
from tests.agents.toys import (
    STEPS,
    GaussianField,
    QuadraticCritic,
    bandit,
    fixed_point_gains,
    flow_env,
    follow,
    noise,
    pretrain,
    riccati_gains,
    two_modes,
)

BEHAVIOR = GaussianField(mean=-0.2, std=0.3)
CRITIC = QuadraticCritic(best=0.4, curvature=1.5)
SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [64, 64]}, "batch_size": 64, "device": "cpu"}


def share_of_rare_mode(actions: Any) -> float:
    return float((actions[:, 0] > 0.2).mean())


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where behaviour flows and critics of the bandit are kept between tests."""
    return tmp_path_factory.mktemp("pretrained")


def bandit_agent(cls: type[DecisionFlow], pretrained: Path, **kwargs: Any) -> DecisionFlow:
    """An agent that has learned on the two-mode bandit."""
    agent = cls(
        "MlpPolicy",
        flow_env(two_modes()),
        learning_rate=1e-3,
        behavior_learning_rate=2e-3,
        critic_learning_rate=1e-3,
        behavior_steps=1000,
        critic_steps=400,
        ema_rate=0.01,
        budget=None,
        seed=0,
        **SMALL,
        **kwargs,
    )
    pretrain(agent, pretrained)
    agent.learn(600, log_interval=0)
    return agent


@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [
        (DFDiv, {"critic": "iql"}),
        pytest.param(DFDiv, {"critic": "td"}, marks=pytest.mark.slow),
        (DFDir, {"critic": "iql", "objective": "endpoint"}),
        (DFDir, {"critic": "iql", "objective": "endpoint", "path": "trigonometric"}),
        (DFDir, {"critic": "iql", "objective": "advantage"}),
        pytest.param(DFDir, {"critic": "iql", "objective": "direction"}, marks=pytest.mark.slow),
    ],
)
def test_the_policy_moves_to_the_rare_better_mode(
    cls: type[DecisionFlow], kwargs: dict[str, Any], pretrained: Path
) -> None:
    agent = bandit_agent(cls, pretrained, rho=0.02, **kwargs)
    states, x_0 = np.zeros((2000, 1), np.float32), noise()
    before = share_of_rare_mode(agent.chain(states, x_0, field=agent.behavior)[-1])
    after = share_of_rare_mode(agent.act(states, noise=x_0))
    assert before < 0.25  # the behaviour flow is faithful to the data's tenth
    assert after > 0.4


@pytest.mark.parametrize("cls", [DFDiv, DFDir])
def test_a_large_rho_stays_with_the_behavior(cls: type[DecisionFlow], pretrained: Path) -> None:
    agent = bandit_agent(cls, pretrained, rho=1000.0, critic="iql")
    states, x_0 = np.zeros((2000, 1), np.float32), noise()
    before = agent.chain(states, x_0, field=agent.behavior)[-1]
    after = agent.chain(states, x_0)[-1]
    assert abs(share_of_rare_mode(after) - share_of_rare_mode(before)) < 0.1


def gaussian_agent(cls: type[DecisionFlow], rho: float, **kwargs: Any) -> DecisionFlow:
    """An agent whose behaviour and critic are the exact ones."""
    actions = np.zeros((500, 1))
    env = flow_env(bandit(actions, actions[:, 0]))
    agent = cls(
        "MlpPolicy",
        env,
        learning_rate=2e-3,
        critic_learning_rate=2e-3,
        ema_rate=0.02,
        behavior_steps=0,
        critic_steps=0,
        critic="iql",
        rho=rho,
        budget=None,
        seed=0,
        **SMALL,
        **kwargs,
    )
    agent.behavior = BEHAVIOR
    agent.critic = CRITIC  # type: ignore[assignment]
    agent.prepared = 1
    return agent


@pytest.mark.parametrize("rho", [0.3, 1.0])
@pytest.mark.parametrize(
    ("cls", "kwargs", "gains"),
    [
        (DFDiv, {}, riccati_gains),
        (DFDir, {"objective": "endpoint"}, fixed_point_gains),
    ],
)
def test_the_policy_is_the_closed_form(
    cls: type[DecisionFlow], kwargs: dict[str, Any], gains: Callable[..., Any], rho: float
) -> None:
    """Gaussian behaviour and quadratic Q: Riccati for DF-div, a linear fixed point for DF-dir."""
    agent = gaussian_agent(cls, rho, **kwargs)
    agent.learn(400, log_interval=0)
    x_0 = noise()
    states, start = np.zeros((len(x_0), 1), np.float32), torch.as_tensor(x_0)
    learned = agent.chain(states, x_0)[-1]
    optimal = follow(gains(BEHAVIOR, CRITIC, rho), start).numpy()
    control = follow([BEHAVIOR.coefficients(k / STEPS) for k in range(STEPS)], start).numpy()
    assert np.abs(control - optimal).mean() > 0.1  # the behaviour itself is far from the optimum
    assert np.abs(learned - optimal).mean() < 0.3 * np.abs(control - optimal).mean()


def test_flow_policy_iteration_raises_the_value() -> None:
    agent = gaussian_agent(DFDiv, rho=0.3)
    assert isinstance(agent, DFDiv)
    iteration = FlowPolicyIteration(agent, states=512)
    start = iteration.value()
    values = [start]
    for _ in range(6):
        iteration.evaluate(40)
        iteration.improve(20)
        values.append(iteration.value())
    rises = np.diff(values)
    assert values[-1] > start + 0.2
    assert (rises > -0.02 * abs(start)).all()  # never falls by more than noise


def test_flow_bc_reproduces_both_modes() -> None:
    agent = FlowBC("MlpPolicy", flow_env(two_modes()), learning_rate=2e-3, seed=0, **SMALL)
    states, x_0 = np.zeros((2000, 1), np.float32), noise()
    untrained = agent.act(states, noise=x_0)
    agent.learn(1500, log_interval=0)
    actions = agent.act(states, noise=x_0)
    near_a_mode = (np.abs(np.abs(actions) - 0.5) < 0.2).mean()
    assert near_a_mode > 0.75
    assert 0.03 < share_of_rare_mode(actions) < 0.25
    assert (np.abs(np.abs(untrained) - 0.5) < 0.2).mean() < 0.5
