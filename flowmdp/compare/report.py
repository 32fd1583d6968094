"""`flowmdp report`: the tables that compare finished runs, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flowmdp.compare import bootstrap
from flowmdp.compare.bootstrap import Estimate, interquartile_mean, mean
from flowmdp.compare.comparison import (
    Comparison,
    family,
    kinds,
    labels_of,
    reports_success,
    scores_of,
)
from flowmdp.compare.results import (
    Dataset,
    Fields,
    Grouped,
    disagreements,
    load_results,
    write_csv,
)
from flowmdp.envs.scores import success_interval
from flowmdp.errors import ConfigurationError
from flowmdp.runs.summary import decimals

FEW = 3
"""Fewer seeds than this get a mark."""
MARK = " †"
APART = (
    "Tasks that report success stand in tables of their own: success rates and normalised scores "
    "have no common mean."
)
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
    name. Tasks that report success have tables of their own, of success rates in percent, with a
    mean over each family of tasks (scene-play-task1 to -task5).

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
        figures: Draw scores.png (seeds, means, intervals per dataset), aggregate.png and
            curves.png (evaluations while learning) into this folder; success.png and so on for
            tasks that report success.
        commands: Print the command behind each run as well.

    Raises:
        ConfigurationError: For a folder without results, or a label that does not occur.
        CheckpointError: When a file is damaged.
    """
    if not results:
        raise ConfigurationError("name a folder of results, for instance `flowmdp report results`")
    grouped = load_results(*results, only=only, acting=acting)
    labels = labels_of(grouped)
    for label in (*reference, *([against] if against else [])):
        if label not in labels:
            raise ConfigurationError(f"no label {label!r}: there are {', '.join(labels)}")
    compared = [label for label in labels if label not in reference]
    if against in reference or not compared:
        raise ConfigurationError("--reference leaves nothing to compare: name fewer labels there")
    share = 0 if only else 0.5
    comparisons = [(part, Comparison.of(part, compared, share)) for part in kinds(grouped)]
    if against and not any(against in found.scores for _, found in comparisons):
        raise ConfigurationError(
            f"{against} is on too few datasets to be compared with all others: name some with "
            "--only"
        )
    parts = [APART] if len(comparisons) > 1 else []
    for part, comparison in comparisons:
        parts += tables(part, comparison, against)
    if commands:
        parts.append(command_list(grouped))
    print("\n\n".join(parts))
    if csv is not None:
        print(f"\n{write_csv(grouped, csv)} rows in {csv}")
    if figures is not None:
        from flowmdp.compare.figures import draw_figures

        drawn = [
            str(path)
            for part, comparison in comparisons
            for path in draw_figures(part, comparison, figures)
        ]
        print(f"\ndrawn into {', '.join(drawn)}")


def tables(grouped: Grouped, comparison: Comparison, against: str | None) -> list[str]:
    """All tables of the datasets of one kind."""
    labels = labels_of(grouped)
    parts = [return_table(grouped, labels), dataset_table(grouped)]
    if comparison.by_success:
        parts = [success_table(grouped, labels), dataset_table(grouped)]
        parts += [table] if (table := family_table(grouped, labels)) else []
    if comparison.scores or comparison.rare:
        parts.append(aggregate_table(comparison))
    named = against is None or against in comparison.scores
    if len(comparison.scores) > 1 and comparison.datasets and named:
        parts.append(difference_table(comparison, against))
    return parts


def return_table(grouped: Grouped, labels: list[str]) -> str:
    """The short one: a row per dataset, a column per label, returns over seeds in the cells."""
    rows = []
    for dataset, by_label in grouped.items():
        found = [by_label.get(label) for label in labels]
        cells = (_returns(runs) + _mark(len(runs)) if runs else "-" for runs in found)
        rows.append((dataset.dataset_id, data_return(by_label), *cells))
    notes = ["Mean return over seeds ± standard deviation over seeds."]
    return markdown(("dataset", "data", *labels), rows, text=1, notes=notes)


def success_table(grouped: Grouped, labels: list[str]) -> str:
    """`return_table` for tasks that report success: rates in percent, with their intervals."""
    rows = []
    for dataset, by_label in grouped.items():
        found = [by_label.get(label) for label in labels]
        cells = (
            f"{_rates(runs)} ({success_span(runs)}){_mark(len(runs))}" if runs else "-"
            for runs in found
        )
        rows.append((dataset.task, dataset.dataset_id, data_rate(by_label), *cells))
    notes = [
        "Success rate in %, mean over seeds ± standard deviation over seeds. In brackets: Wilson's "
        "95 % interval of all seeds' episodes together, for other episodes of the same policies."
    ]
    return markdown(("task", "dataset", "data", *labels), rows, text=2, notes=notes)


def dataset_table(grouped: Grouped) -> str:
    """One row per dataset and label: means over seeds ± their standard deviation.

    Args:
        grouped: Tasks of one kind, see `flowmdp.compare.comparison.kinds`.
    """
    by_success = all(map(reports_success, grouped.values()))
    measured = "success rate in %" if by_success else "mean return"
    other = "95 %: Wilson's, of all seeds' episodes" if by_success else "score: normalised"
    notes = [
        f"Mean over seeds ± standard deviation over seeds, of each run's {measured} at the last "
        f"checkpoint; {other}. The best evaluation during training is chosen after the fact: "
        "optimistic, not the result."
    ]
    means, data = (_rates, data_rate) if by_success else (_returns, data_return)
    rows = []
    for dataset, labels in grouped.items():
        for label, runs in labels.items():
            scores = scores_of(runs)
            own = [spread(scores, 1) if scores else "-"]
            if by_success:
                own = [success_span(runs), _returns(runs)]
            clone, best = map(_behavior, runs), (run.get("best_evaluation") for run in runs)
            count = f"{len(runs)}{_mark(len(runs))}"
            cells = data(labels), means(clone), means(runs), *own, means(best)
            rows.append((*dataset, label, count, *cells))
            if mixed := disagreements(runs):
                notes.append(f"{label} on {named(dataset, labels)} mixes {', '.join(mixed)}.")
    columns = "task", "source", "dataset", "label", "seeds", "data", "behaviour flow"
    shown = ("success", "95 %", "return") if by_success else ("return", "score")
    return markdown((*columns, *shown, "best, after the fact"), rows, text=4, notes=notes)


def named(dataset: Dataset, labels: dict[str, list[Fields]]) -> str:
    """The dataset's id, and the task before it where several tasks share the dataset."""
    shared = reports_success(labels)
    return f"{dataset.task}, {dataset.dataset_id}" if shared else dataset.dataset_id


def data_return(runs: dict[str, list[Fields]]) -> str:
    """Mean return of the data's own episodes, the same in every run on a dataset."""
    mean_return = next(iter(runs.values()))[0]["data"].get("mean_return")
    return "-" if mean_return is None else f"{mean_return:.{decimals(mean_return)}f}"


def data_rate(runs: dict[str, list[Fields]]) -> str:
    """Share of the recorded episodes that reach the goal, in percent."""
    return _rates([next(iter(runs.values()))[0]["data"]])


def success_span(runs: list[Fields]) -> str:
    """Wilson's interval, in percent, of the success rate over the episodes of all seeds."""
    episodes = [run.get("episodes", 1) for run in runs]
    rates = [run.get("success_rate") for run in runs]
    if None in rates:
        return "-"
    successes = sum(round(n * rate) for n, rate in zip(episodes, rates, strict=True))
    low, high = success_interval(successes, sum(episodes))
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _returns(outcomes: Iterable[Fields | None]) -> str:
    """Mean return over seeds; "-" where one seed has no such outcome."""
    returns: list[Any] = [one and one["mean_return"] for one in outcomes]
    return "-" if None in returns else spread(returns, decimals(float(np.mean(returns))))


def _rates(outcomes: Iterable[Fields | None]) -> str:
    """Mean success rate over seeds, in percent; "-" where one seed has no such outcome."""
    rates: list[Any] = [one and one.get("success_rate") for one in outcomes]
    return "-" if None in rates else spread([100 * rate for rate in rates], 1)


def family_table(grouped: Grouped, labels: list[str]) -> str:
    """A row per family of tasks with a mean over its tasks; empty where each has one task."""
    members: dict[Dataset, list[Dataset]] = {}
    for dataset in grouped:
        members.setdefault(family(dataset), []).append(dataset)
    members = {name: tasks for name, tasks in members.items() if name.task and len(tasks) > 1}
    if not members:
        return ""
    rows = []
    for name, tasks in members.items():
        cells = []
        for label in labels:
            found = [scores_of(grouped[task].get(label, [])) for task in tasks]
            scores = [np.array(one) for one in found if one]
            cell = "-"
            if len(scores) == len(tasks):
                value, span = interval(bootstrap.over_seeds(scores, mean))
                cell = f"{value} ({span}){_mark(min(map(len, scores)))}"
            cells.append(cell)
        rows.append((name.task, name.dataset_id, f"{len(tasks)}", *cells))
    notes = [
        "Success rate in %: mean over the tasks of a family of the mean over seeds, of the labels "
        "that have them all. In brackets: 95 %, bootstrap that resamples the seeds within each "
        "task."
    ]
    return markdown(("family", "dataset", "tasks", *labels), rows, text=2, notes=notes)


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
    what, place = (
        "Success rate in %" if comparison.by_success else "Normalised score",
        comparison.place,
    )
    notes = [
        f"{what} over {count} {place}{'s' * (count > 1)}: mean over {place}s of the mean over "
        "seeds; IQM: mean of the middle half of all runs. 95 %: bootstrap that resamples the seeds "
        f"within each {place}."
    ]
    if not count:
        lacking = "success rate" if comparison.by_success else "normalised score"
        notes = [f"No {place} has a {lacking} of every label: nothing to compare."]
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
    place = comparison.place
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
        f"Difference of the means above, paired by {place}. Other seeds: bootstrap that resamples "
        f"both labels' seeds within each {place}. Other {place}s: one that first resamples the "
        f"{place}s too."
    ]
    if best:
        notes.append(f"{against} was chosen because it is the best here: against it.")
    if len(other) == 1:
        notes.append(f"One {place}: the intervals say nothing of others.")
    spans = "95 %, other seeds", f"95 %, other {place}s"
    columns = ("label", f"minus {against}", *spans, f"{place}s ahead")
    return markdown(columns, rows, text=1, notes=notes)


def interval(estimate: Estimate, sign: str = "") -> tuple[str, str]:
    """Value, and `low to high`."""
    value, low, high = (f"{number:{sign}.1f}" for number in estimate)
    return value, f"{low} to {high}"


def command_list(grouped: Grouped) -> str:
    """Every run's command under a comment that says which it is, as a block for a shell."""
    lines = ["```sh"]
    for dataset, labels in grouped.items():
        for run in chain(*labels.values()):
            lines.append(f"# {named(dataset, labels)}, {run['label']}, seed {run['seed']}")
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
