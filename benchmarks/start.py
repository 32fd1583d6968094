"""How fast the command and the package start: `python -m benchmarks.start`.

Wall-clock seconds of fresh processes, the shortest of some; bare Python is the floor.

On two threads of a shared Intel server: bare Python 0.09 s, `flowmdp --help` 0.10 s,
import flowmdp 0.49 s.
"""

from __future__ import annotations

import subprocess
import sys
import time

COMMAND = "import sys; from flowmdp_command import main; sys.exit(main())"
"""What the installed script does."""
CASES: dict[str, tuple[str, ...]] = {
    "bare Python": ("pass",),
    "import tyro": ("import tyro",),
    "import flowmdp": ("import flowmdp",),
    "flowmdp --help": (COMMAND, "--help"),
    "flowmdp trian": (COMMAND, "trian"),
    "flowmdp --version": (COMMAND, "--version"),
    "flowmdp train --help": (COMMAND, "train", "--help"),
}
REPEATS = 3


def main() -> dict[str, float]:
    """Measure and print."""
    found: dict[str, float] = {}
    for name, words in CASES.items():
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", *words], capture_output=True, check=False)
            seconds.append(time.perf_counter() - start)
        found[name] = min(seconds)
        print(f"{name:22} {found[name]:.2f} s")
    return found


if __name__ == "__main__":
    main()
