"""What `gym.make("FlowMDP-<task>-v0")` calls: puts a task's robot, data and models together.

`gym.make("FlowMDP-v0", env_id="Pendulum-v1", dataset_id="me/pendulum-v0")` does so for any robot.

The only module of the core that imports agents and envs, and only when it is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowmdp.arguments import check_choice
from flowmdp.base import own_steps
from flowmdp.env import FlowMDPEnv
from flowmdp.errors import CheckpointError, ConfigurationError
from flowmdp.latent_noise import NOISE_BOUND, LatentNoiseEnv
from flowmdp.mdp.spec import FlowSettings
from flowmdp.whole_chain import ActionEnv

if TYPE_CHECKING:
    from flowmdp.base import Behavior, Critic
    from flowmdp.transitions import TransitionDataset
    from flowmdp.vector import FlowMDPVectorEnv


def make_flow_env(
    task: str | None = None,
    source: str | None = None,
    *,
    env_id: str | None = None,
    states: str = "env",
    decision: str = "velocity",
    noise_bound: float | None = None,
    checkpoint: str | None = None,
    precision: str = "float32",
    dataset_id: str | None = None,
    critic: Critic | None = None,
    behavior: Behavior | None = None,
    render_mode: str | None = None,
    **settings: Any,
) -> FlowMDPEnv | ActionEnv:
    """Build the flow environment of a task; every argument but own models is JSON-able.

    Args:
        task: Name of the task, `hopper-medium`.
        env_id: In place of a task: the id of any Gymnasium environment, also `module:Id-v0`.
        source: "builtin", "minari" or "d4rl"; None takes the task's default.
        states: "env" runs the robot; "dataset" runs on recorded states, without a simulator.
        decision: "velocity": every flow step is one; "noise": only the noise is, and the behaviour
            flow does the rest (`LatentNoiseEnv`); "action": the action, or the chunk, that a chain
            would lead to (`ActionEnv`).
        noise_bound: Of `decision="noise"`: x_0 of an action of 1; None is 3.
        checkpoint: File that holds a critic and a behaviour flow, for the rewards and action modes
            that need them; None takes the ones that ship for the task, where there are any.
        precision: Of their matrix products: "float32", or "auto" for the fastest that the machine
            computes natively; see `flowmdp.agents.models_of`.
        dataset_id: Minari id of another dataset with the task's robot.
        critic: One of your own in place of the checkpoint's; see `FlowMDPEnv`.
        behavior: The same for the behaviour flow; see `flowmdp.behavior`.
        render_mode: The outer environment's: "rgb_array", "human" ...; only for `states="env"`.
        **settings: The other arguments of `FlowMDPEnv`: reward, flow_steps, noise_scale, rho ...

    Raises:
        UnknownTaskError: For an unknown task or source.
        ConfigurationError: For an argument out of range, or a reward whose models are not there.
        CheckpointError: For a checkpoint that is missing, damaged or of another robot.
        DatasetError: For `states="dataset"` when the dataset cannot be had.
    """
    from flowmdp.envs.robots.outer import make_robot

    task = _task(task, env_id)
    if states == "dataset" and render_mode is not None:
        raise ConfigurationError("states='dataset' has no robot to render: leave out render_mode")
    check_choice(("velocity", "noise", "action"), decision=decision)
    if decision != "noise" and noise_bound is not None:
        raise ConfigurationError("noise_bound is of decision='noise': add that, or leave it out")
    if decision == "noise":
        if "noise_scale" in settings:
            raise ConfigurationError(
                "decision='noise' draws no noise that noise_scale could scale: use noise_bound"
            )
        settings.setdefault("action_mode", "residual")
    behavior, settings = own_steps(behavior, settings)
    needed = FlowSettings.of({"states": states, **settings}).models
    own = {"critic": critic, "behavior": behavior}
    chunk = settings.get("chunk", 1)
    models = {"device": "cpu", "precision": precision}
    parts = _parts(task, source, checkpoint, dataset_id, needed, own, chunk, **models)
    live = states != "dataset"
    outer = make_robot(task, parts["source"], render_mode=render_mode) if live else None
    flow = FlowMDPEnv(outer, states=states, **parts, **settings)
    if decision == "noise":
        return LatentNoiseEnv(flow, NOISE_BOUND if noise_bound is None else noise_bound)
    return flow if decision == "velocity" else ActionEnv(flow)


def make_flow_vector_env(
    task: str | None = None,
    num_envs: int = 1,
    source: str | None = None,
    *,
    env_id: str | None = None,
    decision: str = "velocity",
    checkpoint: str | None = None,
    precision: str = "float32",
    dataset_id: str | None = None,
    critic: Critic | None = None,
    behavior: Behavior | None = None,
    backend: str = "numpy",
    device: Any = "auto",
    autoreset_mode: str = "NextStep",
    render_mode: str | None = None,
    **settings: Any,
) -> FlowMDPVectorEnv:
    """Build the vectorised flow environment of a task: `gym.make_vec(id, num_envs=n)`.

    Arguments and errors are those of `make_flow_env` and `FlowMDPVectorEnv`. There is no robot:
    `states` is "dataset", `decision` "velocity" and `render_mode` None. With `backend="torch"` the
    checkpoint's models are on `device`, too.
    """
    from flowmdp.vector import FlowMDPVectorEnv, vector_settings

    if render_mode is not None:
        raise ConfigurationError("the vector environment has no robot to render")
    if decision != "velocity":
        raise ConfigurationError(
            f"the vector environment decides on velocities, not on {decision!r}: use "
            "vectorization_mode='sync' or 'async'"
        )
    needed, own = vector_settings(settings).models, {"critic": critic, "behavior": behavior}
    chunk = settings.get("chunk", 1)
    task, settings = _task(task, env_id), {"backend": backend, "device": device, **settings}
    models = {"device": device if backend == "torch" else "cpu", "precision": precision}
    parts = _parts(task, source, checkpoint, dataset_id, needed, own, chunk, **models)
    return FlowMDPVectorEnv(num_envs, autoreset_mode=autoreset_mode, **parts, **settings)


def _task(task: str | None, env_id: str | None) -> str:
    """The one of the two that is given."""
    if (task is None) == (env_id is None):
        raise ConfigurationError(
            "FlowMDP-v0 needs a robot: pass env_id='Pendulum-v1', the id of its environment"
            if task is None
            else f"env_id={env_id!r} takes the place of a task: make it with the id FlowMDP-v0"
        )
    return str(env_id if task is None else task)


def _parts(
    task: str,
    source: str | None,
    checkpoint: str | None,
    dataset_id: str | None,
    needed: tuple[str, ...],
    own: dict[str, Any],
    chunk: int,
    **where: Any,
) -> dict[str, Any]:
    """What both environments are made of beside their settings: a task's dataset and models."""
    from flowmdp.envs.tasks import get_task

    source = get_task(task).source(source)

    def dataset() -> TransitionDataset:
        from flowmdp.envs.data import load_dataset  # here: a live robot does not pay for Minari

        return load_dataset(task, source, dataset_id)

    parts: dict[str, Any] = {"dataset": dataset, "task": task, "source": source, **own}
    needed = tuple(name for name in needed if own[name] is None)
    if checkpoint is not None or needed:
        found = _models(task, source, checkpoint, needed, own["behavior"], chunk, **where)
        models = dict(zip(own, found, strict=True))
        parts |= {name: model for name, model in models.items() if own[name] is None}
    return parts


def _models(
    task: str,
    source: str,
    checkpoint: str | None,
    needed: tuple[str, ...],
    behavior: Behavior | None,
    chunk: int,
    device: Any,
    precision: str,
) -> tuple[Critic | None, Behavior | None]:
    """Critic and behaviour flow of the checkpoint, or of the one that ships."""
    from flowmdp.agents import load_agent, models_of, pretrained_path
    from flowmdp.agents.core.checkpoint import read
    from flowmdp.envs.tasks import TASKS, get_task

    path, row = Path(checkpoint) if checkpoint is not None else None, get_task(task)
    if path is None and source == row.source():
        path = pretrained_path(task)
    if path is None:
        raise ConfigurationError(
            f"these settings need a trained {' and '.join(needed)}, and none ships for {task} "
            f"({source}): run `flowmdp train df-div {task}` and pass checkpoint=FILE, or pass your "
            f"own with {needed[0]}="
        )
    content = read(path)
    around = content.manifest.get("behavior") is not None
    agent = load_agent(content, device=device, behavior=behavior if around else None)
    trained_on = agent.spec.task  # robots may be of the same sizes by chance
    if trained_on in TASKS and TASKS[trained_on].robot != row.robot:
        raise CheckpointError(
            f"{path} was trained on {trained_on}, whose robot is not that of {task}: pass a "
            f"checkpoint of {task}, `flowmdp train df-div {task}` makes one"
        )
    if agent.spec.chunk != chunk:
        raise CheckpointError(
            f"{path} plans {agent.spec.chunk} actions at once, this environment {chunk}: make it "
            f"with chunk={agent.spec.chunk}, or pass a checkpoint trained with --chunk {chunk}"
        )
    return models_of(agent, path, precision)
