"""The pictures of `flowmdp report --figures`: scores per dataset, over all, and while learning."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from flowmdp.compare.bootstrap import Estimate, interquartile_mean, mean, over_seeds
from flowmdp.compare.comparison import Comparison, family, scores_of
from flowmdp.compare.results import Dataset, Grouped
from flowmdp.pictures import few_ticks, save, tidy

COLUMNS = 4
"""Panels side by side."""
SCORES = "normalised score", "scores", "aggregate", "curves"
SUCCESS = "success rate, %", "success", "success_aggregate", "success_curves"
"""What is drawn, and the names of the pictures."""
Panels = dict[str, dict[str, tuple[Estimate, list[float]]]]
"""Title -> label -> a value with its interval, and the seeds to show with it."""
Curves = dict[str, dict[Dataset, list[NDArray[np.float64]]]]
"""Label -> task -> runs of shape (2, points): steps, and what was measured."""


def draw_figures(grouped: Grouped, comparison: Comparison, folder: Path) -> list[Path]:
    """Draw scores.png, and where there are some aggregate.png and curves.png; returns the paths.

    The aggregate is over datasets that the labels share, the curves are of evaluations while a run
    learned. Datasets without a score are left out of the first. Labels that are not compared are
    black. Those of tasks that report success are success.png, success_aggregate.png and
    success_curves.png.
    """
    what, *names = SUCCESS if comparison.by_success else SCORES
    compared = sorted(comparison.scores)
    palette = colormaps["tab10" if len(compared) <= 10 else "tab20"]
    colors: dict[str, object] = {label: palette(n % palette.N) for n, label in enumerate(compared)}
    figures = {}
    panels: Panels = {}
    for dataset, labels in grouped.items():
        scored = {label: scores for label, runs in labels.items() if (scores := scores_of(runs))}
        if scored:
            panels[f"{dataset.dataset_id}\n{dataset.task}"] = {
                label: (over_seeds([np.array(scores)], mean), scores)
                for label, scores in scored.items()
            }
    if panels:
        order = sorted({label for shown in panels.values() for label in shown})
        title = f"{what}: seeds, mean and its 95 % interval"
        figures[folder / f"{names[0]}.png"] = _figure(panels, order, colors, title)
    if count := len(comparison.datasets):
        panels = {
            name: {label: (found, []) for label, found in comparison.estimates(statistic).items()}
            for name, statistic in (("mean", mean), ("interquartile mean", interquartile_mean))
        }
        title = f"{what} over {count} {comparison.place}{'s' * (count > 1)}, 95 %"
        figures[folder / f"{names[1]}.png"] = _figure(panels, list(panels["mean"]), colors, title)
    if curves := _curves_of(grouped, "success_rate" if comparison.by_success else "mean_return"):
        measure = SUCCESS[0] if comparison.by_success else "mean return"
        title = f"{measure} while learning: mean over runs and its 95 % interval"
        figures[folder / f"{names[2]}.png"] = _draw_curves(curves, colors, title)
    folder.mkdir(parents=True, exist_ok=True)
    for path, figure in figures.items():
        save(figure, path)
    return list(figures)


def _figure(panels: Panels, order: list[str], colors: dict[str, object], title: str) -> Figure:
    """Panels that share their rows, one per label: seeds, value and interval."""
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = 2 + 2.3 * columns, 0.5 + rows * (0.8 + 0.24 * len(order))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    figure.supxlabel(title, fontsize=9)
    one_axis = not any(seeds for labels in panels.values() for _, seeds in labels.values())
    grid = list(figure.subplots(rows, columns, sharex=one_axis, sharey=True, squeeze=False).flat)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, (name, labels) in zip(grid, panels.items(), strict=False):
        axes.set_title(_wrapped(name), fontsize=8)
        axes.set_yticks(range(len(order)), order, fontsize=8)
        axes.set_ylim(len(order) - 0.4, -0.6)  # the first on top
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        for label, ((value, low, high), seeds) in labels.items():
            y, color = order.index(label), colors.get(label, "black")
            axes.plot([low, high], [y, y], lw=6, solid_capstyle="butt", color=color, alpha=0.35)
            axes.plot(value, y, "|", color=color, ms=12, mew=2.5)
            axes.plot(seeds, [y] * len(seeds), "o", color=color, ms=3.5)
        few_ticks(axes.xaxis)
    return figure


def _wrapped(name: str) -> str:
    """A panel's title in lines that fit."""
    return "\n".join(part for line in name.splitlines() for part in textwrap.wrap(line, 36))


def _curves_of(grouped: Grouped, measure: str) -> dict[tuple[str, str], Curves]:
    """Curves of each label by panel: its title, a family of tasks in one, and what steps are."""
    panels: dict[tuple[str, str], Curves] = {}
    for dataset, labels in grouped.items():
        for label, runs in labels.items():
            for run in runs:
                if curve := run.get("curve"):
                    unit = "robot steps" if run.get("online") else "gradient steps"
                    place = f"{dataset.dataset_id}\n{family(dataset).task or dataset.task}", unit
                    points = np.array([curve["steps"], curve[measure]], float)
                    tasks = panels.setdefault(place, {}).setdefault(label, {})
                    tasks.setdefault(dataset, []).append(points)
    return panels


def _draw_curves(
    panels: dict[tuple[str, str], Curves], colors: dict[str, object], title: str
) -> Figure:
    """Panels with a line and a band per label, at the steps of its first run.

    In a family the tasks that all labels have count the same, and the band is of their seeds;
    where there is none, a label has its own.
    """
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    letters = max(len(label) for labels in panels.values() for label in labels)
    size = 1.5 + 2.8 * columns + 0.07 * letters, 0.6 + 3 * rows
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    figure.supxlabel(title, fontsize=9)
    lines: dict[str, Line2D] = {}
    scale = 100 if title.startswith(SUCCESS[0]) else 1
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, ((name, unit), labels) in zip(grid, panels.items(), strict=False):
        axes.set_title(_wrapped(name), fontsize=8)
        axes.set_xlabel(unit, fontsize=8)
        shared = set.intersection(*map(set, labels.values()))
        for label, tasks in labels.items():
            seeds = [runs for task, runs in tasks.items() if task in (shared or tasks)]
            steps = seeds[0][0][0]
            values = [
                np.array([scale * np.interp(steps, *run) for run in runs]).T for runs in seeds
            ]
            found = np.array([over_seeds(point, mean) for point in zip(*values, strict=True)])
            color = colors.get(label, "black")
            (lines[label],) = axes.plot(steps, found[:, 0], "-o", ms=2.5, color=color)
            axes.fill_between(steps, found[:, 1], found[:, 2], color=color, alpha=0.2, lw=0)
        tidy(axes)
    figure.legend(
        list(lines.values()), list(lines), loc="outside right upper", fontsize=8, frameon=False
    )
    return figure
