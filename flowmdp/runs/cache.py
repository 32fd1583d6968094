"""A user's cache of behaviour flows and critics, so that the next run starts with the policy.

Each lies in a file of its own, named by the agent's `part_key`: a hash of everything it depends on,
data, sizes, steps, seed and flowmdp's version. So runs share what they have in common, whatever
their algorithms.
FLOWMDP_CACHE names the folder, else XDG_CACHE_HOME/flowmdp or ~/.cache/flowmdp.
"""

from __future__ import annotations

import contextlib
import os
import sys
from functools import partial
from pathlib import Path

from flowmdp.agents.core.actor_critic import ActorCritic
from flowmdp.files import replace_file
from flowmdp.errors import CheckpointError

NAMES = {"behavior": "behaviour flow", "critic": "critic"}


def cache_folder() -> Path:
    """Folder of the cache; it need not exist."""
    if path := os.environ.get("FLOWMDP_CACHE"):
        return Path(path)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "flowmdp"


def cached_file(agent: ActorCritic, part: str) -> Path:
    """Where a part of this agent's pre-training lies, or would."""
    return cache_folder() / "pretrained" / f"{part}-{agent.part_key(part)}.zip"


def restore(agent: ActorCritic) -> None:
    """Take what the cache holds of the agent's pre-training."""
    for part in agent.parts:
        path = cached_file(agent, part)
        if not path.is_file():
            continue
        try:
            agent.load_part(part, path)
            print(f"{NAMES[part]} from {path}", file=sys.stderr)
        except (CheckpointError, OSError) as error:
            print(f"flowmdp: cannot use {path} ({error}); training it again", file=sys.stderr)
            with contextlib.suppress(OSError):
                path.unlink()


def store(agent: ActorCritic) -> None:
    """Put into the cache what it lacks of the agent's pre-training, each file whole or not at all.

    A folder that cannot be written only costs time later; that is said on stderr.
    """
    for part in agent.parts:
        path = cached_file(agent, part)
        if path.is_file():
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, partial(agent.save_part, part))
        except OSError as error:
            print(f"flowmdp: not cached for the next run: {error}", file=sys.stderr)
