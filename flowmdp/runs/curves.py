"""`flowmdp plot`: the curves of a run, from the files in its folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flowmdp.envs.scores import success_interval
from flowmdp.errors import CheckpointError
from flowmdp.files import read_json
from flowmdp.pictures import save, tidy
from flowmdp.runs.folder import RunFolder, read_progress
from flowmdp.schemas import History, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Series = dict[str, list[tuple[int, float]]]

BLUE, ORANGE, GREEN, GRAY = "#1f6fb2", "#d9731a", "#3a8f5c", "#777777"
PHASES = {
    "train": ("losses", ""),
    "pretrain": ("pre-training losses", "updates of behaviour flow, then critic"),
}


class Measure(NamedTuple):
    """What of an evaluation is drawn, by its names in history.json and result.json."""

    title: str
    episodes: str
    value: str
    interval: str
    unit: float
    band: Callable[[Sequence[Any]], tuple[float, float]]
    """Around the mean of an evaluation's episodes."""


def _deviation(values: Sequence[float]) -> tuple[float, float]:
    mean, std = float(np.mean(values)), float(np.std(values))
    return mean - std, mean + std


def _wilson(values: Sequence[bool]) -> tuple[float, float]:
    return success_interval(sum(values), len(values))


RETURN = Measure("return on the robot", "returns", "mean_return", "interval_95", 1, _deviation)
SUCCESS = Measure(
    *("success on the robot, %", "successes", "success_rate", "success_interval_95", 100, _wilson)
)


def plot(run_folder: Path, *, out: Path | None = None) -> None:
    """Draw a run's curves again: returns beside data and behaviour, Q(pi) - Q(data), losses.

    Tasks that report success have a plot of it before the returns.

    For example:
      flowmdp plot runs/hopper-medium/df-div-seed0
      flowmdp plot runs/my-run --out figure.pdf

    Args:
        run_folder: The run; whatever it holds already is drawn.
        out: Picture to write; curves.png in the run's folder when not given. The suffix gives the
            format.
    """
    print(draw_run(run_folder, out))


def draw_run(path: Path, out: Path | None = None, quiet: bool = False) -> Path:
    """Draw a run as `plot` does; returns the picture's path.

    Args:
        path: The run's folder.
        out: The picture.
        quiet: Report a picture that cannot be written on stderr instead of raising: a run must not
            fail at its end for it.

    Raises:
        CheckpointError: When the folder holds no run, or one of its files lacks something.
        ConfigurationError: When the format is unknown.
    """
    folder, config = RunFolder.open(path)
    try:
        return _draw(folder, config, out or folder.curves)
    except (OSError, CheckpointError) as error:
        if not quiet:
            raise
        print(f"flowmdp: no curves: {error}", file=sys.stderr)
        return folder.curves


def _draw(folder: RunFolder, config: dict[str, Any], out: Path) -> Path:
    from matplotlib.figure import Figure

    series = {  # without what no axis can show
        name: [point for point in points if abs(point[1]) < 1e100]
        for name, points in read_progress(folder.progress).items()
    }
    history: dict[str, Any] = {"evaluations": []}
    if folder.history.exists():
        history = read_json(folder.history, History)
    result = None
    if folder.result.exists():
        result = Result(**read_json(folder.result, Result)).model_dump()
    evaluations = history["evaluations"]
    succeeds = any(one.get("successes") for one in evaluations)
    succeeds |= result is not None and result["success_rate"] is not None
    measures = (SUCCESS, RETURN) if succeeds else (RETURN,)
    pretrained = any(name.startswith("pretrain/") for name in series)
    phases = ("train", "pretrain") if pretrained else ("train",)
    panels = len(measures) + 1 + len(phases)
    figure = Figure(figsize=(4 * panels, 4.2), dpi=120, layout="constrained")
    plots = iter(figure.subplots(1, panels))
    figure.suptitle(f"{config['algorithm']} on {config['task']}, seed {config['seed']}", size=11)
    online = config.get("online")
    unit = "robot steps" if online else "policy updates"
    end = (online or {}).get("robot_steps", config["steps"])
    start = "before" if online else "behaviour flow"
    for measure in measures:
        _draw_played(next(plots), measure, evaluations, result, unit, end, start)
    _draw_gap(next(plots), series, unit)
    for phase, axes in zip(phases, plots, strict=True):
        _draw_losses(axes, series, phase, unit)
    for axes in figure.axes:
        tidy(axes, legend_columns=2)
    save(figure, out)
    return out


def _draw_played(
    axes: Axes,
    measure: Measure,
    evaluations: list[dict[str, Any]],
    result: dict[str, Any] | None,
    steps_are: str,
    end: int,
    start: str,
) -> None:
    axes.set(title=measure.title, xlabel=steps_are)
    unit = measure.unit
    if measure is SUCCESS:
        axes.set_ylim(-3, 103)
    if evaluations:
        steps = [evaluation["step"] for evaluation in evaluations]
        episodes = [evaluation[measure.episodes] for evaluation in evaluations]
        means = [unit * np.mean(values) for values in episodes]
        low, high = unit * np.array([measure.band(values) for values in episodes]).T
        label = f"training, {len(episodes[0])} episodes"
        axes.plot(steps, means, "-o", color=BLUE, ms=3, label=label)
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.15, lw=0)
    if result:
        mean = unit * result[measure.value]
        low, high = (unit * end for end in result[measure.interval])
        errors = [[max(mean - low, 0)], [max(high - mean, 0)]]
        label = f"last checkpoint, {result['episodes']} episodes"
        axes.errorbar([end], [mean], errors, fmt="D", color=BLUE, ms=6, capsize=4, label=label)
        lines = ("behavior", start, ORANGE, "--"), ("data", "data", GRAY, ":")
        for name, words, color, style in lines:
            value = (result[name] or {}).get(measure.value)
            if value is not None:
                value *= unit
                axes.axhline(value, color=color, ls=style, label=f"{words}, {value:.0f}")
    if not evaluations and not result:
        _say(axes, "no evaluation yet")


def _draw_gap(axes: Axes, series: Series, steps_are: str) -> None:
    axes.set(title="Q(π) - Q(data), in advantage units", xlabel=steps_are)
    points = series.get("train/q_gap", [])
    if points:
        axes.plot(*zip(*points, strict=True), color=GREEN, lw=1)
        axes.axhline(0, color=GRAY, lw=0.8)
        axes.axhline(1, color=ORANGE, ls="--", lw=1, label="above 1, Q is being exploited")
    else:
        _say(axes, "not logged by this algorithm")


def _draw_losses(axes: Axes, series: Series, phase: str, steps_are: str) -> None:
    """A phase's losses, each on its own scale: divided by its first absolute value."""
    title, updates = PHASES[phase]
    axes.set(title=f"{title}, relative to their start", xlabel=updates or steps_are)
    for name in sorted(series):
        if name.startswith(f"{phase}/") and name.endswith("loss") and series[name]:
            points = np.array(series[name])
            label = name.removeprefix(f"{phase}/").replace("_", " ")
            relative = points[:, 1] / (abs(points[0, 1]) or 1.0)
            mark = "o" if len(points) == 1 else ""  # a line of one point cannot be seen
            axes.plot(points[:, 0], relative, marker=mark, lw=1, ms=3, label=label)
    if not axes.lines:
        _say(axes, "no updates yet")


def _say(axes: Axes, words: str) -> None:
    """A word where there is nothing to see."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", color=GRAY)
