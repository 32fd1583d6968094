"""`flowmdp report`: the tables that compare finished runs, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from flowmdp.cli.options import flat
from flowmdp.cli.options_many import Report
from flowmdp.compare.bootstrap import (
    Array,
    Estimate,
    difference,
    difference_over_seeds,
    interquartile_mean,
    mean,
    over_seeds,
)
from flowmdp.compare.results import (
    Dataset,
    Grouped,
    Result,
    as_acting,
    both_ways,
    group,
    load_results,
    mixed_settings,
    write_csv,
)
from flowmdp.errors import ConfigurationError

FEW = 3
"""Fewer seeds than this get a mark."""
MARK = " †"
FEW_NOTE = f"†: fewer than {FEW} seeds; spread and interval say little."
DATASET_COLUMNS = (
    *("task", "source", "dataset", "label", "seeds"),
    *("data", "behaviour flow", "return", "score", "best, after the fact"),
)


@dataclass
class Comparison:
    """The normalised scores of the labels that are compared, on the datasets that all have.

    Attributes:
        scores: Label -> one array of shape (seeds,) per dataset.
        datasets: In the arrays' order.
        left_out: The other datasets -> why.
        rare: The labels that stay out, since they are on too few datasets -> on how many.
    """

    scores: dict[str, list[Array]]
    datasets: list[Dataset]
    left_out: dict[Dataset, str]
    rare: dict[str, int]

    @classmethod
    def of(cls, grouped: Grouped, labels: list[str], share: float = 0.5) -> Comparison:
        """Compare the labels that are on that share of the most frequent one's datasets."""
        counts = {label: sum(label in runs for runs in grouped.values()) for label in labels}
        rare = {label: n for label, n in counts.items() if n < share * max(counts.values())}
        labels = [label for label in labels if label not in rare]
        left_out: dict[Dataset, str] = {}
        for dataset, runs in grouped.items():
            missing = [label for label in labels if label not in runs]
            if missing:
                left_out[dataset] = f"no {', no '.join(missing)}"
            elif any(scores_of(runs[label]) is None for label in labels):
                left_out[dataset] = "no reference scores to normalise with"
        datasets = [dataset for dataset in grouped if dataset not in left_out]
        scores = {
            label: [np.array(scores_of(grouped[dataset][label])) for dataset in datasets]
            for label in labels
        }
        return cls(scores, datasets, left_out, rare)

    def estimates(self, statistic: Any) -> dict[str, Estimate]:
        """Label -> the statistic over datasets, the best first."""
        found = {label: over_seeds(scores, statistic) for label, scores in self.scores.items()}
        return dict(sorted(found.items(), key=lambda item: -item[1].value))


def run_report(options: Report) -> None:
    """Print the tables, and write what else was asked for.

    Raises:
        ConfigurationError: For a folder without results, or a label that does not occur.
    """
    results = _results(options)
    grouped = group(results)
    labels = sorted({result["label"] for result in results})
    reference = flat(options.reference)
    for label in (*reference, *([options.against] if options.against else [])):
        if label not in labels:
            raise ConfigurationError(f"no label {label!r}: there are {', '.join(labels)}")
    compared = [label for label in labels if label not in reference]
    if options.against in reference or not compared:
        raise ConfigurationError("--reference leaves nothing to compare: name fewer labels there")
    comparison = Comparison.of(grouped, compared, share=0 if options.only else 0.5)
    if options.against in comparison.rare:
        raise ConfigurationError(
            f"{options.against} is on too few datasets to be compared with all others: name some "
            "with --only"
        )
    parts = [return_table(grouped, labels), dataset_table(grouped), aggregate_table(comparison)]
    if len(comparison.scores) > 1 and comparison.datasets:
        parts.append(difference_table(comparison, options.against))
    if options.commands:
        parts.append(command_list(grouped))
    print("\n\n".join(parts))
    if options.csv is not None:
        write_csv(results, options.csv)
        print(f"\n{len(results)} rows in {options.csv}")
    if options.figures is not None:
        from flowmdp.compare.figures import draw_figures

        drawn = draw_figures(grouped, comparison, options.figures)
        print(f"\ndrawn into {', '.join(str(path) for path in drawn)}")


def _results(options: Report) -> list[Result]:
    """Those that were asked for, played as was asked for."""
    if not options.results:
        raise ConfigurationError("name a folder of results, for instance `flowmdp report results`")
    results = load_results(*options.results)
    if only := flat(options.only):
        results = [run for run in results if _named(run["label"], only)]
    if not results:
        raise ConfigurationError(f"--only leaves nothing: no label is {' or '.join(only)}")
    if options.acting == "both":
        return [way for result in results for way in both_ways(result)]
    return [as_acting(result, options.acting) for result in results]


def _named(label: str, patterns: Iterable[str]) -> bool:
    """Whether a label is one of these, wildcards included."""
    return any(fnmatchcase(label, pattern) for pattern in patterns)


def scores_of(runs: list[Result]) -> list[float] | None:
    """Normalised score of every run; None where the task has no references."""
    scores = [run.get("normalized_score") for run in runs]
    return None if None in scores else [float(score) for score in scores if score is not None]


def return_table(grouped: Grouped, labels: list[str]) -> str:
    """The short one: a row per dataset, a column per label, returns over seeds in the cells."""
    rows = [
        (dataset.dataset_id, f"{data_return(runs):.0f}", *(_cell(runs.get(one)) for one in labels))
        for dataset, runs in grouped.items()
    ]
    notes = ["Mean return over seeds ± standard deviation over seeds."]
    if any(MARK in cell for row in rows for cell in row):
        notes.append(FEW_NOTE)
    return markdown(("dataset", "data", *labels), rows, text=1, notes=notes)


def data_return(runs: dict[str, list[Result]]) -> float:
    """Mean return of the data's own episodes, the same in every run on a dataset."""
    return float(next(iter(runs.values()))[0]["data"]["mean_return"])


def _cell(runs: list[Result] | None) -> str:
    if not runs:
        return "-"
    return spread([run["mean_return"] for run in runs]) + (MARK if len(runs) < FEW else "")


def dataset_table(grouped: Grouped) -> str:
    """One row per dataset and label: means over seeds ± their standard deviation."""
    rows, notes, few = [], [], False
    for dataset, labels in grouped.items():
        for label, runs in labels.items():
            few |= len(runs) < FEW
            rows.append((*dataset, label, _count(runs), *_outcome(runs)))
            mixed = mixed_settings(runs)
            if mixed:
                notes.append(f"{label} on {dataset.dataset_id} mixes {', '.join(mixed)}.")
    notes.insert(
        0,
        "Mean over seeds ± standard deviation over seeds, of each run's mean return at the last "
        "checkpoint; score: normalised. The best evaluation during training is chosen after the "
        "fact: optimistic, not the result.",
    )
    return markdown(DATASET_COLUMNS, rows, text=4, notes=[*notes, *([FEW_NOTE] if few else [])])


def _outcome(runs: list[Result]) -> tuple[str, ...]:
    """Data, behaviour flow, agent, score and best evaluation of one label on one dataset."""
    behavior = [run["behavior"] for run in runs if _improves(run)]
    best = [run.get("best_evaluation") for run in runs]
    scores = scores_of(runs)
    return (
        f"{runs[0]['data']['mean_return']:.0f}",
        spread([one["mean_return"] for one in behavior]) if len(behavior) == len(runs) else "-",
        spread([run["mean_return"] for run in runs]),
        "-" if scores is None else spread(scores, digits=1),
        "-" if None in best else spread([one["mean_return"] for one in best if one]),
    )


def _improves(run: Result) -> bool:
    """Whether the run has a behaviour flow beside its policy; a clone, say, is the flow itself."""
    behavior = run.get("behavior") or {}
    own = {name: run.get(name) for name in ("mean_return", "returns")}
    return bool(behavior) and {name: behavior.get(name) for name in own} != own


def _count(runs: Sequence[Any]) -> str:
    """The number of seeds, marked when it is small."""
    return f"{len(runs)}{MARK if len(runs) < FEW else ''}"


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Mean ± standard deviation (of a sample: divided by n - 1); without it for one value."""
    text = f"{np.mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.{digits}f}"


def aggregate_table(comparison: Comparison) -> str:
    """One row per label: mean and interquartile mean over the datasets all labels share."""
    left_out = [
        f"Left out: {dataset.dataset_id} ({dataset.task}, {dataset.source}): {why}."
        for dataset, why in comparison.left_out.items()
    ]
    rare = [
        f"Not compared: {label}, on {n} dataset{'s' * (n > 1)} only; --only compares what it names."
        for label, n in comparison.rare.items()
    ]
    count = len(comparison.datasets)
    if not count:
        nothing = "No dataset has a normalised score of every label: nothing to compare."
        return "\n".join([nothing, *left_out, *rare])
    means, middles = (comparison.estimates(one) for one in (mean, interquartile_mean))
    rows = [
        (
            label,
            _seeds(comparison.scores[label]),
            *interval(means[label]),
            *interval(middles[label]),
        )
        for label in means
    ]
    if left_out:
        left_out.append("--reference keeps a label out of the comparison.")
    notes = [
        f"Normalised score over {count} dataset{'s' * (count > 1)}: mean over datasets of the mean "
        "over seeds; IQM: mean of the middle half of all runs. 95 %: bootstrap that resamples the "
        "seeds within each dataset.",
        *left_out,
        *rare,
        *([FEW_NOTE] if any(MARK in row[1] for row in rows) else []),
    ]
    return markdown(("label", "seeds", "mean", "95 %", "IQM", "95 %"), rows, text=1, notes=notes)


def _seeds(scores: list[Array]) -> str:
    """How many seeds a label has per dataset, `3` or `2 to 3`, marked when there are few."""
    counts = sorted({len(values) for values in scores})
    text = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return text + (MARK if counts[0] < FEW else "")


def difference_table(comparison: Comparison, against: str | None) -> str:
    """One row per other label: its mean minus that of `against`, the best label for None."""
    best = against is None
    against = against or next(iter(comparison.estimates(mean)))
    other = comparison.scores[against]
    rows = []
    for label in comparison.estimates(mean):
        if label != against:
            scores = comparison.scores[label]
            ahead = sum(a.mean() > b.mean() for a, b in zip(scores, other, strict=True))
            value, here = interval(difference_over_seeds(scores, other), sign="+")
            _, elsewhere = interval(difference(scores, other), sign="+")
            rows.append((label, value, here, elsewhere, f"{ahead} of {len(other)}"))
    notes = [
        "Difference of the means above, paired by dataset. Other seeds: bootstrap that resamples "
        "both labels' seeds within each dataset. Other datasets: one that first resamples the "
        "datasets too.",
        *([f"{against} was chosen because it is the best here: against it."] if best else []),
        *(["One dataset: the intervals say nothing of others."] if len(other) == 1 else []),
    ]
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
    for dataset, labels in grouped.items():
        for label, runs in labels.items():
            for run in runs:
                lines.append(f"# {dataset.dataset_id}, {label}, seed {run['seed']}")
                lines.append(run.get("command", "# not recorded"))
    return "\n".join([*lines, "```"])


def markdown(
    columns: Sequence[str], rows: Iterable[Sequence[str]], text: int, notes: Iterable[str]
) -> str:
    """A Markdown table whose first `text` columns are text, and a paragraph of notes under it."""
    aligned = [*["---"] * text, *["---:"] * (len(columns) - text)]
    cells = [columns, *rows]
    lines = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in cells]
    lines.insert(1, f"|{'|'.join(aligned)}|")
    return "\n".join([*lines, "", *notes])
