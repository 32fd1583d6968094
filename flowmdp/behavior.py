"""A flow policy of the user's own as the behaviour: any callable, wrapped so that all can use it.

    behavior = as_behavior(policy, flow_steps=5)  # policy(observations, x_t, t) -> velocity
    env = FlowMDPEnv(robot, behavior=behavior, action_mode="residual")
    agent = DFDir("MlpPolicy", env, behavior=behavior)

Its normaliser is its own: it sees the robot's flat observations, in the robot's units. Its points
x_t end as an action in [-1, 1], which `flowmdp.robot` scales to the robot's box.
"""

from __future__ import annotations

import contextlib
import importlib
import reprlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmdp.arguments import check_integers
from flowmdp.errors import ConfigurationError

Float = NDArray[np.float32]


class BehaviorFlow:
    """A behaviour flow u_v(s, x_t, t) on NumPy arrays and on torch tensors; `as_behavior` makes it.

    Attributes:
        velocity: The user's callable.
        flow_steps: Euler steps for which it was made; None for any number.
        times: Flow times at which it is asked, one per step, and the last one's end.
        name: What checkpoints call it by.
    """

    def __init__(
        self,
        velocity: Callable[..., Any],
        flow_steps: int | None,
        times: Sequence[float] | Float | None,
        name: str,
    ) -> None:
        if not callable(velocity) or isinstance(velocity, type):
            raise ConfigurationError(
                f"behavior is {velocity!r}: pass a callable velocity(observations, x_t, t), or a "
                "torch module with such a forward, an object and not its class"
            )
        if flow_steps is not None:
            check_integers(1, flow_steps=flow_steps)
        self.velocity, self.flow_steps, self.name = velocity, flow_steps, name
        self.times: Float | None = None
        if times is not None:
            try:
                array = np.asarray(times, np.float32)
                moves = np.diff(array)
                rises = bool((moves > 0).all()) or bool((moves < 0).all())
                whole = array.shape == ((flow_steps or 0) + 1,) and bool(np.isfinite(array).all())
                fit = rises and whole
            except (TypeError, ValueError):
                fit = False
            if not fit:
                raise ConfigurationError(
                    f"times is {reprlib.repr(times)}: give flow_steps, and flow_steps + 1 finite "
                    "times from noise to action, all rising or all falling"
                )
            self.times = array
        self._grids: dict[Any, tuple[Any, ...]] = {}
        torch = sys.modules.get("torch")
        self._module = torch is not None and isinstance(velocity, torch.nn.Module)
        self._takes_tensors = self._module

    def __call__(self, observations: Float, x_t: Float, t: Float) -> Float:
        """Velocity, shape (n, action_dim), float32, of NumPy arrays.

        Args:
            observations: The robot's, flat, shape (n, observation_dim).
            x_t: Points, shape (n, action_dim).
            t: Flow times k / flow_steps, shape (n, 1).
        """
        t, factor = self._own_time(t)
        if not self._takes_tensors:
            answer = self.velocity(*map(np.array, (observations, x_t, t)))
        else:
            import torch

            with torch.no_grad():
                answer = self._ask(*map(torch.as_tensor, (observations, x_t, t)))
        velocity: Float = _array(answer) * factor
        return velocity

    def on_tensors(self, observations: Any, x_t: Any, t: Any) -> Any:
        """`__call__` on torch tensors of the same shapes, float32.

        Gradients flow where the callable lets them.
        """
        import torch

        own, factor = self._own_time(t)
        if self._takes_tensors:
            answer = self._ask(observations, x_t, own).float()
        else:
            arrays = (part.detach().cpu().numpy().copy() for part in (observations, x_t, own))
            answer = torch.as_tensor(_array(self.velocity(*arrays)))
        return answer.to(x_t.device) * factor

    def check(self, observation_dim: int, action_dim: int, device: Any = None) -> None:
        """Ask it twice, and find out whether it takes arrays or tensors.

        Args:
            observation_dim: Width of an observation.
            action_dim: Width of an action.
            device: Where it will be asked on tensors, if it will be.

        Raises:
            ConfigurationError: If it fails, its answer is no finite velocity, or is random.
        """
        sizes = f"observations of {observation_dim} and actions of {action_dim} dimensions"
        n = next(n for n in (2, 3, 5) if n not in (observation_dim, action_dim))
        zeros: list[Any] = [np.zeros((n, w), np.float32) for w in (observation_dim, action_dim, 1)]
        ask: Callable[..., Any] = self
        if device is not None:
            import torch

            zeros, ask = [torch.as_tensor(part, device=device) for part in zeros], self.on_tensors
            with contextlib.suppress(Exception), torch.no_grad():
                answer = self._ask(*zeros)
                self._takes_tensors |= isinstance(answer, torch.Tensor)
        try:
            answer, again = (_array(ask(*zeros)) for _ in range(2))
        except Exception as error:  # whatever a user's model raises
            if self._takes_tensors or "torch" not in sys.modules:
                raise ConfigurationError(f"the behavior fails on {sizes}: {error}") from error
            self._takes_tensors = True  # a function of tensors
            return self.check(observation_dim, action_dim, device)
        if answer.shape != (n, action_dim) or not np.isfinite(answer).all():
            raise ConfigurationError(
                f"the behavior answers shape {answer.shape} with {(~np.isfinite(answer)).sum()} "
                f"values that are not finite, for {sizes}: it must answer (n, {action_dim})"
            )
        if not np.array_equal(answer, again):
            raise ConfigurationError(
                "the behavior gives another answer when it is asked again: take the randomness out "
                "(of torch, module.eval()); the flow's own noise is x_0"
            )

    def check_steps(self, flow_steps: int) -> None:
        """Raise ConfigurationError for a number of steps that it was not made for."""
        if self.flow_steps not in (None, flow_steps):
            raise ConfigurationError(
                f"the behavior makes {self.flow_steps} flow steps, the environment {flow_steps}: "
                f"make it with flow_steps={self.flow_steps}"
            )

    def probe(self, observation_dim: int, action_dim: int) -> list[float]:
        """A few of its velocities, by which a checkpoint knows it again."""
        rng = np.random.default_rng(0)
        s, x = (rng.standard_normal((2, n), np.float32) for n in (observation_dim, action_dim))
        velocities = self(s, x, np.zeros((2, 1), np.float32)).ravel()[:16]
        return [round(float(v), 4) for v in velocities]

    def _own_time(self, t: Any) -> tuple[Any, Any]:
        """The callable's time, and what its velocity is multiplied with.

        On a grid of its own a step from tau_k to tau_k+1 moves by (tau_k+1 - tau_k) u; the flow
        MDP's moves by u / flow_steps.
        """
        if self.times is None:
            return t, np.float32(1)
        assert self.flow_steps is not None
        times: Any = self.times
        steps: Any = times[1:] - times[:-1]
        if hasattr(t, "detach"):
            import torch

            grid = self._grids.get(t.device)
            if grid is None:
                grid = tuple(torch.as_tensor(part, device=t.device) for part in (times, steps))
                if t.device.type != "cpu":  # which need not be waited for, and may be traced
                    self._grids[t.device] = grid
            times, steps = grid
            k = (t * self.flow_steps).round().long().clamp(0, self.flow_steps - 1)
        else:
            k = np.rint(t * self.flow_steps).astype(int).clip(0, self.flow_steps - 1)
        return times[k], steps[k] * np.float32(self.flow_steps)

    def _ask(self, *parts: Any) -> Any:
        """The callable, on copies and the device of its weights, and a module in eval mode."""
        parts = tuple(part.clone() for part in parts)
        if not self._module:
            return self.velocity(*parts)
        module: Any = self.velocity
        weight = next(iter(module.parameters()), None)
        if weight is not None:
            parts = tuple(part.to(weight.device, weight.dtype) for part in parts)
        training = [one for one in module.modules() if one.training]
        try:
            for one in training:
                one.training = False
            return module(*parts)
        finally:
            for one in training:
                one.training = True


def as_behavior(
    velocity: Any,
    flow_steps: int | None = None,
    times: Sequence[float] | Float | None = None,
    name: str | None = None,
) -> BehaviorFlow:
    """A flow policy of the user's own as a behaviour, for environments and agents.

    Args:
        velocity: velocity(observations (n, observation_dim), x_t (n, action_dim), t (n, 1)) ->
            (n, action_dim), on NumPy arrays or torch tensors; a torch module, which is asked in
            eval mode and keeps its own; or "module:name" of one, which is imported. The same
            question must get the same answer; what it does to its arguments changes nothing.
        flow_steps: Euler steps for which it was made; None if it takes any number.
        times: The flow_steps + 1 times at which it was trained to be asked, from noise to action,
            if they are not k / flow_steps: `[1, 0.8, 0.6, 0.4, 0.2, 0]` for a flow whose noise is
            at 1. The last one is where its last step ends.
        name: What checkpoints call it by; its "module:name" or its type when not given.

    Raises:
        ConfigurationError: If it is no callable, or its times do not fit.
    """
    if isinstance(velocity, str):
        name, velocity = name or velocity, import_name(velocity)
    if isinstance(velocity, BehaviorFlow):
        if flow_steps is None and times is None and name in (None, velocity.name):
            return velocity
        flow_steps = velocity.flow_steps if flow_steps is None else flow_steps
        times, name = velocity.times if times is None else times, name or velocity.name
        velocity = velocity.velocity
    return BehaviorFlow(velocity, flow_steps, times, name or type(velocity).__name__)


def import_name(reference: str) -> Any:
    """The object that "package.module:name" stands for; the module is imported.

    Raises:
        ConfigurationError: If there is none.
    """
    module, _, name = reference.partition(":")
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (AttributeError, ImportError, ValueError) as error:
        raise ConfigurationError(
            f"{reference!r} cannot be imported ({error}): write package.module:name, and have the "
            "package installed or on PYTHONPATH"
        ) from error
    return found


def _array(answer: Any) -> Float:
    """A velocity, whatever it is, as a NumPy array."""
    if hasattr(answer, "detach"):
        answer = answer.detach().cpu().float().numpy()
    return np.asarray(answer, np.float32)
