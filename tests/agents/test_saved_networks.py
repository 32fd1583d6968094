"""Checkpoints hold the networks that something reads, and no others."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from flowmdp.agents import ALGORITHMS, load_agent
from flowmdp.agents.core import checkpoint
from flowmdp.agents.core.policy import FlowPolicy
from tests.agents.test_contract import equal, flow_env, make, weights
from tests.mdp.toys import toy_dataset

CLONE = {"flow", "optimizer.behavior"}
FROZEN = {"critic/target_v", "critic/target_q", "optimizer.critic", "optimizer.critic of v"}
LEFT_OUT: dict[str, set[str]] = {
    "flow-bc": set(),
    "df-dir": {*CLONE, "critic/target_v", "optimizer.critic of v"},
    "df-div": {*CLONE, "critic/target_v"},
    "df-dir iql": CLONE | FROZEN,
    "df-dir advantage": {*CLONE, "critic/target_v"},
    "iql": {"critic/target_v"},
    "rebrac": {"critic/target_v", "optimizer.critic of v"},
    "dsrl": {*CLONE, "critic/target_v", "optimizer.critic of v"},
    "fql": {*CLONE, "critic/target_v", "optimizer.critic of v"},
    "ifql": {*CLONE, "critic/target_v"},
    "qc": {*CLONE, "critic/target_v", "optimizer.critic of v"},
    "rql": CLONE | FROZEN,
}
"""Algorithm, and what distinguishes the case -> what a checkpoint lacks once parts are fitted."""
CHANGES: dict[str, Any] = {"iql": {"critic": "iql"}, "advantage": {"objective": "advantage"}}

each_case = pytest.mark.parametrize("case", LEFT_OUT)


def trained(case: str) -> Any:
    name, *change = case.split()
    return make(name, **CHANGES[change[0]] if change else {}).learn(3)


def test_every_algorithm_is_looked_at() -> None:
    assert {case.split()[0] for case in LEFT_OUT} == {*ALGORITHMS} - {"toy-bc"}


def network(name: str) -> str:
    """Which network, or optimiser of one, a tensor is part of; empty for other numbers."""
    if name.startswith("optimizer."):
        owner, index, entry = name.split("/")
        of_v = owner == "optimizer.critic" and int(index) >= 6  # Q has three layers
        return "" if entry == "step" else owner + " of v" * of_v
    head, weight, _ = name.partition(".weights.")
    return head.removesuffix(".mlp").removesuffix("/mlp") if weight else ""


def networks(tensors: dict[str, Tensor]) -> set[str]:
    return {network(name) for name in tensors} - {""}


@each_case
def test_what_nothing_reads_is_left_out(case: str, tmp_path: Path) -> None:
    agent = trained(case)
    agent.save(tmp_path / "agent.zip")
    there = networks(checkpoint.read(tmp_path / "agent.zip").tensors)
    assert networks(agent.saved.tensors()) - there == LEFT_OUT[case]


def readings(path: Path, name: str) -> tuple[dict[str, Tensor], list[Any]]:
    """All that an agent of a file does: its tensors after more updates, and its answers."""
    agent = load_agent(path, env=flow_env(name), device="cpu")
    states = toy_dataset().observations[:8]
    noise = np.linspace(-1, 1, 16, dtype=np.float32).reshape(8, 2)
    answers: list[Any] = [agent.act(states, noise=noise)]
    if hasattr(agent, "critic"):
        seen = agent.policy.normalizer(torch.as_tensor(states)), torch.as_tensor(noise)
        answers.append(agent.critic.advantages(*seen).detach().numpy())
    if "behavior" in agent.saved.modules:
        answers.append(agent.behavior_policy().predict(states, deterministic=True)[0])
    agent.learn(4, reset_num_timesteps=False)
    return agent.saved.tensors(), answers


@each_case
def test_what_is_there_is_read(case: str, tmp_path: Path) -> None:
    """A change of any stored network, or state of an optimiser, changes something beyond itself."""
    path, other = tmp_path / "agent.zip", tmp_path / "other.zip"
    trained(case).save(path)
    _, manifest, tensors = checkpoint.read(path)
    found, answers = readings(path, case.split()[0])
    assert len(networks(tensors)) >= 3
    for chosen in sorted(networks(tensors)):
        changed = {
            key: one * 1.5 if network(key) == chosen else one for key, one in tensors.items()
        }
        with zipfile.ZipFile(other, "w") as archive:
            archive.writestr("agent.json", json.dumps(manifest))
            archive.writestr("tensors.safetensors", save_tensors(changed))
        found_now, answers_now = readings(other, case.split()[0])
        others = [key for key in found if network(key) not in ("", chosen)]
        assert not (
            all(torch.equal(found[key], found_now[key]) for key in others)
            and all(map(np.array_equal, answers, answers_now))
        ), f"nothing reads {chosen}"


@pytest.mark.parametrize("case", ["df-div", "qc", "rql"])
def test_files_that_still_hold_them_go_on_exactly(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, half = make(case).learn(6), make(case).learn(3)
    with monkeypatch.context() as patch:
        patch.setattr(type(half), "unread", lambda self: {})
        half.save(tmp_path / "old.zip")
    assert set(checkpoint.read(tmp_path / "old.zip").tensors) == set(half.saved.tensors())
    again = load_agent(tmp_path / "old.zip", env=flow_env(case), device="cpu")
    assert equal(weights(whole), weights(again.learn(3, reset_num_timesteps=False)))


@pytest.mark.parametrize("case", ["df-div", "qc"])
def test_a_policy_loads_from_a_checkpoint(case: str, tmp_path: Path) -> None:
    agent = trained(case)
    agent.save(tmp_path / "agent.zip")
    policy = FlowPolicy.load(tmp_path / "agent.zip", device="cpu")
    observation = agent.observation_space.sample()
    assert np.array_equal(policy.predict(observation)[0], agent.policy.predict(observation)[0])
