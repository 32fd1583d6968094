"""The `flowmdp` command: it parses, and calls the function that does the work.

Exit codes: 0 done; 1 a job of `flowmdp bench` failed, or whoever reads the output has left; 2 the
input, the folder or the disk does not allow it, with one line on stderr that says why and what
mends it; 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import platform
import re
import sys
from collections.abc import Sequence
from itertools import chain
from typing import Any

import tyro

from flowmdp.cli import options as cli
from flowmdp.errors import ConfigurationError, FlowMDPError

DESCRIPTION = """Train flow policies for robots offline, step by flow step.

Start here:
  flowmdp train df-div hopper-medium --quick
  flowmdp record runs/hopper-medium/df-div-seed0 --out video.mp4"""

COMMANDS: dict[type, str] = {
    cli.Tasks: "flowmdp.envs.data.listing:print_tasks",
    cli.Build: "flowmdp.envs.data.listing:build",
    cli.Download: "flowmdp.envs.data.listing:download",
    cli.Import: "flowmdp.envs.data.listing:import_file",
    cli.List: "flowmdp.envs.data.listing:print_datasets",
    cli.Info: "flowmdp.envs.data.listing:print_info",
    cli.TrainOne: "flowmdp.runs.train:train",
    cli.Resume: "flowmdp.runs.train:resume",
    cli.Eval: "flowmdp.runs.play:play",
    cli.Record: "flowmdp.runs.record:record",
    cli.Plot: "flowmdp.runs.curves:plot",
    cli.Bench: "flowmdp.compare.runner:run_bench",
    cli.Report: "flowmdp.compare.report:run_report",
}
"""What the user typed -> the function that gets its fields as arguments."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the entry point of the installed script.

    Args:
        argv: Arguments without the program's name; None takes the process's own.

    Returns:
        The exit code, see the module's text. `--help` leaves by SystemExit.
    """
    argv = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if argv == ["--version"]:
        print_versions()
        return 0
    try:
        status = dispatch(*parse(argv)) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader has had enough, as in `flowmdp bench --list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 1
    except KeyboardInterrupt as error:
        print(f"\nflowmdp: interrupted{'; ' if error.args else ''}{error}", file=sys.stderr)
        return 130
    except (FlowMDPError, OSError) as error:
        print(f"flowmdp: {_one_line(error)}", file=sys.stderr)
        return 2


def parse(argv: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """The options' dataclass, and the arguments of its function.

    Raises:
        ConfigurationError: For options that cannot be; `--help` leaves by SystemExit.
    """
    if argv[0] == "train" and {"-h", "--help"}.isdisjoint(argv[1:2]):
        return _parse_train(argv[1:])
    chosen = _tyro(cli.Command, argv, description=DESCRIPTION)
    chosen = chosen.action if isinstance(chosen, cli.Data) else chosen
    return type(chosen), {name: _flat(value) for name, value in vars(chosen).items()}


def dispatch(command: type, arguments: dict[str, Any]) -> int | None:
    """Call the command's function; returns the exit code, or None for 0."""
    module, _, name = COMMANDS[command].partition(":")
    status: int | None = getattr(importlib.import_module(module), name)(**arguments)
    return status


def _parse_train(argv: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """A run that is continued, or a new one with its algorithm's hyper-parameters."""
    if any(word.split("=")[0] == "--resume" for word in argv):
        chosen, unknown = _tyro(cli.Resume, argv, prog="flowmdp train", return_unknown_args=True)
        if unknown:
            raise ConfigurationError(
                f"{' '.join(unknown)} cannot change in a run that is continued: with --resume give "
                "only --steps, --device and --verbose, or start a new run"
            )
        return cli.Resume, vars(chosen)
    if len(argv) < 2:
        raise ConfigurationError(
            "name an algorithm and a task, for instance `flowmdp train df-div hopper-medium`, "
            "or continue a run with --resume DIR"
        )
    from flowmdp.runs.config import base_config, get_algorithm

    algorithm, *rest = argv
    generic: Any = cli.TrainOne
    form = generic[get_algorithm(algorithm).config_class]

    def read(paper: bool, quick: bool) -> Any:
        base = base_config(algorithm, paper, quick)
        default = cli.TrainOne(tyro.MISSING, cli.RunOptions(), cli.FlowOptions(), base)
        prog = f"flowmdp train {algorithm}"
        return _tyro(form, rest, prog=prog, description=cli.Train.__doc__, default=default)

    chosen = read(False, False)
    if chosen.run.paper or chosen.run.quick:  # these move the defaults of the others
        chosen = read(chosen.run.paper, chosen.run.quick)
    groups = (vars(chosen.run), vars(chosen.flow), vars(chosen.config))
    arguments = {name: value for group in groups for name, value in group.items()}
    return cli.TrainOne, {"algorithm": algorithm, "task": chosen.task, **arguments}


def _tyro(form: Any, argv: Sequence[str], **options: Any) -> Any:
    """Tyro's parser, with its box of an error on one line."""
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return tyro.cli(
                form,
                **{"prog": "flowmdp", **options},
                args=argv,
                config=(
                    tyro.conf.OmitArgPrefixes,
                    tyro.conf.OmitSubcommandPrefixes,
                    tyro.conf.FlagCreatePairsOff,
                ),
            )
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise ConfigurationError(_unboxed(shown.getvalue())) from None


def _unboxed(box: str) -> str:
    """The first paragraph of tyro's box, the options it suggests, and where help is."""
    lines = [re.sub(r"^\W*│|│\W*$", "", line).strip() for line in box.splitlines()[1:-1]]
    parts = [part.split() for part in re.split(r"─{3,}", " ".join(lines))]
    first = " ".join(parts[0]).removeprefix("Error parsing config: ").partition(" Got errors:")[0]
    near = [word for part in parts if part[:2] == ["Perhaps", "you"] for word in part]
    near = list(dict.fromkeys(word for word in near if word.startswith("--")))
    hint = f"; did you mean {' or '.join(near[:3])}?" if near else ""
    return f"{first}{hint} ({' '.join(parts[-1])})".replace(" .", ".")


def _flat(value: Any) -> Any:
    """The words of all occurrences of a repeated option, in their order."""
    if isinstance(value, tuple) and all(isinstance(words, tuple) for words in value):
        return tuple(chain.from_iterable(value))
    return value


def print_versions() -> None:
    """What a bug report needs."""
    from flowmdp.runs.config import versions

    found = versions()
    print(f"flowmdp {found.pop('flowmdp')}")
    print(", ".join(f"{name} {version}" for name, version in found.items()))
    print(f"{platform.platform()}, {platform.processor() or platform.machine()}")


def _one_line(error: Exception) -> str:
    """Cause and cure of an error the user can mend, on one line."""
    message = " ".join(str(error).split())
    if isinstance(error, OSError):
        where = f" {error.filename}" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in message:
            return (
                f"the disk is full{where and ' at'}{where}: free some space and repeat the "
                "command; what was saved before is whole"
            )
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            return (
                f"no permission to read or write{where}: choose another folder, or have its owner "
                "permit it"
            )
        return f"{error.strerror or message}:{where}" if where else message
    return message
