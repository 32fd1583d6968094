"""The latent-noise environment: a frozen flow whose first state is the only decision."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from flowmdp.arguments import check_numbers
from flowmdp.backends import as_flow_action
from flowmdp.env import FlowMDPEnv
from flowmdp.errors import ConfigurationError

Float = NDArray[np.float32]

NOISE_BOUND = 3.0
"""Noise of an action of 1: the box holds 99.7 % of each component of N(0, I). [ours, untuned]"""


class LatentNoiseEnv(gym.Env[Float, Float]):
    """Steer a frozen flow policy by its noise, as DSRL does (Wagenmaker et al. 2025, 2506.15799).

    One step is a whole chain: the action becomes x_0, the behaviour flow carries it to an action in
    `flow_steps` steps, which is executed outside. Any algorithm that trains on the robot trains on
    this environment, and can only choose among actions that the behaviour flow produces.

    ## Action Space
    `Box(-1, 1, (action_dim,), float32)`; x_0 = noise_bound * action, clipped to the box.

    ## Observation Space
    The outer observation s_n, a flat float32 `Box`; with `include_previous_action` of the flow
    environment followed by a_{n-1} and its flag.

    ## Rewards, Starting State, Episode End, Info
    Those of the flow environment at the end of a chain: the outer reward for `reward="return"`,
    Q(s, a) for `"direction"`; with `states="dataset"` every episode is one step.

    Args:
        flow: A `FlowMDPEnv` with `action_mode="residual"`: the frozen flow is its behaviour; owned
            and closed by this environment.
        noise_bound: Noise of an action of 1, positive; `action_magnitude` in DSRL's code.

    Raises:
        ConfigurationError: For another action mode or bound.
    """

    def __init__(self, flow: FlowMDPEnv, noise_bound: float = NOISE_BOUND) -> None:
        if flow.settings.action_mode != "residual":
            raise ConfigurationError("decision='noise' needs action_mode='residual': a frozen flow")
        check_numbers("(0, 1e9]", noise_bound=noise_bound)
        self.flow, self.noise_bound = flow, noise_bound
        self.metadata, self.render_mode = flow.metadata, flow.render_mode
        spec = flow.flow_spec
        # Of a flow observation [s, x_t, (t), (a_{n-1}, flag)] everything but x_t and t.
        self._kept = np.r_[spec.state, spec.t.stop : spec.flow_observation_dim]
        space = spec.space()
        self.observation_space = Box(space.low[self._kept], space.high[self._kept])
        self.action_space = Box(-1.0, 1.0, (spec.action_dim,), np.float32)
        self._zero = np.zeros(spec.action_dim, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float, dict[str, Any]]:
        """Start an episode of the flow environment, which draws from this one's generator."""
        super().reset(seed=seed)
        flow_seed = None if seed is None else int(self.np_random.integers(2**31))
        observation, info = self.flow.reset(seed=flow_seed, options=options)
        return observation[self._kept], info

    def step(self, action: Float) -> tuple[Float, float, bool, bool, dict[str, Any]]:
        """Start a chain at noise_bound * action and let the frozen flow finish it."""
        bounded = np.clip(as_flow_action(action, self._zero.shape), -1, 1)
        self.flow.set_noise(bounded * np.float32(self.noise_bound))
        total = 0.0
        for _ in range(self.flow.flow_steps):
            observation, reward, terminated, truncated, info = self.flow.step(self._zero)
            total += reward
        return observation[self._kept], total, terminated, truncated, info

    def render(self) -> Any:
        """The outer environment's frame."""
        return self.flow.render()

    def close(self) -> None:
        """Close the flow environment."""
        self.flow.close()
