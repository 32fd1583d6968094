"""The README's table of results: `python -m benchmarks.results results/`.

Reads every result.json below the folder and prints, for each dataset and algorithm, the mean return
of the last checkpoint over seeds, the cloned behaviour's on the same seeds, and the data's. Other
measurements are passed over.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

HEADER = ("dataset", "algorithm", "data", "behaviour flow", "agent", "gain", "score", "seeds")


def load(folder: Path) -> list[dict[str, Any]]:
    """All results of runs below a folder."""
    found = [json.loads(path.read_text()) for path in sorted(folder.rglob("*.json"))]
    return [result for result in found if "mean_return" in result]


def spread(values: list[float]) -> str:
    """Mean over seeds, and each seed's value."""
    return f"{np.mean(values):.0f} ({', '.join(f'{value:.0f}' for value in values)})"


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table with one row per dataset and algorithm."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        cells[result["dataset_id"], result["algorithm"]].append(result)
    lines = [f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    for (dataset, algorithm), runs in sorted(cells.items()):
        runs = sorted(runs, key=lambda run: run["seed"])
        agent = [run["mean_return"] for run in runs]
        behavior = [run["behavior"]["mean_return"] for run in runs]
        gain = np.mean(agent) / np.mean(behavior) - 1
        score = np.mean([run["normalized_score"] for run in runs])
        data = f"{runs[0]['data']['mean_return']:.0f}"
        row = (dataset, algorithm, data, spread(behavior), spread(agent), f"{gain:+.0%}")
        lines.append(f"| {' | '.join(row)} | {score:.1f} | {len(runs)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(load(Path(sys.argv[1] if len(sys.argv) > 1 else "results"))))
