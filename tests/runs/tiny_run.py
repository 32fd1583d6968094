"""A `flowmdp train` command with networks and budgets as small as they get."""

from __future__ import annotations

from pathlib import Path

from flowmdp.agents import ALGORITHMS


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
