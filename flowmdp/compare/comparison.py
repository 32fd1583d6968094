"""The labels that can be compared, on the datasets that all of them have.

A task's score is normalised from returns, or 100 times the success rate where the task reports
success. The two have no common mean: `kinds` takes them apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowmdp.compare import bootstrap
from flowmdp.compare.bootstrap import Array, Estimate
from flowmdp.compare.results import Dataset, Fields, Grouped


@dataclass
class Comparison:
    """The scores, of one kind, of the labels that are compared, on the datasets that all have."""

    scores: dict[str, list[Array]]
    """Label -> one array of shape (seeds,) per dataset."""
    datasets: list[Dataset]
    """In the arrays' order."""
    left_out: dict[Dataset, str]
    """The other datasets -> why."""
    rare: dict[str, int]
    """The labels that stay out, since they are on too few datasets -> on how many."""
    by_success: bool = False
    """Whether the scores are success rates."""

    @property
    def place(self) -> str:
        """What a score stands for: several tasks that report success may share a dataset."""
        return "task" if self.by_success else "dataset"

    @classmethod
    def of(cls, grouped: Grouped, labels: list[str], share: float = 0.5) -> Comparison:
        """Compare the labels that are on that share of the most frequent one's datasets.

        Where only some of the tasks report success, these are left out.
        """
        by_success = all(map(reports_success, grouped.values()))
        there = labels_of(grouped)
        labels = [label for label in labels if label in there]
        if not labels:
            return cls({}, [], {}, {}, by_success)
        counts = {label: sum(label in runs for runs in grouped.values()) for label in labels}
        rare = {label: n for label, n in counts.items() if n < share * max(counts.values())}
        labels = [label for label in labels if label not in rare]
        left_out: dict[Dataset, str] = {}
        for dataset, runs in grouped.items():
            if reports_success(runs) != by_success:
                left_out[dataset] = "a success rate is no normalised score"
            elif missing := [f"no {label}" for label in labels if label not in runs]:
                left_out[dataset] = ", ".join(missing)
            elif any(scores_of(runs[label]) is None for label in labels):
                left_out[dataset] = "no reference scores to normalise with"
        datasets = [dataset for dataset in grouped if dataset not in left_out]
        scores = {
            label: [np.array(scores_of(grouped[one][label])) for one in datasets]
            for label in labels
        }
        return cls(scores, datasets, left_out, rare, by_success)

    def estimates(self, statistic: bootstrap.Statistic) -> dict[str, Estimate]:
        """Label -> the statistic over datasets, the best first."""
        found = [
            (label, bootstrap.over_seeds(scores, statistic))
            for label, scores in self.scores.items()
        ]
        return dict(sorted(found, key=lambda item: -item[1].value))


def labels_of(grouped: Grouped) -> list[str]:
    """All that occur, in alphabetical order."""
    return sorted({label for labels in grouped.values() for label in labels})


def reports_success(labels: dict[str, list[Fields]]) -> bool:
    """Whether the runs on a dataset were measured by success."""
    return any(run.get("success_rate") is not None for runs in labels.values() for run in runs)


def kinds(grouped: Grouped) -> list[Grouped]:
    """The datasets whose scores have a common mean: by returns, then by success; none empty."""
    parts: dict[bool, Grouped] = {False: {}, True: {}}
    for dataset, labels in grouped.items():
        parts[reports_success(labels)][dataset] = labels
    return [part for part in parts.values() if part]


def family(dataset: Dataset) -> Dataset:
    """A dataset with the name of its task's family: scene-play for scene-play-task1 .. task5.

    scene-play itself, one of the five under its name as a default, belongs to none.
    """
    name, numbered = re.subn(r"-task\d+$", "", dataset.task)
    return dataset._replace(task=name if numbered else "")


def scores_of(runs: list[Fields]) -> list[float] | None:
    """Normalised score of every run; None where the task has no references."""
    scores: list[Any] = [run.get("normalized_score") for run in runs]
    return None if None in scores else scores
