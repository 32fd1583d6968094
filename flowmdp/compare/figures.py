"""The two pictures of `flowmdp report --figures`: scores per dataset, and over all of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowmdp.compare.bootstrap import Estimate, interquartile_mean, mean, over_seeds
from flowmdp.compare.report import Comparison, scores_of
from flowmdp.compare.results import Grouped
from flowmdp.files import replace_file

ROW = 0.24
"""Inches per row of a picture."""
COLUMNS = 4
"""Panels side by side."""


def draw_figures(grouped: Grouped, comparison: Comparison, folder: Path) -> list[Path]:
    """Draw scores.png, and aggregate.png where the labels share a dataset.

    Args:
        grouped: All results; datasets without a normalised score are left out.
        comparison: Gives the labels that have a colour; the others are black.
        folder: Is made when it is not there.

    Returns:
        The pictures' paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    compared = sorted(comparison.scores)
    palette = colormaps["tab10" if len(compared) <= 10 else "tab20"]
    colors: dict[str, object] = {label: palette(n % palette.N) for n, label in enumerate(compared)}
    figures = {}
    if any(scores_of(runs) for labels in grouped.values() for runs in labels.values()):
        figures[folder / "scores.png"] = _scores(grouped, colors)
    if comparison.datasets:
        figures[folder / "aggregate.png"] = _aggregate(comparison, colors)
    for path, figure in figures.items():
        replace_file(path, figure.savefig)
    return list(figures)


def _bar(axes: Axes, y: int, estimate: Estimate, color: object) -> None:
    """An interval, and a stroke at the value."""
    value, low, high = estimate
    axes.plot([low, high], [y, y], lw=6, solid_capstyle="butt", color=color, alpha=0.35)
    axes.plot(value, y, "|", color=color, ms=12, mew=2.5)


def _rows(axes: Axes, labels: list[str], title: str) -> None:
    """One row per label, from the top."""
    axes.set_title(title, fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _scores(grouped: Grouped, colors: dict[str, object]) -> Figure:
    """A panel per dataset: a dot per seed, mean and interval, in one row per label."""
    scored = {
        dataset: {label: scores for label, runs in labels.items() if (scores := scores_of(runs))}
        for dataset, labels in grouped.items()
    }
    scored = {dataset: scores for dataset, scores in scored.items() if scores}
    order = sorted({label for scores in scored.values() for label in scores})
    columns = min(COLUMNS, len(scored))
    rows = math.ceil(len(scored) / columns)
    size = 2 + 2.3 * columns, 0.5 + rows * (0.8 + ROW * len(order))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for axes in panels[len(scored) :]:
        axes.set_axis_off()
    for axes, (dataset, by_label) in zip(panels, scored.items(), strict=False):
        _rows(axes, order, f"{dataset.dataset_id}\n{dataset.task}")
        for label, scores in by_label.items():
            y, color = order.index(label), colors.get(label, "black")
            _bar(axes, y, over_seeds([np.array(scores)], mean), color)
            axes.plot(scores, [y] * len(scores), "o", color=color, ms=3.5)
    figure.supxlabel("normalised score: seeds, mean and its 95 % interval", fontsize=9)
    return figure


def _aggregate(comparison: Comparison, colors: dict[str, object]) -> Figure:
    """Mean and interquartile mean over datasets with their intervals, one row per label."""
    size = 8, 1.3 + ROW * 1.4 * len(comparison.scores)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    count = len(comparison.datasets)
    figure.suptitle(f"normalised score over {count} dataset{'s' * (count > 1)}, 95 %", size=11)
    order = list(comparison.estimates(mean))
    statistics = {"mean": mean, "interquartile mean": interquartile_mean}
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (name, statistic) in zip(panels, statistics.items(), strict=True):
        _rows(axes, order, name)
        for label, estimate in comparison.estimates(statistic).items():
            _bar(axes, order.index(label), estimate, colors[label])
    return figure
