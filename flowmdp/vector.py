"""Thousands of flow chains at once, from dataset states, without a simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from flowmdp.errors import ActionError, ConfigurationError, ResetNeededError
from flowmdp.mdp.rewards import (
    DIVERGENCES,
    REWARDS,
    Behavior,
    Critic,
    Models,
    data_reward,
    divergence_reward,
)
from flowmdp.mdp.spec import FlowSettings, Layout
from flowmdp.mdp.transition import flow_step, noisy_flow_step, step_log_density
from flowmdp.spaces import check_dataset, outer_spaces, take_option
from flowmdp.transitions import TransitionDataset

Array = NDArray[Any]
Rows = NDArray[np.intp] | slice


def vector_settings(arguments: dict[str, Any]) -> FlowSettings:
    """Settings of chains without a robot: dataset states, and the reward that needs no models.

    Raises:
        ConfigurationError: For arguments out of range, or that need a robot.
    """
    if arguments.get("states") == "env" or arguments.get("reward") == "return":
        raise ConfigurationError(
            "the vector environment has no robot: for states='env' and reward='return' use "
            "vectorization_mode='sync' or 'async'"
        )
    return FlowSettings.of({"states": "dataset", "reward": "data", **arguments})


def _autoreset(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        modes = ", ".join(str(mode.value) for mode in AutoresetMode)
        raise ConfigurationError(
            f"unknown autoreset_mode {mode!r}: choose one of {modes}"
        ) from None


class FlowMDPVectorEnv(VectorEnv[Array, Array, Array]):
    """`num_envs` copies of `FlowMDPEnv(states="dataset")`, computed together.

    The same seeds, options and actions give, chain by chain, the observations, rewards and infos of
    `gymnasium.vector.SyncVectorEnv` over single environments (rewards up to the rounding of the
    models on another batch size). Every chain draws from its own generator, as there.

    For chains inside a live robot, `states="env"`, vectorise the single environment:
    `gym.make_vec(id, num_envs=n, vectorization_mode="sync")` or `"async"`.

    Args:
        num_envs: Number of chains, at least 1.
        dataset: A `TransitionDataset`, or a function that loads one.
        critic: Q(s, a) on batches; for the rewards "direction" and "divergence".
        behavior: u_v(s, x_t, t) on batches; for "divergence" and `action_mode="residual"`.
        autoreset_mode: What follows the end of a chain, a Gymnasium `AutoresetMode` or its value:
            "NextStep" (default, as in Gymnasium): the next call ignores the chain's action and
            resets it; "SameStep": the same call resets it, the last observation and info are
            `infos["final_obs"]` and `infos["final_info"]`; "Disabled": the caller resets, by
            `reset(options={"reset_mask": mask})`.
        task: Where the dataset came from, for the record.
        source: Likewise.
        **settings: Those of `FlowMDPEnv`; `reward` is "data" by default, which needs no models.

    `reset` takes a seed, or one per chain, and the options of the single environment, where "noise"
    and "state" may also have one row per chain.

    Raises:
        ConfigurationError: For arguments out of range, or `states="env"`.
    """

    def __init__(
        self,
        num_envs: int,
        dataset: TransitionDataset | Callable[[], TransitionDataset],
        *,
        critic: Critic | None = None,
        behavior: Behavior | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        task: str | None = None,
        source: str | None = None,
        **settings: Any,
    ) -> None:
        if num_envs < 1:
            raise ConfigurationError(f"num_envs is {num_envs}: it must be at least 1")
        self.settings = vector_settings(settings)
        self.num_envs = num_envs
        self.flow_steps = int(self.settings.flow_steps)
        self.velocity_scale = self.settings.scale
        self.noise_scale = float(self.settings.noise_scale)
        self.include_time = self.settings.include_time
        self.include_previous_action = self.settings.include_previous_action
        self.task, self.source = task, source
        self.dataset = dataset if isinstance(dataset, TransitionDataset) else dataset()
        self.outer_observation_space, self.outer_action_space = outer_spaces(None, self.dataset)
        obs_dim, action_dim = (
            self.outer_observation_space.shape[0],
            self.outer_action_space.shape[0],
        )
        check_dataset(self.dataset, obs_dim, action_dim)
        self.models = Models(critic, behavior, obs_dim, action_dim, self.settings.models)
        self.layout = Layout(obs_dim, action_dim, self.include_time, self.include_previous_action)
        self.single_observation_space = self.layout.space()
        self.single_action_space = Box(-1.0, 1.0, (action_dim,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.autoreset_mode = _autoreset(autoreset_mode)
        self.metadata = {"render_modes": [], "autoreset_mode": self.autoreset_mode}
        self._generators: list[np.random.Generator] = []
        self._frames = np.zeros((num_envs, self.layout.size), np.float32)
        self._x_t = np.zeros((num_envs, action_dim), np.float32)
        self._x_data = np.zeros((num_envs, action_dim), np.float32)
        self._k = np.zeros(num_envs, np.intp)
        self._clipped = np.zeros(num_envs, np.intp)
        self._ended = np.ones(num_envs, np.bool_)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Array, dict[str, Any]]:
        """Start all chains, or those of `options["reset_mask"]`; see the class docstring."""
        options = dict(options or {})
        mask = options.pop("reset_mask", np.ones(self.num_envs, np.bool_))
        if np.shape(mask) != (self.num_envs,) or np.asarray(mask).dtype != np.bool_:
            raise ConfigurationError(
                f"options['reset_mask'] must be {self.num_envs} booleans, one per chain"
            )
        rows = np.flatnonzero(mask)
        self._seed(seed, rows)
        self._start(rows, options)
        return self._observe(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Move every chain by one flow step; see the class docstring for chains that have ended.

        Args:
            actions: Floating point, shape (num_envs, action_dim), finite; clipped to [-1, 1].

        Returns:
            Observations, rewards (float64), terminations, truncations (always False), infos.

        Raises:
            ActionError: For actions of another shape or dtype, or with NaN or infinity.
            ResetNeededError: Before the first reset, and for ended chains when autoreset is off.
        """
        resetting = self._ended.copy()
        disabled = self.autoreset_mode == AutoresetMode.DISABLED
        if not self._generators or (disabled and resetting.any()):
            raise ResetNeededError("a chain has not started or has ended: call reset() first")
        # Everything below works on `rows`; a slice when all chains move, because slices are views.
        rows: Rows = np.flatnonzero(~resetting) if resetting.any() else slice(None)
        velocity = self._bounded(actions, rows) * np.float32(self.velocity_scale)
        infos: dict[str, Any] = {}
        rewards = np.zeros(self.num_envs)
        if not resetting.all():
            rewards[rows] = self._move(velocity, rows, infos)
        if resetting.any():
            self._start(np.flatnonzero(resetting), {})
        terminations = (self._k == self.flow_steps) & ~resetting
        observations = self._observe()
        if terminations.any():
            rewards += self._end_chains(terminations, infos)
            if self.autoreset_mode == AutoresetMode.SAME_STEP:
                infos = self._final(terminations, observations, infos)
                self._start(np.flatnonzero(terminations), {})
                observations = self._observe()
        return observations, rewards, terminations, np.zeros(self.num_envs, np.bool_), infos

    def _seed(self, seed: int | Sequence[int | None] | None, rows: NDArray[np.intp]) -> None:
        """Seed the generators of some chains: chain i gets seed + i, as in SyncVectorEnv."""
        if seed is None or isinstance(seed, int | np.integer):
            seed = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ConfigurationError(f"{len(seed)} seeds for {self.num_envs} chains")
        if not self._generators:
            self._generators = [seeding.np_random(s)[0] for s in seed]
            return
        for i in rows:
            if seed[i] is not None:
                self._generators[i] = seeding.np_random(seed[i])[0]

    def _start(self, rows: NDArray[np.intp], options: dict[str, Any]) -> None:
        """Begin the chains of these rows; each draws its state, then its noise."""
        layout, n = self.layout, self.num_envs
        noise = take_option(options, "noise", (layout.action_dim,), (n, layout.action_dim))
        state = take_option(options, "state", (layout.obs_dim,), (n, layout.obs_dim))
        if options:
            raise ConfigurationError(f"unknown reset options: {list(options)}")
        if state is not None and self.settings.reward == "data":
            raise ConfigurationError(
                "options['state'] has no dataset action: reward 'data' cannot use it"
            )
        self._frames[rows] = 0.0
        if state is None:
            draws = np.array([self._generators[i].random() for i in rows])
            self._read_dataset(rows, (draws * len(self.dataset)).astype(np.intp))
        else:
            self._frames[rows, layout.state] = np.broadcast_to(state, (n, layout.obs_dim))[rows]
        if noise is None:
            self._x_t[rows] = np.float32(self.noise_scale) * self._noise(rows)
        else:
            self._x_t[rows] = np.broadcast_to(noise, self._x_t.shape)[rows]
        self._k[rows] = 0
        self._clipped[rows] = 0
        self._ended[rows] = False

    def _noise(self, rows: Rows) -> Array:
        """N(0, I), one row per chain, each from the chain's own generator."""
        indices = np.arange(self.num_envs)[rows]
        noise = np.empty((len(indices), self.layout.action_dim), np.float32)
        for i, row in zip(indices, noise, strict=True):
            self._generators[i].standard_normal(None, np.float32, row)
        return noise

    def _read_dataset(self, rows: NDArray[np.intp], index: NDArray[np.intp]) -> None:
        data, layout = self.dataset, self.layout
        self._frames[rows, layout.state] = data.observations[index]
        self._x_data[rows] = data.actions[index]
        if self.include_previous_action:
            known = ~data.starts[index]
            self._frames[rows, layout.previous_action] = (
                data.previous_actions[index] * known[:, None]
            )
            self._frames[rows, -1] = known

    def _observe(self) -> Array:
        observations = self._frames.copy()
        observations[:, self.layout.point] = self._x_t
        if self.include_time:
            observations[:, self.layout.t] = self._k / self.flow_steps
        return observations

    def _bounded(self, actions: Array, rows: Rows) -> Array:
        """The actions of some chains, checked and clipped; counts what the clipping touched."""
        actions = np.asarray(actions)
        if actions.dtype.kind != "f" or actions.shape != self._x_t.shape:
            raise ActionError(
                f"actions of dtype {actions.dtype} and shape {actions.shape}: they must be "
                f"floating point, of shape {self._x_t.shape}"
            )
        actions = actions[rows].astype(np.float32, copy=False)
        largest = np.abs(actions).max(initial=0.0)
        if not np.isfinite(largest):
            raise ActionError("the actions are not finite")
        if largest < 1:
            return actions
        self._clipped[rows] += (np.abs(actions) >= 1).sum(1)
        return np.minimum(np.maximum(actions, np.float32(-1)), np.float32(1))

    def _move(self, velocity: Array, rows: Rows, infos: dict[str, Any]) -> Array | float:
        """Move some chains by one step; returns what the step pays them."""
        settings, x_t = self.settings, self._x_t[rows]
        t = (self._k[rows] / self.flow_steps).astype(np.float32)[:, None]
        reward: Array | float = 0.0
        if "behavior" in settings.models:
            reference = self.models.reference(self._frames[rows, self.layout.state], x_t, t)
            velocity = reference + velocity if settings.action_mode == "residual" else velocity
        if settings.reward == "divergence":
            divergence = DIVERGENCES[settings.divergence]
            reward = divergence_reward(
                velocity, reference, divergence, settings.rho, self.flow_steps
            )
            self._put(infos, "reward_divergence", rows, reward)
        elif settings.reward == "data":
            reward = data_reward(velocity, x_t, self._x_data[rows], t, self.flow_steps)
            self._put(infos, "reward_data", rows, reward)
        if settings.noise_std:
            noise = self._noise(rows)
            x_next = noisy_flow_step(x_t, velocity, self.flow_steps, settings.noise_std, noise)
            density = step_log_density(x_next, x_t, velocity, self.flow_steps, settings.noise_std)
            self._put(infos, "log_density", rows, density)
        else:
            x_next = flow_step(x_t, velocity, self.flow_steps)
        self._x_t[rows] = x_next
        self._k[rows] += 1
        return reward

    def _end_chains(self, ended: NDArray[np.bool_], infos: dict[str, Any]) -> Array | float:
        """Mark chains as ended and describe them; returns the value of what they executed."""
        rows: Rows = slice(None) if ended.all() else np.flatnonzero(ended)
        self._ended[rows] = True
        executed = np.minimum(np.maximum(self._x_t[rows], np.float32(-1)), np.float32(1))
        value: Array | float = 0.0
        if "critic" in REWARDS[self.settings.reward].models:
            value = np.zeros(self.num_envs)
            value[rows] = self.models.value(self._frames[rows, self.layout.state], executed)
            self._put(infos, "reward_value", rows, value[rows])
        self._put(infos, "executed_action", rows, executed)
        share = self._clipped[rows] / (self.flow_steps * self.layout.action_dim)
        self._put(infos, "clipped_fraction", rows, share)
        return value

    def _put(self, infos: dict[str, Any], name: str, rows: Rows, values: Any) -> None:
        """Add one key to the infos, with its mask `_name`, as Gymnasium's vector envs do."""
        values = np.asarray(values)
        if values.dtype == np.float32 and values.ndim == 1:
            values = values.astype(np.float64)  # numbers are Python floats in single infos
        infos[name] = np.zeros((self.num_envs, *values.shape[1:]), values.dtype)
        infos[f"_{name}"] = np.zeros(self.num_envs, np.bool_)
        infos[name][rows], infos[f"_{name}"][rows] = values, True

    def _final(
        self, ended: NDArray[np.bool_], observations: Array, infos: dict[str, Any]
    ) -> dict[str, Any]:
        """Infos of a same-step reset: what belongs to ended chains moves to `final_info`."""
        final: dict[str, Any] = {}
        kept: dict[str, Any] = {}
        for name in [name for name in infos if not name.startswith("_")]:
            values, mask = infos[name], infos[f"_{name}"]
            for target, wanted in ((final, mask & ended), (kept, mask & ~ended)):
                if wanted.any():
                    rows = np.flatnonzero(wanted)
                    self._put(target, name, rows, values[rows])
        final_obs = np.full(self.num_envs, None, dtype=object)
        for i in np.flatnonzero(ended):
            final_obs[i] = observations[i]
        kept |= {"final_obs": final_obs, "_final_obs": ended.copy()}
        return kept | {"final_info": final, "_final_info": ended.copy()}
