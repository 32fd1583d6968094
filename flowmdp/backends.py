"""Where the vectorised environment keeps its arrays and draws its chances: NumPy, or torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray
from typing_extensions import override

from flowmdp.arguments import check_integers
from flowmdp.behavior import BehaviorFlow
from flowmdp.errors import ActionError, ConfigurationError

Array = Any
"""Of the backend: a NumPy array or a torch tensor."""

Host = NDArray[Any]
Rows = Any
"""Chains: a slice of all, or their indices."""

Seeds = int | Sequence[int | None] | None


def as_flow_action(action: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A float32 copy of an action that is floating point, finite and of the right shape.

    Raises:
        ActionError: When it is not.
    """
    try:
        array = np.asarray(action)
    except (TypeError, ValueError, RuntimeError) as error:  # the last from a tensor with gradient
        raise ActionError(f"the action is no array: {error}") from error
    _check_action(array.dtype, array.dtype.kind == "f", array.shape, shape)
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ActionError(f"the action is not finite: {action}")
    return array


class NumpyBackend:
    """Arrays of NumPy; every chain draws from its own generator, as in SyncVectorEnv.

    Attributes:
        xp: The array namespace.
        number: Type of what single environments give as Python floats.
        device: Where models get their tensors; None for models of NumPy arrays.
        lazy: Whether values are checked at the ends of chains only.
    """

    xp: Any = np
    number: Any = np.float64
    device: Any = None
    lazy = False

    def __init__(self, num_envs: int = 1, device: Any = "auto") -> None:
        if str(device) not in ("auto", "cpu"):
            raise ConfigurationError(f"device={device!r} needs tensors: add backend='torch'")
        self.num_envs = num_envs
        self.generators: list[np.random.Generator] = []

    @property
    def seeded(self) -> bool:
        """Whether there is something to draw from."""
        return bool(self.generators)

    def seed(self, seed: Seeds, rows: Rows) -> None:
        """Seed the generators of some chains: chain i gets seed + i, as in SyncVectorEnv."""
        if seed is None or isinstance(seed, int | np.integer):
            seed = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        if not isinstance(seed, Sequence):
            raise ConfigurationError(f"seed is {seed!r}: pass one integer, or one per chain")
        if len(seed) != self.num_envs:
            raise ConfigurationError(f"{len(seed)} seeds for {self.num_envs} chains")
        if not self.generators:
            self.generators = [seeding.np_random(s)[0] for s in seed]
            return
        for i in np.arange(self.num_envs)[rows]:
            if seed[i] is not None:
                self.generators[i] = seeding.np_random(seed[i])[0]

    def integers(self, rows: Rows, high: int) -> Array:
        """Uniform in 0 .. high - 1, one per chain."""
        draws = np.array([generator.random() for generator in self._of(rows)])
        return (draws * high).astype(np.intp)  # three times as fast as `Generator.integers`

    def normal(self, rows: Rows, width: int) -> Array:
        """N(0, I), shape (rows, width)."""
        generators = self._of(rows)
        noise = np.empty((len(generators), width), np.float32)
        for generator, row in zip(generators, noise, strict=True):
            generator.standard_normal(None, np.float32, row)
        return noise

    def _of(self, rows: Rows) -> list[np.random.Generator]:
        if isinstance(rows, slice):
            return self.generators
        return [self.generators[i] for i in rows]

    def array(self, values: Any) -> Array:
        """A float32 copy."""
        return np.array(values, np.float32)

    def place(self, values: Host) -> Array:
        """An array that nobody writes into, where the backend computes."""
        return values

    def host(self, values: Any) -> Host:
        """As a NumPy array."""
        return np.asarray(values)

    def copy(self, array: Array) -> Array:
        """A copy."""
        return array.copy()

    def zeros(self, *shape: int, dtype: Any = np.float32) -> Array:
        """Zeros, float32 unless told otherwise."""
        return np.zeros(shape, dtype)

    def spread(self, values: Host, n: int) -> Array:
        """Values of the host for n chains, which are n, or one for all; shape (n,)."""
        return np.broadcast_to(values, n).copy()

    def clip(self, array: Array) -> Array:
        """Clipped to [-1, 1]."""
        return np.minimum(np.maximum(array, np.float32(-1)), np.float32(1))

    def finite(self, array: Array) -> bool:
        """Whether no value is NaN or infinite."""
        return bool(np.isfinite(array).all())

    def actions(self, actions: Any, shape: tuple[int, ...]) -> Array:
        """The actions, checked but for their values."""
        if not isinstance(actions, np.ndarray):
            actions = as_flow_action(actions, shape)
        _check_action(actions.dtype, actions.dtype.kind == "f", actions.shape, shape)
        return actions.astype(np.float32, copy=False)

    def bounded(self, actions: Array) -> tuple[Array, Array | None]:
        """Clipped to the box, and how many components of each row that touched, None for none."""
        largest = np.abs(actions).max(initial=0.0)
        if not np.isfinite(largest):
            raise ActionError("the actions are not finite")
        if largest < 1:
            return actions, None
        return self.clip(actions), (np.abs(actions) >= 1).sum(1)

    def last(self, observations: Array, ended: Host) -> Array:
        """`infos["final_obs"]`: the rows of ended chains, None elsewhere, as Gymnasium does."""
        rows = np.full(self.num_envs, None, dtype=object)
        for i in np.flatnonzero(np.broadcast_to(ended, self.num_envs)):
            rows[i] = observations[i]
        return rows

    def model(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """A critic or a `BehaviorFlow` as a function of this backend's arrays."""
        return model


class TorchBackend(NumpyBackend):
    """Tensors on one device, of which nothing comes back; one generator draws for all chains.

    On a GPU no step waits for it, so that values are checked at the ends of chains only.
    """

    def __init__(self, num_envs: int = 1, device: Any = "auto") -> None:
        import torch

        super().__init__(num_envs)
        if isinstance(device, str) and device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.device = torch.empty(0, device=device).device
            self.generator = torch.Generator(self.device)
        except (AssertionError, RuntimeError, TypeError) as error:
            reason = str(error).split("\n")[0]
            raise ConfigurationError(
                f"device is {device!r}: choose auto, cpu or cuda ({reason})"
            ) from None
        self.xp, self.number = torch, torch.float32
        self.lazy = self.device.type != "cpu"
        self._seeded = False

    @property
    @override
    def seeded(self) -> bool:
        """Whether `seed` was called."""
        return self._seeded

    @override
    def seed(self, seed: Seeds, rows: Rows) -> None:
        """Seed the generator; None goes on drawing, at first from fresh randomness."""
        if isinstance(seed, Sequence):
            raise ConfigurationError(
                "backend='torch' draws for all chains from one generator: pass one seed"
            )
        if seed is not None:
            check_integers(0, seed=seed)
            self.generator.manual_seed(int(seed))
        elif not self._seeded:
            self.generator.seed()
        self._seeded = True

    @override
    def integers(self, rows: Rows, high: int) -> Array:
        shape = (self._count(rows),)
        return self.xp.randint(high, shape, generator=self.generator, device=self.device)

    @override
    def normal(self, rows: Rows, width: int) -> Array:
        shape = (self._count(rows), width)
        return self.xp.randn(
            shape, generator=self.generator, device=self.device, dtype=self.xp.float32
        )

    def _count(self, rows: Rows) -> int:
        return self.num_envs if isinstance(rows, slice) else len(rows)

    @override
    def array(self, values: Any) -> Array:
        tensor = self.xp.as_tensor(values, dtype=self.xp.float32, device=self.device)
        return tensor.detach().clone()

    @override
    def place(self, values: Host) -> Array:
        return self.xp.as_tensor(values, device=self.device)

    @override
    def host(self, values: Any) -> Host:
        return np.asarray(values.cpu() if isinstance(values, self.xp.Tensor) else values)

    @override
    def copy(self, array: Array) -> Array:
        return array.clone()

    @override
    def zeros(self, *shape: int, dtype: Any = None) -> Array:
        return self.xp.zeros(shape, dtype=dtype or self.xp.float32, device=self.device)

    @override
    def spread(self, values: Host, n: int) -> Array:
        if len(values) != 1:
            return self.place(values)
        dtype = self.xp.bool if values.dtype == np.bool_ else self.xp.float32
        return self.xp.full((n,), values.item(), dtype=dtype, device=self.device)

    @override
    def clip(self, array: Array) -> Array:
        return array.clamp(-1, 1)

    @override
    def finite(self, array: Array) -> bool:
        return self.lazy or bool(array.isfinite().all())

    @override
    def actions(self, actions: Any, shape: tuple[int, ...]) -> Array:
        try:
            tensor = self.xp.as_tensor(actions).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ActionError(f"the action is no tensor: {error}") from error
        _check_action(tensor.dtype, tensor.is_floating_point(), tuple(tensor.shape), shape)
        return tensor.to(self.device, self.xp.float32)

    @override
    def bounded(self, actions: Array) -> tuple[Array, Array | None]:
        if not self.finite(actions):
            raise ActionError("the actions are not finite")
        return self.clip(actions), (actions.abs() >= 1).sum(1)

    @override
    def last(self, observations: Array, ended: Host) -> Array:
        """The observations of all chains: those that went on have theirs here too."""
        return observations

    @override
    def model(self, model: Callable[..., Any]) -> Callable[..., Any]:
        ask = model.on_tensors if isinstance(model, BehaviorFlow) else model

        def without_gradient(*tensors: Array) -> Array:
            with self.xp.no_grad():
                return ask(*tensors)

        return without_gradient


BACKENDS: dict[str, type[NumpyBackend]] = {"numpy": NumpyBackend, "torch": TorchBackend}


def _check_action(dtype: Any, floats: bool, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if not floats:
        raise ActionError(f"the action has dtype {dtype}: it must be floating point")
    if found != shape:
        raise ActionError(f"the action has shape {found}: it must be {shape}")
