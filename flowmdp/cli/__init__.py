"""The `flowmdp` command: the one package that puts environments, data and agents together.

Exit codes: 0 done; 1 a job of `flowmdp bench` failed, or whoever reads the output has left; 2 the
input, the folder or the disk does not allow it, with one line on stderr that says why and what
mends it; 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import tyro

from flowmdp.cli.options_many import AnyCommand
from flowmdp.errors import FlowMDPError

DESCRIPTION = """Train flow policies for robots offline, step by flow step.

Start here:
  flowmdp train df-div hopper-medium --quick
  flowmdp record runs/hopper-medium/df-div-seed0 --out video.mp4"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the entry point of the installed script.

    Args:
        argv: Arguments without the program's name; None takes the process's own.

    Returns:
        The exit code, see the module's text. `--help` and unknown options leave by SystemExit.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv == ["--version"]:
        from importlib.metadata import version

        print(f"flowmdp {version('flowmdp')}")
        return 0
    try:
        status = parse(argv or ["--help"]).run() or 0
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


def parse(argv: Sequence[str]) -> AnyCommand:
    """The subcommand with its options; `--help` and unknown options leave by SystemExit."""
    return tyro.cli(
        AnyCommand,
        prog="flowmdp",
        description=DESCRIPTION,
        args=argv,
        config=(
            tyro.conf.OmitArgPrefixes,
            tyro.conf.OmitSubcommandPrefixes,
            tyro.conf.FlagCreatePairsOff,
        ),
    )


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
