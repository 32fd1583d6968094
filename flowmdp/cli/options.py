"""What the user types: one dataclass per subcommand; its docstrings are the `--help` texts.

The module stays light (no torch, no simulator), so that `flowmdp --help` answers at once; each
`run()` imports what it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg, subcommand

Number = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
Folder = Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")]
File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]
Name = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
RunFolder = Annotated[Positional[Path], arg(metavar="DIR")]
Source = Annotated[
    Literal["builtin", "minari", "d4rl"] | None,
    arg(metavar="{builtin,minari,d4rl}", help_behavior_hint=""),
]
Words = Annotated[tuple[tuple[str, ...], ...], UseAppendAction]
"""One or more words after each occurrence of an option, which may be repeated; see `flat`."""
Device = Literal["auto", "cpu", "cuda"]
Solver = Literal["euler", "midpoint", "heun"]


def flat(words: Words) -> tuple[str, ...]:
    """The words of all occurrences of an option, in their order."""
    return tuple(chain.from_iterable(words))


@dataclass
class Tasks:
    """List the tasks: robot, and for every source whether the data is here or what gets it.

    A task is a robot and a kind of recorded behaviour. `hopper-medium` is the flow environment
    FlowMDP-hopper-medium-v0 and what `flowmdp train df-div hopper-medium` trains on.

    For example:
      flowmdp tasks
    """

    def run(self) -> None:
        """Print the table."""
        from flowmdp.envs.data.listing import print_tasks

        print_tasks()


@dataclass
class Build:
    """Build a task's dataset from the behaviour that comes with the package.

    Rolls policies or a planner out on this machine, without a network, into Minari's local store
    (MINARI_DATASETS_PATH, or ~/.minari/datasets). The same seed gives the same bytes. A build that
    is killed leaves nothing behind that loads as a dataset; just start it again.

    For example:
      flowmdp data build hopper-medium
      flowmdp data build hopper-medium --force
      flowmdp data build pointmaze-umaze
    """

    task: Annotated[Positional[str], arg(metavar="TASK")]
    """Name of the task; `flowmdp tasks` lists them."""
    steps: int = 200_000
    """Transitions to record."""
    seed: int = 0
    """Seed of the roll-outs."""
    force: bool = False
    """Replace the dataset that is there; else one of another size or seed is kept and reported."""

    def run(self) -> None:
        """Build and say where it lies."""
        from flowmdp.envs.data.listing import build

        build(**vars(self))


@dataclass
class List:
    """List the datasets of Minari's local store.

    For example:
      flowmdp data list
    """

    def run(self) -> None:
        """Print the table."""
        from flowmdp.envs.data.listing import print_datasets

        print_datasets()


@dataclass
class Info:
    """Describe a dataset: episodes, steps, returns, spaces, who recorded it and how.

    For example:
      flowmdp data info hopper-medium
      flowmdp data info zoo/hopper/medium-v0 --plot medium.png
      flowmdp data info hopper-medium --dataset zoo/hopper/medium-v0
    """

    name: Annotated[Positional[str], arg(metavar="TASK|ID")]
    """A task, or any dataset id of Minari's local store."""
    source: Source = None
    """For a task: which of its datasets; the task's default when not given."""
    dataset: Annotated[Name, arg(metavar="ID")] = None
    """For a task: any other dataset, under the task's definition and references."""
    plot: File = None
    """Draw returns, lengths and actions into this picture as well."""

    def run(self) -> None:
        """Print what is known."""
        from flowmdp.envs.data.listing import print_info

        print_info(**vars(self))


@dataclass
class Download:
    """Download a task's published dataset, for `--source minari`.

    Minari fetches it from Farama's store at Hugging Face; this needs a network and the extra `hf`
    (pip install "flowmdp[hf]"). A download that breaks off leaves nothing behind.

    For example:
      flowmdp data download hopper-medium
    """

    task: Annotated[Positional[str], arg(metavar="TASK")]
    """Name of the task; `flowmdp tasks` lists them."""
    force: bool = False
    """Replace the dataset that is there."""

    def run(self) -> None:
        """Download and say where it lies."""
        from flowmdp.envs.data.listing import download

        download(**vars(self))


@dataclass
class Import:
    """Import one of D4RL's original HDF5 files, for `--source d4rl`.

    Download the file yourself; d4rl, gym and mujoco_py are not needed. The dataset goes into
    Minari's local store and belongs to the environment of D4RL's numbers: -v4 for Gym-MuJoCo, the
    hand under D4RL's definitions for Adroit.

    For example:
      flowmdp data import hopper_medium-v2.hdf5 --task hopper-medium
      flowmdp data import pen-human-v1.hdf5 --task pen-human
    """

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """D4RL's file under D4RL's name, such as hopper_medium-v2.hdf5."""
    task: Annotated[str, arg(metavar="TASK")]
    """The task it belongs to."""
    clip_actions: bool = False
    """Clip actions outside [-1, 1] instead of refusing the file."""
    force: bool = False
    """Replace the dataset that was imported before."""

    def run(self) -> None:
        """Import and say where it lies."""
        from flowmdp.envs.data.listing import import_file

        import_file(**vars(self))


@dataclass
class Data:
    """Build, download, import, list and describe datasets.

    For example:
      flowmdp data build hopper-medium
      flowmdp data import hopper_medium-v2.hdf5 --task hopper-medium
      flowmdp data list
      flowmdp data info hopper-medium
    """

    action: (
        Annotated[Build, subcommand("build")]
        | Annotated[Download, subcommand("download")]
        | Annotated[Import, subcommand("import")]
        | Annotated[List, subcommand("list")]
        | Annotated[Info, subcommand("info")]
    )

    def run(self) -> None:
        """Run the chosen one."""
        self.action.run()


@dataclass
class Train:
    """Train an agent offline: data, behaviour flow, critic, policy, evaluation, curves.

    One command does the whole job. It builds the dataset if it must, fits the behaviour flow and
    the critic (kept in FLOWMDP_CACHE, or ~/.cache/flowmdp, and reused by the next run with the same
    settings), trains the policy, plays the robot with both flows and prints their returns beside
    the data's. The run folder then holds config.json, checkpoint.zip, progress.csv, history.json,
    curves.png, result.json, and TensorBoard files where tensorboard is installed.

    Algorithms: flow-bc (clone the behaviour), df-dir, df-div (Decision Flow, improve on it), and
    the baselines iql, rebrac, fql, ifql, rql. df-dir, df-div, fql, ifql and rql start their flows
    from noise of 0.3; --set noise_scale=1.0 for the full Gaussian.
    Ctrl-C saves and prints the command that continues.

    For example:
      flowmdp train df-div hopper-medium --quick
      flowmdp train df-dir hopper-medium --seed 1 --out runs/my-run
      flowmdp train df-div hopper-medium --dataset zoo/hopper/medium-v0
      flowmdp train df-div hopper-medium --set rho=0.3 batch_size=512
      flowmdp train df-div hopper-medium --paper
      flowmdp train --resume runs/my-run
      flowmdp train --resume runs/my-run --steps 40000
    """

    algorithm: Positional[Annotated[Name, arg(metavar="ALGORITHM")]] = None
    """df-dir, df-div, flow-bc, iql, rebrac, fql, ifql or rql."""
    task: Positional[Annotated[Name, arg(metavar="TASK")]] = None
    """Name of the task; `flowmdp tasks` lists them."""
    steps: Number = None
    """Gradient steps of the policy; the algorithm's own number when not given."""
    seed: int = 0
    """Seed of networks, batches, noise and evaluation."""
    out: Folder = None
    """Run folder; runs/TASK/ALGORITHM-seedS when not given."""
    resume: Folder = None
    """Run folder of an interrupted run to continue (--steps may raise its goal)."""
    dataset: Annotated[Name, arg(metavar="ID")] = None
    """Any dataset of Minari's local store instead of the task's own."""
    source: Source = None
    """Where data and robot come from; the task's default when not given."""
    flow_steps: Number = None
    """Euler steps from noise to action; 10 when not given, 1 where the algorithm needs one."""
    device: Device = "auto"
    """auto takes the GPU when there is one."""
    quick: bool = False
    """The whole job in small: the full dataset, few updates; a look, not a result."""
    episodes: int = 20
    """Episodes of each evaluation at the end: of both flows, with noise and without."""
    eval_every: Number = None
    """Policy steps between evaluations during training; a tenth of the steps when not given."""
    eval_episodes: int = 5
    """Episodes of each evaluation during training."""
    save_every: Number = None
    """Policy steps between checkpoints; a tenth of the steps when not given."""
    set: Annotated[Words, arg(metavar="NAME=VALUE", help_behavior_hint="")] = ()
    """Any other constructor argument of the algorithm, for instance rho=0.3 critic=td."""
    paper: bool = False
    """df-dir, df-div: start from the setting of their paper instead of the defaults (ours)."""
    verbose: bool = False
    """Print the logged numbers as tables too."""

    def run(self) -> None:
        """Train, or continue."""
        from flowmdp.runs.train import train

        train(self)


@dataclass
class Eval:
    """Play the robot with a trained agent and print returns and normalised scores.

    For example:
      flowmdp eval runs/hopper-medium/df-div-seed0
      flowmdp eval runs/my-run --episodes 100 --seed 7
      flowmdp eval runs/my-run --behavior --noise-scale 0
      flowmdp eval runs/my-run --solver heun --flow-steps 5 --best-of 8
    """

    run_folder: RunFolder
    """Run folder, or a checkpoint file."""
    episodes: int = 20
    """Episodes to play."""
    seed: int = 0
    """Seed of starts and noise."""
    behavior: bool = False
    """Play the behaviour flow instead of the trained policy."""
    task: Name = None
    """Refuse the checkpoint unless it belongs to this task."""
    flow_steps: Number = None
    """Solver steps from noise to action; as trained when not given."""
    solver: Solver = "euler"
    """How the flow is integrated."""
    noise_scale: Annotated[float | None, arg(metavar="X", help_behavior_hint="")] = None
    """Standard deviation of the noise that chains start from; as trained when not given, 0 for
    none."""
    best_of: int = 1
    """Draw so many actions per state and take the one the critic rates highest."""
    device: Device = "auto"
    """auto takes the GPU when there is one."""
    json: bool = False
    """Print the result as JSON instead of the table."""

    def run(self) -> None:
        """Evaluate and print."""
        from flowmdp.runs.play import run_eval

        run_eval(self)


@dataclass
class Record:
    """Record a video: the robot, and over it each action's flow from noise to action.

    Needs no display: rendering goes through GLFW, EGL or OSMesa (MUJOCO_GL chooses, else whichever
    works). The video runs at the robot's own frame rate.

    For example:
      flowmdp record runs/hopper-medium/df-div-seed0 --out video.mp4
      flowmdp record runs/my-run --behavior --out behavior.mp4
      flowmdp record runs/my-run --steps 250 --seed 3
    """

    run_folder: RunFolder
    """Run folder, or a checkpoint file."""
    out: Path = Path("video.mp4")
    """The video file to write."""
    steps: int = 1000
    """Longest length, in steps of the robot."""
    seed: int = 0
    """Seed of start and noise."""
    behavior: bool = False
    """Play the behaviour flow instead of the trained policy."""
    task: Name = None
    """Refuse the checkpoint unless it belongs to this task."""
    plain: bool = False
    """Only the robot, without the flow drawn over it."""
    device: Device = "cpu"
    """Where the policy runs."""

    def run(self) -> None:
        """Play and write."""
        from flowmdp.runs.record import record

        record(self)


@dataclass
class Plot:
    """Draw a run's curves again: returns beside data and behaviour, Q(pi) - Q(data), losses.

    For example:
      flowmdp plot runs/hopper-medium/df-div-seed0
      flowmdp plot runs/my-run --out figure.pdf
    """

    run_folder: RunFolder
    """Run folder."""
    out: File = None
    """Picture to write; DIR/curves.png when not given. The suffix gives the format."""

    def run(self) -> None:
        """Draw."""
        from flowmdp.runs.curves import plot_run

        print(plot_run(self.run_folder, self.out))


Command = (
    Annotated[Tasks, subcommand("tasks")]
    | Annotated[Data, subcommand("data")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Eval, subcommand("eval")]
    | Annotated[Record, subcommand("record")]
    | Annotated[Plot, subcommand("plot")]
)
