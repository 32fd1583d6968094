"""A user's cache of behaviour flows and critics, so that the next run starts with the policy.

The file's name is the agent's `pretrain_key()`, a hash of everything the two depend on: data,
sizes, steps, seed. FLOWMDP_CACHE names the folder, else XDG_CACHE_HOME/flowmdp or ~/.cache/flowmdp.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flowmdp.agents.decision_flow import DecisionFlow
from flowmdp.cli.run_folder import replace_file
from flowmdp.errors import CheckpointError


def cache_folder() -> Path:
    """Folder of the cache; it need not exist."""
    if path := os.environ.get("FLOWMDP_CACHE"):
        return Path(path)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "flowmdp"


def cached_file(agent: DecisionFlow) -> Path:
    """Where this agent's behaviour flow and critic lie, or would."""
    return cache_folder() / "pretrained" / f"{agent.pretrain_key()}.zip"


def restore(agent: DecisionFlow) -> bool:
    """Take behaviour flow and critic from the cache; False when they are not there or damaged."""
    path = cached_file(agent)
    if not path.is_file():
        return False
    try:
        agent.load_pretrained(path)
    except (CheckpointError, OSError) as error:
        print(f"flowmdp: cannot use {path} ({error}); training it again", file=sys.stderr)
        return False
    return True


def store(agent: DecisionFlow) -> Path | None:
    """Put behaviour flow and critic into the cache, whole or not at all.

    Returns:
        The file; None when the folder cannot be written, which only costs time later and is said
        on stderr.
    """
    path = cached_file(agent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, agent.save_pretrained)
    except OSError as error:
        print(f"flowmdp: not cached for the next run: {error}", file=sys.stderr)
        return None
    return path
