"""Gymnasium-Robotics' point in a maze: its picture, its frame rate, and no litter on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym


class PointMaze(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Leaves the task as it is; mends three things around it (gymnasium-robotics 1.4.2).

    The environment says 50 frames per second where a step takes 0.01 s; it hides the renderer
    inside the point; and it leaves its model as an XML file in the folder for temporary files.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        bare: Any = env.unwrapped
        self.mujoco_renderer = bare.point_env.mujoco_renderer
        self.metadata = {**env.metadata, "render_fps": round(1 / bare.point_env.dt)}
        Path(bare.tmp_xml_file_path).unlink(missing_ok=True)
