"""The installed `flowmdp`: the list of commands, and words that are none, without the package.

Importing flowmdp registers its environments; Gymnasium and NumPy take most of a second to load.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from runpy import run_path


def main() -> int:
    """Run the command; returns the exit code, see `flowmdp.cli`."""
    package = find_spec("flowmdp")
    assert package is not None and package.submodule_search_locations
    table = run_path(f"{package.submodule_search_locations[0]}/cli/commands.py")
    words = sys.argv[1:] or ["--help"]
    try:
        if words != ["--version"]:
            table["choose"](words)
    except LookupError as error:
        print(f"flowmdp: {error.args[0]}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        pass  # the whole command says it again, and knows what to do
    from flowmdp.cli import main as run

    return run()
