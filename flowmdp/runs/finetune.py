"""`flowmdp finetune`: a run's policy learns on, from robots; a new folder beside the run's."""

from __future__ import annotations

import dataclasses
import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from flowmdp.agents import DSRL, FlowPPO, load_agent
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.config import NetworkConfig
from flowmdp.agents.core.online import OnlineConfig, RobotsConfig, check_online
from flowmdp.agents.core.together import alone
from flowmdp.arguments import check_integers
from flowmdp.errors import ConfigurationError, RobotError
from flowmdp.files import locked, read_json, remove_unfinished, write_json
from flowmdp.make import make_flow_env
from flowmdp.runs.config import (
    Device,
    check_config,
    check_data,
    check_trust,
    fingerprint,
    get_algorithm,
    imports,
    jsonable,
    make_data,
    name_of,
    versions,
)
from flowmdp.runs.folder import RunFolder, free_folder
from flowmdp.runs.interrupt import Interrupt, Stopped, listening
from flowmdp.runs.log import ProgressFile, make_logger
from flowmdp.runs.summary import episodes_of
from flowmdp.runs.train import Keeper, Run, saved_agent
from flowmdp.schemas import FinetuneConfig, Result, WholeConfig
from flowmdp.whole_chain import ActionEnv

LOG_INTERVAL = 1_000
"""Robot steps between two lines of progress.csv."""
By = Literal["replay", "latent", "ppo"]
LATENT = {"noise_bound": 1.5}
"""Of DSRL on Hopper (Wagenmaker et al. 2025, arXiv:2506.15799)."""


def finetune(
    run_folder: Path,
    *,
    by: By = "replay",
    robot_steps: int = 100_000,
    out: Path | None = None,
    seed: int | None = None,
    episodes: int = 20,
    eval_every: int | None = None,
    eval_episodes: int = 5,
    save_every: int | None = None,
    device: Device = "auto",
    trust: bool = False,
    verbose: bool = False,
    **options: Any,
) -> None:
    """Let a run's policy learn on, from robots.

    The new folder, beside the run's, holds the files of a run, over robot steps, and replay.zip,
    what the robots went through; eval, record, plot and report take it as any other. By replay the
    run's agent itself goes on: half of each batch is the run's dataset, half the robots'. By latent
    a DSRL steers the run's flow, whose weights stay, by its noise, and reads no dataset. By ppo a
    FlowPPO moves the run's flow itself, from what the robots do alone.

    With RUN_FOLDER before --help, this text shows the hyper-parameters too. Ctrl-C saves and prints
    the command that continues: `flowmdp finetune --resume DIR`, which takes a higher --robot-steps,
    another --device, and also --verbose. A run that goes on is as one that was never stopped, if
    the robot does the same from the same seed.

    For example:
      flowmdp finetune runs/hopper-medium/df-dir-seed0 --robot-steps 100000
      flowmdp finetune runs/hopper-medium/df-dir-seed0 --by latent --robot-steps 150000
      flowmdp finetune runs/hopper-medium/df-dir-seed0 --by ppo --robot-steps 1000000
      flowmdp finetune --resume runs/hopper-medium/df-dir-seed0-replay

    Args:
        run_folder: A finished run of `flowmdp train`.
        by: replay, latent or ppo, see above.
        robot_steps: Steps of all robots together.
        out: Folder; RUN_FOLDER-replay (-latent, -ppo) when not given, or the next free one.
        seed: Of batches, noise and robots; the run's own when not given.
        episodes: Episodes of each evaluation at the end, with noise and without.
        eval_every: Robot steps between evaluations; a tenth of them when not given.
        eval_episodes: Episodes of each of these.
        save_every: Robot steps between checkpoints; a tenth of them when not given.
        device: auto takes the GPU when there is one.
        trust: Import, and so run, the code of others that the run names.
        verbose: Print the logged numbers as tables too.
        **options: Fields of `online_of(by)`, and hyper-parameters by name.
    """
    start = time.perf_counter()
    check_integers(1, robot_steps=robot_steps)
    folder, run = RunFolder.open(run_folder, WholeConfig)
    check_trust(run_folder, imports(run), trust)
    result = read_json(folder.result, Result)
    settings = online_of(by)
    names = [field.name for field in dataclasses.fields(settings)]
    given = {name: options.pop(name) for name in names if name in options}
    settings = dataclasses.replace(settings, **given)
    config = {
        **run,
        "seed": run["seed"] if seed is None else seed,
        **{"episodes": episodes, "eval_every": eval_every, "eval_episodes": eval_episodes},
        **{"save_every": save_every, "device": device},
        "command": shlex.join(["flowmdp", *sys.argv[1:]]),
        "versions": versions(),
        "online": {
            "by": by,
            "run": str(run_folder),
            "label": f"{run['algorithm']}, {by}",
            "robot_steps": robot_steps,
            "settings": dataclasses.asdict(settings),
            "before": _brief(result),
            "data": result["data"],
        },
    }
    check_config(config)
    if out is not None:
        RunFolder(out).check_free()
    data = _data(config, settings, folder.config)
    start_from, work = WAYS[by]
    agent = start_from(folder, config, data, options)
    if isinstance(settings, OnlineConfig):
        check_online(agent, robot_steps, settings)
    config |= {"algorithm": agent.name, "config": jsonable(agent.config)}
    config["flow"] = {**run["flow"], "flow_steps": agent.spec.flow_steps}
    beside = run_folder.with_name(f"{run_folder.absolute().name}-{by}")
    made = RunFolder(out or free_folder(beside, make=True))
    with made.created(config):
        print(f"run folder: {made.path}", file=sys.stderr)
        tuning = work(made, config, agent, start)
        tuning.save()
        _work(tuning, verbose)


def resume(
    *,
    resume: Path,
    robot_steps: int | None = None,
    device: Device = "auto",
    trust: bool = False,
    verbose: bool = False,
) -> None:
    """Continue; only the goal and the device may change.

    Args:
        resume: The folder.
        robot_steps: A goal that is not below the run's own.
        device: auto keeps the run's.
        trust: Import, and so run, the code of others that the run names.
        verbose: Print the logged numbers as tables too.
    """
    start = time.perf_counter()
    folder, config = RunFolder.open(resume)
    if "online" not in config:
        raise ConfigurationError(
            f"{resume} learns offline: continue with `flowmdp train --resume {resume}`"
        )
    check_trust(folder.path, imports(config), trust)
    with locked(folder.path):
        remove_unfinished(folder.path)
        folder, config = RunFolder.open(resume, FinetuneConfig)  # now that nobody else writes it
        online = config["online"]
        if robot_steps is not None:
            if robot_steps < online["robot_steps"]:
                raise ConfigurationError(
                    f"--robot-steps {robot_steps} is below the run's goal of "
                    f"{online['robot_steps']}: raise it"
                )
            online["robot_steps"] = robot_steps
        if device != "auto":
            config["device"] = device
        check_config(config)
        settings = type(online_of(online["by"])).of(online["settings"])
        data = _data(config, settings, folder.config)
        agent = saved_agent(folder, config, dataset=data)
        if agent.transitions:
            agent.load_replay_buffer(folder.replay)
        tuning = WAYS[online["by"]][1](folder, config, agent, start)
        write_json(folder.config, config)
        _work(tuning, verbose)


def base_of(run_folder: Path, by: By, trust: bool) -> NetworkConfig:
    """The hyper-parameters that a fine-tuning starts from."""
    _, run = RunFolder.open(run_folder)
    check_trust(run_folder, imports(run), trust)
    if by == "replay" and run["algorithm"] == FlowPPO.name:
        raise ConfigurationError(
            f"{run_folder} learned from what robots did, and keeps nothing to replay: continue "
            f"with `flowmdp finetune --resume {run_folder}`, or take --by latent"
        )
    cls: Any = FlowPPO if run["algorithm"] == FlowPPO.name else get_algorithm(run["algorithm"])
    own: NetworkConfig = cls.config_class.of(run["config"])
    if by == "replay":
        return own
    if by == "ppo":
        return FlowPPO.config_class(net_arch=own.net_arch)
    shared = {name: getattr(own, name) for name in DSRL.SHARED if hasattr(own, name)}
    steps = {"sampling_steps": run["flow"]["flow_steps"]}
    return DSRL.config_class.of({**LATENT, **shared, **steps})


def online_of(by: By) -> RobotsConfig:
    """How robots and dataset are learned from where nothing else is said."""
    if by == "ppo":
        return RobotsConfig()
    return OnlineConfig(online_share=1.0 if by == "latent" else 0.5)


def _data(config: dict[str, Any], settings: RobotsConfig, where: Path) -> Any:
    """The dataset, if it is read."""
    if not isinstance(settings, OnlineConfig) or settings.online_share == 1:
        return None
    data = make_data(config)
    check_data(config, data, where)
    config["fingerprint"] = fingerprint(data)
    return data


def _brief(result: dict[str, Any]) -> dict[str, Any]:
    """An outcome without its episodes."""
    names = "mean_return std_return interval_95 normalized_score episodes".split()
    names += ["success_rate", "success_interval_95"]
    brief = {name: result[name] for name in names if name in result}
    ways = {way: result[way] for way in ("sampled", "noiseless") if result.get(way)}
    return brief | {way: _brief(outcome) for way, outcome in ways.items()}


# -- the ways: each makes the agent that goes on, from the run's folder ----------------------


def _replay(
    folder: RunFolder, config: dict[str, Any], data: Any, hyperparameters: dict[str, Any]
) -> FlowAlgorithm[Any]:
    """The run's agent."""
    own = {"seed": config["seed"], "custom_objects": hyperparameters}
    agent = _agent(folder, config, dataset=data, **own)
    agent.setup_online()  # of a run that was on robots before
    agent.set_random_seed(config["seed"])
    return agent


def _latent(
    folder: RunFolder, config: dict[str, Any], data: Any, hyperparameters: dict[str, Any]
) -> FlowAlgorithm[Any]:
    """A new DSRL around the run's flow."""
    named = {**LATENT, **hyperparameters, "seed": config["seed"]}
    return DSRL.from_agent(_agent(folder, config), dataset=data, **named)


def _ppo(
    folder: RunFolder, config: dict[str, Any], data: Any, hyperparameters: dict[str, Any]
) -> FlowPPO:
    """A new FlowPPO, which begins as the run's flow."""
    hyperparameters.pop("net_arch", None)  # the flow's
    named = {**hyperparameters, "seed": config["seed"], "device": config["device"]}
    with closing(_robot(config)) as robot:
        agent = FlowPPO.from_agent(_agent(folder, config), robot, **named)
    return agent


def _robot(config: dict[str, Any]) -> ActionEnv:
    """The run's robot in whole chunks."""
    flow, task, source = (config[name] for name in ("flow", "task", "source"))
    robot = make_flow_env(task, source, decision="action", **flow)
    assert isinstance(robot, ActionEnv)
    return robot


def _agent(folder: RunFolder, config: dict[str, Any], **given: Any) -> FlowAlgorithm[Any]:
    name_of(config["algorithm"])  # so that it is known
    own = {"device": config["device"], "behavior": config.get("behavior_from")}
    agent: FlowAlgorithm[Any] = load_agent(folder.checkpoint, **own, **given)
    return agent


class Finetuning(Run):
    """A run at work on robots: its steps are theirs."""

    unit = "robot steps"

    def __init__(
        self, folder: RunFolder, config: dict[str, Any], agent: FlowAlgorithm[Any], start: float
    ) -> None:
        super().__init__(folder, config, agent, start)
        self.online = config["online"]
        told = {name: self.online[name] for name in ("by", "run", "robot_steps", "settings")}
        self.also = {"label": self.online["label"], "online": told}

    @property
    def again(self) -> str:
        """What continues the run."""
        trust = " --trust" * bool(imports(self.config))
        return f"continue with: flowmdp finetune --resume {self.named}{trust}"

    @property
    def done(self) -> int:
        """Steps of the robots."""
        return self.agent.robot_steps

    @property
    def goal(self) -> int:
        """Steps of the robots that are to be taken."""
        return int(self.config["online"]["robot_steps"])

    def save(self) -> None:
        """Write the replay buffer, whose later rows a checkpoint ignores, and then the rest."""
        if self.agent.replay_buffer is not None:
            self.agent.save_replay_buffer(self.folder.replay)
        super().save()

    def go_on(self, verbose: bool, interrupt: Interrupt) -> None:
        """Learn until the goal, or until asked to stop; what was learned is saved."""
        agent, progress = self.agent, ProgressFile(self.folder.progress)
        progress.forget_after(agent.pretrain_updates, agent.robot_steps)
        agent.set_logger(make_logger(self.folder, progress, verbose))
        if not self.history["evaluations"]:
            first = episodes_of(self.config["task"], self.evaluate())
            self.history["evaluations"] = [{"step": 0, **first}]
        try:
            self.learn(interrupt)
        except RobotError as error:
            self.save()
            raise RobotError(f"{error}; what was learned is saved: {self.again}") from error
        finally:
            agent.logger.close()
        self.save()

    def learn(self, interrupt: Interrupt) -> None:
        """Until the goal."""
        agent, keeper = self.agent, Keeper(self, interrupt, tqdm(disable=True))
        interval = min(LOG_INTERVAL, max(1, self.goal // 10))
        learning = agent.learning_online(
            *(partial(_robot, self.config), self.goal, keeper, interval),
            progress_bar=True,
            go_on=interrupt.go_on,
            **self.online["settings"],
        )
        alone(agent, learning)

    def finish(self) -> None:
        """Play, and write the outcome."""
        learned, before = self._play(self.agent.outer_policy()), self.online["before"]
        flows = {self.online["label"]: learned}
        if "sampled" in before:
            flows["before"] = before
        self.report(learned, before, self.online["data"], flows)


class PPOTuning(Finetuning):
    """A FlowPPO at work."""

    agent: Any

    def learn(self, interrupt: Interrupt) -> None:
        """Until the rollout that reaches the goal."""
        agent, settings = self.agent, RobotsConfig.of(self.online["settings"])
        with (
            closing(settings.made(partial(_robot, self.config), agent.seed)) as robots,
            tqdm(total=self.goal, initial=self.done, desc="robot steps") as bar,
        ):
            agent.set_env(robots)
            agent.goal = self.goal
            keeper = RolloutKeeper(self, interrupt, bar)
            agent.learn(self.goal, keeper, self.goal, reset_num_timesteps=False)


class RolloutKeeper(Keeper):
    """Does what it does between two rollouts, where nothing is half done."""

    run: PPOTuning

    def _on_rollout_start(self) -> None:
        agent = self.run.agent
        if self.run.done > self._done:
            agent.dump_logs()
        if agent.ep_info_buffer:
            mean = np.mean([episode["r"] for episode in agent.ep_info_buffer])
            self.bar.set_postfix({"return": f"{mean:.4g}"}, refresh=False)
        if not super()._on_step():
            agent.goal = self.run.done

    def _on_step(self) -> bool:
        return True


WAYS: dict[str, tuple[Callable[..., Any], type[Finetuning]]] = {
    "replay": (_replay, Finetuning),
    "latent": (_latent, Finetuning),
    "ppo": (_ppo, PPOTuning),
}


def _work(tuning: Finetuning, verbose: bool) -> None:
    """Learn, then conclude."""
    interrupt = Interrupt()
    try:
        with listening(interrupt):
            if tuning.done < tuning.goal:
                tuning.go_on(verbose, interrupt)
        if interrupt.requested is not None:
            raise Stopped(interrupt.requested)
        tuning.finish()
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        raise Stopped(number, tuning.again) from None
