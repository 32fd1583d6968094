"""What updates log: its means since the last line, the lines, and numbers that are not finite."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from flowmdp.agents.core import checkpoint
from flowmdp.agents.core.networks import Info
from flowmdp.errors import TrainingDivergedError


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


class Logging(BaseAlgorithm):
    """What an agent's log is written by; `FlowAlgorithm` makes it learn."""

    means: Means
    saved: checkpoint.Registry
    _clock: tuple[float, int]
    """When `learn` began, and at which step."""

    def diagnostics(self) -> dict[str, float]:
        """Scalars that are computed only when the log is written."""
        return {}

    def _note(self, info: Info, prefix: str, step: int) -> None:
        """Count what an update logs; on a CPU, look at once whether it is finite."""
        self.means.add(info)
        if self.device.type == "cpu":
            self._check_finite(prefix, step)

    def _check_finite(self, prefix: str, step: int, weights: bool = False) -> None:
        """Raise TrainingDivergedError if a logged number, or a weight, is not finite."""
        name = self.means.not_finite()
        place = name and f"{prefix}/{name}"
        if weights and not place:
            place = checkpoint.first_not_finite(self.saved.weights())
        if place:
            self.means.clear()
            raise TrainingDivergedError(
                f"training diverged at step {step} ({place} is not finite): take a smaller "
                "learning rate; what was saved before stays"
            )

    def dump_logs(self, step: int | None = None) -> None:
        """Write a line of the log now, at `num_timesteps` or `step`: the updates since the last."""
        if not hasattr(self, "_logger"):
            return  # before the first update there is nothing to say
        if self.means.count:
            self._check_finite("train", self.num_timesteps)
            start, first = self._clock
            rate = (self.num_timesteps - first) / (time.perf_counter() - start)
            self.logger.record("time/updates_per_second", rate)
            for key, value in self.diagnostics().items():
                self.logger.record(f"train/{key}", value)
        self._dump("train", self.num_timesteps if step is None else step)

    def _dump(self, prefix: str, step: int) -> None:
        """Write the means since the last line to the logger."""
        for key, mean in self.means.take().items():
            self.logger.record(f"{prefix}/{key}", mean)
        self.logger.dump(step)
