"""The table of commands, and what it alone can answer; `flowmdp_command` runs this file by itself.

It imports nothing but Python's own modules.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

HELP = """usage: flowmdp COMMAND ...

Train flow policies for robots offline, step by flow step.

Start here:
  flowmdp train df-div hopper-medium --quick
  flowmdp record runs/hopper-medium/df-div-seed0 --out video.mp4

Commands; `flowmdp COMMAND --help` tells the rest:"""

COMMANDS = {
    "tasks": ("flowmdp.envs.data.listing:print_tasks", "List the tasks."),
    "data build": ("flowmdp.envs.data.listing:build", "Build a task's dataset here."),
    "data download": ("flowmdp.envs.data.listing:download", "Download a published dataset."),
    "data import": (
        "flowmdp.envs.data.listing:import_file",
        "Import a D4RL or OGBench file.",
    ),
    "data list": ("flowmdp.envs.data.listing:print_datasets", "List the datasets that are here."),
    "data info": ("flowmdp.envs.data.listing:print_info", "Describe a dataset."),
    "train": ("flowmdp.runs.train:train", "Train an agent offline, the whole job."),
    "finetune": ("flowmdp.runs.finetune:finetune", "Let a run's policy learn on, from robots."),
    "eval": ("flowmdp.runs.play:play", "Play the robot with a trained agent."),
    "record": ("flowmdp.runs.record:record", "Record a video: the robot and its flow."),
    "export": ("flowmdp.runs.export:export_run", "Write a policy as ONNX or torch.export."),
    "push": ("flowmdp.runs.hub:push_run", "Publish a run on the Hugging Face Hub."),
    "pull": ("flowmdp.runs.hub:pull", "Download a run from the Hugging Face Hub."),
    "plot": ("flowmdp.runs.curves:plot", "Draw a run's curves again."),
    "bench": ("flowmdp.compare.runner:run_bench", "Run a table of jobs."),
    "report": ("flowmdp.compare.report:run_report", "Compare finished runs."),
}
"""What the user types -> the function that does it, and a line of help."""


def choose(argv: Sequence[str]) -> str:
    """The command that the words begin with; a request for the list leaves by SystemExit.

    Args:
        argv: At least one word.

    Raises:
        LookupError: For a word that is empty, or no command.
    """
    if any(not word.partition("=")[2 * ("=" in word)] for word in argv):
        raise LookupError("an argument is empty: leave it out, or write a value")
    count = 2 if argv[0] == "data" else 1
    name = " ".join(argv[:count])
    if name in COMMANDS:
        return name
    names = [name for name in COMMANDS if count == 1 or name.startswith("data ")]
    if argv[count - 1 : count] in ([], ["-h"], ["--help"]):
        print(HELP, *(f"  flowmdp {name:14} {COMMANDS[name][1]}" for name in names), sep="\n")
        sys.stdout.flush()
        raise SystemExit(0)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    raise LookupError(f"unknown command {name!r}: {hint} (flowmdp --help)")
