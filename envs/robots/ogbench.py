"""OGBench's tasks with one goal (Park et al. 2025, arXiv:2410.20092), as robots of this package.

Reward, success and end are OGBench's own: all three speak of the state before the action. What the
wrappers mend stands around them: a seed decides everything, NumPy's global generator stays out of
it, spaces cost nothing to look at, observations are float32, and pictures need no display.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer
from numpy.typing import NDArray

Step = tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]


class _OGBench(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """A single-task environment of OGBench.

    Attributes:
        state_widths: Names and widths of the recorded states that `outcomes` needs.
        mujoco_renderer: Draws the picture, as those of Gymnasium's own robots do.
    """

    def __init__(self, env: gym.Env[Any, Any], frames: int) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        bare: Any = env.unwrapped
        self._bare = bare
        bare.render_mode = env.spec.kwargs.get("render_mode") if env.spec else None
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": frames}
        self.action_space = gym.spaces.Box(-1.0, 1.0, bare.action_space.shape, np.float32)
        bare.action_space = gym.spaces.Box(-1.0, 1.0, self.action_space.shape, np.float32)
        observation, _ = self.reset(seed=0)  # builds the model and sets the goal
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, observation.shape, np.float32)
        self._seed(None)
        bare._np_random = None
        model = bare.model
        self.state_widths = {"qpos": int(model.nq)}
        size = 480
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self.mujoco_renderer = MujocoRenderer(
            model, bare.data, width=size, height=size, **self._camera()
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Reset; OGBench takes a few random actions on the way, which are seeded here too."""
        if seed is not None:
            self._seed(seed)
        observation, info = self.env.reset(seed=seed, options=options)
        return observation.astype(np.float32), info

    def step(self, action: Any) -> Step:
        """OGBench's step, in Python's own numbers."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        info["success"] = bool(info["success"])
        return observation.astype(np.float32), float(reward), bool(terminated), truncated, info

    def render(self) -> Any:
        """A picture, uint8 of shape (height, width, 3); None without a render mode."""
        return self.mujoco_renderer.render(self.render_mode) if self.render_mode else None

    def close(self) -> None:
        """Give the renderer's memory back."""
        self.mujoco_renderer.close()
        super().close()

    def outcomes(
        self, states: Mapping[str, NDArray[Any]]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Rewards and terminations of steps that begin in recorded states, as OGBench has them.

        Args:
            states: What `state_widths` names, each of shape (n, width).

        Returns:
            Rewards, shape (n,), and whether the state is a success, shape (n,).
        """
        from ogbench.relabel_utils import relabel_dataset

        assert self.spec is not None
        data: dict[str, Any] = dict(states)
        relabel_dataset(
            self.spec.id, types.SimpleNamespace(unwrapped=self._bare, reset=lambda: None), data
        )
        return data["rewards"], data["masks"] == 0

    def _seed(self, seed: int | None) -> None:
        """Seed what OGBench draws from beside `np_random`; None takes a random seed."""
        self._bare.action_space.seed(seed)

    def _camera(self) -> dict[str, Any]:
        """Where to look from, for Gymnasium's renderer."""
        return {"camera_name": "front"}


class Manipulation(_OGBench):
    """A scene for OGBench's arm: the reward is minus the number of subtasks that are not done.

    Attributes:
        action_names: What the action's dimensions move: the gripper's place, angle and opening.
    """

    action_names = ("x", "y", "z", "yaw", "gripper")

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        bare: Any = env.unwrapped
        kind = type(bare)  # has properties that make new spaces whenever they are looked at
        plain = {"action_space": gym.spaces.Box(-1.0, 1.0, (5,)), "observation_space": None}
        bare.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, **plain})
        super().__init__(env, frames=round(1 / bare.control_timestep()))
        self.metadata["at_once"] = 8  # for evaluation: each takes 0.16 GB and half a second
        if hasattr(bare, "_cur_button_states"):
            self.state_widths["button_states"] = len(bare._cur_button_states)


class SparseManipulation(Manipulation):
    """A scene whose reward is 0 in a success and -1 elsewhere."""

    def step(self, action: Any) -> Step:
        """OGBench's step, with the sparse reward."""
        observation, _, terminated, truncated, info = super().step(action)
        return observation, 0.0 if info["success"] else -1.0, terminated, truncated, info

    def outcomes(
        self, states: Mapping[str, NDArray[Any]]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """As `Manipulation`, with the sparse reward."""
        _, success = super().outcomes(states)
        return success.astype(np.float32) - 1, success


class Maze(_OGBench):
    """A point or an ant in OGBench's mazes: the reward is 0 at the goal and -1 elsewhere."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self._drawn: Any = None
        super().__init__(env, frames=round(1 / env.unwrapped.dt))  # type: ignore[attr-defined]
        Path(self._bare.fullpath).unlink(missing_ok=True)  # its model, left in the temporary files

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Reset; the start's noise is seeded too."""
        if seed is not None:
            self._seed(seed)
        with self._own_numbers():
            return super().reset(options=options, seed=seed)

    def step(self, action: Any) -> Step:
        """OGBench's step; where a teleport leads is seeded too."""
        if self._bare._teleport_info is None:  # no numbers are drawn, and lending takes 0.3 ms
            return super().step(action)
        with self._own_numbers():
            return super().step(action)

    def _seed(self, seed: int | None) -> None:
        super()._seed(seed)
        self._drawn = np.random.RandomState(seed).get_state()

    @contextlib.contextmanager
    def _own_numbers(self) -> Iterator[None]:
        """Lend OGBench, which draws from NumPy's global generator, one of its own."""
        outside = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._drawn)  # noqa: NPY002
        try:
            yield
        finally:
            self._drawn = np.random.get_state()  # noqa: NPY002
            np.random.set_state(outside)  # noqa: NPY002

    def _camera(self) -> dict[str, Any]:
        above = self._bare.custom_camera
        names = ("distance", "elevation", "lookat")
        return {"default_cam_config": {name: getattr(above, name) for name in names}}
