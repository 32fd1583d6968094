"""Robots that play side by side: in this process, or on the nodes of a Ray cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import gymnasium as gym

from flowmdp.cluster import RETRIES, check_room, first_line
from flowmdp.errors import FlowMDPError

MakeEnv = Callable[[], gym.Env[Any, Any]]


class Step(NamedTuple):
    """What a robot's step gave; `success` is None where the robot reports none."""

    observation: Any
    reward: float
    ended: bool
    success: bool | None


class Robots:
    """Robots in this process, by their numbers."""

    def __init__(self, make_env: MakeEnv) -> None:
        self.make_env = make_env
        self.envs: dict[int, gym.Env[Any, Any]] = {}

    @cached_property
    def env(self) -> gym.Env[Any, Any]:
        """One of them, which tells spaces and metadata."""
        return self.make_env()

    def open(self, numbers: Iterable[int]) -> None:
        """Make those robots."""
        for number in numbers:
            self.envs[number] = self.make_env() if self.envs else self.env

    def reset(self, seeds: Mapping[int, int]) -> dict[int, Any]:
        """Begin an episode on some of them; returns their observations."""
        return {number: self.envs[number].reset(seed=seed)[0] for number, seed in seeds.items()}

    def step(self, actions: Mapping[int, Any]) -> dict[int, Step]:
        """Let some of them act."""
        steps = {}
        for number, action in actions.items():
            observed, reward, terminated, truncated, info = self.envs[number].step(action)
            success = bool(info["success"]) if "success" in info else None
            steps[number] = Step(observed, float(reward), terminated or truncated, success)
        return steps

    def close(self) -> None:
        """Close all of them."""
        for env in {self.env, *self.envs.values()}:
            env.close()


class ClusterRobots(Robots):
    """Robots on the nodes of a Ray cluster, in shares of one CPU each.

    A robot does the same wherever it is. So where a share is lost with its node, a new one does
    once more all that the lost one did.

    Args:
        make_env: Makes a robot, here (the one that tells the spaces) and there.
        ray: From `flowmdp.cluster.joined`.
        jobs: Shares at most; None takes as many as the cluster has free CPUs.
    """

    def __init__(self, make_env: MakeEnv, ray: Any, jobs: int | None = None) -> None:
        super().__init__(make_env)
        self.ray, self.jobs = ray, jobs

    def open(self, numbers: Iterable[int]) -> None:
        """Make those robots, once all shares have a CPU."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        check_room(self.ray, 1)
        numbers, free = list(numbers), self.ray.available_resources().get("CPU", 0)
        total = self.ray.cluster_resources()["CPU"]
        shares = max(1, int(min(len(numbers), self.jobs or free, total)))
        # all or none: two evaluations never hold what each other waits for
        self.group = self.ray.util.placement_group([{"CPU": 1}] * shares, strategy="SPREAD")
        if not self.group.wait(5):
            print(f"waiting for {shares} free CPUs of the cluster", file=sys.stderr)
            self.ray.get(self.group.ready())
        place = PlacementGroupSchedulingStrategy(self.group)
        self.shares = [_Share(self, numbers[n::shares], place) for n in range(shares)]
        self._ask("open", {number: number for number in numbers})

    def reset(self, seeds: Mapping[int, int]) -> dict[int, Any]:
        """See `Robots`."""
        return self._ask("reset", seeds)

    def step(self, actions: Mapping[int, Any]) -> dict[int, Step]:
        """See `Robots`."""
        return self._ask("step", actions)

    def close(self) -> None:
        """See `Robots`."""
        super().close()
        self.ray.util.remove_placement_group(self.group)  # ends those in it
        self.shares.clear()

    def _ask(self, name: str, what: Mapping[int, Any]) -> dict[int, Any]:
        """What all robots answer that are told something, at the same time."""
        asked = []
        for share in self.shares:
            if own := {number: what[number] for number in share.numbers if number in what}:
                asked.append((share, share.tell(name, own)))
        answers: dict[int, Any] = {}
        for share, reference in asked:
            answers |= share.answer(reference) or {}
        return answers


class _Share:
    """Some robots in a process of their own, on some node."""

    def __init__(self, robots: ClusterRobots, numbers: list[int], place: Any) -> None:
        self.robots, self.numbers, self.losses = robots, numbers, 0
        self.told: list[tuple[str, dict[int, Any]]] = []
        self.actor = self._begin(num_cpus=1, scheduling_strategy=place)

    def _begin(self, **options: Any) -> Any:
        return self.robots.ray.remote(Robots).options(**options).remote(self.robots.make_env)

    def tell(self, name: str, what: dict[int, Any]) -> Any:
        """Have a method of `Robots` called; `answer` waits for its value."""
        self.told.append((name, what))
        return getattr(self.actor, name).remote(what)

    def answer(self, reference: Any) -> Any:
        """The value; FlowMDPError when the share is lost again and again."""
        errors = self.robots.ray.exceptions
        try:
            return self.robots.ray.get(reference)
        except errors.RayTaskError as error:
            raise error.cause from None
        except errors.RayActorError as error:
            self.losses += 1
            if self.losses > RETRIES:
                raise FlowMDPError(f"the cluster lost robots: {first_line(error)}") from error
        self.actor = self._begin(num_cpus=0)  # beside others: nobody knows of a free CPU
        for name, what in self.told:
            reference = getattr(self.actor, name).remote(what)
        return self.answer(reference)
