"""Signals that ask a command to stop, and stopping between two gradient steps."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal stopped the command.

    Args:
        number: Which; the exit code is 128 + number.
        advice: How to go on.
    """

    def __init__(self, number: int = signal.SIGINT, advice: str = "") -> None:
        super().__init__(*([advice] if advice else []))
        self.number = int(number)


@contextmanager
def listening(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Have `handler` called for the stopping signals.

    SIGHUP stays ignored where it is, as under nohup. Signals reach the main thread only; in others
    nothing changes.
    """
    before: dict[signal.Signals, Any] = {}
    try:
        for number in STOPPING:
            held = signal.getsignal(number)
            if number == signal.SIGHUP and held is signal.SIG_IGN:
                continue
            signal.signal(number, handler)
            before[number] = held
    except ValueError:
        pass
    try:
        yield
    finally:
        for number, held in before.items():
            signal.signal(number, signal.SIG_DFL if held is None else held)


class Interrupt:
    """For `listening`: the first stopping signal asks for a stop at the next gradient step.

    Stopping between two steps keeps agent, optimisers and generators consistent, so that the
    continued run equals one that was never interrupted. A second signal stops at once.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        """The signal, once there was one."""

    def __call__(self, number: int, _: object) -> None:
        """A signal has come; `listening` calls this."""
        if self.requested is not None:
            raise Stopped(number)
        self.requested = number

    def go_on(self) -> bool:
        """False once the user has asked to stop."""
        return self.requested is None
