"""What `benchmarks.critic_returns` compares Q with, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.critic_returns import play, q_of, what_follows
from flowmdp.runs.folder import RunFolder
from flowmdp.runs.play import open_agent


def chunks(truncated: bool) -> list[tuple[Any, ...]]:
    """Three chunks of four, four and two steps; (..., reward, discount, info)."""
    executed = {0: 4, 1: 4, 2: 2}
    return [
        (None, None, 10.0**n, 0.5, {"executed_steps": executed[n], "TimeLimit.truncated": cut})
        for n, cut in enumerate([False, False, truncated])
    ]


def test_before_a_fall_all_chunks_count() -> None:
    found = what_follows(chunks(truncated=False), ahead=500)
    assert found == [(2, 100.0, 2), (1, 60.0, 6), (0, 31.0, 10)]


def test_before_a_time_limit_those_with_enough_ahead() -> None:
    assert what_follows(chunks(truncated=True), ahead=6) == [(1, 60.0, 6), (0, 31.0, 10)]


def test_q_is_in_the_rewards_of_the_robot(runs: dict[str, Path], hopper_data: Path) -> None:
    _, run = RunFolder.open(runs["df-dir"])
    agent: Any = open_agent(runs["df-dir"], None, "cpu")
    played = play(agent, dict(run), 2)
    assert len(played) == 2 and all(steps for steps in played)
    steps = played[0]
    *_, reward, discount, info = steps[0]
    assert reward > 0 and discount == agent.config.gamma and not info["TimeLimit.truncated"]
    states = agent.policy.normalizer(torch.as_tensor(np.array([steps[0][0]])).float())
    with torch.no_grad():
        q = agent.critic.members(states, torch.as_tensor(steps[0][1]).flatten()[None]).mean()
    assert q_of(agent, steps)[0] * agent._reward_scale == pytest.approx(float(q), rel=1e-4)
