"""Robots that play side by side: here, in processes of their own, or on a Ray cluster's nodes."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, NamedTuple

import gymnasium as gym

from flowmdp.cluster import RETRIES, check_room, first_line
from flowmdp.errors import FlowMDPError, RobotError

MakeEnv = Callable[[], gym.Env[Any, Any]]


class Step(NamedTuple):
    """What a robot's step gave."""

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]

    @property
    def ended(self) -> bool:
        """Whether the episode did."""
        return self.terminated or self.truncated

    @property
    def success(self) -> bool | None:
        """What the robot reports; None where it reports nothing."""
        return bool(self.info["success"]) if "success" in self.info else None


class Episode(NamedTuple):
    """All that brings a robot back to where it is, if it does the same from the same seed."""

    seed: int
    actions: Sequence[Any]


class Robots:
    """Robots in this process, by their numbers.

    Args:
        make_env: Makes a robot.
        tells: Entries of `info` that a step tells; None for all.

    Raises:
        RobotError: Whatever a robot raises, with its number.
    """

    def __init__(self, make_env: MakeEnv, tells: Sequence[str] | None = ("success",)) -> None:
        self.make_env, self.tells = make_env, tells
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
        observations = {}
        for number, seed in seeds.items():
            with _naming(number):
                observations[number] = self.envs[number].reset(seed=seed)[0]
        return observations

    def step(self, actions: Mapping[int, Any]) -> dict[int, Step]:
        """Let some of them act."""
        steps = {}
        for number, action in actions.items():
            with _naming(number):
                observed, reward, terminated, truncated, info = self.envs[number].step(action)
                if self.tells is not None:
                    info = {name: info[name] for name in self.tells if name in info}
                ends = bool(terminated), bool(truncated)
                steps[number] = Step(observed, float(reward), *ends, info)
        return steps

    def replay(self, episodes: Mapping[int, Episode]) -> dict[int, tuple[Any, float]]:
        """Bring some of them to the end of an episode so far: observations and returns.

        Raises:
            RobotError: If one ends before, which did not the first time.
        """
        reached = {}
        for number, (seed, actions) in episodes.items():
            observation, total = self.reset({number: seed})[number], 0.0
            for action in actions:
                step = self.step({number: action})[number]
                observation, total = step.observation, total + step.reward
                if step.ended:
                    raise _fault(number, "does not do the same again from the same seed")
            reached[number] = observation, total
        return reached

    def call(self, calls: Mapping[int, tuple[str, Any, Any]]) -> dict[int, Any]:
        """What methods of some of them return; a call is (name, arguments, named arguments)."""
        return {
            number: self.envs[number].get_wrapper_attr(name)(*arguments, **named)
            for number, (name, arguments, named) in calls.items()
        }

    def close(self) -> None:
        """Close all of them."""
        for env in {self.env, *self.envs.values()}:
            env.close()


def _fault(number: int, reason: str) -> RobotError:
    fault = RobotError(f"robot {number} {reason}")
    fault.robot = number
    return fault


@contextmanager
def _naming(number: int) -> Iterator[None]:
    """Have whatever a robot raises say which robot it was."""
    try:
        yield
    except RobotError as error:
        raise _fault(number, f"failed: {error}") from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__} {first_line(error)}".split())
        raise _fault(number, f"raised {reason}") from error


class SharedRobots(Robots):
    """Robots in several shares, each somewhere else, that act at the same time."""

    shares: list[Any]
    """With `numbers`, `tell`, which has a method of `Robots` called, and `answer`, its value."""

    def reset(self, seeds: Mapping[int, int]) -> dict[int, Any]:
        """See `Robots`."""
        return self._ask("reset", seeds)

    def step(self, actions: Mapping[int, Any]) -> dict[int, Step]:
        """See `Robots`."""
        return self._ask("step", actions)

    def replay(self, episodes: Mapping[int, Episode]) -> dict[int, tuple[Any, float]]:
        """See `Robots`."""
        return self._ask("replay", episodes)

    def call(self, calls: Mapping[int, tuple[str, Any, Any]]) -> dict[int, Any]:
        """See `Robots`."""
        return self._ask("call", calls)

    def _ask(self, name: str, what: Mapping[int, Any]) -> dict[int, Any]:
        """What all robots answer that are told something, at the same time."""
        asked = []
        for share in self.shares:
            if own := {number: what[number] for number in share.numbers if number in what}:
                asked.append((share, share.tell(name, own)))
        answers: dict[int, Any] = {}
        errors: list[Exception] = []
        for share, reference in asked:
            try:
                answers |= share.answer(reference) or {}
            except Exception as error:  # first let the others answer: who is told next, is ready
                errors.append(error)
        if errors:
            raise errors[0]
        return answers


class ProcessRobots(SharedRobots):
    """Robots in processes of this machine: forks of this one where that is safe, on Linux.

    Args:
        make_env: As for `Robots`; elsewhere it must be picklable.
        tells: As for `Robots`.
        processes: At most so many.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        tells: Sequence[str] | None = ("success",),
        processes: int = 2,
    ) -> None:
        super().__init__(make_env, tells)
        self.processes = processes

    def open(self, numbers: Iterable[int]) -> None:
        """Make those robots."""
        numbers = list(numbers)
        shares = min(len(numbers), self.processes)
        self.shares = [_Process(self, numbers[n::shares]) for n in range(shares)]
        self._ask("open", {number: number for number in numbers})

    def close(self) -> None:
        """Close all of them, and end the processes."""
        super().close()
        for share in self.shares:
            share.pipe.close()
        for share in self.shares:
            share.process.join()


class _Process:
    """Some robots in a process of their own."""

    def __init__(self, robots: ProcessRobots, numbers: list[int]) -> None:
        linux = sys.platform == "linux"
        context: Any = multiprocessing.get_context("fork" if linux else "spawn")
        self.numbers, (self.pipe, there) = numbers, context.Pipe()
        arguments = self.pipe, there, robots.make_env, robots.tells
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        with warnings.catch_warnings():  # the robots use none of the threads that a fork leaves
            warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
            self.process.start()
        there.close()

    def tell(self, name: str, what: dict[int, Any]) -> None:
        """See `SharedRobots.shares`."""
        with suppress(OSError):  # the answer says so
            self.pipe.send((name, what))

    def answer(self, _: None) -> Any:
        """See `SharedRobots.shares`."""
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            numbers = ", ".join(map(str, self.numbers))
            raise RobotError(
                f"the process of robots {numbers} has ended: look above for its last words, or for "
                "a lack of memory"
            ) from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(theirs: Any, pipe: Any, make_env: MakeEnv, tells: Sequence[str] | None) -> None:
    """The work of a `_Process`, until its pipe is closed, as by the end of who opened it."""
    theirs.close()  # a fork has it too, and would wait for itself
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal's, which are the other's to answer
        signal.signal(number, signal.SIG_IGN)
    robots = Robots(make_env, tells)
    with suppress(EOFError, OSError):
        while True:
            name, what = pipe.recv()
            try:
                answer = getattr(robots, name)(what)
            except Exception as error:
                answer = error
            pipe.send(answer)
    robots.close()


class ClusterRobots(SharedRobots):
    """Robots on the nodes of a Ray cluster, in shares of one CPU each.

    A robot does the same wherever it is. So where a share is lost with its node, a new one does
    once more all that the lost one did.

    Args:
        make_env: Makes a robot, here (the one that tells the spaces) and there.
        ray: From `flowmdp.cluster.joined`.
        jobs: Shares at most; None takes as many as the cluster has free CPUs.
        tells: As for `Robots`.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        ray: Any,
        jobs: int | None = None,
        tells: Sequence[str] | None = ("success",),
    ) -> None:
        super().__init__(make_env, tells)
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

    def close(self) -> None:
        """See `Robots`."""
        super().close()
        self.ray.util.remove_placement_group(self.group)  # ends those in it
        self.shares.clear()


class _Share:
    """Some robots in a process of their own, on some node."""

    def __init__(self, robots: ClusterRobots, numbers: list[int], place: Any) -> None:
        self.robots, self.numbers, self.losses = robots, numbers, 0
        self.told: list[tuple[str, dict[int, Any]]] = []
        self.actor = self._begin(num_cpus=1, scheduling_strategy=place)

    def _begin(self, **options: Any) -> Any:
        made = self.robots.make_env, self.robots.tells
        return self.robots.ray.remote(Robots).options(**options).remote(*made)

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
