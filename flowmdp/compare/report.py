"""`flowmdp report`: the tables that compare finished runs, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flowmdp.compare import bootstrap
from flowmdp.compare.bootstrap import Estimate, interquartile_mean, mean
from flowmdp.compare.comparison import Comparison, scores_of
from flowmdp.compare.results import Fields, Grouped, disagreements, load_results, write_csv
from flowmdp.errors import ConfigurationError
from flowmdp.runs.summary import decimals

FEW = 3
"""Fewer seeds than this get a mark."""
MARK = " †"
FEW_NOTE = f"†: fewer than {FEW} seeds; spread and interval say little."


def run_report(
    results: tuple[Path, ...],
    *,
    against: str | None = None,
    only: tuple[str, ...] = (),
    reference: tuple[str, ...] = (),
    acting: Literal["published", "sampled", "noiseless", "both"] = "published",
    csv: Path | None = None,
    figures: Path | None = None,
    commands: bool = False,
) -> None:
    """Compare finished runs: per dataset, over datasets with intervals, and against each other.

    Reads files that `flowmdp bench` wrote, and the result.json of runs, and prints Markdown: for
    each dataset and label the mean return over seeds and their standard deviation, first in
    short, then with the score, the data's return and the clone's; over the datasets that all labels
    share the mean and the interquartile mean of the normalised score with 95 % bootstrap intervals;
    and differences between labels with theirs. Runs that carry no label go under their algorithm's
    name.

    For example:
      flowmdp report results
      flowmdp report results/table.jsonl --against df-div --figures figures --csv runs.csv
      flowmdp report results/table.jsonl --reference flow-bc "df-div T=5"
      flowmdp report results/table.jsonl results/other.jsonl --only df-div "df-div T=*"
      flowmdp report runs/hopper-medium --acting noiseless
      flowmdp report results/table.jsonl --commands

    Args:
        results: Files of results (TABLE.jsonl), run folders, or folders of either.
        against: The label that all others are compared with; the best on average when not given.
        only: Only these labels, with wildcards: "df-div*". Without it a label on fewer than half as
            many datasets as the most frequent is shown, and not compared.
        reference: Labels that are shown per dataset and stay out of the comparison over datasets.
        acting: Which returns: as each algorithm's paper plays, from sampled noise x_0, or from
            x_0 = 0; both: the first and, under a label of its own, the last.
        csv: Write one row per run with all its numbers.
        figures: Draw scores.png (seeds, means, intervals per dataset) and aggregate.png into this
            folder.
        commands: Print the command behind each run as well.

    Raises:
        ConfigurationError: For a folder without results, or a label that does not occur.
        CheckpointError: When a file is damaged.
    """
    if not results:
        raise ConfigurationError("name a folder of results, for instance `flowmdp report results`")
    grouped = load_results(*results, only=only, acting=acting)
    labels = sorted(set(chain(*grouped.values())))
    for label in (*reference, *([against] if against else [])):
        if label not in labels:
            raise ConfigurationError(f"no label {label!r}: there are {', '.join(labels)}")
    compared = [label for label in labels if label not in reference]
    if against in reference or not compared:
        raise ConfigurationError("--reference leaves nothing to compare: name fewer labels there")
    comparison = Comparison.of(grouped, compared, share=0 if only else 0.5)
    if against in comparison.rare:
        raise ConfigurationError(
            f"{against} is on too few datasets to be compared with all others: name some with "
            "--only"
        )
    parts = [return_table(grouped, labels), dataset_table(grouped), aggregate_table(comparison)]
    if len(comparison.scores) > 1 and comparison.datasets:
        parts.append(difference_table(comparison, against))
    if commands:
        parts.append(command_list(grouped))
    print("\n\n".join(parts))
    if csv is not None:
        print(f"\n{write_csv(grouped, csv)} rows in {csv}")
    if figures is not None:
        from flowmdp.compare.figures import draw_figures

        print(f"\ndrawn into {', '.join(map(str, draw_figures(grouped, comparison, figures)))}")


def return_table(grouped: Grouped, labels: list[str]) -> str:
    """The short one: a row per dataset, a column per label, returns over seeds in the cells."""
    rows = []
    for dataset, by_label in grouped.items():
        found = [by_label.get(label) for label in labels]
        cells = (_returns(runs) + _mark(len(runs)) if runs else "-" for runs in found)
        rows.append((dataset.dataset_id, data_return(by_label), *cells))
    notes = ["Mean return over seeds ± standard deviation over seeds."]
    return markdown(("dataset", "data", *labels), rows, text=1, notes=notes)


def dataset_table(grouped: Grouped) -> str:
    """One row per dataset and label: means over seeds ± their standard deviation."""
    notes = [
        "Mean over seeds ± standard deviation over seeds, of each run's mean return at the last "
        "checkpoint; score: normalised. The best evaluation during training is chosen after the "
        "fact: optimistic, not the result."
    ]
    rows = []
    for dataset, labels in grouped.items():
        for label, runs in labels.items():
            scores = scores_of(runs)
            score = spread(scores, 1) if scores else "-"
            clone, best = map(_behavior, runs), (run.get("best_evaluation") for run in runs)
            returns = _returns(clone), _returns(runs), score, _returns(best)
            count = f"{len(runs)}{_mark(len(runs))}"
            rows.append((*dataset, label, count, data_return(labels), *returns))
            if mixed := disagreements(runs):
                notes.append(f"{label} on {dataset.dataset_id} mixes {', '.join(mixed)}.")
    columns = "task", "source", "dataset", "label", "seeds", "data", "behaviour flow", "return"
    return markdown((*columns, "score", "best, after the fact"), rows, text=4, notes=notes)


def data_return(runs: dict[str, list[Fields]]) -> str:
    """Mean return of the data's own episodes, the same in every run on a dataset."""
    mean_return = next(iter(runs.values()))[0]["data"]["mean_return"]
    return f"{mean_return:.{decimals(mean_return)}f}"


def _returns(outcomes: Iterable[Fields | None]) -> str:
    """Mean return over seeds; "-" where one seed has no such outcome."""
    returns: list[Any] = [one and one["mean_return"] for one in outcomes]
    return "-" if None in returns else spread(returns, decimals(float(np.mean(returns))))


def _behavior(run: Fields) -> Fields | None:
    """How the behaviour flow beside the policy plays; a clone, say, is the flow itself."""
    flow = run.get("behavior")
    same = flow and all(flow.get(name) == run.get(name) for name in ("mean_return", "returns"))
    return None if same else flow


def _mark(seeds: int) -> str:
    return MARK if seeds < FEW else ""


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Mean ± standard deviation (of a sample: divided by n - 1); without it for one value."""
    text = f"{np.mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.{digits}f}"


def aggregate_table(comparison: Comparison) -> str:
    """One row per label: mean and interquartile mean over the datasets all labels share."""
    count = len(comparison.datasets)
    notes = [
        f"Normalised score over {count} dataset{'s' * (count > 1)}: mean over datasets of the mean "
        "over seeds; IQM: mean of the middle half of all runs. 95 %: bootstrap that resamples the "
        "seeds within each dataset."
    ]
    if not count:
        notes = ["No dataset has a normalised score of every label: nothing to compare."]
    notes += [
        f"Left out: {dataset.dataset_id} ({dataset.task}, {dataset.source}): {why}."
        for dataset, why in comparison.left_out.items()
    ]
    if count and comparison.left_out:
        notes.append("--reference keeps a label out of the comparison.")
    notes += [
        f"Not compared: {label}, on {n} dataset{'s' * (n > 1)} only; --only compares what it names."
        for label, n in comparison.rare.items()
    ]
    if not count:
        return "\n".join(notes)
    middles = comparison.estimates(interquartile_mean)
    rows = []
    for label, estimate in comparison.estimates(mean).items():
        seeds = sorted({len(values) for values in comparison.scores[label]})
        number = " to ".join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1])))
        cells = *interval(estimate), *interval(middles[label])
        rows.append((label, number + _mark(seeds[0]), *cells))
    return markdown(("label", "seeds", "mean", "95 %", "IQM", "95 %"), rows, text=1, notes=notes)


def difference_table(comparison: Comparison, against: str | None) -> str:
    """One row per other label: its mean minus that of `against`, the best label for None."""
    ordered = list(comparison.estimates(mean))
    best, against = against is None, against or ordered[0]
    other = comparison.scores[against]
    rows = []
    for label in ordered:
        if label != against:
            scores = comparison.scores[label]
            ahead = sum(a.mean() > b.mean() for a, b in zip(scores, other, strict=True))
            value, here = interval(bootstrap.difference_over_seeds(scores, other), sign="+")
            _, elsewhere = interval(bootstrap.difference(scores, other), sign="+")
            rows.append((label, value, here, elsewhere, f"{ahead} of {len(other)}"))
    notes = [
        "Difference of the means above, paired by dataset. Other seeds: bootstrap that resamples "
        "both labels' seeds within each dataset. Other datasets: one that first resamples the "
        "datasets too."
    ]
    if best:
        notes.append(f"{against} was chosen because it is the best here: against it.")
    if len(other) == 1:
        notes.append("One dataset: the intervals say nothing of others.")
    spans = "95 %, other seeds", "95 %, other datasets"
    columns = ("label", f"minus {against}", *spans, "datasets ahead")
    return markdown(columns, rows, text=1, notes=notes)


def interval(estimate: Estimate, sign: str = "") -> tuple[str, str]:
    """Value, and `low to high`."""
    value, low, high = (f"{number:{sign}.1f}" for number in estimate)
    return value, f"{low} to {high}"


def command_list(grouped: Grouped) -> str:
    """Every run's command under a comment that says which it is, as a block for a shell."""
    lines = ["```sh"]
    for labels in grouped.values():
        for run in chain(*labels.values()):
            lines.append(f"# {run['dataset_id']}, {run['label']}, seed {run['seed']}")
            lines.append(run.get("command", "# not recorded"))
    return "\n".join([*lines, "```"])


def markdown(
    columns: Sequence[str], rows: Iterable[Sequence[str]], text: int, notes: Iterable[str] = ()
) -> str:
    """A Markdown table whose first `text` columns are text, and a paragraph of notes under it."""
    aligned = [*["---"] * text, *["---:"] * (len(columns) - text)]
    cells = [columns, *rows]
    lines = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in cells]
    lines.insert(1, f"|{'|'.join(aligned)}|")
    marked = any(MARK in cell for row in cells for cell in row)
    return "\n".join([*lines, "", *notes, *([FEW_NOTE] if marked else [])])
