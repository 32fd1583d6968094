"""Thousands of flow chains at once, from dataset states, without a simulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from flowmdp.arguments import check_choice, check_integers
from flowmdp.base import Behavior, Critic, FlowBase, Recording, as_flow_action, own_steps
from flowmdp.errors import ActionError, ConfigurationError, ResetNeededError
from flowmdp.mdp.spec import FlowSettings

Array = NDArray[Any]
Rows = NDArray[np.intp] | slice
Seeds = int | Sequence[int | None] | None


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


class FlowMDPVectorEnv(FlowBase, VectorEnv[Array, Array, Array]):
    """`num_envs` copies of `FlowMDPEnv(states="dataset")`, computed together.

    The same seeds, options and actions give, chain by chain, the observations, rewards and infos of
    `gymnasium.vector.SyncVectorEnv` over single environments (rewards up to the rounding of the
    models on another batch size). Every chain draws from its own generator, as there.

    For chains inside a live robot, `states="env"`, vectorise the single environment:
    `gym.make_vec(id, num_envs=n, vectorization_mode="sync")` or `"async"`.

    Args:
        num_envs: Number of chains, at least 1.
        dataset, critic, behavior, task, source: Those of `FlowMDPEnv`.
        autoreset_mode: What follows the end of a chain, a Gymnasium `AutoresetMode` or its value:
            "NextStep" (default, as in Gymnasium): the next call ignores the chain's action and
            resets it; "SameStep": the same call resets it, the last observation and info are
            `infos["final_obs"]` and `infos["final_info"]`; "Disabled": the caller resets, by
            `reset(options={"reset_mask": mask})`.
        **settings: Those of `FlowMDPEnv`; `reward` is "data" by default, which needs no models.

    `reset` takes a seed, or one per chain, and the options of the single environment, where "noise"
    and "state" may also have one row per chain.

    Raises:
        ConfigurationError: For arguments out of range, or `states="env"`.
    """

    def __init__(
        self,
        num_envs: int,
        dataset: Recording,
        *,
        critic: Critic | None = None,
        behavior: Behavior | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        task: str | None = None,
        source: str | None = None,
        **settings: Any,
    ) -> None:
        check_integers(1, 1_000_000, num_envs=num_envs)
        behavior, settings = own_steps(behavior, settings)
        super().__init__(vector_settings(settings), None, dataset, critic, behavior, task, source)
        spec, action_dim = self.flow_spec, self.flow_spec.action_dim
        self.num_envs = num_envs
        self.single_observation_space = spec.space()
        self.single_action_space = Box(-1.0, 1.0, (action_dim,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        if not isinstance(autoreset_mode, AutoresetMode):
            check_choice([mode.value for mode in AutoresetMode], autoreset_mode=autoreset_mode)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"render_modes": [], "autoreset_mode": self.autoreset_mode}
        self._steps, self._scale = spec.flow_steps, np.float32(spec.velocity_scale)
        self._generators: list[np.random.Generator] = []
        self._frames = np.zeros((num_envs, spec.flow_observation_dim), np.float32)
        self._x_t = np.zeros((num_envs, action_dim), np.float32)
        self._x_data = np.zeros((num_envs, action_dim), np.float32)
        self._k = np.zeros(num_envs, np.intp)
        self._clipped = np.zeros(num_envs, np.intp)
        self._ended = np.ones(num_envs, np.bool_)

    def reset(
        self, *, seed: Seeds = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start all chains, or those of `options["reset_mask"]`; see the class docstring."""
        options = dict(options or {})
        mask = options.pop("reset_mask", np.ones(self.num_envs, np.bool_))
        if np.shape(mask) != (self.num_envs,) or np.asarray(mask).dtype != np.bool_:
            raise ConfigurationError(
                f"options['reset_mask'] must be {self.num_envs} booleans, one per chain"
            )
        rows = np.flatnonzero(mask)
        noise, state = self._take_options(options, self.num_envs)
        self._seed(seed, rows)
        self._start(rows, noise, state)
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
        velocity = self._bounded(actions, rows) * self._scale
        infos: dict[str, Any] = {}
        rewards = np.zeros(self.num_envs)
        if not resetting.all():
            rewards[rows] = self._move(velocity, rows, infos)
        if resetting.any():
            self._start(np.flatnonzero(resetting))
        terminations = (self._k == self._steps) & ~resetting
        observations = self._observe()
        if terminations.any():
            rewards += self._end_chains(terminations, infos)
            if self.autoreset_mode == AutoresetMode.SAME_STEP:
                infos = self._split(infos, terminations, observations)
                self._start(np.flatnonzero(terminations))
                observations = self._observe()
        return observations, rewards, terminations, np.zeros(self.num_envs, np.bool_), infos

    def _seed(self, seed: Seeds, rows: NDArray[np.intp]) -> None:
        """Seed the generators of some chains: chain i gets seed + i, as in SyncVectorEnv."""
        if seed is None or isinstance(seed, int | np.integer):
            seed = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        if not isinstance(seed, Sequence):
            raise ConfigurationError(f"seed is {seed!r}: pass one integer, or one per chain")
        if len(seed) != self.num_envs:
            raise ConfigurationError(f"{len(seed)} seeds for {self.num_envs} chains")
        if not self._generators:
            self._generators = [seeding.np_random(s)[0] for s in seed]
            return
        for i in rows:
            if seed[i] is not None:
                self._generators[i] = seeding.np_random(seed[i])[0]

    def _start(
        self, rows: NDArray[np.intp], noise: Array | None = None, state: Array | None = None
    ) -> None:
        """Begin the chains of these rows; each draws its state, then its noise."""
        spec = self.flow_spec
        self._frames[rows] = 0.0
        if state is not None:
            shape = (self.num_envs, spec.observation_dim)
            self._frames[rows, spec.state] = np.broadcast_to(state, shape)[rows]
        else:
            data, chunks = self.dataset, self._chunks
            draws = np.array([self._generators[i].random() for i in rows])
            index = chunks.starts[(draws * len(chunks.starts)).astype(np.intp)]
            self._frames[rows, spec.state] = data.observations[index]
            self._x_data[rows] = chunks.actions(index)
            if spec.include_previous_action:
                known = ~data.starts[index]
                previous = data.previous_actions[index] * known[:, None]
                self._frames[rows, spec.previous_action] = previous
                self._frames[rows, -1] = known
        if noise is None:
            self._x_t[rows] = np.float32(spec.noise_scale) * self._noise(rows)
        else:
            self._x_t[rows] = np.broadcast_to(noise, self._x_t.shape)[rows]
        self._k[rows] = 0
        self._clipped[rows] = 0
        self._ended[rows] = False

    def _noise(self, rows: Rows) -> Array:
        """N(0, I), one row per chain, each from the chain's own generator."""
        indices = np.arange(self.num_envs)[rows]
        noise = np.empty((len(indices), self.flow_spec.action_dim), np.float32)
        for i, row in zip(indices, noise, strict=True):
            self._generators[i].standard_normal(None, np.float32, row)
        return noise

    def _observe(self) -> Array:
        observations = self._frames.copy()
        observations[:, self.flow_spec.point] = self._x_t
        if self.flow_spec.include_time:
            observations[:, self.flow_spec.t.start] = self._k / self._steps
        return observations

    def _bounded(self, actions: Array, rows: Rows) -> Array:
        """The actions of some chains, checked and clipped; counts what the clipping touched."""
        if not isinstance(actions, np.ndarray):
            actions = as_flow_action(actions, self._x_t.shape)
        if actions.dtype.kind != "f" or actions.shape != self._x_t.shape:
            as_flow_action(actions, self._x_t.shape)  # raises
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
        t = (self._k[rows] / self._steps).astype(np.float32)[:, None]
        noise = self._noise(rows) if self.settings.noise_std else None
        states, x_data = self._frames[rows, self.flow_spec.state], self._x_data[rows]
        x_next, terms = self._flow_step(states, self._x_t[rows], velocity, t, x_data, noise)
        self._x_t[rows] = x_next
        self._k[rows] += 1
        for name, values in terms.items():
            self._put(infos, name, rows, values)
        return terms.get(f"reward_{self.settings.reward}", 0.0)

    def _end_chains(self, ended: NDArray[np.bool_], infos: dict[str, Any]) -> Array:
        """Mark chains as ended and describe them; returns the value of what they executed."""
        rows: Rows = slice(None) if ended.all() else np.flatnonzero(ended)
        self._ended[rows] = True
        executed = np.minimum(np.maximum(self._x_t[rows], np.float32(-1)), np.float32(1))
        value = np.zeros(self.num_envs)
        if self._value is not None:
            states = self._frames[rows, self.flow_spec.state]
            value[rows] = self._value(states.copy(), executed.copy())
            self._put(infos, "reward_value", rows, value[rows])
        self._put(infos, "executed_action", rows, executed)
        share = self._clipped[rows] / (self._steps * executed.shape[1])
        self._put(infos, "clipped_fraction", rows, share)
        return value

    def _put(self, infos: dict[str, Any], name: str, rows: Rows, values: Array) -> None:
        """Add one key to the infos, with its mask `_name`, as Gymnasium's vector envs do."""
        values = np.asarray(values)
        if values.dtype == np.float32 and values.ndim == 1:
            values = values.astype(np.float64)  # numbers are Python floats in single infos
        infos[name] = np.zeros((self.num_envs, *values.shape[1:]), values.dtype)
        infos[f"_{name}"] = np.zeros(self.num_envs, np.bool_)
        infos[name][rows], infos[f"_{name}"][rows] = values, True

    def _split(self, infos: dict[str, Any], ended: Array, last: Array) -> dict[str, Any]:
        """Infos of a same-step reset: what belongs to ended chains moves to `final_info`."""
        final: dict[str, Any] = {}
        kept: dict[str, Any] = {}
        for name in [name for name in infos if not name.startswith("_")]:
            for target, wanted in ((final, ended), (kept, ~ended)):
                rows = np.flatnonzero(infos[f"_{name}"] & wanted)
                if rows.size:
                    self._put(target, name, rows, infos[name][rows])
        final_obs = np.full(self.num_envs, None, dtype=object)
        for i in np.flatnonzero(ended):
            final_obs[i] = last[i]
        kept |= {"final_obs": final_obs, "_final_obs": ended.copy()}
        return kept | {"final_info": final, "_final_info": ended.copy()}
