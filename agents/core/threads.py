"""On how many of a CPU's threads the agents compute."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Of the environment; PyTorch reads them when it starts."""
_FIRST = torch.get_num_threads()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes on one thread for a while, unless the user has said on how many.

    A second thread gains a quarter at most in products of 256 rows, and much is lost where another
    process has its core: the first waits for it after every product. The user says it by
    `OMP_NUM_THREADS`, or by `torch.set_num_threads` once flowmdp is imported.
    """
    before = torch.get_num_threads()
    if before != _FIRST or any(name in os.environ for name in VARIABLES):
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
