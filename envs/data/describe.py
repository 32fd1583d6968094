"""Describe a dataset: returns, lengths, actions, ends and coverage, in numbers and in a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowmdp.envs.data.load import as_defined, not_here
from flowmdp.envs.data.reading import read_states, read_transitions
from flowmdp.envs.data.store import is_present, read_metadata
from flowmdp.envs.robots.outer import make_outer
from flowmdp.envs.scores import normalized_score
from flowmdp.envs.tasks import GOALS, TASKS, Task, get_task
from flowmdp.errors import RobotError, UnknownTaskError
from flowmdp.pictures import save, short, tidy
from flowmdp.transitions import TransitionDataset

CLIPPED = 1 - 1e-6
"""An action component at least this large in magnitude counts as clipped."""

CELLS_PER_DIMENSION, BINS = 5, 50
"""Of the grid for the state-action coverage, and of the histograms; ours."""

REWARDED = {"return", "reward"}


def dataset_info(
    name: str, source: str | None = None, dataset_id: str | None = None
) -> dict[str, Any]:
    """Describe a dataset of the local store; nothing is built, downloaded or refused.

    Where the task is known the transitions are under its definition, as `load_dataset` gives them;
    OGBench's are as they were recorded, with the successes of all five goals.

    Args:
        name: A task, `hopper-medium`, or any Minari id of the local store.
        source: "builtin", "minari", "d4rl" or "ogbench"; None takes the task's default.
        dataset_id: Another Minari id; `name` must then be the task it is scored as.

    Returns:
        JSON-able: numbers, strings and dictionaries of them; `notes` say what was recorded
        otherwise than the task is defined. See `describe`.

    Raises:
        UnknownTaskError: For an unknown task or source.
        DatasetError: When the dataset is absent, half-written or unreadable.
    """
    return open_dataset(name, source, dataset_id)[1]


def open_dataset(
    name: str, source: str | None = None, dataset_id: str | None = None
) -> tuple[TransitionDataset, dict[str, Any]]:
    """The transitions of a dataset and what `dataset_info` says of them."""
    row: Task | None
    if "/" in name:
        dataset_id = name
        row = next((task for task in TASKS.values() if name in task.datasets.values()), None)
    else:
        row = get_task(name)
        dataset_id = dataset_id or row.dataset(source)
    if row is not None and not is_present(dataset_id):
        raise not_here(row, dataset_id)
    metadata = read_metadata(dataset_id)
    dataset, notes = read_transitions(metadata), list[str]()
    goals: dict[str, Any] = {}
    if row is not None:
        try:
            with make_outer(row.name) as outer:
                if row.ogbench and dataset_id in row.datasets.values():
                    widths = outer.get_wrapper_attr("state_widths")
                    goals = _goals(row, list(read_states(metadata, widths)))
                elif dataset.observations.shape[1:] == outer.observation_space.shape:
                    dataset, notes = as_defined(row, dataset, metadata, outer)
                else:
                    notes = [f"its observations are not those of {row.name}"]
        except (UnknownTaskError, RobotError) as error:  # not installed; the data can be looked at
            notes = [f"as recorded: {error}"]
    described = describe(dataset, None if goals else row)
    if goals:  # nobody was rewarded
        described = {key: value for key, value in described.items() if key not in REWARDED}
    return dataset, {
        "dataset": dataset.id,
        "task": row.name if row else "none of ours",
        "recorded_by": metadata.get("algorithm_name", "unknown"),
        "episodes": len(dataset.returns),
        "steps": len(dataset),
        **({"notes": notes} if notes else {}),
        **goals,
        **described,
    }


def _goals(row: Task, recorded: list[dict[str, NDArray[Any]]]) -> dict[str, Any]:
    """How often OGBench's data is in a success of each of its tasks, by OGBench's own function.

    `episodes_in_success` is the share of recorded episodes that ever are, `steps_in_success` that
    of the steps that begin in one.
    """
    episodes, steps = dict[str, float](), dict[str, float]()
    for number in GOALS:
        with make_outer(f"{row.ogbench}-task{number}") as outer:
            outcomes = outer.get_wrapper_attr("outcomes")
            found = [
                outcomes({name: array[:-1] for name, array in states.items()})[1]
                for states in recorded
            ]
        episodes[f"task{number}"] = float(np.mean([success.any() for success in found]))
        steps[f"task{number}"] = float(np.concatenate(found).mean())
    return {"episodes_in_success": episodes, "steps_in_success": steps}


def describe(dataset: TransitionDataset, row: Task | None = None) -> dict[str, Any]:
    """Figures of a dataset; `row` adds its scores.

    `trajectory_quality` is TQ of Schweighofer et al. 2022 (arXiv:2111.04714), (mean return - min) /
    (max - min), with the task's reference scores as min and max. `state_action_coverage` follows
    their SACo, the number of distinct state-action pairs over that of a reference; ours: pairs are
    distinct when they fall into different cells of a grid over the data's range, and the reference
    is the number of transitions (1: no two transitions share a cell). Transitions with NaN or
    infinite numbers are counted in `not_finite` and left out of all else but the lengths.
    """
    lengths = np.diff(np.append(dataset.episode_starts, len(dataset)))
    whole = _finite(dataset)
    actions = dataset.actions[whole]
    returns = dataset.returns_within(row.horizon) if row else dataset.returns
    info: dict[str, Any] = {"return": _distribution(returns)}
    scores = normalized_score(row.name, returns) if row else None
    if row and scores is not None and (score := _distribution(scores)):
        info["score"] = score
        info["score_reference"] = row.reference_origin
        info["trajectory_quality"] = score["mean"] / 100
    if not whole.all():
        info = {"not_finite": f"{(~whole).sum():,} of {len(whole):,} transitions", **info}
    if not whole.any():
        return info | {"length": _distribution(lengths)}
    return info | {
        "length": _distribution(lengths),
        "episodes_terminated": float(dataset.terminations.sum() / len(lengths)),
        "episodes_truncated": float(dataset.truncations.sum() / len(lengths)),
        "reward": _distribution(dataset.rewards[whole]),
        "action_mean": [round(float(v), 4) for v in actions.mean(0, np.float64)],
        "action_std": [round(float(v), 4) for v in actions.std(0, np.float64)],
        "action_low": [round(float(v), 4) for v in actions.min(0)],
        "action_high": [round(float(v), 4) for v in actions.max(0)],
        "actions_clipped": float((np.abs(actions) >= CLIPPED).any(1).mean()),
        "actions_outside": float((np.abs(actions) > 1).any(1).mean()),
        "state_action_coverage": _coverage(dataset.observations[whole], actions),
    }


def _finite(dataset: TransitionDataset) -> NDArray[np.bool_]:
    """Which transitions hold finite numbers only."""
    arrays = dataset.observations, dataset.actions, dataset.next_observations
    finite: NDArray[np.bool_] = np.isfinite(dataset.rewards)
    for array in arrays:
        finite &= np.isfinite(array).all(1)
    return finite


def _distribution(values: ArrayLike) -> dict[str, float]:
    array = np.asarray(values, np.float64)
    array = array[np.isfinite(array)]
    if not len(array):
        return {}
    levels = {"min": 0.0, "10%": 0.1, "median": 0.5, "90%": 0.9, "max": 1.0}
    quantiles = dict(zip(levels, np.quantile(array, list(levels.values())).tolist(), strict=True))
    return {"mean": float(array.mean()), "std": float(array.std()), **quantiles}


def _coverage(observations: NDArray[np.float32], actions: NDArray[np.float32]) -> float:
    """Distinct grid cells per transition; a cell is one number, hashed from its coordinates."""
    cells = np.zeros(len(actions), np.uint64)
    for column in (*observations.T, *actions.T):
        low, high = float(column.min()), float(column.max())
        scale = CELLS_PER_DIMENSION / (high - low) if high > low else 0.0
        coordinate = np.minimum((column - low) * scale, CELLS_PER_DIMENSION - 1).astype(np.uint64)
        cells = cells * np.uint64(6364136223846793005) + coordinate  # wraps: a 64-bit hash
    return len(np.unique(cells)) / len(cells)


def draw_dataset(dataset: TransitionDataset, out: Path) -> None:
    """Draw histograms of returns, episode lengths and actions; the suffix gives the format."""
    from matplotlib.figure import Figure

    lengths = np.diff(np.append(dataset.episode_starts, len(dataset)))
    ended = dataset.terminations[np.cumsum(lengths) - 1]
    figure = Figure(figsize=(12, 4.2), dpi=120, layout="constrained")
    returns, length, actions = figure.subplots(1, 3)
    figure.suptitle(f"{dataset.id}: {len(lengths):,} episodes, {len(dataset):,} steps")
    earned = dataset.returns[np.isfinite(dataset.returns)]
    returns.hist(earned, BINS)
    if len(earned):
        returns.axvline(
            earned.mean(), color="black", label=f"mean {short(float(f'{earned.mean():.4g}'))}"
        )
    returns.set(xlabel="return", ylabel="episodes")
    length.hist([lengths[ended], lengths[~ended]], BINS, stacked=True, label=["ended", "cut off"])
    length.set(xlabel="steps", ylabel="episodes")
    for dimension, values in enumerate(dataset.actions.T):
        label = f"action {dimension}" if dataset.actions.shape[1] <= 10 else None  # ten colours
        actions.hist(values, BINS, range=(-1, 1), histtype="step", label=label)
    actions.set(xlabel="action", ylabel="steps")
    for axes in (returns, length, actions):
        tidy(axes, legend_columns=4)
    save(figure, out)
