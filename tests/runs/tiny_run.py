"""A `flowmdp train` command with networks and budgets as small as they get."""

from __future__ import annotations

from pathlib import Path


def tiny_run(
    algorithm: str, out: Path, *more: str, steps: int = 20, task: str = "hopper-medium"
) -> list[str]:
    """Arguments of the command; it takes a second or two on the small hopper-medium dataset."""
    budget = [] if algorithm == "flow-bc" else ["behavior_steps=20", "critic_steps=20"]
    return [
        *("train", algorithm, task, "--out", str(out), "--steps", str(steps)),
        *("--episodes", "2", "--eval-episodes", "1", *more),
        *("--set", "net_arch=[16,16]", "batch_size=32", *budget),
    ]
