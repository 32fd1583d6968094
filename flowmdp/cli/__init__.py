"""The `flowmdp` command: it parses, and calls the function that does the work.

A command's options are the arguments of its function, its help text is the function's docstring.

Exit codes: 0 done; 1 a job of `flowmdp bench` failed, or whoever reads the output has left; 2 the
input, the folder or the disk does not allow it, with one line on stderr that says why and what
mends it; 130 interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import inspect
import io
import os
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from flowmdp.cli.commands import COMMANDS, choose
from flowmdp.cli.parser import read
from flowmdp.errors import ConfigurationError, FlowMDPError
from flowmdp.runs.interrupt import STOPPING, Stopped, listening

NARROWEST = 20
"""Columns that a terminal needs."""
TOO_LARGE = ("not enough memory", "out of memory", "allocate memory", "Storage size calculation")
"""What torch says when there is no memory."""

Function = Callable[..., int | None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the entry point of the installed script.

    Args:
        argv: Arguments without the program's name; None takes the process's own.

    Returns:
        The exit code, see the module's text. `--help` leaves by SystemExit.
    """
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if argv is None:  # the process is the command's own; torch is not loaded yet
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    numbers: list[int] = []

    def stop(number: int, _: object) -> None:
        numbers.append(number)
        raise Stopped(number)

    try:
        with listening(stop):
            return _run(words)
    except BrokenPipeError:  # the reader has had enough, as in `flowmdp bench --list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 1
    except KeyboardInterrupt as error:
        return _stopped(error)
    except Exception as error:
        if numbers:  # some modules that are stopped while they load say that they are not there
            return _stopped(Stopped(numbers[0]))
        message = _one_line(error)
        if message is None:
            raise
        print(f"flowmdp: {message}", file=sys.stderr)
        return 2
    finally:
        if argv is None:  # the process ends: a signal from now on ends it without a traceback
            for number in STOPPING:
                signal.signal(number, signal.SIG_DFL)


def _run(argv: list[str]) -> int:
    """Parse and do it; returns the exit code."""
    _prepare()
    if argv == ["--version"]:
        print_versions()
        return 0
    # MuJoCo cannot be loaded where it names what is not there, and all but this draw nothing
    backend = None if argv[0] == "record" else os.environ.pop("MUJOCO_GL", None)
    try:
        function, arguments = parse(argv)
        status: int = function(**arguments) or 0
    finally:
        if backend is not None:
            os.environ["MUJOCO_GL"] = backend
    sys.stdout.flush()
    return status


def _stopped(error: KeyboardInterrupt) -> int:
    print(f"\nflowmdp: interrupted{'; ' if error.args else ''}{error}", file=sys.stderr)
    return 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)


def _prepare() -> None:
    """Make do with a terminal and an environment in which other packages would fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it may know ASCII only
            stream.reconfigure(errors="replace")
    width = os.environ.get("COLUMNS", "80")
    if not width.isdecimal() or int(width) < NARROWEST:
        os.environ["COLUMNS"] = "80"
    os.environ["MPLBACKEND"] = "agg"  # pictures go into files


def parse(argv: Sequence[str]) -> tuple[Function, dict[str, Any]]:
    """The function that does what the user typed, and its arguments.

    Raises:
        ConfigurationError: For words that cannot be; `--help` leaves by SystemExit.
    """
    try:
        name = choose(argv)
    except LookupError as error:
        raise ConfigurationError(*error.args) from None
    if name in ("train", "finetune"):
        return (_parse_train if name == "train" else _parse_finetune)(argv[1:])
    module, _, attribute = COMMANDS[name][0].partition(":")
    function: Function = getattr(importlib.import_module(module), attribute)
    return function, read(function, argv[len(name.split()) :], f"flowmdp {name}")


def _parse_train(argv: Sequence[str]) -> tuple[Function, dict[str, Any]]:
    """A run that is continued, or a new one with its algorithm's hyper-parameters."""
    from flowmdp.agents import ALGORITHMS
    from flowmdp.agents.core.config import AgentConfig
    from flowmdp.runs.config import base_config, make_config
    from flowmdp.runs.train import resume, train

    if any(word.split("=")[0] == "--resume" for word in argv):
        arguments, unknown = read(resume, argv, "flowmdp train", return_unknown_args=True)
        if unknown:
            near = difflib.get_close_matches(unknown[0], ("--steps", "--device", "--verbose"), n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigurationError(
                f"{unknown[0]} cannot change in a run that is continued: {hint}With --resume give "
                "only --steps, --device and --verbose, or start a new run"
            )
        return resume, arguments
    if argv[:1] in (["-h"], ["--help"]):
        text = (inspect.getdoc(train) or "").partition("\nArgs:")[0]
        text += f"\nALGORITHM is one of {', '.join(ALGORITHMS)}."
        groups = {"run": make_config, "config": AgentConfig()}
        return train, read(train, argv, "flowmdp train", groups, description=text)
    if not argv:
        raise ConfigurationError(
            "name an algorithm and a task, for instance `flowmdp train df-div hopper-medium`, "
            "or continue a run with --resume DIR"
        )
    algorithm, *rest = argv

    def arguments_from(config: AgentConfig) -> dict[str, Any]:
        groups, known = {"run": make_config, "config": config}, {"algorithm": algorithm}
        found: dict[str, Any] = read(train, rest, f"flowmdp train {algorithm}", groups, known)
        return found

    arguments = arguments_from(base_config(algorithm))
    if arguments["paper"] or arguments["quick"]:  # these move the defaults of the others
        moved = base_config(algorithm, arguments["paper"], arguments["quick"])
        arguments = arguments_from(moved)
    return train, arguments


def _parse_finetune(argv: Sequence[str]) -> tuple[Function, dict[str, Any]]:
    """A fine-tuning that is continued, or a new one with its agent's hyper-parameters."""
    from flowmdp.runs.finetune import base_of, finetune, online_of, resume

    prog = "flowmdp finetune"
    if any(word.split("=")[0] == "--resume" for word in argv):
        return resume, read(resume, argv, prog)
    words = [word for word in argv if word not in ("-h", "--help")]
    if not words:
        return finetune, read(finetune, argv, prog, {"online": online_of("replay")})
    known, _ = read(finetune, words, prog, return_unknown_args=True)
    chosen = known["run_folder"], known["by"]
    groups = {"online": online_of(known["by"]), "config": base_of(*chosen, known["trust"])}
    return finetune, read(finetune, argv, prog, groups)


def print_versions() -> None:
    """What a bug report needs."""
    from flowmdp.runs.config import versions

    found = versions()
    print(f"flowmdp {found.pop('flowmdp')}")
    print(", ".join(f"{name} {version}" for name, version in found.items()))
    print(f"{platform.platform()}, {platform.processor() or platform.machine()}")


def _one_line(error: Exception) -> str | None:
    """Cause and cure of an error the user can mend, on one line; None for another."""
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in TOO_LARGE)
    ):
        return (
            "there is not enough memory: take smaller networks or batches (--net-arch, "
            "--batch-size), fewer jobs at once, or a larger machine"
        )
    if not isinstance(error, FlowMDPError | OSError):
        return None
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
