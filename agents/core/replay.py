"""What robots went through, beside the dataset: the online half of a batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmdp.agents.core import checkpoint
from flowmdp.agents.core.batch import Batch, DeviceDataset, reward_scale
from flowmdp.agents.core.networks import Normalizer
from flowmdp.errors import CheckpointError
from flowmdp.mdp.spec import FlowSpec

Array = NDArray[Any]


class OnlineBuffer:
    """Every transition since the robots began: one row per robot and decision, in their order.

    To what learns it is one more `DeviceDataset`, of `chunk` interleaved sequences, one per robot.
    A row is a whole chunk. Where a time limit ended it after n of its h actions, its mask is
    gamma^(n - h): what follows is then discounted by gamma^n, not gamma^h.

    Attributes:
        reward_scale: What rewards are multiplied with.
        chunk: The number of robots.

    Args:
        spec: Of the agent.
        normalizer: Applied to the observations of a batch.
        gamma: Discount per step of the robot.
        robots: How many there are.
        device: Where the rows live.
    """

    starts: None = None
    """A sequence goes on at every row."""

    def __init__(
        self,
        spec: FlowSpec,
        normalizer: Normalizer,
        gamma: float,
        robots: int,
        device: torch.device,
    ) -> None:
        self.spec, self.normalizer, self.gamma, self.chunk = spec, normalizer, gamma, robots
        self.reward_scale = 1.0
        self._size = torch.zeros((), dtype=torch.int64, device=device)  # a graph reads it there
        self._length = 0

        def column(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty((0, *shape), dtype=dtype, device=device)

        self.columns = {
            "contexts": column(spec.context_dim),  # not normalised, nor are the next
            "actions": column(spec.action_dim),
            "rewards": column(),  # not scaled
            "next_contexts": column(spec.context_dim),
            "masks": column(),
            "taken": column(dtype=torch.int64),  # actions of the chunk
            "continues": column(dtype=torch.bool),
            "returns": column(),  # of the episode so far, undiscounted
        }

    def __len__(self) -> int:
        """Number of rows."""
        return self._length

    def resize(self, rows: int) -> None:
        """Have room for so many rows, and keep as many of those that are there."""
        self._set_length(min(rows, len(self)))
        for name, old in self.columns.items():
            new = old.new_empty((rows, *old.shape[1:]))
            new[: len(self)] = old[: len(self)]
            self.columns[name] = new

    def _set_length(self, rows: int) -> None:
        self._length = rows
        self._size.fill_(rows)

    def add(
        self,
        observations: Array,
        actions: Array,
        following: Array,
        rewards: Array,
        dones: Array,
        infos: list[dict[str, Any]],
    ) -> int:
        """Store what one step of all robots gave, as SB3's VecEnv gives it; returns their steps."""
        h, rows = self.spec.chunk, slice(len(self), len(self) + self.chunk)
        taken = np.array([info.get("executed_steps", 1) for info in infos])
        ended = [info.get("terminal_observation") for info in infos]
        after = [x if one is None else one for x, one in zip(following, ended, strict=True)]
        cut = [info.get("TimeLimit.truncated", False) for info in infos]
        masks = np.where(dones & ~np.array(cut), 0.0, max(self.gamma, 0.01) ** (taken - float(h)))
        paid = rewards
        if h > 1:
            discounts = self.gamma ** np.arange(h)
            paid = np.array([discounts @ info["outer_rewards"] for info in infos])
        values = {
            "contexts": observations,
            "actions": actions,
            "rewards": paid,
            "next_contexts": np.stack(after),
            "masks": masks,
            "taken": taken,
            "continues": ~dones,
            "returns": self._returns() + rewards,
        }
        for name, value in values.items():
            self.columns[name][rows] = torch.as_tensor(value).to(self.columns[name])
        self._set_length(rows.stop)
        return int(taken.sum())

    def _returns(self) -> Array:
        """Of the episodes under way, shape (robots,)."""
        last = slice(max(0, len(self) - self.chunk), len(self))
        if not len(self):
            return np.zeros(self.chunk)
        returns: Array = (self.columns["returns"][last] * self.columns["continues"][last]).numpy(
            force=True
        )
        return returns

    def break_off(self) -> None:
        """The robots begin new episodes, whether or not the last ones ended."""
        self.columns["continues"][max(0, len(self) - self.chunk) : len(self)] = False

    def ended_returns(self, episodes: int) -> list[float]:
        """The returns of the last few episodes that ended."""
        ended = ~self.columns["continues"][: len(self)]
        found: list[float] = self.columns["returns"][: len(self)][ended][-episodes:].tolist()
        return found

    def fit_scale(self, gamma: float) -> float:
        """Scale the rewards by what is there, as those of a dataset; gamma is that of a chunk."""
        self.reward_scale = 1.0
        parts = self.rewards, self.masks, self.continues
        self.reward_scale = reward_scale(*parts, gamma, self.chunk)
        return self.reward_scale

    # -- as a DeviceDataset ------------------------------------------------------------------

    @property
    def rewards(self) -> Tensor:
        """Of the chunks, scaled, shape (n,)."""
        return self.columns["rewards"][: len(self)] * self.reward_scale

    @property
    def masks(self) -> Tensor:
        """See the class."""
        return self.columns["masks"][: len(self)]

    @property
    def continues(self) -> Tensor:
        """Whether the robot's next row goes on where this one ends, and is there; bool."""
        continues = self.columns["continues"][: len(self)].clone()
        continues[len(self) - self.chunk :] = False
        return continues

    def observations(self) -> Tensor:
        """Of the robots, not normalised, shape (n, observation_dim)."""
        return self.columns["contexts"][: len(self), : self.spec.observation_dim]

    def states_after(self, rows: Tensor) -> Tensor:
        """The normalised observations after those rows."""
        return self._context("next_contexts", rows)[:, : self.spec.observation_dim]

    def _context(self, name: str, rows: Tensor) -> Tensor:
        raw, width = self.columns[name][rows], self.spec.observation_dim
        return torch.cat([self.normalizer(raw[:, :width]), raw[:, width:]], 1)

    def sample(self, batch_size: int, generator: torch.Generator, cloning: bool = False) -> Batch:
        """A uniform batch, drawn with replacement by `generator`."""
        device, width = self._size.device, self.spec.observation_dim
        draws = torch.rand(batch_size, generator=generator, device=device, dtype=torch.float64)
        rows = (draws * self._size).long()
        contexts, following = self._context("contexts", rows), self._context("next_contexts", rows)
        return Batch(
            rows,
            contexts[:, :width],
            contexts,
            self.columns["actions"][rows],
            self.columns["rewards"][rows] * self.reward_scale,
            following[:, :width],
            following,
            self.columns["masks"][rows],
            self._valid(rows),
        )

    def _valid(self, rows: Tensor) -> Tensor | None:
        """See `Batch`."""
        h = self.spec.chunk
        if h == 1:
            return None
        taken = torch.arange(h, device=rows.device) < self.columns["taken"][rows][:, None]
        return taken.float().repeat_interleave(self.spec.robot_action_dim, 1)

    # -- files -------------------------------------------------------------------------------

    def save(self, path: checkpoint.Target) -> None:
        """Write all rows, as a checkpoint is written."""
        rows = {name: column[: len(self)] for name, column in self.columns.items()}
        checkpoint.write(path, {"replay_buffer": {"robots": self.chunk}}, rows)

    def load(self, path: checkpoint.Target, rows: int) -> None:
        """Take the first rows that `save` wrote.

        Raises:
            CheckpointError: If the file is missing, damaged, holds fewer, or is of another agent.
        """
        content = checkpoint.read(path)
        with checkpoint.refusing_damage(content.name):
            self.chunk = int(content.manifest["replay_buffer"]["robots"])
            for name, own in self.columns.items():
                there = content.tensors[name]
                if there.dtype != own.dtype or there.shape[1:] != own.shape[1:]:
                    raise CheckpointError("it is of an agent of other spaces: take this agent's")
                if len(there) < rows:
                    raise CheckpointError(
                        f"it holds {len(there)} of the agent's {rows} transitions: take the file "
                        "that was saved with the agent"
                    )
                self.columns[name] = there[:rows].to(own.device)
            self._set_length(rows)


class Mixture:
    """A dataset and what robots went through, to be drawn from at a fixed ratio.

    Source: Ball et al. 2023, "Efficient Online Reinforcement Learning with Offline Data" (RLPD),
    arXiv:2302.02948, with halves.

    Args:
        data: The dataset.
        online: What the robots went through.
        share: Of a batch that is the robots', in (0, 1).
    """

    def __init__(self, data: DeviceDataset, online: OnlineBuffer, share: float) -> None:
        self.data, self.online, self.share = data, online, share

    def __len__(self) -> int:
        """Number of transitions."""
        return len(self.data) + len(self.online)

    def sample(self, batch_size: int, generator: torch.Generator, cloning: bool = False) -> Batch:
        """A batch in random order: some updates take its first rows for one thing only."""
        number = round(self.share * batch_size)
        own = self.online.sample(number, generator)
        parts = (
            self.data.sample(batch_size - number, generator, cloning),
            own._replace(rows=own.rows + len(self.data)),
        )
        device = own.rows.device
        order = torch.rand(batch_size, generator=generator, device=device).argsort()
        fields = (
            None if data is None else torch.cat([data, robots])[order]
            for data, robots in cast("Iterable[tuple[Any, Any]]", zip(*parts, strict=True))
        )
        return Batch(*cast("Iterable[Any]", fields))
