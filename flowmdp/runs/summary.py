"""Outcome of a run: numbers for result.json, and the small table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from flowmdp.agents.evaluation import EvaluationResult
from flowmdp.envs.scores import normalized_score, success_interval
from flowmdp.envs.tasks import get_task
from flowmdp.errors import RobotError

LAST = 3
"""Evaluations during training that `last_evaluations` averages."""


def episodes_of(task: str, played: EvaluationResult) -> dict[str, Any]:
    """Returns, and for a task that reports success the `successes`, of an evaluation.

    Raises:
        RobotError: When the task reports success and its robot does not.
    """
    if not get_task(task).success:
        return {"returns": played.returns}
    if played.successes is None:
        raise RobotError(
            f"task {task} reports success, but its robot has no info['success']: put it there, or "
            "leave success out of the task"
        )
    return {"returns": played.returns, "successes": played.successes}


def outcome(task: str, played: EvaluationResult) -> dict[str, Any]:
    """What result.json holds of an evaluation: `summarize`, and the episodes themselves."""
    episodes = episodes_of(task, played)
    return {"episodes": len(played.returns), **summarize(task, **episodes), **episodes}


def summarize_successes(successes: int, episodes: int) -> dict[str, Any]:
    """Success rate, its Wilson 95 % interval, and the score, which is 100 times the rate."""
    rate = successes / episodes
    return {
        "success_rate": rate,
        "success_interval_95": list(success_interval(successes, episodes)),
        "normalized_score": 100 * rate,
    }


def summarize(
    task: str, returns: Sequence[float], successes: Sequence[bool] | None = None
) -> dict[str, Any]:
    """Statistics of undiscounted episode returns, and of successes.

    Args:
        task: Gives the reference scores.
        returns: One per episode, at least one.
        successes: One per episode, for a task that reports success.

    Returns:
        mean_return, std_return, the bootstrap's 95 % interval of the mean, and the mean's
        normalised score (None where the task has no references); with successes, what
        `summarize_successes` returns too, whose score it is then. JSON-able.
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
        **({} if successes is None else summarize_successes(sum(successes), len(successes))),
    }


def summarize_evaluations(task: str, evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """The curve, the mean of its last few points, and the best one under its own label."""
    if not evaluations:
        return {"curve": None, "last_evaluations": None, "best_evaluation": None}
    names = [name for name in ("successes", "returns") if name in evaluations[0]]
    last = evaluations[-LAST:]
    pooled = {name: [value for one in last for value in one[name]] for name in names}
    best = max(evaluations, key=lambda one: [float(np.mean(one[name])) for name in names])
    shown = {"returns": "mean_return", "successes": "success_rate"}
    return {
        "curve": {
            "steps": [evaluation["step"] for evaluation in evaluations],
            **{shown[name]: [float(np.mean(one[name])) for one in evaluations] for name in names},
        },
        "last_evaluations": {
            "steps": [evaluation["step"] for evaluation in last],
            "episodes": len(pooled["returns"]),
            **summarize(task, **pooled),
        },
        "best_evaluation": {
            "note": f"chosen after the fact among {len(evaluations)}: optimistic, not the result",
            "step": best["step"],
            "episodes": len(best["returns"]),
            **summarize(task, **{name: best[name] for name in names}),
        },
    }


def decimals(value: float) -> int:
    """How many a return is shown with: none for tens and more."""
    return 0 if abs(value) >= 10 or value == 0 else 2


def percent(rate: float) -> str:
    """A share between 0 and 1 as people read it."""
    return f"{100 * rate:.1f} %"


def print_table(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """Print one line per policy: raw return, its interval, and the normalised score.

    Where success is reported, it stands first, and its interval in the place of the return's.

    Args:
        title: Above the table.
        rows: Name -> what `summarize` returns, with `episodes`.
    """
    by_success = any("success_rate" in row for row in rows.values())
    returns = ("return", "95 % of the mean", "score")
    numbers = ("episodes", *(("success", "95 %", "return") if by_success else returns))
    columns = [Column(), *(Column(name, justify="right") for name in numbers)]
    table = Table(*columns, title=title, title_justify="left")
    for name, row in rows.items():
        cells = _success_cells(row) if by_success else _return_cells(row)
        table.add_row(name, f"{row['episodes']}", *cells)
    Console().print(table)


def _success_cells(row: dict[str, Any]) -> tuple[str, str, str]:
    """The rate, its interval, and the return where there is one."""
    low, high = row["success_interval_95"]
    return_ = _return_cells(row)[0] if "mean_return" in row else "-"
    return percent(row["success_rate"]), f"{100 * low:.1f} to {percent(high)}", return_


def _return_cells(row: dict[str, Any]) -> tuple[str, str, str]:
    """The return, the interval of its mean, and the score."""
    low, high = row["interval_95"]
    digits = decimals(row["mean_return"])
    score = row["normalized_score"]
    return (
        f"{row['mean_return']:.{digits}f} ± {row['std_return']:.{digits}f}",
        f"{low:.{digits}f} to {high:.{digits}f}",
        "-" if score is None else f"{score:.1f}",
    )
