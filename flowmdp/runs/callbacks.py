"""What happens around the gradient steps: evaluations, checkpoints, and a safe Ctrl-C."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any, Self

from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm


class Interruptible:
    """Turns the first Ctrl-C into a request to stop at the next gradient step.

    Stopping between two steps keeps agent, optimisers and generators consistent, so that the
    continued run equals one that was never interrupted. A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        """Listen to SIGINT (possible in the main thread only; elsewhere nothing changes)."""
        try:
            self._before = signal.signal(signal.SIGINT, self._request)
        except ValueError:
            self._before = None
        return self

    def __exit__(self, *_: object) -> None:
        """Give SIGINT back."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _request(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def go_on(self) -> bool:
        """False once the user has asked to stop."""
        return not self.requested


class Keeper(BaseCallback):
    """Evaluates and saves every so many steps, shows progress, and stops when asked to.

    Args:
        goal: The run's steps.
        evaluate: Plays the robot a few times; returns the episodes' returns.
        save: Writes checkpoint and history.
        history: What `history.json` holds; evaluations and clocks are added to it.
        eval_every: Steps between evaluations.
        save_every: Steps between checkpoints.
        interrupt: Asked at every step.
    """

    def __init__(
        self,
        goal: int,
        evaluate: Callable[[], list[float]],
        save: Callable[[], None],
        history: dict[str, Any],
        eval_every: int,
        save_every: int,
        interrupt: Interruptible,
    ) -> None:
        super().__init__()
        self._bar = tqdm(total=goal, desc="training")
        self.evaluate, self.save, self.history = evaluate, save, history
        self.eval_every, self.save_every = eval_every, save_every
        self.interrupt = interrupt

    def _on_training_start(self) -> None:
        self._since = time.perf_counter()
        self._updates = self.model.num_timesteps
        self._bar.update(self._updates - self._bar.n)

    def _on_step(self) -> bool:
        self._bar.update()
        if self.num_timesteps % self.eval_every == 0:
            self._stop_clock()
            self._evaluate()
            self._since = time.perf_counter()
        if self.num_timesteps % self.save_every == 0:
            self._stop_clock()
            self.save()
            self._since = time.perf_counter()
        return self.interrupt.go_on()

    def _on_training_end(self) -> None:
        self._stop_clock()

    def close(self) -> None:
        """End the progress bar's line."""
        self._bar.close()

    def _stop_clock(self) -> None:
        """Count the updates since the clock ran, without what evaluation and saving take."""
        self.history["update_seconds"] += time.perf_counter() - self._since
        self.history["updates"] += self.num_timesteps - self._updates
        self._updates = self.num_timesteps
        self._since = time.perf_counter()

    def _evaluate(self) -> None:
        returns = self.evaluate()
        self.history["evaluations"].append({"step": self.num_timesteps, "returns": returns})
        self.logger.record("evaluation/mean_return", sum(returns) / len(returns))
        self.logger.dump(self.num_timesteps)
