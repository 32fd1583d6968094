"""Agents around a flow policy of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowmdp.agents import ALGORITHMS, DFDiv, FlowBC, load_agent
from flowmdp.agents.core.policy import FlowPolicy
from flowmdp.behavior import as_behavior
from flowmdp.env import FlowMDPEnv
from flowmdp.errors import CheckpointError, ConfigurationError
from tests.mdp.toys import PointRobot, toy_dataset

AROUND = [n for n, c in ALGORITHMS.items() if "behavior_steps" in c.config_class.names()]
STEPS = 5
TINY: dict[str, Any] = {"net_arch": (16,), "batch_size": 16, "seed": 1, "device": "cpu"}


class Towards(nn.Module):
    """A flow to the action 0.6 - s / 10, with weights that must not change."""

    def __init__(self) -> None:
        super().__init__()
        self.goal = nn.Parameter(torch.tensor([0.6, 0.6]))

    def forward(self, observations: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        velocity: Tensor = (self.goal - observations / 10 - x_t) / (1 - t).clamp_min(1 / STEPS)
        return velocity


def on_arrays(observations: Any, x_t: Any, t: Any) -> Any:
    return (np.float32(0.6) - observations / 10 - x_t) / np.maximum(1 - t, 1 / STEPS)


OWN = {"module": Towards(), "function of arrays": on_arrays}


def make(name: str, kind: str = "module", **kwargs: Any) -> Any:
    cls = ALGORITHMS[name]
    env = FlowMDPEnv(PointRobot(), dataset=toy_dataset(), flow_steps=cls.only_flow_steps or STEPS)
    own = as_behavior(OWN[kind], flow_steps=STEPS)
    few = {"critic_steps": 4} | ({"value_steps": 2} if name == "rql" else {})
    return cls("MlpPolicy", env, behavior=own, **{**TINY, **few, **kwargs})


def actions(agent: Any) -> Any:
    states = toy_dataset().observations[:8]
    return agent.act(states, noise=np.zeros((8, 2), np.float32))


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("name", AROUND)
def test_every_agent_with_a_behaviour_learns_around_it(name: str, kind: str) -> None:
    agent = make(name, kind)
    before = {key: value.clone() for key, value in Towards().state_dict().items()}
    assert "behavior" not in agent.saved.modules and "flow" not in agent.saved.modules
    states = toy_dataset().observations[:8]
    agent.learn(0)
    agent.pretrain()
    expected = 0.6 - states / 10
    played = agent.act(states, noise=np.zeros((8, 2), np.float32), field=agent.behavior_field())
    np.testing.assert_allclose(played, expected, atol=1e-5)
    if name in ("df-dir", "df-div", "rql", "ifql", "qc"):  # it starts there
        np.testing.assert_allclose(actions(agent), expected, atol=1e-5)
    agent.learn(5)
    assert np.isfinite(actions(agent)).all()
    if kind == "module":
        assert torch.equal(before["goal"], OWN["module"].state_dict()["goal"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", AROUND)
def test_checkpoints_name_it(name: str, tmp_path: Path) -> None:
    agent = make(name).learn(2)
    agent.save(tmp_path / "agent.zip")
    own = as_behavior(on_arrays, flow_steps=STEPS)
    again = load_agent(tmp_path / "agent.zip", behavior=own, env=agent.env)
    np.testing.assert_allclose(actions(again), actions(agent), atol=1e-5)
    np.testing.assert_allclose(actions(again.learn(2)), actions(agent.learn(2)), atol=1e-3)
    with pytest.raises(CheckpointError, match="a behaviour of your own, Towards: pass it"):
        load_agent(tmp_path / "agent.zip")
    with pytest.raises(CheckpointError, match="answers otherwise"):
        load_agent(tmp_path / "agent.zip", behavior=as_behavior(lambda s, x, t: -x))
    agent.policy.save(tmp_path / "policy.zip")
    with pytest.raises(CheckpointError, match="save the whole agent"):
        FlowPolicy.load(tmp_path / "policy.zip")


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    env = FlowMDPEnv(PointRobot(), dataset=toy_dataset(), flow_steps=3)
    with pytest.raises(ConfigurationError, match="FlowBC has no behaviour flow to replace"):
        FlowBC("MlpPolicy", env, behavior=on_arrays, **TINY)
    with pytest.raises(ConfigurationError, match="makes 5 flow steps, the environment 3"):
        DFDiv("MlpPolicy", env, behavior=as_behavior(on_arrays, flow_steps=5), **TINY)
    with pytest.raises(ConfigurationError, match=r"answers shape \(3, 1\)"):
        DFDiv("MlpPolicy", env, behavior=lambda s, x, t: x[:, :1], **TINY)
    DFDiv("MlpPolicy", env, **TINY, behavior_steps=1, critic_steps=1).learn(1).save(tmp_path / "a")
    with pytest.raises(CheckpointError, match="leave behavior out"):
        load_agent(tmp_path / "a", behavior=on_arrays)


def test_an_id_is_made_with_its_steps(hopper_data: Path) -> None:
    own = as_behavior(lambda s, x, t: -x, flow_steps=4)
    agent = DFDiv("MlpPolicy", "FlowMDP-hopper-medium-v0", behavior=own, **TINY)
    assert agent.spec.flow_steps == 4


def test_registered_ids_take_its_critic(tmp_path: Path) -> None:
    def on_tensors(s: Any, x: Any, t: Any) -> Any:
        return torch.zeros(x.shape).sub_(x)

    env = FlowMDPEnv(PointRobot(), dataset=toy_dataset(), flow_steps=STEPS)
    agent = DFDiv("MlpPolicy", env, behavior=on_tensors, **TINY, critic_steps=1).learn(1)
    agent.save(tmp_path / "a.zip")
    load_agent(tmp_path / "a.zip", behavior=on_tensors)
    gym.register("OwnPoint-v0", "tests.mdp.toys:PointRobot")
    make: dict[str, Any] = {"env_id": "OwnPoint-v0", "checkpoint": tmp_path / "a.zip"}
    make |= {"action_mode": "residual", "flow_steps": STEPS}
    with pytest.raises(CheckpointError, match="a behaviour of your own, function: pass it"):
        gym.make("FlowMDP-v0", **make)
    made = gym.make("FlowMDP-v0", behavior=on_tensors, **make)
    made.reset(seed=0)
    made.step(np.zeros(2, np.float32))
    gym.registry.pop("OwnPoint-v0")
