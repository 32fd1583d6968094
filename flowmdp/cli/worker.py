"""The process of a `flowmdp bench` job: it stops as by Ctrl-C once the bench is gone."""

from __future__ import annotations

import os
import signal
import sys
import threading

from flowmdp.cli import main
from flowmdp.runs.interrupt import STOPPING


def stop_with_parent() -> None:
    """Wait until standard input ends, whose other end the bench holds, and stop."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # Ray's workers block SIGINT
    threading.Thread(target=stop_with_parent, daemon=True).start()
    sys.exit(main())
