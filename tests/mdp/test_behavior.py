"""Flow policies of the user's own: arrays or tensors, their own steps and times."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowmdp.behavior import BehaviorFlow, as_behavior
from flowmdp.env import FlowMDPEnv
from flowmdp.errors import ConfigurationError
from flowmdp.vector import FlowMDPVectorEnv
from tests.mdp.toys import PointRobot, behavior, toy_dataset


class Module(nn.Module):
    """A float64 flow with a normaliser inside, whose layers take tensors only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2, dtype=torch.float64)

    def forward(self, observations: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        answer: Tensor = self.layer(torch.cat([observations / 3, x_t, t], 1))
        return answer


def arrays(n: int = 4) -> list[Any]:
    rng = np.random.default_rng(0)
    return [*(rng.standard_normal((n, 2), np.float32) for _ in range(2)), np.full((n, 1), 0.4)]


def velocities_of(own: BehaviorFlow) -> tuple[Any, Any]:
    own.check(2, 2)
    on_arrays = own(*arrays())
    tensors = own.on_tensors(*(torch.as_tensor(a, dtype=torch.float32) for a in arrays()))
    assert on_arrays.dtype == np.float32 and tensors.dtype == torch.float32
    return on_arrays, tensors.detach().numpy()


def kinds() -> dict[str, Any]:
    module = Module()
    return {
        "function of arrays": behavior,
        "module": module,
        "function of tensors": lambda s, x, t: module(s.double(), x.double(), t.double()),
        "wrapped module": lambda s, x, t: module(*(torch.as_tensor(p).double() for p in (s, x, t))),
    }


@pytest.mark.parametrize("kind", kinds())
def test_arrays_and_tensors_get_the_same(kind: str) -> None:
    torch.manual_seed(0)
    on_arrays, on_tensors = velocities_of(as_behavior(kinds()[kind]))
    np.testing.assert_allclose(on_arrays, on_tensors, rtol=1e-5)


@pytest.mark.parametrize("kind", kinds())
def test_the_environment_takes_it_as_it_is(kind: str) -> None:
    torch.manual_seed(0)
    own = kinds()[kind]
    env = FlowMDPEnv(PointRobot(), behavior=own, action_mode="residual", flow_steps=3)
    observation, _ = env.reset(seed=0)
    x_t, state = observation[env.flow_spec.point], observation[None, env.flow_spec.state]
    for k in range(3):
        velocity = as_behavior(own)
        velocity.check(2, 2)
        x_t = x_t + velocity(state, x_t[None], np.full((1, 1), k / 3, np.float32))[0] / np.float32(
            3
        )
        *_, info = env.step(np.zeros(2, np.float32))
    np.testing.assert_allclose(info["executed_action"], x_t.clip(-1, 1), rtol=1e-5)


def test_its_own_times_are_followed_exactly() -> None:
    """A flow whose noise lies at time 1, on a grid that is not even."""
    asked: list[float] = []

    def reversed_flow(s: Any, x: Any, tau: Any) -> Any:
        asked.append(float(tau[0, 0]))
        return tau * (x - s)

    times = [1.0, 0.7, 0.2, 0.0]
    own = as_behavior(reversed_flow, flow_steps=3, times=times)
    env = FlowMDPEnv(PointRobot(), behavior=own, action_mode="residual")
    assert env.flow_steps == 3
    observation, _ = env.reset(seed=0)
    x, s = observation[2:4].astype(float), observation[:2]
    asked.clear()
    for start, end in itertools.pairwise(times):
        x = x + (end - start) * start * (x - s)
        *_, info = env.step(np.zeros(2, np.float32))
    np.testing.assert_allclose(asked, times[:-1], rtol=1e-6)
    np.testing.assert_allclose(info["executed_action"], x.clip(-1, 1), rtol=1e-5)
    tensors = [torch.as_tensor(part, dtype=torch.float32) for part in arrays()]
    tensors[2][:] = 1 / 3
    np.testing.assert_allclose(own.on_tensors(*tensors), own(*(t.numpy() for t in tensors)))


def test_registered_ids_take_it() -> None:
    own = as_behavior(lambda s, x, t: -x, flow_steps=5)
    extras: list[dict[str, Any]] = [{"action_mode": "residual"}, {"decision": "noise"}]
    for extra in extras:
        env = gym.make("FlowMDP-v0", env_id="Pendulum-v1", behavior=own, **extra)
        env.reset(seed=0)
        *_, info = env.step(np.zeros(1, np.float32))
        assert env.unwrapped.get_wrapper_attr("flow_steps" if "action_mode" in extra else "flow")
        env.close()
    assert "executed_action" in info
    assert FlowMDPVectorEnv(2, toy_dataset(), behavior=own).flow_steps == 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (3, "pass a callable"),
        (dict, "not its class"),
        (lambda s, x, t: x[:, :1], r"answers shape \(3, 1\)"),
        (lambda s, x, t: x + np.nan, "6 values that are not finite"),
        (lambda s, x, t: s @ x, "the behavior fails on observations of 2"),
        (nn.Linear(3, 3), "the behavior fails"),
        ("no_such_package:flow", "cannot be imported"),
        ("flowmdp.behavior:nothing", "cannot be imported"),
        ("flowmdp", "cannot be imported"),
        (lambda s, x, t: x + torch.randn(x.shape).numpy(), "another answer when it is asked again"),
    ],
)
def test_others_are_refused_when_they_are_given(wrong: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        FlowMDPEnv(PointRobot(), behavior=wrong, dataset=toy_dataset())


def test_steps_and_times_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="makes 5 flow steps, the environment 10"):
        FlowMDPEnv(PointRobot(), behavior=as_behavior(behavior, flow_steps=5), flow_steps=10)
    for steps, times in ((None, [0, 1]), (2, [0, 1]), (1, [0, np.nan]), (1, "ab"), (2, [0, 1, 1])):
        with pytest.raises(ConfigurationError, match="flow_steps \\+ 1 finite times"):
            as_behavior(behavior, steps, times)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="flow_steps is 0"):
        as_behavior(behavior, 0)
    own = as_behavior(as_behavior(behavior, flow_steps=3), name="mine")
    assert (own.flow_steps, own.name) == (3, "mine") and as_behavior(own, 5).flow_steps == 5


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(2)])
def test_a_module_is_asked_in_eval_mode_and_keeps_its_own(layer: nn.Module) -> None:
    frozen = nn.BatchNorm1d(2).eval()
    module: Any = Module()
    module.layer = nn.Sequential(module.layer, frozen.double(), layer.double())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    on_arrays, on_tensors = velocities_of(as_behavior(module))
    np.testing.assert_allclose(on_arrays, on_tensors, rtol=1e-5)
    assert module.training and layer.training and not frozen.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def greedy_arrays(s: Any, x: Any, t: Any) -> Any:
    s *= 0
    x -= 1
    t += 1
    return x


def greedy_tensors(s: Any, x: Any, t: Any) -> Any:
    s.mul_(0)
    return x.sub_(1)


@pytest.mark.parametrize("greedy", [greedy_arrays, greedy_tensors])
def test_what_it_does_to_its_arguments_changes_nothing(greedy: Any) -> None:
    def greedy_critic(s: Any, a: Any) -> Any:
        s *= 0
        a *= 0
        return a.sum(1)

    settings: dict[str, Any] = {"reward": "divergence", "action_mode": "residual", "flow_steps": 2}
    env = FlowMDPEnv(
        states="dataset", dataset=toy_dataset(), behavior=greedy, critic=greedy_critic, **settings
    )
    seen, _ = env.reset(seed=0)
    for k in range(2):
        x_t = seen[2:4]
        after, *_, info = env.step(np.zeros(2, np.float32))
        np.testing.assert_array_equal(after[:2], seen[:2])
        np.testing.assert_allclose(after[2:4], x_t + (x_t - 1) / 2, rtol=1e-6)
        assert after[4] == (k + 1) / 2
        seen = after
    np.testing.assert_allclose(info["executed_action"], seen[2:4].clip(-1, 1))


def test_what_is_not_finite_is_blamed_on_it() -> None:
    env = FlowMDPEnv(
        PointRobot(),
        behavior=lambda s, x, t: np.where(t < 0.5, x, np.inf),
        action_mode="residual",
        flow_steps=2,
    )
    env.reset(seed=0)
    env.step(np.zeros(2, np.float32))
    with pytest.raises(ConfigurationError, match=r"the behavior answers .* at flow time \[0.5\]"):
        env.step(np.zeros(2, np.float32))
