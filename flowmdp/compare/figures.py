"""The two pictures of `flowmdp report --figures`: scores per dataset, and over all of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowmdp.compare.bootstrap import interquartile_mean, mean, over_seeds
from flowmdp.compare.report import Comparison, scores_of
from flowmdp.compare.results import Grouped
from flowmdp.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLACK = "#000000"
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
    colors = _colors(grouped, comparison)
    drawn = []
    if any(scores_of(runs) for labels in grouped.values() for runs in labels.values()):
        drawn.append(folder / "scores.png")
        replace_file(drawn[-1], _scores(grouped, colors).savefig)
    if comparison.datasets:
        drawn.append(folder / "aggregate.png")
        replace_file(drawn[-1], _aggregate(comparison, colors).savefig)
    return drawn


def _colors(grouped: Grouped, comparison: Comparison) -> dict[str, object]:
    """Label -> colour, in alphabetical order."""
    from matplotlib import colormaps

    labels = sorted({label for runs in grouped.values() for label in runs})
    compared = sorted(comparison.scores)
    palette = colormaps["tab10" if len(compared) <= 10 else "tab20"]
    return {
        label: palette(compared.index(label) % palette.N) if label in compared else BLACK
        for label in labels
    }


def _figure(width: float, height: float) -> Figure:
    """A figure with a canvas of its own, without pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


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
    figure = _figure(2 + 2.3 * columns, 0.5 + rows * (0.8 + ROW * len(order)))
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for axes in panels[len(scored) :]:
        axes.set_axis_off()
    for axes, (dataset, by_label) in zip(panels, scored.items(), strict=False):
        for label, scores in by_label.items():
            y, color = order.index(label), colors[label]
            low, high = over_seeds([np.array(scores)], mean)[1:]
            axes.plot([low, high], [y, y], lw=6, solid_capstyle="butt", color=color, alpha=0.3)
            axes.plot(float(np.mean(scores)), y, "|", color=color, ms=12, mew=2.5)
            axes.plot(scores, [y] * len(scores), "o", color=color, ms=3.5)
        axes.set_title(f"{dataset.dataset_id}\n{dataset.task}", fontsize=8)
        axes.set_yticks(range(len(order)), order, fontsize=8)
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("normalised score: seeds, mean and its 95 % interval", fontsize=9)
    return figure


def _aggregate(comparison: Comparison, colors: dict[str, object]) -> Figure:
    """Mean and interquartile mean over datasets with their intervals, one row per label."""
    figure = _figure(8, 1.3 + ROW * 1.4 * len(comparison.scores))
    count = len(comparison.datasets)
    figure.suptitle(f"normalised score over {count} dataset{'s' * (count > 1)}, 95 %", size=11)
    order = list(comparison.estimates(mean))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    statistics = {"mean": mean, "interquartile mean": interquartile_mean}
    for axes, (name, statistic) in zip(panels, statistics.items(), strict=True):
        for y, label in enumerate(order):
            value, low, high = over_seeds(comparison.scores[label], statistic)
            axes.plot(
                [low, high], [y, y], lw=6, solid_capstyle="butt", color=colors[label], alpha=0.4
            )
            axes.plot(value, y, "|", ms=12, mew=2.5, color=colors[label])
        axes.set_yticks(range(len(order)), order, fontsize=9)
        axes.set(title=name, ylim=(len(order) - 0.4, -0.6))
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
