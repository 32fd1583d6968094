"""Means of what updates log, over the updates since the last line of the log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Means:
    """Running sums, one of each logged scalar; nothing is kept per update."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin a line."""
        self.count, self.names = 0, tuple[str, ...]()
        self.sums: Tensor | None = None

    def add(self, info: Mapping[str, Tensor]) -> None:
        """Count one update's scalars; other names than before begin a line."""
        if info.keys() != set(self.names):
            self.clear()
            self.names = tuple(info)
        values = torch.stack([info[name].detach() for name in self.names]).double()
        self.sums = values if self.sums is None else self.sums.to(values.device) + values
        self.count += 1

    def not_finite(self) -> str | None:
        """The first scalar of which an update was NaN or infinite, None where there is none."""
        if self.sums is None or math.isfinite(self.sums.sum().item()):
            return None
        return next(n for n, one in zip(self.names, self.sums, strict=True) if not one.isfinite())

    def take(self) -> dict[str, float]:
        """The means so far; the next line begins."""
        sums = [] if self.sums is None else self.sums.tolist()
        means = {name: value / self.count for name, value in zip(self.names, sums, strict=True)}
        self.clear()
        return means

    def state(self) -> dict[str, Any]:
        """JSON-able, for a run that goes on later; empty where a sum is not finite."""
        sums = [] if self.sums is None else self.sums.tolist()
        if not all(map(math.isfinite, sums)):
            return {}
        return {"count": self.count, "sums": dict(zip(self.names, sums, strict=True))}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state` gave; with an empty one, begin a line."""
        self.clear()
        if sums := state.get("sums"):
            self.count, self.names = state["count"], tuple(sums)
            self.sums = torch.tensor(list(sums.values()), dtype=torch.float64)
