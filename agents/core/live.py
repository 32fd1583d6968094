"""Agents on live robots: environments of whole chains, flows of others, robots that fail."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv

from flowmdp import robot_of
from flowmdp.agents.core.acting import Acting
from flowmdp.agents.core.inputs import check_unwrapped
from flowmdp.agents.core.networks import VelocityField
from flowmdp.agents.core.one_step import SampledField
from flowmdp.agents.core.saving import load_agent
from flowmdp.env import FlowMDPEnv
from flowmdp.errors import CheckpointError, ConfigurationError, RobotError
from flowmdp.mdp.spec import FlowSpec
from flowmdp.sb3 import RobotVecEnv
from flowmdp.whole_chain import ActionEnv, whole_spaces

SHARED = ("observation_dim", "action_dim", "chunk", "include_previous_action")
"""What of a specification whoever draws whole chains shares with the environment."""


def make_whole(env_id: str, settings: dict[str, Any]) -> gym.Env[Any, Any]:
    """The `ActionEnv` of a registered id: of a flow environment, or of a bare robot."""
    if "FlowMDP-" in env_id:
        return gym.make(env_id, decision="action", **settings)
    settings = {name: value for name, value in settings.items() if name != "source"}
    return ActionEnv(FlowMDPEnv(gym.make(env_id), **settings))


def check_whole(env: VecEnv) -> FlowSpec:
    """The specification behind environments of whole actions that nothing has changed.

    Raises:
        ConfigurationError: For other environments, or if a wrapper changes what they see or do.
    """
    spec = FlowSpec.of(env)
    observation_space, action_space = whole_spaces(spec)
    if env.observation_space.shape != observation_space.shape or env.has_attr("noise_bound"):
        raise ConfigurationError(
            "this agent decides on whole actions: make the environment with decision='action', "
            "or ActionEnv(FlowMDPEnv(your_robot))"
        )
    check_unwrapped(env, observation_space, action_space)
    return spec


def check_fits(what: str, agent: Acting, spec: FlowSpec, robot: Any) -> None:
    """Raise CheckpointError unless the flow of an agent can act in an environment."""
    there, here = map(dataclasses.asdict, (agent.spec, spec))
    robots = robot_of(agent.spec.task), robot_of(spec.task)
    if None not in robots and robots[0] != robots[1]:
        raise CheckpointError(
            f"{what} was trained on {agent.spec.task}, whose robot is not that of {spec.task}: "
            f"pass a flow of {spec.task}"
        )
    if agent.spec.chunk != spec.chunk:
        raise CheckpointError(
            f"{what} plans {agent.spec.chunk} actions at once, this environment {spec.chunk}: make "
            f"it with chunk={agent.spec.chunk}, or clone with chunk={spec.chunk}"
        )
    if differing := [name for name in SHARED if there[name] != here[name]]:
        listed = (f"{name} is {there[name]!r} there and {here[name]!r} here" for name in differing)
        raise CheckpointError(
            f"{what} is of another environment: {', '.join(listed)}; pass a flow of this one"
        )
    if difference := agent.robot.difference(robot):
        raise CheckpointError(
            f"the environment's robot has {difference} as {what} has: wrap it as it was wrapped "
            "for training"
        )


def opened(agent: Any) -> tuple[str, Any]:
    """What messages call an agent, and the agent; a checkpoint's file is loaded."""
    if hasattr(agent, "predict"):
        return type(agent).__name__, agent
    return str(agent), load_agent(agent, device="cpu")


def flow_of(what: str, agent: Acting, behavior: bool) -> tuple[VelocityField, dict[str, Any]]:
    """The many-step flow that an agent holds, and the settings it acts with.

    Args:
        what: The agent, for messages.
        agent: A flow agent acts by its policy, any other by the behaviour that it cloned.
        behavior: The clone of a flow agent, too.

    Raises:
        CheckpointError: If there is none.
    """
    spec, steps = agent.spec, agent.spec.flow_steps
    field: Any = agent.policy.ema
    noise_scale = spec.noise_scale
    if behavior or agent.only_flow_steps is not None:
        try:
            field, noise_scale = agent.behavior_field(), 1.0  # a clone is of all of the data
        except ConfigurationError as error:
            raise CheckpointError(f"{what} holds no flow of many steps: {error}") from error
    if isinstance(field, SampledField):
        (field,), steps = field._flow, field.flow_steps
    if not isinstance(field, VelocityField):
        raise CheckpointError(
            f"{what} holds no flow of many steps whose weights could be learned: take a FlowBC, "
            "DFDir or DFDiv with its own clone"
        )
    acts = {"flow_steps": steps, "noise_scale": noise_scale, "include_time": field.include_time}
    return field, acts


@contextmanager
def naming_the_robot(env: VecEnv, steps: int) -> Iterator[None]:
    """Turn what a robot's step raises into a RobotError that says which one, and when.

    Args:
        env: The robots.
        steps: That they have taken in all.
    """
    try:
        yield
    except Exception as error:
        layer: Any = env.unwrapped
        if isinstance(error, RobotError) and isinstance(layer, RobotVecEnv):
            raise  # it says it all
        frames = traceback.walk_tb(error.__traceback__)
        found = [frame.f_locals["env_idx"] for frame, _ in frames if "env_idx" in frame.f_locals]
        for process in getattr(layer, "processes", []):  # its own report stands above
            process.join(0.2)
        found += [i for i, p in enumerate(getattr(layer, "processes", [])) if not p.is_alive()]
        which = f"robot {found[0]} of {env.num_envs}" if found else "a robot"
        reason = (str(error).splitlines() or [""])[0] or "its process ended, see above"
        raise RobotError(
            f"{which} failed after {steps:,} steps of all robots "
            f"({type(error).__name__}: {reason}); what was learned before stays: save it, mend "
            "the robot and go on with set_env"
        ) from error
