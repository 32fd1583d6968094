"""Known faults of other packages' robots, in one line with the cure."""

from __future__ import annotations

import importlib.metadata
import traceback

JOINTS = "gymnasium_robotics/utils/mujoco_utils.py"
"""Where gymnasium-robotics looks a joint's type up in a tuple of mujoco's enumeration; from mujoco
3.12 on no number is in there (tried: 3.3.7 to 3.11 work, 3.12 to 4.0 do not)."""


def explain(error: Exception) -> str:
    """Why a robot's environment could not be made, and what to do where that is known."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1].filename.replace("\\", "/") if frames else ""
    if isinstance(error, AssertionError) and last.endswith(JOINTS):
        packages = ("gymnasium-robotics", "mujoco")
        ours, theirs = (f"{name} {importlib.metadata.version(name)}" for name in packages)
        return f'{ours} does not work with {theirs} here: pip install "mujoco<3.12"'
    where = f"(line {frames[-1].lineno} of {last})" if frames else ""
    return " ".join(f"{type(error).__name__} {error} {where}".split())
