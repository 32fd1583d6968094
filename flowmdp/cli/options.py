"""What the user types: one dataclass per subcommand; its docstrings are the `--help` texts.

The module stays light (no torch, no simulator), so that `flowmdp --help` answers at once. Fields
are the arguments of the function that does the work, see `flowmdp.cli.COMMANDS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

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
"""One or more words after each occurrence of an option, which may be repeated."""
Device = Literal["auto", "cpu", "cuda"]
Solver = Literal["euler", "midpoint", "heun"]
Config = TypeVar("Config")


@dataclass
class Tasks:
    """List the tasks: robot, and for every source whether the data is here or what gets it.

    A task is a robot and a kind of recorded behaviour. `hopper-medium` is the flow environment
    FlowMDP-hopper-medium-v0 and what `flowmdp train df-div hopper-medium` trains on.

    For example:
      flowmdp tasks
    """


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


@dataclass
class List:
    """List the datasets of Minari's local store.

    For example:
      flowmdp data list
    """


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


@dataclass
class Train:
    """Train an agent offline: data, behaviour flow, critic, policy, evaluation, curves.

    One command does the whole job. It builds the dataset if it must, fits the behaviour flow and
    the critic (kept in FLOWMDP_CACHE, or ~/.cache/flowmdp, and reused by the next run with the same
    settings), trains the policy, plays the robot with both flows and prints their returns beside
    the data's. The run folder then holds config.json, checkpoint.zip, progress.csv, history.json,
    curves.png, result.json, and TensorBoard files where tensorboard is installed.

    `flowmdp train ALGORITHM --help` shows the options of an algorithm, its hyper-parameters among
    them. df-dir, df-div, fql, ifql and rql start their flows from noise of 0.3; --noise-scale 1.0
    takes the full Gaussian. Ctrl-C saves and prints the command that continues;
    `flowmdp train --resume DIR` takes --steps, which may raise the goal, --device and --verbose.

    For example:
      flowmdp train df-div hopper-medium --quick
      flowmdp train df-dir hopper-medium --seed 1 --out runs/my-run
      flowmdp train df-div hopper-medium --dataset zoo/hopper/medium-v0
      flowmdp train df-div hopper-medium --rho 0.3 --batch-size 512
      flowmdp train df-div hopper-medium --paper
      flowmdp train --resume runs/my-run
      flowmdp train --resume runs/my-run --steps 40000
    """


@dataclass
class RunOptions:
    """Options of every run."""

    steps: Number = None
    """Gradient steps of the policy; the algorithm's own number when not given."""
    seed: int = 0
    """Seed of networks, batches, noise and evaluation."""
    out: Folder = None
    """Run folder; runs/TASK/ALGORITHM-seedS when not given."""
    dataset: Annotated[Name, arg(metavar="ID")] = None
    """Any dataset of Minari's local store instead of the task's own."""
    source: Source = None
    """Where data and robot come from; the task's default when not given."""
    device: Device = "auto"
    """auto takes the GPU when there is one."""
    quick: bool = False
    """The whole job in small: the full dataset, few updates; a look, not a result."""
    paper: bool = False
    """Start from the setting of the algorithm's paper instead of the defaults, where these are
    ours."""
    episodes: int = 20
    """Episodes of each evaluation at the end: of both flows, with noise and without."""
    eval_every: Number = None
    """Policy steps between evaluations during training; a tenth of the steps when not given."""
    eval_episodes: int = 5
    """Episodes of each evaluation during training."""
    save_every: Number = None
    """Policy steps between checkpoints; a tenth of the steps when not given."""
    verbose: bool = False
    """Print the logged numbers as tables too."""


@dataclass
class FlowOptions:
    """Options of the flow environment."""

    flow_steps: Number = None
    """Euler steps from noise to action; 10 when not given, 1 where the algorithm needs one."""
    noise_scale: Annotated[float | None, arg(metavar="X", help_behavior_hint="")] = None
    """Standard deviation of the noise that chains start from; the algorithm's own when not
    given."""
    velocity_scale: Annotated[float | None, arg(metavar="X", help_behavior_hint="")] = None
    """Velocity of a flow action of 1; 6.5 when not given."""
    include_time: bool = True
    """Let the policy see the flow time."""
    include_previous_action: bool = False
    """Let the policy see the action before."""


@dataclass
class TrainOne(Generic[Config]):
    """Options of `flowmdp train ALGORITHM`."""

    task: Positional[Annotated[str, arg(metavar="TASK")]]
    """Name of the task; `flowmdp tasks` lists them."""
    run: RunOptions
    flow: FlowOptions
    config: Config


@dataclass
class Resume:
    """Continue an interrupted run."""

    resume: Annotated[Path, arg(metavar="DIR")]
    """Run folder of an interrupted run."""
    steps: Number = None
    """A higher goal."""
    device: Device = "auto"
    """auto takes the GPU when there is one."""
    verbose: bool = False
    """Print the logged numbers as tables too."""


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


@dataclass
class Bench:
    """Run a table of jobs, tasks x algorithms x seeds: those that are not done yet.

    Every job is one `flowmdp train` in a process of its own. A finished one leaves a line in the
    file of results, which says that it is done; `flowmdp report` reads that file. Ctrl-C saves
    every running job, and the same command goes on where it stopped. A job that fails stops no
    other. The table is a TOML file:

      [run]                       # for every job; any of these may be left out
      seeds = [1, 2, 3]
      episodes = 50               # any option of `flowmdp train ALGORITHM`, by its name there;
      net_arch = [512, 512]       # an algorithm that has no such option goes without it
      [[tasks]]
      task = "hopper-medium"
      [[tasks]]
      task = "hopper-medium"
      dataset = "zoo/hopper/medium-v0"    # or: source = "minari"

      [algorithms.df-dir]                 # the name is the label in the report
      [algorithms.df-div]
      steps = 5000                        # goes before what [run] says
      rho = 0.3
      budget = "None"                     # no value
      [algorithms."df-div T=5"]           # a variant under its own label
      algorithm = "df-div"
      flow_steps = 5

    For example:
      flowmdp bench table.toml --list
      flowmdp bench table.toml --jobs 2
      flowmdp bench table.toml --only seed1 --results results/first.jsonl
    """

    table: Annotated[Positional[Path], arg(metavar="TABLE.toml")]
    """The table."""
    results: File = None
    """File of the finished jobs, one line each; results/TABLE.jsonl when not given."""
    runs: Folder = None
    """Where the run folders and logs go; runs/bench/TABLE when not given."""
    jobs: Number = None
    """Processes at once; cores / threads when not given."""
    threads: int = 1
    """Threads of each process."""
    only: Annotated[Words, arg(metavar="TEXT", help_behavior_hint="")] = ()
    """Only jobs whose name (dataset, label, seed; see --list) contains one of these texts."""
    list: bool = False
    """Print every job, whether it is done, and its exact command; run nothing."""


@dataclass
class Report:
    """Compare finished runs: per dataset, over datasets with intervals, and against each other.

    Reads files that `flowmdp bench` wrote, and the result.json of runs, and prints Markdown: for
    each dataset and label the mean return over seeds and their standard deviation, first in
    short, then with the score, the data's return and the clone's; over the datasets that all labels
    share the mean and the interquartile mean of the normalised score with 95 % bootstrap intervals;
    and differences between labels with theirs. Runs that carry no label go under their algorithm's
    name.

    For example:
      flowmdp report results
      flowmdp report results/table.jsonl --against df-div --figures figures --csv runs.csv
      flowmdp report results/table.jsonl --reference flow-bc "df-div T=5"
      flowmdp report results/table.jsonl results/other.jsonl --only df-div "df-div T=*"
      flowmdp report runs/hopper-medium --acting noiseless
      flowmdp report results/table.jsonl --commands
    """

    results: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="RESULTS ...", help_behavior_hint="")
    ]
    """Files of results (TABLE.jsonl), run folders, or folders of either."""
    against: Annotated[Name, arg(metavar="LABEL")] = None
    """The label that all others are compared with; the best on average when not given."""
    only: Annotated[Words, arg(metavar="LABEL", help_behavior_hint="")] = ()
    """Only these labels, with wildcards: "df-div*". Without it a label on fewer than half as many
    datasets as the most frequent is shown, and not compared."""
    reference: Annotated[Words, arg(metavar="LABEL", help_behavior_hint="")] = ()
    """Labels that are shown per dataset and stay out of the comparison over datasets."""
    acting: Literal["published", "sampled", "noiseless", "both"] = "published"
    """Which returns: as each algorithm's paper plays, from sampled noise x_0, or from x_0 = 0;
    both: the first and, under a label of its own, the last."""
    csv: File = None
    """Write one row per run with all its numbers."""
    figures: Folder = None
    """Draw scores.png (seeds, means, intervals per dataset) and aggregate.png into this folder."""
    commands: bool = False
    """Print the command behind each run as well."""


Command = (
    Annotated[Tasks, subcommand("tasks")]
    | Annotated[Data, subcommand("data")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Eval, subcommand("eval")]
    | Annotated[Record, subcommand("record")]
    | Annotated[Plot, subcommand("plot")]
    | Annotated[Bench, subcommand("bench")]
    | Annotated[Report, subcommand("report")]
)
