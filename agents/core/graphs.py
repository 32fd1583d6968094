"""Updates as CUDA graphs: one launch replays the hundreds of kernels of a gradient step.

At the widths of these networks a kernel takes less time than Python takes to launch it, so a GPU
waits for its host. A graph is recorded once and launched whole: the same kernels on the same
memory, random numbers drawn anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable

import torch

from flowmdp.agents.core.networks import Info
from flowmdp.errors import ConfigurationError

WARM_UP = 3
"""Updates of each phase that run kernel by kernel before one is recorded."""


class CudaGraphs:
    """Runs updates, and replays them once they are recorded.

    An update reads and writes tensors that stay where they are, and asks nothing of the host: no
    `.item()`, no shape that depends on values. What it reads of the host, numbers and branches, is
    recorded as it was; a change is a new `phase`.

    Args:
        generators: Those that updates draw from.

    Raises:
        ConfigurationError: When called, if an update cannot be recorded.
    """

    def __init__(self, generators: Iterable[torch.Generator]) -> None:
        self.generators = list(generators)
        self.stream = torch.cuda.Stream()
        self._runs: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, tuple[torch.cuda.CUDAGraph, list[str], torch.Tensor]] = {}

    def clear(self) -> None:
        """Forget what is recorded."""
        self._runs.clear()
        self._recorded.clear()

    def __call__(self, update: Callable[[], Info], phase: Hashable) -> Info:
        """One `update`; its scalars to log are copies, which later replays leave alone."""
        self._runs[phase] += 1
        if self._runs[phase] <= WARM_UP:
            return self._run(update)
        if phase not in self._recorded:
            self._recorded[phase] = self._record(update)
        graph, names, scalars = self._recorded[phase]
        graph.replay()
        return dict(zip(names, scalars.clone(), strict=True))

    def _run(self, update: Callable[[], Info]) -> Info:
        """On the stream that records: autograd remembers on which one it met a parameter."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            info = update()
        current.wait_stream(self.stream)
        return info

    def _record(
        self, update: Callable[[], Info]
    ) -> tuple[torch.cuda.CUDAGraph, list[str], torch.Tensor]:
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                info = update()
                scalars = torch.stack([value.float() for value in info.values()])
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ConfigurationError(
                f"an update cannot be recorded as a CUDA graph ({reason}): does it use .item() or "
                "the like? Make the agent with cuda_graphs=False"
            ) from error
        return graph, list(info), scalars
