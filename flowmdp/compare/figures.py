"""The pictures of `flowmdp report --figures`: scores per dataset, and over all of them."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from flowmdp.compare.bootstrap import Estimate, interquartile_mean, mean, over_seeds
from flowmdp.compare.comparison import Comparison, scores_of
from flowmdp.compare.results import Grouped
from flowmdp.pictures import few_ticks, save

COLUMNS = 4
"""Panels side by side."""
SCORES = "normalised score", "scores", "aggregate"
SUCCESS = "success rate, %", "success", "success_aggregate"
"""What is drawn, and the names of the two pictures."""
Panels = dict[str, dict[str, tuple[Estimate, list[float]]]]
"""Title -> label -> a value with its interval, and the seeds to show with it."""


def draw_figures(grouped: Grouped, comparison: Comparison, folder: Path) -> list[Path]:
    """Draw scores.png, and aggregate.png where the labels share a dataset; returns the paths.

    Datasets without a score are left out. Labels that are not compared are black. Those of tasks
    that report success are success.png and success_aggregate.png.
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
        lines = [part for line in name.splitlines() for part in textwrap.wrap(line, 36)]
        axes.set_title("\n".join(lines), fontsize=8)
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
