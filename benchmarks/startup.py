"""How soon the command line answers where nothing is computed.

    python benchmarks/startup.py [--rounds 9] [--json]

Each command runs in a process of its own, in turn with the others; the figure is the median. Beside
them: Python alone, and Python with torch, scipy and pyarrow, which the commands waited for before
they imported what they need when they run.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

from arguments import plain_parser

COMMANDS = {
    "halfmeg --help": ["-m", "halfmeg", "--help"],
    "halfmeg --version": ["-m", "halfmeg", "--version"],
    "halfmeg trian": ["-m", "halfmeg", "trian"],  # mistyped
    "Python alone": ["-c", ""],
    "Python with torch, scipy, pyarrow": ["-c", "import torch, scipy.stats, pyarrow.parquet"],
}


def main() -> None:
    """Time all commands and print them."""
    parser = plain_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for round_number in range(1 + args.rounds):
        for name, arguments in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
            if round_number:  # the first brings the files into memory
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    if args.json:
        print(json.dumps(medians, indent=2))
        return
    for name, median in medians.items():
        print(f"{median:6.3f} s  {name}")


if __name__ == "__main__":
    main()
