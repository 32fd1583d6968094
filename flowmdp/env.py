"""The flow MDP as a Gymnasium environment, nested inside the robot's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from flowmdp.errors import ActionError, ConfigurationError, ResetNeededError
from flowmdp.mdp import flow_step, flow_time
from flowmdp.rewards import (
    DIVERGENCES,
    REWARDS,
    Behavior,
    Critic,
    check_models,
    data_reward,
    divergence_reward,
)
from flowmdp.settings import FlowSettings, Layout
from flowmdp.transitions import TransitionDataset

Float = NDArray[np.float32]


class FlowMDPEnv(gym.Env[Float, Float]):
    r"""The generation of a robot's actions by a flow policy, one flow step per environment step.

    ## Description
    A flow-matching policy turns Gaussian noise $x_0$ into an action $x_1$ in `flow_steps` Euler
    steps. Decision Flow (Hu et al. 2025, arXiv:2505.20350) reads every such step as a decision.
    Here it is one: `step(action)` moves the point $x_t$ by a velocity; the last step of a chain
    clips $x_1$ to the robot's action box, executes it in the *outer* environment, which this one
    owns, and starts the next chain from fresh noise. Time limit, rendering and physics are the
    outer environment's.

    ## Action Space
    `Box(-1, 1, (action_dim,), float32)`: the velocity in units of `velocity_scale`. Components
    outside are clipped to the box; `clipped_fraction` reports the share at or beyond a bound.

        velocity = velocity_scale * action          (action units per unit of flow time)
        x_{t + 1/flow_steps} = x_t + velocity / flow_steps

    ## Observation Space
    A flat float32 `Box` with these parts, in order:

    | Part      | Length       | Min  | Max | Meaning                                              |
    |-----------|--------------|------|-----|------------------------------------------------------|
    | `s_n`     | `obs_dim`    | -Inf | Inf | outer observation, in the robot's units              |
    | `x_t`     | `action_dim` | -Inf | Inf | point between noise (t = 0) and action (t = 1)       |
    | `t`       | 1            | 0    | 1   | flow time k / flow_steps; if `include_time`          |
    | `a_{n-1}` | `action_dim` | -1   | 1   | last executed action; if `include_previous_action`   |
    | flag      | 1            | 0    | 1   | 0 at an episode's first action, where a_{n-1} is 0   |

    `[s_n, x_t]` alone (`include_time=False`) is the paper's literal state; it is not Markov for a
    velocity that depends on time.

    ## Rewards
    Chosen by `reward`. Every term is also in `info`, under the name given here, when it is due.

    - `"return"` (default): *reward_return*, the outer reward, at the step that executes the action;
      0 inside the chain. The sum over an episode is the robot's return.
    - `"direction"` (DF-dir): *reward_value* = Q(s, a), the critic's value of the executed action,
      at the last step of the chain; 0 before.
    - `"divergence"` (DF-div): *reward_divergence* = -rho D(u, u_v) / flow_steps at every step, with
      the behaviour flow's velocity u_v at the same point, plus *reward_value* at the last.
    - `"data"` (`states="dataset"` only): *reward_data* = -||u - (a - x_t)/(1 - t)||^2 / flow_steps
      at every step, with the dataset action a of the state: minus the flow-matching loss on the
      straight path. Chains are on-policy, so its optimum is the mean action, not the distribution.

    Discounts: 1 inside a chain and gamma at its end is what an outer gamma means. A library that
    applies one gamma to every step discounts outer time by gamma ** flow_steps.

    ## Starting State
    `states="env"`: the outer environment is reset; it is seeded from this environment's generator
    when a seed is given (and at the first reset). `states="dataset"`: s is drawn uniformly from the
    dataset's observations. In both, x_0 ~ N(0, I) at the start of every chain and t = 0.
    `reset(options={"noise": x_0})` sets the first chain's noise, `{"state": s}` the state
    (`states="dataset"` only); other options go to the outer environment.

    ## Episode End
    ### Termination
    `states="env"`: when the outer environment terminates, which only the last step of a chain can
    see. The observation then already belongs to a next chain (new s, fresh x_0, t = 0).
    `states="dataset"`: at the end of the chain; the observation is [s, x_1, 1], x_1 not clipped.

    ### Truncation
    When the outer environment truncates, at its own time limit. Never for `states="dataset"`.

    ## Info
    Inside a chain: the reward's terms that are due. At its end also `executed_action` (the clipped
    x_1), `clipped_fraction` (share of the chain's velocity components at or beyond the bounds) and,
    for `states="env"`, `outer_reward` and `outer_info`. `reset` gives `outer_info` there.

    ## Arguments
    | Argument                  | Default     | Description                                       |
    |---------------------------|-------------|---------------------------------------------------|
    | `outer`                   | None        | robot environment: observes a flat Box, acts in   |
    |                           |             | [-1, 1]; needed for `states="env"`                |
    | `flow_steps`              | 10          | flow steps per outer action, at least 1 [ours]    |
    | `reward`                  | `"return"`  | "return", "direction", "divergence" or "data"     |
    | `states`                  | `"env"`     | "env": live robot; "dataset": recorded states,    |
    |                           |             | one chain per episode, no simulator               |
    | `dataset`                 | None        | a `TransitionDataset`, or a function that loads   |
    |                           |             | one when it is first needed                       |
    | `critic`                  | None        | Q(s, a) on batches: "direction", "divergence"     |
    | `behavior`                | None        | u_v(s, x_t, t) on batches: "divergence"           |
    | `rho`                     | 1.0         | weight of the divergence, in the critic's units   |
    | `divergence`              | `"squared"` | "squared", "smooth_norm", "cosine", "gaussian_kl" |
    | `velocity_scale`          | 6.5         | velocity of an action of 1; `VELOCITY_SCALE` in   |
    |                           |             | `flowmdp.settings` holds the argument             |
    | `include_time`            | True        | observe t                                         |
    | `include_previous_action` | False       | observe a_{n-1} and its flag                      |
    | `task`, `source`          | None        | where outer and dataset came from, for the record |

    Raises `ConfigurationError` for arguments out of range or models that do not fit, `ActionError`
    for an action of wrong shape, dtype or not finite, `ResetNeededError` for a step before a reset
    or after an episode's end. All are `flowmdp.errors.FlowMDPError`.

    ## Version History
    * v0: first release.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium's declaration)

    def __init__(
        self,
        outer: gym.Env[Any, Any] | None = None,
        *,
        dataset: TransitionDataset | Callable[[], TransitionDataset] | None = None,
        critic: Critic | None = None,
        behavior: Behavior | None = None,
        task: str | None = None,
        source: str | None = None,
        **settings: Any,
    ) -> None:
        self.settings = FlowSettings.of(settings)
        self.flow_steps = int(self.settings.flow_steps)
        self.velocity_scale = float(self.settings.velocity_scale)
        self.include_time = self.settings.include_time
        self.include_previous_action = self.settings.include_previous_action
        self.task, self.source = task, source
        self.outer = outer
        self.critic, self.behavior = critic, behavior
        self._dataset = dataset
        self.outer_observation_space, self.outer_action_space = self._outer_spaces()
        obs_dim, action_dim = (
            self.outer_observation_space.shape[0],
            self.outer_action_space.shape[0],
        )
        check_models(self.settings.reward, critic, behavior, obs_dim, action_dim)
        self.layout = Layout(obs_dim, action_dim, self.include_time, self.include_previous_action)
        self.observation_space = self.layout.space()
        self.action_space = Box(-1.0, 1.0, (action_dim,), np.float32)
        self.render_mode = outer.render_mode if outer is not None else None
        if outer is not None:
            self.metadata = {
                "render_modes": list(outer.metadata.get("render_modes", [])),
                "render_fps": outer.metadata.get("render_fps", 30),
            }
        self._x_t = np.zeros(action_dim, np.float32)
        self._k = self._clipped = 0
        self._scale = np.full(action_dim, self.velocity_scale, np.float32)
        self._costs = self.settings.reward in ("divergence", "data")
        self._running = False
        self._outer_seeded = False
        self._low, self._high = -np.ones(action_dim, np.float32), np.ones(action_dim, np.float32)

    @property
    def dataset(self) -> TransitionDataset:
        """The recorded behaviour; loaded when it is first asked for.

        Raises:
            ConfigurationError: When there is none, or its dimensions are not the outer ones.
        """
        if self._dataset is None:
            raise ConfigurationError(
                "this environment has no dataset: pass dataset=, or make it by a task's id"
            )
        if not isinstance(self._dataset, TransitionDataset):
            self._dataset = self._dataset()
        data = self._dataset
        if self.outer is not None:
            shapes = (data.observations.shape[1:], data.actions.shape[1:])
            expected = (self.outer.observation_space.shape, self.outer.action_space.shape)
            if shapes != expected:
                raise ConfigurationError(
                    f"dataset {data.id} holds observations and actions of shapes {shapes}; "
                    f"the outer environment has {expected}"
                )
        return data

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float, dict[str, Any]]:
        """Start an episode; see the class docstring for `options`."""
        super().reset(seed=seed)
        options = dict(options or {})
        noise = self._option(options, "noise", self.layout.action_dim)
        if self.settings.states == "dataset":
            info: dict[str, Any] = {}
            self._reset_to_dataset(options)
        else:
            info = {"outer_info": self._reset_outer(seed, options)}
        self._start_chain(noise)
        self._running = True
        return self._observe(0), info

    def step(self, action: Float) -> tuple[Float, float, bool, bool, dict[str, Any]]:
        """Move x_t by `velocity_scale * action`; the last step of a chain also executes x_1.

        Args:
            action: Floating point, shape (action_dim,), finite; clipped to [-1, 1].

        Returns:
            Observation (a fresh array), reward, terminated, truncated, info.

        Raises:
            ActionError: For an action of another shape or dtype, or with NaN or infinity.
            ResetNeededError: Before the first reset and after the end of an episode.
        """
        if not self._running:
            raise ResetNeededError("the episode has not started or has ended: call reset() first")
        velocity = self._bounded(action) * self._scale
        info = self._step_costs(velocity) if self._costs else {}
        self._x_t = flow_step(self._x_t, velocity, self.flow_steps)
        self._k += 1
        if self._k < self.flow_steps:
            reward = sum(info.values()) if info else 0.0
            return self._observe(self._k), reward, False, False, info
        return self._end_chain(info)

    def render(self) -> Any:
        """The outer environment's frame; None without an outer environment."""
        return self.outer.render() if self.outer is not None else None

    def close(self) -> None:
        """Close the outer environment."""
        if self.outer is not None:
            self.outer.close()

    def _outer_spaces(self) -> tuple[Box, Box]:
        """Spaces of the robot: the outer environment's, or what the dataset's arrays tell."""
        if self.outer is None:
            if self.settings.states == "env":
                raise ConfigurationError(
                    "states='env' needs an outer environment: pass one, or states='dataset'"
                )
            obs_dim, action_dim = self.dataset.observations.shape[1], self.dataset.actions.shape[1]
            return (
                Box(-np.inf, np.inf, (obs_dim,), np.float32),
                Box(-1.0, 1.0, (action_dim,), np.float32),
            )
        observation, action = self.outer.observation_space, self.outer.action_space
        if not isinstance(observation, Box) or len(observation.shape) != 1:
            raise ConfigurationError(
                f"the outer environment observes {observation}, not a flat Box: wrap it in "
                "gymnasium.wrappers.FlattenObservation"
            )
        if not isinstance(action, Box) or len(action.shape) != 1:
            raise ConfigurationError(
                f"the outer environment acts in {action}, not a flat Box: flow policies need one"
            )
        if not (np.all(action.low == -1) and np.all(action.high == 1)):
            raise ConfigurationError(
                f"the outer environment acts in {action}, not in [-1, 1]: wrap it in "
                "gymnasium.wrappers.RescaleAction(env, -1, 1)"
            )
        return observation, action

    def _option(self, options: dict[str, Any], name: str, size: int) -> Float | None:
        """Take one array out of the reset options; None when it is not there."""
        if name not in options:
            return None
        value = np.array(options.pop(name), np.float32)
        if value.shape != (size,) or not np.isfinite(value).all():
            raise ConfigurationError(
                f"options[{name!r}] has shape {value.shape}: it must be ({size},) and finite"
            )
        return value

    def _reset_to_dataset(self, options: dict[str, Any]) -> None:
        state = self._option(options, "state", self.layout.obs_dim)
        if options:
            raise ConfigurationError(f"unknown reset options for states='dataset': {list(options)}")
        if state is not None:
            if self.settings.reward == "data":
                raise ConfigurationError(
                    "options['state'] has no dataset action: reward 'data' cannot use it"
                )
            self._set_state(state, None)
            return
        data = self.dataset
        index = int(self.np_random.integers(len(data)))
        self._x_data = data.actions[index]
        previous = None if data.starts[index] else data.previous_actions[index]
        self._set_state(data.observations[index], previous)

    def _reset_outer(self, seed: int | None, options: dict[str, Any]) -> dict[str, Any]:
        assert self.outer is not None
        if "state" in options:
            raise ConfigurationError("options['state'] needs states='dataset': the robot is live")
        outer_seed = None
        if seed is not None or not self._outer_seeded:
            outer_seed = int(self.np_random.integers(2**31))
            self._outer_seeded = True
        state, info = self.outer.reset(seed=outer_seed, options=options or None)
        self._set_state(state, None)
        return info

    def _set_state(self, state: NDArray[Any], previous: Float | None) -> None:
        """Write the parts of an observation that stay the same along a chain."""
        self._frame = np.zeros(self.layout.size, np.float32)
        self._frame[self.layout.state] = state
        if self.include_previous_action and previous is not None:
            self._frame[self.layout.previous_action] = previous
            self._frame[-1] = 1.0

    def _start_chain(self, noise: Float | None = None) -> None:
        if noise is None:
            noise = self.np_random.standard_normal(self.layout.action_dim, np.float32)
        self._x_t = noise
        self._k = 0
        self._clipped = 0

    def _observe(self, k: int) -> Float:
        observation = self._frame.copy()
        observation[self.layout.point] = self._x_t
        if self.include_time:
            observation[self.layout.t] = flow_time(k, self.flow_steps)
        return observation

    def _bounded(self, action: Float) -> Float:
        """The action, checked and clipped; this runs at every flow step, so it is kept cheap."""
        if (
            not isinstance(action, np.ndarray)
            or action.dtype != np.float32
            or action.shape != self._low.shape
        ):
            action = _as_flow_action(action, self._low.shape)
        square = action.dot(action)
        if square < 1.0:  # inside the unit ball, hence finite and inside the box
            return action
        if not math.isfinite(square) and not np.isfinite(action).all():
            raise ActionError(f"the action is not finite: {action}")
        clipped = int(np.count_nonzero(np.abs(action) >= 1.0))
        if not clipped:
            return action
        self._clipped += clipped
        return np.minimum(np.maximum(action, self._low), self._high)

    def _step_costs(self, velocity: Float) -> dict[str, Any]:
        """The terms of the reward that every flow step pays."""
        x_t, t = self._x_t[None], flow_time(self._k, self.flow_steps)
        if self.settings.reward == "data":
            cost = data_reward(velocity[None], x_t, self._x_data[None], t, self.flow_steps)
            return {"reward_data": float(cost[0])}
        assert self.behavior is not None
        state = self._frame[self.layout.state][None]
        reference = self.behavior(state, x_t, np.full((1, 1), t, np.float32))
        divergence = DIVERGENCES[self.settings.divergence]
        cost = divergence_reward(
            velocity[None], reference, divergence, self.settings.rho, self.flow_steps
        )
        return {"reward_divergence": float(cost[0])}

    def _end_chain(self, info: dict[str, Any]) -> tuple[Float, float, bool, bool, dict[str, Any]]:
        """Execute the action, or end the episode where there is no robot to execute it."""
        executed = np.minimum(np.maximum(self._x_t, self._low), self._high)
        if "critic" in REWARDS[self.settings.reward].models:
            assert self.critic is not None
            state = self._frame[self.layout.state][None]
            info["reward_value"] = float(self.critic(state, executed[None])[0])
        clipped = self._clipped / (self.flow_steps * self.layout.action_dim)
        if self.settings.states == "dataset":
            self._running = False
            observation = self._observe(self.flow_steps)
            reward, terminated, truncated = sum(info.values(), 0.0), True, False
        else:
            assert self.outer is not None
            state, outer_reward, terminated, truncated, outer_info = self.outer.step(
                executed.copy()
            )
            if self.settings.reward == "return":
                info["reward_return"] = float(outer_reward)
            reward = sum(info.values(), 0.0)
            info |= {"outer_reward": float(outer_reward), "outer_info": outer_info}
            self._set_state(state, executed)
            self._start_chain()
            observation = self._observe(0)
            self._running = not (terminated or truncated)
        info |= {"executed_action": executed, "clipped_fraction": clipped}
        return observation, reward, bool(terminated), bool(truncated), info


def _as_flow_action(action: Any, shape: tuple[int, ...]) -> Float:
    """A float32 copy of an action that is floating point and of the right shape."""
    try:
        array = np.asarray(action)
    except ValueError as error:
        raise ActionError(f"the action is no array: {error}") from error
    if array.dtype.kind != "f":
        raise ActionError(f"the action has dtype {array.dtype}: it must be floating point")
    if array.shape != shape:
        raise ActionError(f"the action has shape {array.shape}: it must be {shape}")
    return array.astype(np.float32)
