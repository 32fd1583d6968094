"""A user's cache of behaviour flows and critics, so that the next run starts with the policy.

Each lies in a file of its own, named by `Part.key`: a hash of everything it depends on,
data, sizes, steps, seed and flowmdp's version. So runs share what they have in common, whatever
their algorithms.
FLOWMDP_CACHE names the folder, else XDG_CACHE_HOME/flowmdp or ~/.cache/flowmdp.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import platformdirs

from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.parts import Part
from flowmdp.errors import CheckpointError


def cache_root() -> Path:
    """The cache's folder, absolute; it need not exist."""
    chosen = os.environ.get("FLOWMDP_CACHE")
    return Path(chosen or platformdirs.user_cache_path("flowmdp")).absolute()


def cached_file(part: Part, folder: Path | None) -> Path:
    """Where a part of an agent's pre-training lies, or would."""
    return (folder or cache_root() / "pretrained") / f"{part.name}-{part.key()}.zip"


def _is_fitted(part: Part) -> bool:
    return part.steps > 0


def restore(agent: FlowAlgorithm, folder: Path | None = None) -> None:
    """Take what the cache, or another folder, holds of the agent's pre-training."""
    for part in filter(_is_fitted, agent.parts):
        path = cached_file(part, folder)
        if not path.is_file():
            continue
        try:
            part.load(path)
            print(f"{part.title} from {path}", file=sys.stderr)
        except (CheckpointError, OSError) as error:
            print(f"flowmdp: cannot use {path} ({error}); training it again", file=sys.stderr)
            with contextlib.suppress(OSError):
                path.unlink()


def store(agent: FlowAlgorithm, folder: Path | None = None) -> None:
    """Put into the cache, or another folder, what it lacks of the agent's pre-training.

    Each file is whole or not there. A folder that cannot be written only costs time later; that is
    said on stderr.
    """
    for part in filter(_is_fitted, agent.parts):
        path = cached_file(part, folder)
        if not path.is_file():
            try:
                part.save(path)
            except OSError as error:
                print(f"flowmdp: not cached for the next run: {error}", file=sys.stderr)
