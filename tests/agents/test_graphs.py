"""Updates can be recorded as CUDA graphs: they ask nothing of the host, and phases tell them apart.

Both is seen on the CPU, in the operations that updates consist of; that a replay does what an
update does is seen where there is a GPU.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flowmdp.agents.core.graphs import WARM_UP
from flowmdp.agents.core.networks import Info
from flowmdp.errors import ConfigurationError
from tests.agents.test_contract import few, flow_env, make, weights

ASKING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "lift_fresh", "unique_dim"}
"""Operations whose result the host waits for, or to which it brings a value."""

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("flow-bc", {}),
    ("iql", {}),
    ("rebrac", {}),
    ("fql", {"best_of": 2}),
    ("dsrl", {"best_of": 2}),
    ("ifql", {}),
    ("qc", {"samples": 4}),
    ("rql", {"value_steps": 20, "best_of": 2}),
    ("df-dir", {}),
    ("df-dir", {"objective": "advantage", "critic": "iql"}),
    ("df-dir", {"objective": "direction", "path": "trigonometric"}),
    ("df-div", {"smoothing": 0.2, "best_of": 2}),
    ("df-div", {"critic": "iql", "divergence": "cosine"}),
    ("df-div", {"flow_value": "adjoint"}),
]
each_variant = pytest.mark.parametrize(
    ("name", "arguments"), VARIANTS, ids=[" ".join(map(str, (n, *a.values()))) for n, a in VARIANTS]
)


class Operations(TorchDispatchMode):
    """Lists the operations that run: their names, the shapes and numbers that they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.calls: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        def shown(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return tuple(value.shape)
            if isinstance(value, list | tuple):
                return [shown(one) for one in value]
            return None if isinstance(value, torch.Generator) else value

        if func.namespace == "aten":
            self.names.append(func.overloadpacket.__name__)
            self.calls.append(f"{func} {shown(args)}")
        return func(*args, **(kwargs or {}))


@each_variant
def test_updates_of_one_phase_are_alike_and_ask_nothing_of_the_host(
    name: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = few(name, behavior_steps=8, critic_steps=16)
    agent = make(name, **{**steps, **arguments})
    seen: dict[Hashable, list[Operations]] = defaultdict(list)

    def listed(update: Callable[[], Info], phase: Hashable) -> Info:
        with Operations() as operations:
            info = update()
        seen[phase].append(operations)
        return info

    monkeypatch.setattr(agent, "graphed", listed)
    agent.learn(45, log_interval=0)
    for phase, runs in seen.items():
        recorded = runs[WARM_UP:]
        assert recorded, phase
        for run in recorded:
            assert run.calls == recorded[0].calls, phase
        asked = ASKING.intersection(recorded[0].names)
        assert not asked, (phase, asked)


def test_a_number_taken_from_a_tensor_is_seen() -> None:
    with Operations() as operations:
        torch.ones(3).sum().item()
    assert ASKING.intersection(operations.names)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_variant
def test_replays_do_what_updates_do(name: str, arguments: dict[str, Any]) -> None:
    steps = few(name, behavior_steps=20, critic_steps=20)
    ends = []
    for graphs in (True, False):
        agent = make(
            name,
            flow_env(name),
            **{**steps, **arguments, "device": "cuda", "precision": "float32"},
            cuda_graphs=graphs,
        )
        agent.learn(45, log_interval=0)
        ends.append((weights(agent), agent.generator.get_state()))
    (replayed, state), (run, other) = ends
    assert torch.equal(state, other)
    for one, two in zip(replayed, run, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_checkpoint_of_replays_goes_on_as_they_do(tmp_path: Any) -> None:
    env = flow_env("df-div")
    agent = make("df-div", env, device="cuda", precision="float32")
    agent.learn(20, log_interval=0)
    agent.save(tmp_path / "agent")
    loaded = type(agent).load(tmp_path / "agent", env=env, device="cuda")
    for one in (agent, loaded):
        one.learn(20, log_interval=0, reset_num_timesteps=False)
    for one, two in zip(weights(agent), weights(loaded), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_tfloat32_is_for_updates_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make("flow-bc", precision="tfloat32")
    update, seen = agent.update, []

    def watched() -> Info:
        seen.append(torch.get_float32_matmul_precision())
        return update()  # type: ignore[no-any-return]

    monkeypatch.setattr(agent, "update", watched)
    before = torch.get_float32_matmul_precision()
    agent.learn(1, log_interval=0)
    assert seen == ["high"] != [before]
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_update_that_asks_the_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make("flow-bc", device="cuda")
    update = agent.update

    def asking() -> Info:
        info: Info = update()
        info["loss"].item()
        return info

    monkeypatch.setattr(agent, "update", asking)
    with pytest.raises(ConfigurationError, match="cuda_graphs=False"):
        agent.learn(WARM_UP + 1, log_interval=0)
