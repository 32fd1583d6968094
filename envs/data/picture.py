"""`flowmdp data info --plot`: a dataset's returns, lengths and actions in one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flowmdp.errors import ConfigurationError
from flowmdp.files import replace_file
from flowmdp.transitions import TransitionDataset

BINS = 50


def draw_dataset(dataset: TransitionDataset, out: Path) -> Path:
    """Draw three histograms: returns, episode lengths (by how they end), action components.

    Raises:
        ConfigurationError: When the picture's format is unknown.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    starts = dataset.episode_starts
    lengths = np.diff(np.append(starts, len(dataset)))
    ended = dataset.terminations[np.append(starts[1:], len(dataset)) - 1]
    figure = Figure(figsize=(12, 3.6), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    formats = canvas.get_supported_filetypes()
    if out.suffix.lstrip(".").lower() not in formats:
        raise ConfigurationError(
            f"cannot draw {out}: end its name in one of {', '.join(sorted(formats))}"
        )
    returns, length, actions = figure.subplots(1, 3)
    figure.suptitle(f"{dataset.id}: {len(starts):,} episodes, {len(dataset):,} steps")
    returns.hist(dataset.returns, BINS)
    returns.axvline(
        dataset.returns.mean(), color="black", label=f"mean {dataset.returns.mean():,.0f}"
    )
    returns.set(xlabel="return", ylabel="episodes")
    length.hist([lengths[ended], lengths[~ended]], BINS, stacked=True, label=["ended", "cut off"])
    length.set(xlabel="steps", ylabel="episodes")
    for dimension, values in enumerate(dataset.actions.T):
        actions.hist(values, BINS, range=(-1, 1), histtype="step", label=f"action {dimension}")
    actions.set(xlabel="action", ylabel="steps")
    for axes in (returns, length, actions)[: 3 if dataset.actions.shape[1] <= 6 else 2]:
        axes.legend(frameon=False, fontsize="small")
    replace_file(out, figure.savefig)
    return out
