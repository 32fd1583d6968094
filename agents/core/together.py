"""Agents learn step by step: one alone, or several side by side in one process.

An agent's learning is a generator: it yields its next update, and is sent what the update logs.
Side by side every agent computes what it computes alone. On a GPU one CUDA graph then holds the
next update of each as a branch of its own: the kernels of one agent leave most of a GPU idle.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from flowmdp.agents.core.graphs import CudaGraphs
from flowmdp.agents.core.inputs import within_memory
from flowmdp.agents.core.networks import Info
from flowmdp.agents.core.precision import matmul_precision
from flowmdp.agents.core.threads import one_thread

if TYPE_CHECKING:
    from flowmdp.agents.core.algorithm import FlowAlgorithm

T = TypeVar("T")

Step = tuple[Callable[[], Info], Hashable]
"""An update, and its phase; see `FlowAlgorithm.graphed`."""
Steps = Generator[Step, Info, T]


def alone(agent: FlowAlgorithm, steps: Steps[T]) -> T:
    """Take all steps of one agent; returns what the generator returns."""
    (result,) = together([agent], [steps])
    return result


@one_thread()
def together(agents: Sequence[FlowAlgorithm], learning: Sequence[Steps[T]]) -> list[T]:
    """Take the steps of several agents in turn, until each has taken all of its own.

    Args:
        agents: On one device, with one precision.
        learning: For each its `learning`, its `pretraining`, or a generator around these.

    Returns:
        What the generators return.
    """
    results: dict[int, T] = {}
    waiting: dict[int, Step] = {}

    def advance(i: int, info: Any) -> None:
        try:
            waiting[i] = learning[i].send(info)
        except StopIteration as end:
            waiting.pop(i, None)
            results[i] = end.value

    branches = Branches(agents) if all(agent.records for agent in agents) else None
    try:
        for i in range(len(agents)):
            advance(i, None)
        while waiting:
            if branches is None or len(waiting) == 1:
                infos = {i: agents[i].graphed(*step) for i, step in waiting.items()}
            else:
                infos = branches(waiting)
            for i, info in infos.items():
                advance(i, info)
    finally:
        for steps in learning:
            steps.close()
    return [results[i] for i in range(len(agents))]


class Branches:
    """Updates of several agents as branches of one CUDA graph, recorded for each set of phases."""

    def __init__(self, agents: Sequence[FlowAlgorithm]) -> None:
        generators = [one for agent in agents for one in agent.saved.generators.values()]
        self.graphs, self.precision = CudaGraphs(generators), agents[0].precision
        self.streams = [torch.cuda.Stream() for _ in agents]

    def __call__(self, steps: dict[int, Step]) -> dict[int, Info]:
        """Take one step of each of these agents; what each logs."""

        def update() -> Info:
            logged: Info = {}
            start = torch.cuda.current_stream()
            for i, (one, _) in steps.items():
                self.streams[i].wait_stream(start)
                with torch.cuda.stream(self.streams[i]):
                    logged |= {f"{i} {name}": value for name, value in one().items()}
            for i in steps:
                start.wait_stream(self.streams[i])
            return logged

        infos: dict[int, Info] = {i: {} for i in steps}
        with matmul_precision(self.precision), within_memory():
            logged = self.graphs(update, tuple((i, phase) for i, (_, phase) in steps.items()))
        for key, value in logged.items():
            i, _, name = key.partition(" ")
            infos[int(i)][name] = value
        return infos
