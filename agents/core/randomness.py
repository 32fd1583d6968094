"""An agent's own randomness: Python's, NumPy's and torch's global generators stay as they were."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flowmdp.arguments import check_integers

STATES = (16, 5056)
"""Bytes of a generator's state on a GPU and on a CPU."""


def check_seed(seed: Any) -> None:
    """Raise ConfigurationError unless NumPy and torch take the seed, or it is None."""
    if seed is not None:
        check_integers(0, 2**32 - 1, seed=seed)


def concrete(seed: Any) -> int:
    """The seed, checked; for None a fresh one, which the operating system draws."""
    check_seed(seed)
    return secrets.randbits(32) if seed is None else int(seed)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's global generators draw from `seed`; outside, they are as before."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def restore_generator(name: str, generator: torch.Generator, state: Tensor) -> None:
    """Take a state; one of the other kind of device seeds the generator instead, by its digest.

    Raises:
        ValueError: If it is no state of either kind.
    """
    own = generator.get_state()
    if state.dtype != own.dtype or state.ndim != 1 or len(state) not in {*STATES, len(own)}:
        raise ValueError(f"{name} is no state of a random generator")
    if len(state) == len(own):
        generator.set_state(state)
    else:
        digest = hashlib.sha256(name.encode() + state.cpu().numpy().tobytes()).digest()
        generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
