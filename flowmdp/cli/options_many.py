"""What the user types for many runs at once: the subcommands `bench` and `report`.

As light as `options`, which holds the subcommands for one run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg, subcommand

from flowmdp.cli.options import Command, File, Folder, Name, Number, Words, flat


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

    def run(self) -> int:
        """Run the missing jobs; 1 when one of them failed."""
        from flowmdp.compare.runner import run_bench

        return run_bench(**vars(self) | {"only": flat(self.only)})


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

    def run(self) -> None:
        """Print the tables."""
        from flowmdp.compare.report import run_report

        words = {"only": flat(self.only), "reference": flat(self.reference)}
        run_report(**vars(self) | words)


AnyCommand = (
    Command | Annotated[Bench, subcommand("bench")] | Annotated[Report, subcommand("report")]
)
