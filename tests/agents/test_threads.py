"""Learning and evaluation leave a busy neighbour its core, and the user's threads as they were."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LEARNS = """
import torch
torch.set_num_threads(2)  # what torch takes of itself on two cores
import numpy as np
from flowmdp.agents import FlowBC
from flowmdp.agents.evaluation import evaluate
from tests.mdp.toys import PointRobot, make_toy
{}
agent, counts = FlowBC("MlpPolicy", make_toy(), net_arch=[8]), []
count = lambda *_: counts.append(torch.get_num_threads()) or True
agent.learn(1, count)
class Policy:
    def predict(self, observations, *_):
        count()
        return np.zeros((len(observations), 2), np.float32), None
evaluate(Policy(), PointRobot, 1)
print(set(counts), torch.get_num_threads())
"""
COMMAND = """
import sys
from flowmdp.cli import main
sys.argv = ["flowmdp", "tasks"]
main()
import torch
print(torch.get_num_threads())
"""


def said(code: str, **environment: str) -> str:
    """What Python prints last, in an environment that names no number of threads but these."""
    kept = {key: value for key, value in os.environ.items() if "_NUM_THREADS" not in key}
    child = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return child.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("line", "environment", "expected"),
    [
        ("", {}, "{1} 2"),
        ("torch.set_num_threads(3)", {}, "{3} 3"),
        pytest.param("", {"OMP_NUM_THREADS": "2"}, "{2} 2", marks=pytest.mark.slow),
    ],
)
def test_one_thread_unless_the_user_says_more(
    line: str, environment: dict[str, str], expected: str
) -> None:
    assert said(LEARNS.format(line), **environment) == expected


def test_the_command_takes_one_thread() -> None:
    assert said(COMMAND) == "1"
