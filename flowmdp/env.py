"""The flow MDP as a Gymnasium environment, nested inside the robot's own."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from flowmdp.backends import as_flow_action
from flowmdp.base import Behavior, Critic, Float, FlowBase, Recording, own_steps
from flowmdp.errors import ResetNeededError, RobotError
from flowmdp.mdp.spec import FlowSettings
from flowmdp.mdp.transition import flow_step, flow_time

FLOAT32 = np.dtype(np.float32)
NOT_RUNNING = "the episode has not started or has ended: call reset() first"


class FlowMDPEnv(FlowBase, gym.Env[Float, Float]):
    r"""The generation of a robot's actions by a flow policy, one flow step per environment step.

    ## Description
    A flow-matching policy turns Gaussian noise $x_0$ into an action $x_1$ in `flow_steps` Euler
    steps. Decision Flow (Hu et al. 2025, arXiv:2505.20350) reads every such step as a decision.
    Here it is one: `step(action)` moves the point $x_t$ by a velocity; the last step of a chain
    clips $x_1$ to the robot's action box, executes it in the *outer* environment, which this one
    owns, and starts the next chain from fresh noise. Time limit, rendering and physics are the
    outer environment's.

    With `chunk` = h > 1 one chain decides the robot's next h actions at once (Li et al. 2025,
    arXiv:2507.07969): x_t holds them one after another, and the end of the chain executes them open
    loop, as far as the episode goes. `action_dim` is then h times the robot's.

    ## Action Space
    `Box(-1, 1, (action_dim,), float32)`: the velocity in units of `velocity_scale`. Components
    outside are clipped to the box; `clipped_fraction` reports the share at or beyond a bound.

        velocity = velocity_scale * action          (action units per unit of flow time)
        x_{t + 1/flow_steps} = x_t + velocity / flow_steps

    `action_mode="residual"` adds the behaviour flow's velocity: action 0 is the behaviour. With
    `noise_std` > 0 the step is Gaussian, with noise of standard deviation
    noise_std / sqrt(flow_steps) added to the point; `info["log_density"]` is its log-density.

    ## Observation Space
    A flat float32 `Box` with these parts, in order:

    | Part      | Length       | Min  | Max | Meaning                                              |
    |-----------|--------------|------|-----|------------------------------------------------------|
    | `s_n`     | `obs_dim`    | -Inf | Inf | outer observation, in the robot's units              |
    | `x_t`     | `action_dim` | -Inf | Inf | point between noise (t = 0) and action (t = 1)       |
    | `t`       | 1            | 0    | 1   | flow time k / flow_steps; if `include_time`          |
    | `a_{n-1}` | robot's      | -1   | 1   | last executed action; if `include_previous_action`   |
    | flag      | 1            | 0    | 1   | 0 at an episode's first action, where a_{n-1} is 0   |

    `[s_n, x_t]` alone (`include_time=False`) is the paper's literal state; it is not Markov for a
    velocity that depends on time.

    ## Rewards
    Chosen by `reward`. Every term is also in `info`, under the name given here, when it is due.

    - `"return"` (default): *reward_return*, the outer reward, at the step that executes the action,
      of a chunk the sum of its rewards; 0 inside the chain. The sum over an episode is the robot's
      return.
    - `"direction"` (DF-dir): *reward_value* = Q(s, a), the critic's value of the executed action,
      at the last step of the chain; 0 before.
    - `"divergence"` (DF-div): *reward_divergence* = -rho D(u, u_v) / flow_steps at every step, with
      the behaviour flow's velocity u_v at the same point, plus *reward_value* at the last.
    - `"data"` (`states="dataset"` only): *reward_data* = -||u - (a - x_t)/(1 - t)||^2 / flow_steps
      at every step, with the dataset action a of the state: minus the flow-matching loss on the
      straight path. Chains are on-policy, so its optimum is the mean action, not the distribution.
      Actions of a chunk that the data never took, since the episode terminated, cost nothing.

    Discounts: 1 inside a chain and gamma at its end, gamma ** chunk with chunks, is what an outer
    gamma means; `flowmdp.sb3.FlowReplayBuffer` does so. A library that applies one gamma to every
    step discounts outer time by gamma ** flow_steps.

    ## Starting State
    `states="env"`: the outer environment is reset; it is seeded from this environment's generator
    when a seed is given (and at the first reset). `states="dataset"`: s is drawn uniformly from the
    dataset's observations. In both every chain starts at x_0 ~ N(0, noise_scale^2 I) and t = 0.
    `reset(options={"noise": x_0})` sets the first chain's noise, `{"state": s}` the state
    (`states="dataset"` only); other options go to the outer environment.

    ## Episode End
    ### Termination
    `states="env"`: when the outer environment terminates, which only the last step of a chain can
    see. The observation then already belongs to a next chain (new s, fresh x_0, t = 0).
    `states="dataset"`: at the end of the chain; the observation is [s, x_1, 1], x_1 not clipped.

    ### Truncation
    When the outer environment truncates, at its own time limit. Never for `states="dataset"`.
    Either ends a chunk where it happens; the rest of its actions is dropped.

    ## Info
    Inside a chain: the reward's terms that are due, and `log_density` with noise. At its end also
    `executed_action` (the clipped x_1, in [-1, 1]; `robot.to_robot` gives the robot's units),
    `clipped_fraction` (share of the chain's action components at or beyond the bounds) and, for
    `states="env"`, `outer_reward` and `outer_info`. `reset` gives `outer_info` there. With chunks
    `executed_action` holds all h actions, `executed_steps` says how many ran, `outer_rewards` what
    each of the h was paid (0 if it did not run), `outer_reward` their sum, and `outer_info` is the
    last one's.

    ## Rendering
    The outer environment's modes and frame rate. The robot moves once per chain, so `rgb_array`
    returns the same array all along a chain. With `rgb_array_list`, `render` gives one frame per
    outer step, with chunks too: a video at `render_fps` is real time.

    ## Arguments
    | Argument                  | Default     | Description                                       |
    |---------------------------|-------------|---------------------------------------------------|
    | `outer`                   | None        | robot environment, needed for `states="env"`; its |
    |                           |             | spaces are flattened and scaled: `flowmdp.robot`  |
    | `flow_steps`              | 10          | flow steps per outer action, at least 1 [ours];   |
    |                           |             | those of `behavior` where it states some          |
    | `reward`                  | `"return"`  | "return", "direction", "divergence" or "data"     |
    | `states`                  | `"env"`     | "env": live robot; "dataset": recorded states,    |
    |                           |             | one chain per episode, no simulator               |
    | `dataset`                 | None        | a `TransitionDataset`, or a function that loads   |
    |                           |             | one when it is first needed                       |
    | `critic`                  | None        | Q(s, a) on batches: "direction", "divergence"     |
    | `behavior`                | None        | u_v(s, x_t, t) on batches: "divergence" and       |
    |                           |             | `action_mode="residual"`; any callable or torch   |
    |                           |             | module: `flowmdp.behavior.as_behavior`            |
    | `rho`                     | 1.0         | weight of the divergence, in the critic's units   |
    | `divergence`              | `"squared"` | "squared", "smooth_norm", "cosine", "gaussian_kl" |
    | `velocity_scale`          | None        | velocity of an action of 1; None is 6.5, and 1 in |
    |                           |             | residual mode; `flowmdp.mdp.spec` tells why       |
    | `action_mode`             | "velocity"  | "velocity", or "residual" around the behaviour    |
    | `noise_std`               | 0.0         | noise of a whole chain, in action units           |
    | `noise_scale`             | 1.0         | deviation of x_0; below 1, actions are less varied|
    | `include_time`            | True        | observe t                                         |
    | `include_previous_action` | False       | observe a_{n-1} and its flag                      |
    | `chunk`                   | 1           | robot actions that one chain decides, at least 1  |
    | `task`, `source`          | None        | where outer and dataset came from, for the record |

    Raises `ConfigurationError` for arguments out of range or models that do not fit, `ActionError`
    for an action of wrong shape, dtype or not finite, `ResetNeededError` for a step before a reset,
    after an episode's end, or after the robot raised an error, `RobotError` where the robot gives
    numbers that are not finite. All are `flowmdp.errors.FlowMDPError`.

    ## Version History
    * v0: first release.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium's declaration)

    def __init__(
        self,
        outer: gym.Env[Any, Any] | None = None,
        *,
        dataset: Recording = None,
        critic: Critic | None = None,
        behavior: Behavior | None = None,
        task: str | None = None,
        source: str | None = None,
        **settings: Any,
    ) -> None:
        behavior, settings = own_steps(behavior, settings)
        arguments = FlowSettings.of(settings)
        super().__init__(arguments, outer, dataset, critic, behavior, task, source)
        spec, action_dim = self.flow_spec, self.flow_spec.action_dim
        self._chunk = spec.chunk
        self.observation_space = spec.space()
        self.action_space = Box(-1.0, 1.0, (action_dim,), np.float32)
        self.render_mode = outer.render_mode if outer is not None else None
        if outer is not None:
            self.metadata = {
                "render_modes": list(outer.metadata.get("render_modes", [])),
                "render_fps": outer.metadata.get("render_fps", 30),
            }
        # Everything a plain flow step needs, made once: half of its time was spent on making these.
        unpriced = arguments.reward in ("return", "direction")
        self._plain = unpriced and arguments.action_mode == "velocity" and not arguments.noise_std
        self._steps, self._shape, self._point = spec.flow_steps, (action_dim,), spec.point
        self._scale = np.full(action_dim, spec.velocity_scale, np.float32)
        self._noise_scale = np.float32(spec.noise_scale)
        self._times = [flow_time(k, spec.flow_steps) for k in range(spec.flow_steps + 1)]
        self._batch_times = np.array(self._times, np.float32).reshape(-1, 1, 1)
        self._sees_time = spec.include_time
        self._low, self._high = -np.ones(action_dim, np.float32), np.ones(action_dim, np.float32)
        self._x_t = self._x_data = np.zeros(action_dim, np.float32)
        self._frame = np.zeros(spec.flow_observation_dim, np.float32)
        self._k = self._clipped = 0
        self._running = self._outer_seeded = False
        self._picture: NDArray[np.uint8] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float, dict[str, Any]]:
        """Start an episode; see the class docstring for `options`."""
        super().reset(seed=seed)
        options = dict(options or {})
        noise, state = self._take_options(options)
        info: dict[str, Any] = {}
        if self.settings.states == "env":
            assert self.outer is not None
            outer_seed = None
            if seed is not None or not self._outer_seeded:
                outer_seed = int(self.np_random.integers(2**31))
                self._outer_seeded = True
            self._running = False
            state, info["outer_info"] = self.outer.reset(seed=outer_seed, options=options or None)
            self._set_state(state)
            self._check_robot("reset")
        elif state is not None:
            self._set_state(state)
        else:
            data, chunks = self.dataset, self._chunks
            draw = self.np_random.random()  # three times as fast as `integers`
            index = chunks.starts[int(draw * len(chunks.starts))]
            self._x_data = chunks.actions_at(index)
            previous = None if data.starts[index] else data.previous_actions[index]
            self._set_state(data.observations[index], previous)
        self._start_chain(noise)
        self._running = True
        return self._observe(), info

    def set_noise(self, noise: Float) -> None:
        """Replace x_0 of a chain that has not begun; shape (action_dim,).

        Raises:
            ActionError: For noise of another shape or dtype, or with NaN or infinity.
            ResetNeededError: Inside a chain, or before a reset.
        """
        if not self._running:
            raise ResetNeededError(NOT_RUNNING)
        if self._k:
            raise ResetNeededError("noise can only be set at the start of a chain")
        self._x_t = as_flow_action(noise, self._shape)

    def step(self, action: Float) -> tuple[Float, float, bool, bool, dict[str, Any]]:
        """Move x_t by a velocity; the last step of a chain also executes x_1.

        Args:
            action: Floating point, shape (action_dim,), finite; clipped to [-1, 1].

        Returns:
            Observation (a fresh array), reward, terminated, truncated, info.

        Raises:
            ActionError: For an action of another shape or dtype, or with NaN or infinity.
            ResetNeededError: Before the first reset and after the end of an episode.
        """
        if not self._running:
            raise ResetNeededError(NOT_RUNNING)
        velocity = self._bounded(action) * self._scale
        reward = 0.0
        info: dict[str, Any] = {}
        if self._plain:
            self._x_t = flow_step(self._x_t, velocity, self._divisor)
        else:
            reward, info = self._step_with_models(velocity)
        self._k += 1
        if self._k < self._steps:
            return self._observe(), reward, False, False, info
        return self._end_chain(reward, info)

    def execute(self, action: Float) -> tuple[Float, float, bool, bool, dict[str, Any]]:
        """Execute an action, x_1, in the place of the chain that would have led to it.

        Args:
            action: Floating point, shape (action_dim,), finite; clipped to [-1, 1].

        Returns:
            What the last step of the chain returns.

        Raises:
            ActionError: As `step`; also `ResetNeededError`.
        """
        if not self._running:
            raise ResetNeededError(NOT_RUNNING)
        self._x_t = as_flow_action(action, self._shape)
        self._clipped = self._steps * int(np.count_nonzero(np.abs(self._x_t) >= 1.0))
        self._k = self._steps
        return self._end_chain(0.0, {})

    def render(self) -> Any:
        """The outer environment's frame; drawn once per chain and read-only for "rgb_array"."""
        if self.outer is None or self.render_mode != "rgb_array":
            return self.outer.render() if self.outer is not None else None
        if self._picture is None:
            self._picture = np.array(self.outer.render())
            self._picture.flags.writeable = False
        return self._picture

    def close(self) -> None:
        """Close the outer environment."""
        if self.outer is not None:
            self.outer.close()

    def _set_state(self, state: NDArray[Any], previous: Float | None = None) -> None:
        """Write the parts of an observation that stay the same along a chain."""
        self._picture = None
        spec = self.flow_spec
        self._frame = np.zeros(spec.flow_observation_dim, np.float32)
        self._frame[spec.state] = state
        if spec.include_previous_action and previous is not None:
            self._frame[spec.previous_action] = previous
            self._frame[-1] = 1.0

    def _check_robot(self, call: str, reward: float = 0.0) -> None:
        """Raise RobotError for a state or reward that is not finite; once per chain."""
        state = self._frame[self.flow_spec.state]
        if math.isfinite(reward) and np.isfinite(state).all():
            return
        assert self.outer is not None
        spec = self.outer.spec
        what = "observation" if math.isfinite(reward) else "reward"
        raise RobotError(
            f"{call} of the robot {spec.id if spec else self.outer.unwrapped} gave the {what} "
            f"{reward if what == 'reward' else state}, which is not finite: mend the robot, or end "
            "its episode before that; then call reset()"
        )

    def _start_chain(self, noise: Float | None = None) -> None:
        if noise is None:
            noise = self.np_random.standard_normal(self._shape, np.float32)
            noise *= self._noise_scale
        self._x_t = noise
        self._k = self._clipped = 0

    def _observe(self) -> Float:
        observation = self._frame.copy()
        observation[self._point] = self._x_t
        if self._sees_time:
            observation[self._point.stop] = self._times[self._k]
        return observation

    def _bounded(self, action: Float) -> Float:
        """The action, checked and clipped; this runs at every flow step, so it is kept cheap."""
        if (
            not isinstance(action, np.ndarray)
            or action.dtype is not FLOAT32
            or action.shape != self._shape
        ):
            action = as_flow_action(action, self._shape)
        square = action.dot(action)
        if square < 1.0:  # inside the unit ball, hence finite and inside the box
            return action
        if not math.isfinite(square):
            as_flow_action(action, self._shape)  # raises for NaN and infinity, not for 1e30
        clipped = int(np.count_nonzero(np.abs(action) >= 1.0))
        if not clipped:
            return action
        self._clipped += clipped
        return np.minimum(np.maximum(action, self._low), self._high)

    def _step_with_models(self, velocity: Float) -> tuple[float, dict[str, Any]]:
        """A flow step with residual velocity, cost or noise; on batches of one for the models."""
        x_t = self._x_t[None]
        noise = None
        if self.settings.noise_std:
            noise = self.np_random.standard_normal(x_t.shape, np.float32)
        state, t = self._frame[self.flow_spec.state][None], self._batch_times[self._k]
        x_next, terms = self._flow_step(state, x_t, velocity[None], t, self._x_data[None], noise)
        self._x_t = x_next[0]
        info = {name: float(values[0]) for name, values in terms.items()}
        return info.get(f"reward_{self.settings.reward}", 0.0), info

    def _end_chain(
        self, reward: float, info: dict[str, Any]
    ) -> tuple[Float, float, bool, bool, dict[str, Any]]:
        """Execute the action, or end the episode where there is no robot to execute it."""
        executed = np.minimum(np.maximum(self._x_t, self._low), self._high)
        if self._value is not None:
            state = self._frame[self.flow_spec.state][None]
            value = self._value(state.copy(), executed[None].copy())
            info["reward_value"] = float(value[0])
            reward += info["reward_value"]
        info["executed_action"] = executed
        info["clipped_fraction"] = self._clipped / (self._steps * len(executed))
        if self.settings.states == "dataset":
            self._running = False
            return self._observe(), reward, True, False, info
        over = self._execute(executed, info)
        if self.settings.reward == "return":
            reward = info["reward_return"] = info["outer_reward"]
        self._start_chain()
        return self._observe(), reward, *over, info

    def _execute(self, actions: Float, info: dict[str, Any]) -> tuple[bool, bool]:
        """Have the robot do what the chain decided; whether its episode terminated, truncated."""
        assert self.outer is not None
        self._running = False  # if the robot raises, only a reset mends the episode
        terminated = truncated = False
        rewards: list[float] = []
        for action in actions.reshape(self._chunk, -1):
            state, reward, terminated, truncated, outer_info = self.outer.step(action.copy())
            rewards.append(float(reward))
            self._set_state(state, action)
            self._check_robot("step", rewards[-1])
            if terminated or truncated:
                break
        info |= {"outer_reward": sum(rewards), "outer_info": outer_info}
        if self._chunk > 1:
            steps = len(rewards)
            paid = np.pad(rewards, (0, self._chunk - steps))  # vector environments stack infos
            info |= {"executed_steps": steps, "outer_rewards": paid}
        self._running = not (terminated or truncated)
        return bool(terminated), bool(truncated)
