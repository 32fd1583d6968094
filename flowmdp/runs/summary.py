"""Outcome of a run: numbers for result.json, and the small table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from flowmdp.envs.scores import normalized_score

LAST = 3
"""Evaluations during training that `last_evaluations` averages."""


def summarize(task: str, returns: Sequence[float]) -> dict[str, Any]:
    """Statistics of undiscounted episode returns.

    Args:
        task: Gives the reference scores.
        returns: One per episode, at least one.

    Returns:
        mean_return, std_return, the bootstrap's 95 % interval of the mean, and the mean's
        normalised score (None where the task has no references); JSON-able.
    """
    values = np.asarray(returns, np.float64)
    rng = np.random.default_rng(0)
    means = rng.choice(values, (2_000, min(len(values), 1_000))).mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    score = normalized_score(task, values.mean())
    return {
        "mean_return": float(values.mean()),
        "std_return": float(values.std()),
        "interval_95": [float(low), float(high)],
        "normalized_score": None if score is None else float(score),
    }


def summarize_evaluations(task: str, evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean of the last few evaluations during training, and the best one under its own label."""
    if not evaluations:
        return {"last_evaluations": None, "best_evaluation": None}
    last = evaluations[-LAST:]
    pooled = [value for evaluation in last for value in evaluation["returns"]]
    best = max(evaluations, key=lambda evaluation: float(np.mean(evaluation["returns"])))
    return {
        "last_evaluations": {
            "steps": [evaluation["step"] for evaluation in last],
            "episodes": len(pooled),
            **summarize(task, pooled),
        },
        "best_evaluation": {
            "note": f"chosen after the fact among {len(evaluations)}: optimistic, not the result",
            "step": best["step"],
            "episodes": len(best["returns"]),
            **summarize(task, best["returns"]),
        },
    }


def decimals(value: float) -> int:
    """How many a return is shown with: none for tens and more."""
    return 0 if abs(value) >= 10 or value == 0 else 2


def print_table(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """Print one line per policy: raw return, its interval, and the normalised score.

    Args:
        title: Above the table.
        rows: Name -> what `summarize` returns, with `episodes`.
    """
    numbers = ("episodes", "return", "95 % of the mean", "score")
    columns = [Column(), *(Column(name, justify="right") for name in numbers)]
    table = Table(*columns, title=title, title_justify="left")
    for name, row in rows.items():
        low, high = row["interval_95"]
        digits = decimals(row["mean_return"])
        score = row["normalized_score"]
        table.add_row(
            name,
            f"{row['episodes']}",
            f"{row['mean_return']:.{digits}f} ± {row['std_return']:.{digits}f}",
            f"{low:.{digits}f} to {high:.{digits}f}",
            "-" if score is None else f"{score:.1f}",
        )
    Console().print(table)
