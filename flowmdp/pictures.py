"""What every plot shares: few and short tick labels, a scale that fits, a legend off the lines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flowmdp.errors import ConfigurationError
from flowmdp.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

OUTLIER = 30.0
"""The scale is symmetric-logarithmic when the largest value is this many times a usual one."""


def short(value: float, position: float = 0) -> str:
    """A tick label of few letters: 12500 is 12.5k."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def linear_below(values: NDArray[Any]) -> float | None:
    """Where a symmetric-log axis turns linear, a power of ten; None where a linear axis will do."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if not len(sizes) or sizes.max() / OUTLIER <= np.median(sizes):
        return None
    return float(10.0 ** math.floor(math.log10(np.quantile(sizes, 0.25))))


def save(figure: Figure, path: Path) -> None:
    """Write a picture, whole or not at all; the suffix gives the format.

    Raises:
        ConfigurationError: When there is no such format.
    """
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in formats:
        names = ", ".join(sorted(formats))
        raise ConfigurationError(f"cannot draw {path}: end its name in one of {names}")
    replace_file(path, figure.savefig)


def tidy(axes: Axes, legend_columns: int = 1) -> None:
    """Give drawn axes few tick labels, a faint grid and, where lines have names, a legend below.

    Lines whose largest value is more than `OUTLIER` times the median get a symmetric-log axis.
    """
    from matplotlib.transforms import ScaledTranslation

    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    values = [np.asarray(line.get_ydata(), float) for line in axes.lines]
    if linear := linear_below(np.concatenate([np.empty(0), *values])):
        axes.set_yscale("symlog", linthresh=linear)
        axes.autoscale_view()
        axes.set_yticks(_decades(linear, *axes.get_ylim()))
    few_ticks(axes.xaxis)
    few_ticks(axes.yaxis)
    figure = axes.get_figure(root=True)
    if figure is not None and axes.get_legend_handles_labels()[1]:
        below = ScaledTranslation(0, -0.5, figure.dpi_scale_trans)  # inches: under the axis' label
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, 0),
            bbox_transform=axes.transAxes + below,
            ncols=legend_columns,
            fontsize=7,
            frameon=False,
        )


def few_ticks(axis: Axis) -> None:
    """About five ticks on a linear axis whose ticks are not set yet."""
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    formatter = axis.get_major_formatter()
    if isinstance(formatter, ScalarFormatter):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        if np.abs(axis.get_view_interval()).max() >= 5_000:
            axis.set_major_formatter(short)
        else:
            formatter.set_useOffset(False)


def _decades(linear: float, low: float, high: float) -> list[float]:
    """0 and about five powers of ten, evenly apart on a symmetric-log axis."""
    down, up = (max(0, math.floor(math.log10(max(x / linear, 1)))) for x in (-low, high))
    stride = max(1, math.ceil((down + up) / 5))
    sizes = {sign: range(stride, n + 1, stride) for sign, n in ((-1, down), (1, up))}
    powers = [sign * linear * 10.0**n for sign, steps in sizes.items() for n in steps]
    return sorted([0.0, *powers])
