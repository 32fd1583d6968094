"""Plots can be read: no text lies on other text, no line runs through a legend, no line is flat."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from flowmdp.compare.comparison import Comparison
from flowmdp.compare.figures import draw_figures
from flowmdp.compare.results import load_results
from flowmdp.envs.data.describe import draw_dataset
from flowmdp.pictures import linear_below, short
from flowmdp.runs.curves import draw_run
from flowmdp.transitions import TransitionDataset

Columns = dict[str, Any]
ROWS = 90
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that would be saved."""
    figures: list[Figure] = []

    def savefig(self: Figure, path: Path, **options: Any) -> None:
        path.touch()
        figures.append(self)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def check_readable(figure: Figure) -> None:
    """Compares the boxes of all that is written, as they were drawn."""
    figure.draw_without_rendering()
    boxes: dict[str, Bbox] = {}
    for i, axes in enumerate(figure.axes):
        texts = [axes.title, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [axis.label, axis.get_offset_text()]
            texts += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
        add(boxes, texts)
        if legend := axes.get_legend():
            box = boxes[f"{i} legend"] = legend.get_window_extent()
            assert not box.overlaps(axes.get_window_extent()), "the legend lies on the plot"
            for line in axes.lines:
                points = axes.transData.transform(line.get_xydata())
                assert not any(box.contains(x, y) for x, y in points)
    add(boxes, figure.texts)
    for (first, one), (second, other) in itertools.combinations(boxes.items(), 2):
        assert not one.overlaps(other), f"{first} lies on {second}"
    width, height = figure.bbox.size
    for name, box in boxes.items():
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, f"{name} is cut off"


def add(boxes: dict[str, Bbox], texts: list[Text]) -> None:
    for text in texts:
        if text.get_text() and text.get_visible():
            boxes[f"{len(boxes)} {text.get_text()!r}"] = text.get_window_extent()


def usual(rng: np.random.Generator, size: float = 1.0) -> Any:
    """A loss that falls and then wobbles."""
    return size * (np.exp(-np.linspace(0, 5, ROWS)) + 0.3 + 0.05 * rng.standard_normal(ROWS))


def ordinary(rng: np.random.Generator) -> Columns:
    losses = {f"train/{name}_loss": usual(rng) for name in ("actor", "critic", "value")}
    return losses | {"train/q_gap": rng.standard_normal(ROWS)}


def outlier(rng: np.random.Generator) -> Columns:
    columns = ordinary(rng)
    columns["train/critic_loss"][40], columns["train/q_gap"][50] = 5e4, -4e5
    return columns


def ten_names(rng: np.random.Generator) -> Columns:
    phases = ("train", "pretrain")
    return {
        f"{p}/a_rather_long_name_{i}_loss": usual(rng, 3.0**i) for i in range(10) for p in phases
    }


def both_signs(rng: np.random.Generator) -> Columns:
    growth = np.exp(np.linspace(0, 12, ROWS))
    return {"train/actor_loss": -growth, "train/critic_loss": growth, "train/q_gap": -growth}


def not_finite(rng: np.random.Generator) -> Columns:
    columns = ordinary(rng)
    for values in columns.values():
        values[::3], values[1], values[2] = np.nan, np.inf, -np.inf
    return columns


def enormous(rng: np.random.Generator) -> Columns:
    both = np.where(np.arange(ROWS) % 2, 1, -1) * np.exp(np.linspace(-80, 80, ROWS))
    return {"train/actor_loss": both, "train/critic_loss": -1e40 * both, "train/q_gap": both}


def still(rng: np.random.Generator) -> Columns:
    almost = 1_000 + 1e-5 * rng.standard_normal(ROWS)
    return {"train/a_loss": np.zeros(ROWS), "train/b_loss": almost, "train/q_gap": almost}


def nothing(rng: np.random.Generator) -> Columns:
    return {}


KINDS = [ordinary, outlier, ten_names, both_signs, not_finite, enormous, still, nothing]


def run_folder(path: Path, columns: Columns, steps: int, returns: float | None) -> Path:
    """A run folder, written by hand."""
    path.mkdir()
    config = {
        **{"algorithm": "df-div", "task": "hopper-medium-replay", "seed": 0, "steps": steps},
        **{"source": "builtin", "dataset_id": None, "flow": {}, "config": {}},
    }
    (path / "config.json").write_text(json.dumps(config))
    with (path / "progress.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *columns])
        for i in range(ROWS):
            row = [float(values[i]) for values in columns.values()]
            writer.writerow([round(steps * (i + 1) / ROWS), *row])
    if returns is not None:
        evaluations = [
            {"step": steps * i // 9, "returns": [returns * i / 9, returns / 3]}
            for i in range(1, 10)
        ]
        clocks = {"updates": steps, "update_seconds": 1.0, "seconds": 1.0}
        (path / "history.json").write_text(json.dumps({"evaluations": evaluations, **clocks}))
        played = {"mean_return": returns, "interval_95": [returns - 9, returns + 9], "episodes": 50}
        result = {**config, **played, "data": played, "behavior": {"mean_return": returns / 2}}
        (path / "result.json").write_text(json.dumps({**result, "dataset_id": "by/hand-v0"}))
    return path


@pytest.mark.parametrize("number", range(len(KINDS)), ids=lambda n: KINDS[n].__name__)
def test_curves_can_be_read(number: int, drawn: list[Figure], tmp_path: Path) -> None:
    columns = KINDS[number](np.random.default_rng(0))
    steps, returns = [(9_000, 2_345.6), (3_000_000, -1e7), (90, None)][number % 3]
    draw_run(run_folder(tmp_path / "run", columns, steps, returns))
    check_readable(drawn[0])


def height(axes: Axes, low: float, high: float) -> float:
    """Share of the plot's height between two values."""
    (_, bottom), (_, top) = axes.transData.transform([(0, low), (0, high)])
    return float((top - bottom) / axes.get_window_extent().height)


def test_one_outlier_does_not_flatten_the_rest(drawn: list[Figure], tmp_path: Path) -> None:
    draw_run(run_folder(tmp_path / "run", outlier(np.random.default_rng(0)), 9_000, 1.0))
    returns, gap, losses = drawn[0].axes
    assert height(losses, 0.3, 1.0) > 0.05 and height(gap, -1, 1) > 0.2
    assert returns.get_yscale() == "linear"


def test_where_a_scale_turns_linear() -> None:
    assert linear_below(np.array([1.0, 2.0, 29.0, np.nan, np.inf])) is None
    assert linear_below(np.array([-3.0, 2.0, 2.0, 0.0, 1e6])) == 1.0
    assert linear_below(np.zeros(3)) is linear_below(np.empty(0)) is None


def test_short_numbers() -> None:
    numbers = (0.0, 0.25, -999.0, 1_000.0, 12_500.0, -2e6, 3e9)
    assert [short(number) for number in numbers] == [
        "0",
        "0.25",
        "-999",
        "1k",
        "12.5k",
        "-2M",
        "3G",
    ]


@pytest.mark.parametrize(("actions", "scale"), [(1, 1e-3), (6, 3e6), (24, 1.0)])
def test_data_can_be_read(actions: int, scale: float, drawn: list[Figure], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 3_000
    last = np.arange(n) % 100 == 99
    ended = np.arange(n) % 200 == 199
    played = np.clip(rng.normal(0, 0.7, (n, actions)), -1, 1).astype(np.float32)
    starts = np.roll(last, 1)
    dataset = TransitionDataset(
        id="me/robot/own-v0",
        observations=rng.standard_normal((n, 2)).astype(np.float32),
        actions=played,
        rewards=(scale * rng.standard_normal(n)).astype(np.float32),
        next_observations=rng.standard_normal((n, 2)).astype(np.float32),
        terminations=ended,
        truncations=last & ~ended,
        previous_actions=np.where(starts[:, None], 0, np.roll(played, 1, axis=0)),
        starts=starts,
    )
    draw_dataset(dataset, tmp_path / "data.png")
    check_readable(drawn[0])


def test_comparisons_can_be_read(drawn: list[Figure], tmp_path: Path) -> None:
    results = (ROOT / "results/main.jsonl").read_text()
    long = results.replace("flowmdp/hopper/medium-v0", "some-group/robot-with-hands/tidy-v0")
    (tmp_path / "main.jsonl").write_text(long)
    grouped = load_results(tmp_path / "main.jsonl")
    labels = sorted({label for runs in grouped.values() for label in runs})
    for runs in (runs for of_label in grouped.values() for runs in of_label.values()):
        for run in runs:
            points = [0, 250_000, 500_000, 1_000_000]
            run["curve"] = {"steps": points, "mean_return": [run["mean_return"]] * len(points)}
    assert len(draw_figures(grouped, Comparison.of(grouped, labels), tmp_path)) == 3
    for figure in drawn:
        check_readable(figure)
