"""What the user types for many runs at once: the subcommands `bench` and `report`.

As light as `options`, which holds the subcommands for one run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg, subcommand

from flowmdp.cli.options import Command, File, Folder, Name, Number, Words


@dataclass
class Bench:
    """Run a table of jobs, tasks x algorithms x seeds: those that are not done yet.

    Every job is one `flowmdp train` in a process of its own. A finished one leaves one small JSON
    file among the results, which says that it is done; `flowmdp report` reads those files. Ctrl-C
    saves every running job, and the same command goes on where it stopped. A job that fails stops
    no other. The table is a TOML file:

      [run]                       # for every job; any of these may be left out
      seeds = [1, 2, 3]
      episodes = 50               # also steps, flow_steps, eval_every, eval_episodes,
                                  # save_every, device: options of `flowmdp train`
      set = { net_arch = [512, 512] }     # an algorithm's own `set` adds to it, and goes before
      [[tasks]]
      task = "hopper-medium"
      [[tasks]]
      task = "hopper-medium"
      dataset = "zoo/hopper/medium-v0"    # or: source = "minari"

      [algorithms.df-dir]                 # the name is the label in the report
      [algorithms.df-div]
      steps = 5000                        # any option of [run] but the seeds
      set = { rho = 0.3 }
      [algorithms."df-div T=5"]           # a variant under its own label
      algorithm = "df-div"
      flow_steps = 5

    For example:
      flowmdp bench table.toml --list
      flowmdp bench table.toml --jobs 2
      flowmdp bench table.toml --only seed1 --results results
    """

    table: Annotated[Positional[Path], arg(metavar="TABLE.toml")]
    """The table."""
    results: Folder = None
    """Where one JSON file per finished job goes; results/TABLE when not given."""
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

    def run(self) -> int:
        """Run the missing jobs; 1 when one of them failed."""
        from flowmdp.compare.runner import run_bench

        return run_bench(self)


@dataclass
class Report:
    """Compare finished runs: per dataset, over datasets with intervals, and against each other.

    Reads every result.json, or file that `flowmdp bench` left, below folders and prints Markdown:
    for each dataset and label the mean return over seeds and their standard deviation, first in
    short, then with the score, the data's return and the clone's; over the datasets that all labels
    share the mean and the interquartile mean of the normalised score with 95 % bootstrap intervals;
    and differences between labels with theirs. Runs that carry no label go under their algorithm's
    name.

    For example:
      flowmdp report results
      flowmdp report results/table --against df-div --figures figures --csv runs.csv
      flowmdp report results/table --reference flow-bc "df-div T=5"
      flowmdp report results/table results/other --only df-div "df-div T=*"
      flowmdp report results/table --acting noiseless
      flowmdp report results/table --commands
    """

    results: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="RESULTS ...", help_behavior_hint="")
    ]
    """Folders of results, at any depth, or files."""
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

    def run(self) -> None:
        """Print the tables."""
        from flowmdp.compare.report import run_report

        run_report(self)


AnyCommand = (
    Command | Annotated[Bench, subcommand("bench")] | Annotated[Report, subcommand("report")]
)
