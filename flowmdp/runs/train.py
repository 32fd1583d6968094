"""`flowmdp train`: data, behaviour flow, critic, policy, evaluation, curves, in one folder."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from flowmdp.agents import load_agent
from flowmdp.agents.core.acting import OuterPolicy
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.together import Steps, together
from flowmdp.agents.evaluation import EvaluationResult, evaluate
from flowmdp.envs.data import reached_goal
from flowmdp.envs.robots.outer import make_robot
from flowmdp.envs.tasks import get_task
from flowmdp.errors import CheckpointError, ConfigurationError, TrainingDivergedError
from flowmdp.files import locked, read_json, remove_unfinished, write_json
from flowmdp.runs import cache
from flowmdp.runs.config import (
    Device,
    check_config,
    check_data,
    check_trust,
    fingerprint,
    imports,
    jsonable,
    make_agent,
    make_config,
    make_data,
    make_env,
    name_of,
    versions,
)
from flowmdp.runs.curves import draw_run
from flowmdp.runs.folder import RunFolder, free_folder
from flowmdp.runs.interrupt import Interrupt, Stopped, listening
from flowmdp.runs.log import ProgressFile, make_logger
from flowmdp.runs.summary import (
    episodes_of,
    outcome,
    print_table,
    summarize,
    summarize_evaluations,
    summarize_successes,
)
from flowmdp.schemas import History, WholeConfig, fault
from flowmdp.transitions import TransitionDataset

LOG_INTERVAL = 100
"""Gradient steps between two lines of progress.csv."""
DURING, AFTER = 1_000_000, 2_000_000
"""First episode seeds of evaluations during and after training, away from those of the data."""
DECIDING = (
    *("algorithm", "task", "source", "dataset_id", "behavior_from", "seed", "steps", "quick"),
    *("flow", "config"),
)
"""What decides a run's outcome, in config.json and in result.json."""
CLOCKS = {"updates": 0, "update_seconds": 0.0, "seconds": 0.0}
"""What `history.json` counts, beside the evaluations."""
AT = ("pretrain_step", "step")
"""Where the run stood when it wrote `history.json`."""


def train(
    *, out: Path | None = None, seeds: tuple[int, ...] = (), verbose: bool = False, **options: Any
) -> None:
    """Train an agent offline: data, behaviour flow, critic, policy, evaluation, curves.

    One command does the whole job. It builds the dataset if it must, fits the behaviour flow and
    the critic (kept in FLOWMDP_CACHE, or ~/.cache/flowmdp, and reused by the next run with the same
    settings), trains the policy, plays the robot with both flows and prints their returns beside
    the data's. The run folder then holds config.json, checkpoint.zip, progress.csv, history.json,
    curves.png, result.json, and TensorBoard files where tensorboard is installed.

    With the name of an algorithm before its --help, as in `flowmdp train df-div --help`, this text
    shows its hyper-parameters too. df-dir, df-div, fql, ifql and qc start their flows from noise of
    0.3; --noise-scale 1.0 takes the full Gaussian. Ctrl-C saves and prints the command that
    continues: `flowmdp train --resume DIR`, which takes a higher --steps, another --device, and
    also --verbose.

    For example:
      flowmdp train df-div hopper-medium --quick
      flowmdp train df-dir hopper-medium --seed 1 --out runs/my-run
      flowmdp train df-dir hopper-medium --seeds 1 2 3
      flowmdp train df-div hopper-medium --dataset zoo/hopper/medium-v0
      flowmdp train df-div --env Pendulum-v1 --dataset me/pendulum-v0
      flowmdp train df-div hopper-medium --rho 0.3 --batch-size 512
      flowmdp train df-div hopper-medium --paper
      flowmdp train --resume runs/my-run
      flowmdp train --resume runs/my-run --steps 40000

    Args:
        out: Run folder; runs/TASK/ALGORITHM-seedS when not given, or the next free one.
        seeds: One run for each of these seeds, all in this process, on a GPU at the same time; the
            folders are OUT/seedS, or OUT with S in the place of {seed}, or those of single runs.
        verbose: Print the logged numbers as tables too.
        **options: Of `make_config`.
    """
    start = time.perf_counter()
    configs = [make_config(**one) for one in _each_seed(seeds, options)]
    paths = [_folder_of(seed, out) for seed in seeds] or [out]
    for config, path in zip(configs, paths, strict=True):
        RunFolder(path or free_folder(default_folder(config))).check_free()
    data = make_data(configs[0])
    with make_env(configs[0], data) as env, ExitStack() as stack:
        runs = []
        for config, path in zip(configs, paths, strict=True):
            config["fingerprint"] = fingerprint(data)
            agent = make_agent(config, env)  # what cannot be is refused before there is a folder
            folder = RunFolder(path or free_folder(default_folder(config), make=True))
            stack.enter_context(folder.created(config))
            print(f"run folder: {folder.path}", file=sys.stderr)
            runs.append(Run(folder, config, agent, start))
        _work(runs, data, verbose)


def resume(
    *,
    resume: tuple[Path, ...],
    steps: int | None = None,
    device: Device = "auto",
    trust: bool = False,
    verbose: bool = False,
) -> None:
    """Continue a run, or several of the same data; only their goal and device may change.

    Args:
        resume: Its folder; several go on in one process, as with --seeds.
        steps: A goal that is not below the run's own.
        device: auto keeps the run's.
        trust: Import, and so run, the code of others that the run names.
        verbose: Print the logged numbers as tables too.
    """
    start = time.perf_counter()
    with ExitStack() as stack:
        runs: list[Run] = []
        for path in resume:
            folder, config = RunFolder.open(path)
            check_trust(folder.path, imports(config), trust)
            if "online" in config:
                raise ConfigurationError(
                    f"{path} learns on robots: continue with `flowmdp finetune --resume {path}`"
                )
            stack.enter_context(locked(folder.path))
            remove_unfinished(folder.path)
            folder, config = RunFolder.open(path, WholeConfig)  # now that nobody else writes it
            if steps is not None:
                if steps < config["steps"]:
                    raise ConfigurationError(
                        f"--steps {steps} is below the run's goal of {config['steps']}: raise it"
                    )
                config["steps"] = steps
            if device != "auto":
                config["device"] = device
            check_config(config)
            if not runs:
                data = make_data(config)
                env = stack.enter_context(make_env(config, data))
            elif (other := _unlike(runs[0].config, config)) is not None:
                raise ConfigurationError(
                    f"{path} and {resume[0]} differ in {other}: continue them one by one"
                )
            check_data(config, data, folder.config)
            if folder.checkpoint.exists():
                agent = saved_agent(folder, config, env=env)
            else:
                print(f"no checkpoint in {path} yet: the run starts anew", file=sys.stderr)
                agent = make_agent(config, env)
            runs.append(Run(folder, config, agent, start))
        for run in runs:
            write_json(run.folder.config, run.config)
        _work(runs, data, verbose)


def _each_seed(seeds: Sequence[int], options: dict[str, Any]) -> list[dict[str, Any]]:
    """The options of every run."""
    if not seeds:
        return [options]
    if len(set(seeds)) < len(seeds) or options.get("seed"):
        raise ConfigurationError("give every seed once: --seeds 1 2 3, or --seed 1 for one run")
    return [{**options, "seed": seed} for seed in seeds]


def _folder_of(seed: int, out: Path | None) -> Path | None:
    """Where the run of a seed goes, as far as it was said."""
    if out is None or "{seed}" not in str(out):
        return out and out / f"seed{seed}"
    return Path(str(out).replace("{seed}", str(seed)))


def _unlike(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """What two runs that share an environment may not differ in, and do."""
    names = ("algorithm", "task", "source", "dataset_id", "behavior_from", "flow", "device")
    return next((name for name in names if one.get(name) != other.get(name)), None)


def default_folder(config: dict[str, Any]) -> Path:
    """Where a run goes when nobody says where."""
    names = [str(config[name]).rpartition(":")[2] for name in ("task", "algorithm")]
    return Path("runs") / names[0].replace("/", "-") / f"{names[1]}-seed{config['seed']}"


def saved_agent(folder: RunFolder, config: dict[str, Any], **given: Any) -> FlowAlgorithm[Any]:
    """The agent of a run's checkpoint, loaded with its env or dataset, if any.

    Raises:
        CheckpointError: When the checkpoint is of another run.
        ConfigurationError: When its hyper-parameters are not the run's.
    """
    own = {"device": config["device"], "behavior": config.get("behavior_from")}
    agent: FlowAlgorithm[Any] = load_agent(folder.checkpoint, **own, **given)
    for name, there, value in (
        ("algorithm", agent.name, name_of(config["algorithm"])),
        ("seed", agent.seed, config["seed"]),
    ):
        if there != value:
            raise CheckpointError(
                f"{folder.checkpoint} is of another run, with {name} {there} instead of "
                f"{value}: put this run's checkpoint back, or start a new run"
            )
    for name, value in jsonable(agent.config).items():
        if (asked := config["config"].get(name, value)) != value:
            raise ConfigurationError(
                f"{folder.config} has {name} {asked!r}, the checkpoint {value!r}: "
                "hyper-parameters cannot change in a run; put it back, or start a new run"
            )
    return agent


def _work(runs: list[Run], data: TransitionDataset, verbose: bool) -> None:
    """Learn side by side, then conclude one after another."""
    try:
        interrupt = Interrupt()
        with listening(interrupt):
            learning = [run.learning(verbose, interrupt) for run in runs]
            ended = together([run.agent for run in runs], learning)
        if interrupt.requested is not None:
            raise Stopped(interrupt.requested)
        for run, error in zip(runs, ended, strict=True):
            if error is None:
                run.conclude(data)
        for run, error in zip(runs, ended, strict=True):
            if error is not None:
                where = f"{run.folder.path}: " * (len(runs) > 1)
                raise TrainingDivergedError(f"{where}{error}")
    except KeyboardInterrupt as stop:
        command = f"flowmdp train --resume {' '.join(run.named for run in runs)}"
        command += " --trust" * any(imports(run.config) for run in runs)
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        raise Stopped(number, f"continue with: {command}") from None


class Run:
    """A run at work: its agent, of the checkpoint or new, and its history so far."""

    unit: ClassVar[str] = "updates"
    """Of its steps."""
    also: Mapping[str, Any] = {}
    """What else result.json holds."""

    def __init__(
        self, folder: RunFolder, config: dict[str, Any], agent: FlowAlgorithm[Any], start: float
    ) -> None:
        self.folder, self.config, self.agent = folder, config, agent
        self.history = self._history()
        self._remember()
        agent.means.restore(self.history["log"])
        self.start = start - self.history["seconds"]
        self.make_robot = partial(make_robot, config["task"], config["source"])
        self.named = shlex.quote(str(folder.path))
        """The folder as a command takes it."""

    @property
    def done(self) -> int:
        """Steps that are taken."""
        return self.agent.num_timesteps

    @property
    def goal(self) -> int:
        """Steps that are to be taken."""
        return int(self.config["steps"])

    def _history(self) -> dict[str, Any]:
        """Evaluations and clocks so far, as far as the checkpoint has come.

        `history.json` is written before the checkpoint: a run that was killed between the two finds
        under `before` what it held with the checkpoint that is there.
        """
        path = self.folder.history
        if not (self.folder.checkpoint.exists() and path.exists()):
            return {"evaluations": [], **self._at(), **CLOCKS, "log": {}}
        history = read_json(path)
        here, before = self._at(), history.pop("before", None)
        if isinstance(before, dict) and here.items() <= before.items():
            if not here.items() <= history.items():
                history |= before
        if wrong := fault(History, history):
            raise CheckpointError(
                f"{path} is not as it was written ({wrong}): restore it, or delete it to continue "
                "without the evaluations so far"
            )
        evaluations = [one for one in history["evaluations"] if one["step"] <= here["step"]]
        return {"log": {}, **history, **here, "evaluations": evaluations}

    def _at(self) -> dict[str, int]:
        return dict(zip(AT, (self.agent.pretrain_updates, self.done), strict=True))

    def save(self) -> None:
        """Write history and checkpoint; see `_history`."""
        history = self.history
        history["seconds"] = time.perf_counter() - self.start
        history |= {**self._at(), "log": self.agent.means.state()}
        write_json(self.folder.history, {**history, "before": self.saved})
        self.agent.save(self.folder.checkpoint)
        self._remember()

    def _remember(self) -> None:
        """What the history holds with the checkpoint that is there, but for the evaluations."""
        self.saved = {name: self.history[name] for name in (*AT, *CLOCKS, "log")}

    def evaluate(self) -> EvaluationResult:
        """A few episodes during training."""
        agent, seed = self.agent, self.config["seed"] + DURING
        episodes = self.config["eval_episodes"]
        policy = agent.outer_policy()
        return evaluate(policy, self.make_robot, episodes, seed, agent.acts_at_mean)

    def learning(self, verbose: bool, interrupt: Interrupt) -> Steps[TrainingDivergedError | None]:
        """Pre-train and train, for `together`; returns why the run diverged, if it did."""
        agent, progress = self.agent, ProgressFile(self.folder.progress)
        progress.forget_after(agent.pretrain_updates, agent.num_timesteps)
        agent.set_logger(make_logger(self.folder, progress, verbose))
        try:
            if agent.num_timesteps < self.config["steps"] and (
                yield from self._pretrained(interrupt)
            ):
                yield from self._train(interrupt)
        except TrainingDivergedError as error:
            return error
        finally:
            agent.logger.close()
        return None

    def _pretrained(self, interrupt: Interrupt) -> Steps[bool]:
        """Behaviour flow and critic, from the cache or by training; False when stopped."""
        agent = self.agent
        if agent.num_timesteps > 0 or not agent.parts:
            return True
        if agent.pretrain_updates == 0:
            cache.restore(agent)
        if agent.pretrain_updates == agent.pretrain_steps:
            return True
        tenth = max(1, agent.pretrain_steps // 10)

        def go_on() -> bool:
            if agent.pretrain_updates % tenth == 0 and interrupt.go_on():
                self.save()
            return interrupt.go_on()

        finished = yield from agent.pretraining(progress_bar=True, callback=go_on)
        self.save()
        if finished:
            cache.store(agent)
        return finished

    def _train(self, interrupt: Interrupt) -> Steps[None]:
        """The policy's gradient steps."""
        steps, now = self.config["steps"], self.agent.num_timesteps
        interval = min(LOG_INTERVAL, max(1, steps // 10))
        with tqdm(total=steps, initial=now, desc="training") as bar:
            keeper = Keeper(self, interrupt, bar)
            yield from self.agent.learning(
                steps - now, keeper, log_interval=interval, reset_num_timesteps=False
            )
        self.save()

    def _play(self, policy: OuterPolicy) -> dict[str, Any]:
        """A flow's outcome, from sampled noise and from zero; that of the paper's way on top."""
        task, episodes, seed = self.config["task"], self.config["episodes"], self.config["seed"]
        ways: dict[str, Any] = {}
        for name, deterministic in (("sampled", False), ("noiseless", True)):
            played = evaluate(
                policy, self.make_robot, episodes, seed + AFTER, deterministic, progress=True
            )
            ways[name] = outcome(task, played)
        return {**ways["noiseless" if self.agent.acts_at_mean else "sampled"], **ways}

    def conclude(self, data: TransitionDataset) -> None:
        """Play the bare robot with both flows, write result.json and curves.png, print a table."""
        config, agent = self.config, self.agent
        learned, behavior = self._play(agent.outer_policy()), None
        flows = {config["algorithm"]: learned}
        if agent.shows_behavior:
            policy = agent.behavior_policy()
            behavior = learned
            if policy.field is not agent.policy.ema:
                behavior = flows["behaviour flow"] = self._play(policy)
        self.report(learned, behavior, summarize_data(config, data), flows)

    def report(
        self,
        learned: dict[str, Any],
        behavior: dict[str, Any] | None,
        recorded: dict[str, Any],
        flows: dict[str, dict[str, Any]],
    ) -> None:
        """Write and draw the outcome, and print the table of `flows`."""
        config, agent, history, task = self.config, self.agent, self.history, self.config["task"]
        clock = history["update_seconds"]
        result = {
            **{name: config.get(name) for name in DECIDING},
            **learned,
            **summarize_evaluations(task, history["evaluations"]),
            "behavior": behavior,
            "data": recorded,
            **self.also,
            "updates_per_second": history["updates"] / clock if clock else None,
            "wall_seconds": time.perf_counter() - self.start,
            "device": str(agent.device),
            "command": config["command"],
            "versions": versions(),
        }
        write_json(self.folder.result, result)
        draw_run(self.folder.path, quiet=True)
        rows: dict[str, dict[str, Any]] = {}
        for name, flow in flows.items():
            rows |= {name: flow["sampled"], f"{name}, no noise": flow["noiseless"]}
        title = f"{task}, {self.done} {self.unit}, seed {config['seed']}"
        print_table(title, {**rows, "data": recorded})
        trust = " --trust" * bool(imports(config))
        record = f"flowmdp record {self.named}{trust} --out video.mp4"
        print(f"results in {self.folder.path}; watch it: {record}")


def summarize_data(config: dict[str, Any], data: TransitionDataset) -> dict[str, Any]:
    """How the recorded episodes do: their returns, or the share of them that reach the goal."""
    row = get_task(config["task"])
    if row.success:
        reached = reached_goal(data).tolist()
        return {"episodes": len(reached), **summarize_successes(sum(reached), len(reached))}
    returns = data.returns_within(row.horizon).tolist()
    return {"episodes": len(returns), **summarize(config["task"], returns)}


class Keeper(BaseCallback):
    """Evaluates and saves every so many steps, shows progress, and stops when asked to."""

    def __init__(self, run: Run, interrupt: Interrupt, bar: Any) -> None:
        super().__init__()
        self.run, self.interrupt, self.bar = run, interrupt, bar
        tenth = max(1, run.goal // 10)
        self.eval_every = run.config["eval_every"] or tenth
        self.save_every = run.config["save_every"] or tenth

    def _on_training_start(self) -> None:
        self._since, self._updates = time.perf_counter(), self.model.num_timesteps
        self._done = self.run.done

    def _on_step(self) -> bool:
        before, self._done = self._done, self.run.done
        self.bar.update(self._done - before)
        evaluates, saves = (
            self._done // every > before // every for every in (self.eval_every, self.save_every)
        )
        if evaluates or saves:
            self._on_training_end()
            if evaluates:
                self.evaluate()
            if saves:
                self.run.save()
            self._since = time.perf_counter()
        return self.interrupt.go_on()

    def _on_training_end(self) -> None:
        """Count the updates since the clock ran, without what evaluation and saving take."""
        history = self.run.history
        history["update_seconds"] += time.perf_counter() - self._since
        history["updates"] += self.num_timesteps - self._updates
        self._updates = self.num_timesteps

    def evaluate(self) -> None:
        """Play a few episodes, and log how they went."""
        episodes = episodes_of(self.run.config["task"], self.run.evaluate())
        self.run.history["evaluations"].append({"step": self.run.done, **episodes})
        for name, of in (("mean_return", "returns"), ("success_rate", "successes")):
            if of in episodes:
                self.logger.record(f"evaluation/{name}", sum(episodes[of]) / len(episodes[of]))
        self.logger.dump(self.run.done)
