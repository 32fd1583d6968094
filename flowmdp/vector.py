"""Thousands of flow chains at once, from dataset states, without a simulator."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from flowmdp.arguments import check_choice, check_integers
from flowmdp.backends import BACKENDS, Array, Rows, Seeds
from flowmdp.base import Behavior, Critic, FlowBase, Recording, own_steps
from flowmdp.chunks import Chunks
from flowmdp.errors import ActionError, ConfigurationError, ResetNeededError
from flowmdp.mdp.spec import FlowSettings


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

    With `backend="torch"` the same chains are tensors on one device, which they do not leave:
    observations, rewards (float32), terminations, infos, and what the models are asked with and
    answer. The data is placed there once. One generator draws for all chains, so that noise and
    states are others than NumPy's. No step waits for a GPU; at the end of a chain NaN is looked
    for, once. `infos["final_obs"]` then holds the last observations of all chains. No gradient
    flows through a step.

    For chains inside a live robot, `states="env"`, vectorise the single environment:
    `gym.make_vec(id, num_envs=n, vectorization_mode="sync")` or `"async"`.

    Args:
        num_envs: Number of chains, at least 1.
        dataset, critic, behavior, task, source: Those of `FlowMDPEnv`. With `backend="torch"` the
            critic is asked with tensors; a behaviour may still be one of arrays, which is slow.
        backend: "numpy" or "torch".
        device: Of "torch": "cpu", "cuda", a torch device, or "auto" for a GPU where there is one.
        autoreset_mode: What follows the end of a chain, a Gymnasium `AutoresetMode` or its value:
            "NextStep" (default, as in Gymnasium): the next call ignores the chain's action and
            resets it; "SameStep": the same call resets it, the last observation and info are
            `infos["final_obs"]` and `infos["final_info"]`; "Disabled": the caller resets, by
            `reset(options={"reset_mask": mask})`.
        **settings: Those of `FlowMDPEnv`; `reward` is "data" by default, which needs no models.

    `reset` takes a seed, or one per chain (not of torch), and the options of the single
    environment, where "noise" and "state" may also have one row per chain.

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
        backend: str = "numpy",
        device: Any = "auto",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        task: str | None = None,
        source: str | None = None,
        **settings: Any,
    ) -> None:
        check_integers(1, 1_000_000, num_envs=num_envs)
        check_choice(BACKENDS, backend=backend)
        behavior, settings = own_steps(behavior, settings)
        on = BACKENDS[backend](num_envs, device)
        super().__init__(
            vector_settings(settings), None, dataset, critic, behavior, task, source, on
        )
        spec, action_dim = self.flow_spec, self.flow_spec.action_dim
        self.num_envs, self.backend, self.device = num_envs, backend, on.device
        self.single_observation_space = spec.space()
        self.single_action_space = Box(-1.0, 1.0, (action_dim,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        if not isinstance(autoreset_mode, AutoresetMode):
            check_choice([mode.value for mode in AutoresetMode], autoreset_mode=autoreset_mode)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"render_modes": [], "autoreset_mode": self.autoreset_mode}
        self._steps, self._scale = spec.flow_steps, np.float32(spec.velocity_scale)
        self._frames = on.zeros(num_envs, spec.flow_observation_dim)
        self._x_t = on.zeros(num_envs, action_dim)
        self._x_data = on.zeros(num_envs, action_dim)
        self._clipped = on.zeros(num_envs, dtype=on.xp.int64)
        # The host keeps the clock, so that no step waits for a device; one entry for all chains
        # while they go in step, else one each.
        self._k = np.zeros(1, np.intp)
        self._ended = np.ones(1, np.bool_)

    def reset(
        self, *, seed: Seeds = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start all chains, or those of `options["reset_mask"]`; see the class docstring."""
        options = dict(options or {})
        mask = self._on.host(options.pop("reset_mask", np.ones(self.num_envs, np.bool_)))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise ConfigurationError(
                f"options['reset_mask'] must be {self.num_envs} booleans, one per chain"
            )
        noise, state = self._take_options(options, self.num_envs)
        self._on.seed(seed, self._rows(mask))
        clocks = 1 if mask.all() else self.num_envs
        if len(self._k) != clocks:
            self._k = np.resize(self._k, clocks).astype(np.intp)
            self._ended = np.resize(self._ended, clocks).astype(np.bool_)
        self._start(mask[:clocks], noise, state)
        return self._observe(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Move every chain by one flow step; see the class docstring for chains that have ended.

        Args:
            actions: Floating point, shape (num_envs, action_dim), finite; clipped to [-1, 1].

        Returns:
            Observations, rewards (float64; float32 of torch), terminations, truncations (always
            False), infos.

        Raises:
            ActionError: For actions of another shape or dtype, or with NaN or infinity.
            ResetNeededError: Before the first reset, and for ended chains when autoreset is off.
        """
        on, resetting = self._on, self._ended.copy()
        disabled = self.autoreset_mode == AutoresetMode.DISABLED
        if not on.seeded or (disabled and resetting.any()):
            raise ResetNeededError("a chain has not started or has ended: call reset() first")
        actions = on.actions(actions, self._x_t.shape)
        infos: dict[str, Any] = {}
        rewards = on.zeros(self.num_envs, dtype=on.number)
        if not resetting.all():
            self._move(actions, ~resetting, rewards, infos)
        if resetting.any():
            self._start(resetting)
        ended = (self._k == self._steps) & ~resetting
        observations = self._observe()
        if ended.any():
            along = list(infos)
            self._end_chains(ended, rewards, infos)
            if self.autoreset_mode == AutoresetMode.SAME_STEP:
                infos = self._split(infos, along, ended, observations)
                self._start(ended)
                observations = self._observe()
        truncations = on.zeros(self.num_envs, dtype=on.xp.bool)
        return observations, rewards, on.spread(ended, self.num_envs), truncations, infos

    @cached_property
    def _recorded(self) -> tuple[Chunks, Array, Array, Array]:
        """Where chains start: chunks, observations, previous actions, whether there is one."""
        place, data = self._on.place, self.dataset
        chunks, known = self._chunks.placed(place), (~data.starts).astype(np.float32)
        return chunks, place(data.observations), place(data.previous_actions), place(known)

    def _rows(self, mask: NDArray[np.bool_]) -> Rows:
        """The chains of a mask; a slice where it is all, because slices are views."""
        return slice(None) if mask.all() else self._on.place(np.flatnonzero(mask))

    def _start(
        self, mask: NDArray[np.bool_], noise: Array | None = None, state: Array | None = None
    ) -> None:
        """Begin the chains of a mask; each draws its state, then its noise."""
        on, spec, rows = self._on, self.flow_spec, self._rows(mask)
        self._frames[rows] = 0.0
        if state is not None:
            shape = (self.num_envs, spec.observation_dim)
            self._frames[rows, spec.state] = on.xp.broadcast_to(state, shape)[rows]
        else:
            chunks, observations, previous, known = self._recorded
            index = chunks.starts[on.integers(rows, len(chunks.starts))]
            self._frames[rows, spec.state] = observations[index]
            if self.settings.reward == "data":
                self._x_data[rows] = chunks.actions(index)
            if spec.include_previous_action:
                self._frames[rows, spec.previous_action] = previous[index] * known[index][:, None]
                self._frames[rows, -1] = known[index]
        if noise is None:
            self._x_t[rows] = np.float32(spec.noise_scale) * on.normal(rows, spec.action_dim)
        else:
            self._x_t[rows] = on.xp.broadcast_to(noise, self._x_t.shape)[rows]
        self._clipped[rows] = 0
        self._k[mask], self._ended[mask] = 0, False

    def _observe(self) -> Array:
        observations = self._on.copy(self._frames)
        observations[:, self.flow_spec.point] = self._x_t
        if self.flow_spec.include_time:
            observations[:, self.flow_spec.t.start] = self._time(self._k, self.num_envs)
        return observations

    def _time(self, k: NDArray[np.intp], n: int) -> Array:
        """Flow times of n chains, shape (n,)."""
        return self._on.spread((k / self._steps).astype(np.float32), n)

    def _move(
        self, actions: Array, moving: NDArray[np.bool_], rewards: Array, infos: dict[str, Any]
    ) -> None:
        """Move some chains by one step and pay them for it."""
        on, rows = self._on, self._rows(moving)
        actions, clipped = on.bounded(actions[rows])
        if clipped is not None:
            self._clipped[rows] += clipped
        n, dim = actions.shape
        t = self._time(self._k[moving], n)[:, None]
        noise = on.normal(rows, dim) if self.settings.noise_std else None
        states, x_t = self._frames[rows, self.flow_spec.state], self._x_t[rows]
        velocity, x_data = actions * self._scale, self._x_data[rows]
        self._x_t[rows], terms = self._flow_step(states, x_t, velocity, t, x_data, noise)
        self._k[moving] += 1
        for name, values in terms.items():
            self._put(infos, name, rows, values)
        if (paid := terms.get(f"reward_{self.settings.reward}")) is not None:
            rewards[rows] = on.xp.asarray(paid, dtype=on.number)

    def _end_chains(self, ended: NDArray[np.bool_], rewards: Array, infos: dict[str, Any]) -> None:
        """Mark chains as ended, describe them and pay for what they execute."""
        on, rows = self._on, self._rows(ended)
        self._ended[ended] = True
        executed = on.clip(self._x_t[rows])
        if on.lazy and not on.xp.isfinite(executed).all():
            raise ActionError(
                "chains ended in points that are not finite, as their actions or the behavior's "
                "velocities were: call reset()"
            )
        if self._value is not None:
            states = self._frames[rows, self.flow_spec.state]
            value = self._value(on.copy(states), on.copy(executed))
            value = on.xp.asarray(value, dtype=on.number, device=on.device)
            rewards[rows] += value
            self._put(infos, "reward_value", rows, value)
        self._put(infos, "executed_action", rows, executed)
        share = self._clipped[rows] / (self._steps * executed.shape[1])
        self._put(infos, "clipped_fraction", rows, share)

    def _put(self, infos: dict[str, Any], name: str, rows: Rows, values: Array) -> None:
        """Add one key to the infos, with its mask `_name`, as Gymnasium's vector envs do."""
        on = self._on
        dtype = on.number if values.ndim == 1 else values.dtype  # numbers are floats in single ones
        infos[name] = on.zeros(self.num_envs, *values.shape[1:], dtype=dtype)
        infos[f"_{name}"] = on.zeros(self.num_envs, dtype=on.xp.bool)
        infos[name][rows], infos[f"_{name}"][rows] = values, True

    def _split(
        self, infos: dict[str, Any], along: list[str], ended: NDArray[np.bool_], last: Array
    ) -> dict[str, Any]:
        """Infos of a same-step reset: what belongs to ended chains moves to `final_info`.

        `along` are the keys that belong to the other chains, too.
        """
        final, kept = infos, dict[str, Any]()
        if not ended.all():
            final = {}
            for target, names, mask in ((final, list(infos), ended), (kept, along, ~ended)):
                rows = self._rows(mask)
                for name in names:
                    if not name.startswith("_"):
                        self._put(target, name, rows, infos[name][rows])
        mask = self._on.spread(ended, self.num_envs)
        kept |= {"final_obs": self._on.last(last, ended), "_final_obs": mask}
        return kept | {"final_info": final, "_final_info": self._on.copy(mask)}
