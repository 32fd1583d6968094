"""The command in tests: a `flowmdp train` as small as it gets, and one that must fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowmdp.agents import ALGORITHMS
from flowmdp.cli import main


def tiny_run(
    algorithm: str, out: Path, *more: str, steps: int = 20, task: str = "hopper-medium"
) -> list[str]:
    """Arguments of the command; it takes a second or two on the small hopper-medium dataset."""
    known = ALGORITHMS[algorithm].config_class.names()
    budget = [
        word
        for name in ("behavior_steps", "critic_steps")
        if name in known
        for word in (f"--{name.replace('_', '-')}", "20")
    ]
    return [
        *("train", algorithm, task, "--out", str(out), "--steps", str(steps)),
        *("--episodes", "2", "--eval-episodes", "1", *more),
        *("--net-arch", "16", "16", "--batch-size", "32", *budget),
    ]


def failure(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must fail; returns its one line on stderr."""
    capsys.readouterr()
    assert main(argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("flowmdp:")]
    assert len(lines) == 1
    return lines[0]
