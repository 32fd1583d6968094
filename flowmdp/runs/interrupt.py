"""A Ctrl-C that stops between two gradient steps."""

from __future__ import annotations

import signal
from typing import Self


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
