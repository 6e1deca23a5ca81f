"""How often verdicts are false where test images come in groups, as of one person or one slide.

    python benchmarks/grouped.py [--studies 1000] [--out FILE.json]

Studies of two equal networks with five seeds and 1,000 test images, drawn as `verdicts.py` draws
them; beside what a network makes of each image stands what it makes of each group, normal with so
many logits. A verdict counts all images for themselves. "By group" is Student's t of the groups'
mean differences.
"""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import scipy
from arguments import parse_simulation
from scipy import stats
from verdicts import World, simulate

from halfmeg.studies.stats import LEVEL

ALONE = World((0.9, 0.9), (0.2, 0.2), 1_000)
SEEDS = 5
GROUPS = (20, 50, 200)
EFFECTS = (0.0, 0.3, 0.6, 1.0)


def false_by_group(world: World, count: int) -> float:
    """Return the share of studies that Student's t of the groups' mean differences calls apart."""
    false = 0
    for answers in world.studies(count, SEEDS):
        differences = np.subtract(*answers.mean(1))  # of each image
        of_groups = differences.reshape(-1, world.groups).mean(0)
        false += stats.ttest_1samp(of_groups, 0).pvalue < LEVEL
    return false / count


def main() -> None:
    """Simulate all settings and print them, one line each."""
    args = parse_simulation(__doc__)
    rows: list[dict[str, Any]] = []
    found = {
        "studies": args.studies,
        "command": "python benchmarks/grouped.py " + " ".join(sys.argv[1:]),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "table": rows,
    }
    for groups in GROUPS:
        for effect in EFFECTS:
            world = replace(ALONE, groups=groups, group_effect=effect)
            numbers = simulate(world, SEEDS, args.studies, sizes=(2,))[2]
            rows.append(
                {
                    "groups": groups, "effect": effect, "false": numbers["false"],
                    "by_group": false_by_group(world, args.studies),
                }
            )  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
            if args.out is not None:
                args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
