"""Offline to online: the same agent goes on learning from robots, beside its dataset."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, cast

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from tqdm.auto import tqdm

from flowmdp import robot_of
from flowmdp.agents.core import checkpoint
from flowmdp.agents.core.acting import Acting
from flowmdp.agents.core.inputs import check_kinds, check_same, shown
from flowmdp.agents.core.log import Logging
from flowmdp.agents.core.replay import Mixture, OnlineBuffer
from flowmdp.agents.core.saving import Saving
from flowmdp.agents.core.together import Steps, alone
from flowmdp.arguments import AtLeast, Range, check_fields, check_integers
from flowmdp.errors import ConfigurationError, UnknownArgumentError
from flowmdp.robots import ProcessRobots, Robots
from flowmdp.sb3 import RobotVecEnv

if TYPE_CHECKING:
    from flowmdp.agents.core.algorithm import FlowAlgorithm
    from flowmdp.agents.core.batch import DeviceDataset

Array = NDArray[Any]

EPISODES = 100
"""That `rollout/ep_rew_mean` averages, as SB3's."""
FREE = ("flow_steps", "velocity_scale", "include_time", "noise_scale")
"""What of a specification is the agent's own affair: how its chains go."""


@dataclass(frozen=True, kw_only=True)
class RobotsConfig:
    """How many robots, and where."""

    robots: Annotated[int, AtLeast(1, 10_000)] = 8
    """Robots that play at once."""
    processes: Annotated[int, AtLeast(1, 1_000)] = 1
    """Processes that they are spread over; with 1 they are in the agent's own."""

    def __post_init__(self) -> None:
        """Raise ConfigurationError for a value of another type or out of range."""
        check_fields(self)

    @classmethod
    def of(cls, options: dict[str, Any]) -> Self:
        """A config from named values; a misspelt name is an UnknownArgumentError."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise UnknownArgumentError(
                    f"unexpected keyword argument {name!r}: choose among {', '.join(known)}"
                )
        return cls(**options)

    def made(self, make_env: Callable[[], gym.Env[Any, Any]], seed: int) -> RobotVecEnv:
        """Those robots."""
        place: Any = Robots
        if self.processes > 1:
            place = partial(ProcessRobots, processes=self.processes)
        return RobotVecEnv(make_env, self.robots, seed, place)


@dataclass(frozen=True, kw_only=True)
class OnlineConfig(RobotsConfig):
    """How robots and dataset are learned from; fields and checks of `learn_online`."""

    warm_up: Annotated[int, AtLeast(1)] = 5_000
    """Robot steps before the first update (RLPD: 5,000)."""
    updates_per_step: Annotated[float, Range("[0, 1000]")] = 0.1
    """Gradient steps for every robot step [ours: lab book, learning on robots; papers: 1 to 20]."""
    online_share: Annotated[float, Range("(0, 1]")] = 0.5
    """Of a batch that robots went through; the rest is the dataset's (RLPD: half)."""

    def due(self, before: int, after: int) -> int:
        """Gradient steps that are due when so many robot steps were taken before, and after."""
        if before < self.warm_up:
            return 0
        first, last = (int(self.updates_per_step * (n - self.warm_up)) for n in (before, after))
        return last - first


class Online(Acting, Saving, Logging):
    """What makes an agent go on learning on robots; `FlowAlgorithm` makes it learn offline."""

    learns_online: ClassVar[bool] = True
    """Whether its updates mean something on what the agent itself did."""
    robot_steps: int
    """Steps that robots have taken for it, of all robots together."""
    transitions: int
    """Rows of the replay buffer that belong to its state."""
    replay_buffer: OnlineBuffer | None
    """What the robots went through."""
    _robots: VecEnv | None

    def setup_online(self) -> None:
        """Begin without any robot."""
        self.robot_steps = self.transitions = 0
        self.replay_buffer, self._robots, self._episodes = None, None, {}
        for name in ("robot_steps", "transitions"):
            self.saved.count(name, self, name)

    def learn_online(
        self,
        env: Any,
        robot_steps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1_000,
        tb_log_name: str = "online",
        progress_bar: bool = False,
        **options: Any,
    ) -> Self:
        """Go on learning, from robots and the dataset, until `robot_steps` are taken.

        The robots play the agent's sampled actions, with chunks whole ones, all at once. Each batch
        draws `online_share` from what they went through since they began and the rest from the
        dataset; an update is the same as offline. Nothing of the agent begins anew: neither the
        critic nor the normaliser, nor the rewards' scale. The first `warm_up` steps are played by
        the agent as it is.

        `num_timesteps` goes on counting gradient steps; `robot_steps` counts the robots'. Log lines
        are by robot steps, with `rollout/ep_rew_mean`; callbacks are called after each action (or
        chunk) of all robots, and its updates.

        With `online_share=1` no dataset is read. An agent that has learned nothing yet, a DSRL
        around a given flow, then fits its critic to the returns of the warm-up, which the plain
        flow plays.

        From a checkpoint of `save` and the file of `save_replay_buffer` another call goes on
        exactly, where robots do the same from the same seed.

        Args:
            env: The robot: the id of a flow environment or of the robot's own; a function that
                makes it with `decision="action"`; or a VecEnv of such (only a `RobotVecEnv` is
                brought back), with which `robots` and `processes` do nothing.
            robot_steps: Of all robots together, in all: those taken before count.
            callback: SB3 callbacks.
            log_interval: Robot steps between two log lines; 0 logs nothing.
            tb_log_name: Name of the run for TensorBoard.
            progress_bar: Show one, with the mean return.
            **options: Fields of `OnlineConfig`.

        Raises:
            ConfigurationError: If an argument is out of range, `env` is another robot or no robot,
                or the agent cannot learn online.
            RobotError: If a robot raises or gives numbers that are not finite; the agent is as it
                was before that step, and can be saved.
            TrainingDivergedError: As `learn`.
        """
        agent = cast("FlowAlgorithm[Any]", self)
        logs = log_interval, tb_log_name, progress_bar
        alone(agent, self.learning_online(env, robot_steps, callback, *logs, **options))
        return self

    def learning_online(
        self,
        env: Any,
        robot_steps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1_000,
        tb_log_name: str = "online",
        progress_bar: bool = False,
        go_on: Callable[[], bool] | None = None,
        **options: Any,
    ) -> Steps[None]:
        """`learn_online` step by step, for `together`; `go_on` may stop what is fitted before."""
        agent, config = cast("FlowAlgorithm[Any]", self), OnlineConfig.of(options)
        check_integers(0, robot_steps=robot_steps, log_interval=log_interval or 0)
        check_kinds(callback=callback, tb_log_name=tb_log_name)
        check_online(agent, robot_steps, config)
        offline = None if config.online_share == 1 else agent.data
        with ExitStack() as stack:
            robots = robots_of(agent, env, config, stack)
            buffer = _buffer(agent, robots.num_envs, robot_steps)
            stack.callback(self._leave, agent._data)
            if offline is None:
                agent._data = cast("DeviceDataset", buffer)  # it has all that is asked of one
            else:
                if not (yield from agent.pretraining(progress_bar, go_on)):
                    return
                buffer.reward_scale = agent.data.reward_scale
                mixture = Mixture(offline, buffer, config.online_share)
                agent._data = cast("DeviceDataset", mixture)
            if agent._graphs is not None:
                agent._graphs.clear()
            self._robots, self._last_obs = robots, self._begin(robots, buffer)
            bar = tqdm(
                total=robot_steps,
                initial=self.robot_steps,
                desc="robot steps",
                disable=not progress_bar,
            )
            stack.enter_context(bar)
            _, calls = agent._setup_learn(robot_steps, callback, False, tb_log_name)
            yield from self._going_on(robot_steps, calls, log_interval, bar, config, go_on)

    def _going_on(
        self,
        robot_steps: int,
        callback: Any,
        log_interval: int,
        bar: Any,
        config: OnlineConfig,
        go_on: Callable[[], bool] | None,
    ) -> Steps[None]:
        """Play, learn, log, tell the callback, and again."""
        agent = cast("FlowAlgorithm[Any]", self)
        callback.on_training_start(locals(), globals())
        started, self._clock = self.robot_steps, (time.perf_counter(), self.num_timesteps)
        while self.robot_steps < robot_steps:
            if self.robot_steps >= config.warm_up and not self.prepared:
                if not (yield from self._fitting(go_on)):
                    return
            before = self.robot_steps
            self._play()
            for _ in range(config.due(before, self.robot_steps)):
                info = yield agent.update, ("policy", agent.phase())
                self.num_timesteps += 1
                self._n_updates += 1
                self._note(info, "train", self.num_timesteps)
            bar.update(self.robot_steps - before)
            if log_interval and self.robot_steps // log_interval > before // log_interval:
                self._log_online(bar, started)
            callback.update_locals(locals())
            if not callback.on_step():
                break
        self._check_finite("train", self.num_timesteps, weights=True)
        if not log_interval:
            self.means.clear()
        callback.on_training_end()

    def _begin(self, robots: VecEnv, buffer: OnlineBuffer) -> Any:
        """The observations of robots that go on where they were left, or begin."""
        if self._episodes and hasattr(robots, "restore"):
            return robots.restore(self._episodes)
        buffer.break_off()
        return robots.reset()

    def _leave(self, data: DeviceDataset | None) -> None:
        """Remember where the robots are, and learn from the dataset again."""
        self._episodes, self._robots = self._where(), None
        cast("FlowAlgorithm[Any]", self)._data = data

    def _where(self) -> dict[str, Array]:
        """Where the robots are, or were left; empty if nobody can tell."""
        if self._robots is None:
            return self._episodes
        return self._robots.state() if hasattr(self._robots, "state") else {}

    def _play(self) -> None:
        """One action, or chunk, of every robot."""
        env, buffer, width = self._robots, self.replay_buffer, self.spec.observation_dim
        assert env is not None and buffer is not None
        observations = cast("Array", self._last_obs)
        previous = observations[:, width:] if self.spec.include_previous_action else None
        actions = self.explore(observations[:, :width], previous)
        following, rewards, dones, infos = env.step(actions)
        after = cast("Array", following)
        self.robot_steps += buffer.add(observations, actions, after, rewards, dones, infos)
        self.transitions, self._last_obs = len(buffer), after

    def explore(self, observations: Array, previous: Array | None) -> Array:
        """What the robots do, shape (n, action_dim): by default what the agent does from noise."""
        return self.act(observations, previous=previous, **self.acting)

    def _fitting(self, go_on: Callable[[], bool] | None) -> Steps[bool]:
        """Fit to the warm-up what otherwise is fitted to a dataset; False when stopped."""
        agent, buffer = cast("FlowAlgorithm[Any]", self), self.replay_buffer
        assert buffer is not None
        normalizer = self.policy.normalizer
        if not normalizer.fitted:
            normalizer.fit(buffer.observations())
        if self._reward_scale is None:
            self._reward_scale = buffer.fit_scale(self.config.gamma**self.spec.chunk)
        return (yield from agent.pretraining(callback=go_on))

    def _log_online(self, bar: Any, started: int) -> None:
        """Write a line of the log."""
        assert self.replay_buffer is not None
        if returns := self.replay_buffer.ended_returns(EPISODES):
            mean = float(np.mean(returns))
            self.logger.record("rollout/ep_rew_mean", mean)
            bar.set_postfix({"return": f"{mean:.4g}"})
        rate = (self.robot_steps - started) / (time.perf_counter() - self._clock[0])
        self.logger.record("time/robot_steps_per_second", rate)
        self.dump_logs(self.robot_steps)

    def save_replay_buffer(self, path: checkpoint.Target) -> None:
        """Write what the robots went through, without which a checkpoint cannot go on with them.

        Args:
            path: ".zip" is added where there is no suffix.

        Raises:
            ConfigurationError: If no robot has taken a step.
            OSError: If it cannot be written; a file that was there before stays whole.
        """
        if self.replay_buffer is None:
            raise ConfigurationError("there is no replay buffer yet: call learn_online first")
        self.replay_buffer.save(path)

    def load_replay_buffer(self, path: checkpoint.Target) -> None:
        """Take what `save_replay_buffer` wrote beside the agent's checkpoint, or after it.

        Raises:
            CheckpointError: If the file is missing or damaged, or is not of this agent.
        """
        buffer = _new_buffer(cast("FlowAlgorithm[Any]", self), 1)
        buffer.load(path, self.transitions)
        self.replay_buffer = buffer


def check_online(agent: FlowAlgorithm[Any], robot_steps: int, config: OnlineConfig) -> None:
    """Raise ConfigurationError where nothing can be learned."""
    if not agent.learns_online:
        raise ConfigurationError(
            f"{type(agent).__name__} does not learn on robots: DFDir, DFDiv, DSRL, FQL, QC, RQL, "
            "IQL and IFQL do"
        )
    if robot_steps < agent.robot_steps:
        raise ConfigurationError(
            f"robot_steps={robot_steps} is below the {agent.robot_steps} that were taken, which "
            "count: raise it"
        )
    if robot_steps <= config.warm_up:
        raise ConfigurationError(
            f"robot_steps={robot_steps} leaves nothing to learn after warm_up={config.warm_up}: "
            "raise it, or shorten the warm-up"
        )
    if agent.transitions and agent.replay_buffer is None:
        raise ConfigurationError(
            f"the agent has {agent.transitions} transitions of robots, which are not here: call "
            "load_replay_buffer(FILE) first"
        )
    clones = [part for part in agent.parts if part.cloning]
    fitted = clones and all(part.updates == part.steps for part in clones)
    if config.online_share == 1 and not (agent.prepared or fitted):
        raise ConfigurationError(
            "online_share=1 reads no dataset, and the agent has no flow yet that could play: let "
            "it learn() first, make it by DSRL.from_agent, or pass behavior="
        )


def robots_of(
    agent: FlowAlgorithm[Any], env: Any, config: OnlineConfig, stack: ExitStack
) -> VecEnv:
    """The robots as a VecEnv, checked; those that are made here are closed with the stack."""
    if not isinstance(env, VecEnv):
        env = config.made(_maker(agent, env), agent.seed)
        stack.callback(env.close)
    names = ("flow_spec", "robot", "settings")
    try:
        spec, robot, settings = (env.get_attr(name, [0])[0] for name in names)
    except AttributeError as error:
        raise ConfigurationError(
            "the robots are in no flow environment: pass an id, or a function that calls "
            f"gym.make(id, decision='action') ({error})"
        ) from None
    if env.observation_space.shape != (spec.context_dim,) or env.has_attr("noise_bound"):
        raise ConfigurationError(
            "the environment decides on velocities or noise: make it with decision='action'"
        )
    if unwrap_vec_normalize(env) is not None:
        raise ConfigurationError("agents normalise by themselves: leave VecNormalize out")
    if (settings.states, settings.reward) != ("env", "return"):
        raise ConfigurationError(
            f"states={settings.states!r} with reward={settings.reward!r} is no robot that pays: "
            "make the environment with states='env' and reward='return'"
        )
    own_robot = None in (robot_of(agent.spec.task), robot_of(spec.task))  # whatever its name
    free = (*FREE, "task", "source") if own_robot else FREE
    own = {name: getattr(agent.spec, name) for name in free}
    aligned = dataclasses.replace(spec, **own)
    check_same("agent", ConfigurationError, (agent.spec, agent.robot), (aligned, robot))
    return cast("VecEnv", env)


def _maker(agent: FlowAlgorithm[Any], env: Any) -> Callable[[], gym.Env[Any, Any]]:
    """A function that makes the robot."""
    if isinstance(env, str):
        settings: dict[str, Any] = {**agent.spec.settings, "decision": "action"}
        if "FlowMDP-" not in env:
            env, settings["env_id"], settings["source"] = "FlowMDP-v0", env, None
        name = env if ":" in env else f"flowmdp:{env}"
        return partial(gym.make, name, disable_env_checker=True, **settings)
    if isinstance(env, gym.Env) or not callable(env):
        raise ConfigurationError(
            f"env is {shown(env)}: pass an id, a function that makes the robot, or a VecEnv"
        )
    return cast("Callable[[], gym.Env[Any, Any]]", env)


def _buffer(agent: FlowAlgorithm[Any], robots: int, robot_steps: int) -> OnlineBuffer:
    """The replay buffer, with room for what is to come."""
    if agent.replay_buffer is None:
        agent.replay_buffer = _new_buffer(agent, robots)
    buffer = agent.replay_buffer
    if buffer.chunk != robots:
        raise ConfigurationError(
            f"the agent learned with {buffer.chunk} robots, these are {robots}: take as many"
        )
    buffer.resize(agent.transitions + robot_steps - agent.robot_steps + robots)
    buffer.reward_scale = agent._reward_scale or 1.0
    return buffer


def _new_buffer(agent: FlowAlgorithm[Any], robots: int) -> OnlineBuffer:
    gamma = agent.config.gamma
    return OnlineBuffer(agent.spec, agent.policy.normalizer, gamma, robots, agent.device)
