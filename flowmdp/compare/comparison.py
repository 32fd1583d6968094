"""The labels that can be compared, on the datasets that all of them have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flowmdp.compare import bootstrap
from flowmdp.compare.bootstrap import Array, Estimate
from flowmdp.compare.results import Dataset, Fields, Grouped


@dataclass
class Comparison:
    """The normalised scores of the labels that are compared, on the datasets that all have."""

    scores: dict[str, list[Array]]
    """Label -> one array of shape (seeds,) per dataset."""
    datasets: list[Dataset]
    """In the arrays' order."""
    left_out: dict[Dataset, str]
    """The other datasets -> why."""
    rare: dict[str, int]
    """The labels that stay out, since they are on too few datasets -> on how many."""

    @classmethod
    def of(cls, grouped: Grouped, labels: list[str], share: float = 0.5) -> Comparison:
        """Compare the labels that are on that share of the most frequent one's datasets."""
        counts = {label: sum(label in runs for runs in grouped.values()) for label in labels}
        rare = {label: n for label, n in counts.items() if n < share * max(counts.values())}
        labels = [label for label in labels if label not in rare]
        left_out: dict[Dataset, str] = {}
        for dataset, runs in grouped.items():
            if missing := [f"no {label}" for label in labels if label not in runs]:
                left_out[dataset] = ", ".join(missing)
            elif any(scores_of(runs[label]) is None for label in labels):
                left_out[dataset] = "no reference scores to normalise with"
        datasets = [dataset for dataset in grouped if dataset not in left_out]
        scores = {
            label: [np.array(scores_of(grouped[one][label])) for one in datasets]
            for label in labels
        }
        return cls(scores, datasets, left_out, rare)

    def estimates(self, statistic: bootstrap.Statistic) -> dict[str, Estimate]:
        """Label -> the statistic over datasets, the best first."""
        found = [
            (label, bootstrap.over_seeds(scores, statistic))
            for label, scores in self.scores.items()
        ]
        return dict(sorted(found, key=lambda item: -item[1].value))


def scores_of(runs: list[Fields]) -> list[float] | None:
    """Normalised score of every run; None where the task has no references."""
    scores: list[Any] = [run.get("normalized_score") for run in runs]
    return None if None in scores else scores
