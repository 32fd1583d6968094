"""`flowmdp eval`: play the bare robot with a checkpoint."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from json import dumps
from pathlib import Path
from typing import Any, Literal

from flowmdp.agents import load_agent
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.inputs import check_device
from flowmdp.agents.evaluation import evaluate
from flowmdp.arguments import check_integers
from flowmdp.cluster import Engine, check_engine, joined
from flowmdp.envs.robots.outer import make_robot
from flowmdp.errors import CheckpointError, ConfigurationError
from flowmdp.robots import ClusterRobots, Robots
from flowmdp.runs.config import MOST, Device, check_trust, imports, name_of
from flowmdp.runs.folder import RunFolder
from flowmdp.runs.summary import outcome, print_table


def load_checkpoint(run_folder: Path, device: str, trust: bool = False) -> FlowAlgorithm:
    """Load the agent of a run's folder, or of a checkpoint file.

    Raises:
        CheckpointError: When there is no checkpoint, or it is damaged.
        ConfigurationError: For a GPU that is not there, or a run of foreign code that is not
            trusted.
    """
    check_device(device)
    own: dict[str, Any] = {}
    beside = run_folder.parent if run_folder.name == "checkpoint.zip" else run_folder
    if RunFolder(beside).config.is_file():
        _, config = RunFolder.open(beside)
        check_trust(run_folder, imports(config), trust)
        name_of(config["algorithm"])  # so that it is known
        own = {"behavior": config.get("behavior_from")}
    path = RunFolder(run_folder).checkpoint if run_folder.is_dir() else run_folder
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist: name a folder that `flowmdp train` made, or a checkpoint file"
        )
    agent: FlowAlgorithm = load_agent(path, device=device, **own)
    check_trust(path, imports({"task": agent.spec.task}), trust)
    return agent


def open_agent(
    run_folder: Path, task: str | None, device: str, trust: bool = False
) -> FlowAlgorithm:
    """Load a run's agent for playing the robot.

    Raises:
        CheckpointError: When there is no checkpoint, it is damaged, or it is another task's.
        ConfigurationError: For a GPU that is not there.
    """
    agent = load_checkpoint(run_folder, device, trust)
    if agent.spec.task is None:
        raise CheckpointError(
            f"{run_folder} was trained on an environment without a name: play it from Python, "
            "agent.outer_policy()"
        )
    if task is not None and task != agent.spec.task:
        raise CheckpointError(
            f"{run_folder} belongs to {agent.spec.task}, not to {task}: name a checkpoint of {task}"
        )
    return agent


def check_replan(replan: int, agent: FlowAlgorithm) -> None:
    """Raise ConfigurationError for a number of actions that a chunk does not have."""
    check_integers(1, agent.spec.chunk, **{"--replan": replan})


def play(
    run_folder: Path,
    *,
    episodes: int = 20,
    seed: int = 0,
    behavior: bool = False,
    task: str | None = None,
    flow_steps: int | None = None,
    solver: Literal["euler", "midpoint", "heun"] = "euler",
    noise_scale: float | None = None,
    best_of: int | None = None,
    replan: int | None = None,
    device: Device = "auto",
    trust: bool = False,
    json: bool = False,
    engine: Engine = "local",
    address: str | None = None,
    jobs: int | None = None,
) -> None:
    """Play the robot with a trained agent and print returns and normalised scores.

    Tasks that report success get the success rate with its Wilson 95 % interval, and the return.

    For example:
      flowmdp eval runs/hopper-medium/df-div-seed0
      flowmdp eval runs/my-run --episodes 100 --seed 7
      flowmdp eval runs/my-run --behavior --noise-scale 0
      flowmdp eval runs/my-run --solver heun --flow-steps 5 --best-of 8
      flowmdp eval runs/my-run --episodes 500 --engine ray

    Args:
        run_folder: Run folder, or a checkpoint file.
        episodes: Episodes to play.
        seed: Seed of starts and noise.
        behavior: Play the behaviour flow instead of the trained policy.
        task: Refuse the checkpoint unless it belongs to this task.
        flow_steps: Solver steps from noise to action; as trained when not given.
        solver: How the flow is integrated.
        noise_scale: Standard deviation of the noise that chains start from; as trained when not
            given, 0 for none.
        best_of: Draw so many actions per state and take the one the critic rates highest; as in the
            critic's target when not given.
        replan: Actions of a chunk that are executed before the next one is planned; the whole chunk
            when not given.
        device: auto takes the GPU when there is one.
        trust: Import, and so run, the code of others that the run names.
        json: Print the result as JSON instead of the table.
        engine: local lets the robots play here, ray on the nodes of a Ray cluster: the policy acts
            here in any case, and the numbers are the same.
        address: HOST:PORT of the cluster's head; RAY_ADDRESS, or the cluster that this machine is a
            node of, when not given.
        jobs: With ray, CPUs at most; all that are free when not given.

    Raises:
        ConfigurationError: For a number out of range, or an option that the agent cannot take.
        CheckpointError: When the checkpoint cannot be used.
    """
    check_integers(
        1, MOST, **{"--episodes": episodes, "--best-of": 1 if best_of is None else best_of}
    )
    check_integers(0, MOST, **{"--seed": seed})
    check_integers(1, **{"--jobs": 1 if jobs is None else jobs})
    check_engine(engine, address=address, jobs=jobs)
    agent = open_agent(run_folder, task, device, trust)
    if noise_scale is not None:
        agent.set_noise_scale(noise_scale)
    agent.act_generator.manual_seed(seed)
    chosen: dict[str, Any] = {"n_steps": flow_steps, "solver": solver}
    if replan is not None:
        check_replan(replan, agent)
        chosen["replan"] = replan
    if best_of is not None:
        if best_of > 1 and not hasattr(agent, "critic"):
            raise ConfigurationError(f"--best-of: {agent.name} has no critic to ask: leave it out")
        chosen["best_of"] = best_of
    policy = agent.behavior_policy(**chosen) if behavior else agent.outer_policy(**chosen)
    task = str(agent.spec.task)
    with ExitStack() as stack:
        robots: Any = Robots
        if engine == "ray":
            ray = stack.enter_context(joined(address))
            robots = partial(ClusterRobots, ray=ray, jobs=jobs)
        result = evaluate(
            policy,
            partial(make_robot, task, agent.spec.source),
            episodes,
            seed,
            deterministic=noise_scale is None and agent.acts_at_mean,
            progress=not json,
            robots=robots,
        )
    summary = outcome(task, result)
    if json:
        print(dumps({"task": task, "seed": seed, **summary}, indent=2))
    else:
        name = "behaviour flow" if behavior else agent.name
        print_table(f"{task}, {agent.num_timesteps} updates", {name: summary})
