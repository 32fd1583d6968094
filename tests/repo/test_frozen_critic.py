"""`benchmarks.frozen_critic` moves the policy, and neither the critic nor the clone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import frozen_critic
from benchmarks.frozen_critic import Last, learned
from flowmdp.agents import load_agent
from flowmdp.runs.folder import RunFolder


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["df-dir", "df-div", "fql", "dsrl", "iql", "rebrac"])
def test_only_the_policy_learns(name: str, runs: dict[str, Path], hopper_data: Path) -> None:
    folder, run = RunFolder.open(runs["ifql"])
    source: Any = load_agent(folder.checkpoint, device="cpu")
    looks: list[tuple[int, dict[str, torch.Tensor]]] = []
    last = Last()
    _, agent = learned(
        *(run, source.critic, name, 5, {}, 3),
        lambda step, agent: looks.append((step, weights(agent.policy))),
        last,
    )
    assert same(weights(agent.critic.q), weights(source.critic.q))
    if name not in ("iql", "rebrac"):
        assert same(*(weights(of.parts[0].average) for of in (agent, source)))
    (first, early), (end, late) = looks
    assert (first, end) == (3, 5) and not same(early, late)
    assert last.values["train/policy_loss"] != 0


def test_a_row_for_each_way_to_act(
    runs: dict[str, Path], hopper_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results.jsonl"
    options = "--steps 4 --eval-every 2 --episodes 2 --best-of 1 4 --results".split()
    for _ in range(2):  # the second run's rows take the place of the first's
        argv = ["frozen_critic", str(runs["ifql"]), "fql", "alpha=0.5", *options, str(results)]
        monkeypatch.setattr(sys, "argv", argv)
        frozen_critic.main()
    one, best = (json.loads(line) for line in results.read_text().splitlines())
    assert one["label"] == "fql alpha=0.5 steps=4" and best["label"].endswith("best of 4")
    assert one["log"] and one["curve"]["steps"] == [2, 4] and len(one["returns"]) == 2
