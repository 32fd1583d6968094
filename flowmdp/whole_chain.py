"""The robot in chunks: environments of which one step is the whole chain of a flow environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from flowmdp.env import FlowMDPEnv
from flowmdp.errors import ConfigurationError
from flowmdp.mdp.spec import FlowSettings, FlowSpec
from flowmdp.robot import RobotInterface
from flowmdp.transitions import TransitionDataset

Float = NDArray[np.float32]


def whole_spaces(spec: FlowSpec) -> tuple[Box[Any], Box[Any]]:
    """Observation and action space of whoever decides on whole actions of a flow environment."""
    space, kept = spec.space(), _kept(spec)
    observations = Box(space.low[kept], space.high[kept])
    return observations, Box(-1.0, 1.0, (spec.action_dim,), np.float32)


def _kept(spec: FlowSpec) -> NDArray[np.intp]:
    """Of a flow observation [s, x_t, (t), (a_{n-1}, flag)] everything but x_t and t."""
    kept: NDArray[np.intp] = np.r_[spec.state, spec.t.stop : spec.flow_observation_dim]
    return kept


class ActionEnv(gym.Env[Float, Float]):
    """The robot itself, in the spaces and the time of a flow environment.

    One step executes an action, with chunks a chunk of them: what a policy does that draws its
    chains by itself, or has none, as one of SB3's.

    ## Action Space
    `Box(-1, 1, (action_dim,), float32)`: x_1, clipped to the box.

    ## Observation Space
    The outer observation s_n, a flat float32 `Box`; with `include_previous_action` of the flow
    environment followed by a_{n-1} and its flag.

    ## Rewards, Starting State, Episode End, Info
    Those of the flow environment at the end of a chain: the outer reward for `reward="return"`,
    Q(s, a) for `"direction"`; with `states="dataset"` every episode is one step.

    Args:
        flow: A flow environment that pays nothing inside a chain; owned and closed by this one.

    Raises:
        ConfigurationError: If it is paid for velocities.
    """

    def __init__(self, flow: FlowMDPEnv) -> None:
        self.flow = flow
        self._check(flow)
        self.metadata, self.render_mode = flow.metadata, flow.render_mode
        self._kept = _kept(flow.flow_spec)
        self.observation_space, self.action_space = whole_spaces(flow.flow_spec)

    def _check(self, flow: FlowMDPEnv) -> None:
        """Raise ConfigurationError for a flow environment that means nothing here."""
        if flow.settings.reward not in ("return", "direction"):
            raise ConfigurationError(
                f"decision='action' has no velocities that reward={flow.settings.reward!r} could "
                "price: take reward='return' or 'direction'"
            )

    @property
    def flow_spec(self) -> FlowSpec:
        """Of the flow environment."""
        return self.flow.flow_spec

    @property
    def settings(self) -> FlowSettings:
        """Of the flow environment."""
        return self.flow.settings

    @property
    def robot(self) -> RobotInterface:
        """The robot's own spaces, see `flowmdp.robot`."""
        return self.flow.robot

    @property
    def dataset(self) -> TransitionDataset:
        """The recorded behaviour."""
        return self.flow.dataset

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float, dict[str, Any]]:
        """Start an episode of the flow environment, which draws from this one's generator."""
        super().reset(seed=seed)
        flow_seed = None if seed is None else int(self.np_random.integers(2**31))
        observation, info = self.flow.reset(seed=flow_seed, options=options)
        return observation[self._kept], info

    def step(self, action: Float) -> tuple[Float, float, bool, bool, dict[str, Any]]:
        """Execute x_1."""
        observation, reward, terminated, truncated, info = self.flow.execute(action)
        return observation[self._kept], reward, terminated, truncated, info

    def values(self, states: Float, actions: Float) -> Float:
        """What `reward="direction"` pays for actions at states, shape (n,); many at once.

        Args:
            states: Outer observations, shape (n, obs_dim).
            actions: In [-1, 1], shape (n, action_dim).

        Raises:
            ConfigurationError: For another reward.
        """
        return self.flow.values(states, actions)

    def render(self) -> Any:
        """The outer environment's frame."""
        return self.flow.render()

    def close(self) -> None:
        """Close the flow environment."""
        self.flow.close()
