"""The fault campaign: kills and mutated inputs by the thousand, and a table of what came of them.

    python tests/faults/campaign.py --kills 500 --inputs 100000

prints the figures of docs/reliability.md. Each kind of input runs in processes of its own, so that
a crash, a hang or an appetite for memory is seen from outside; a case that brought one of them is
printed with its number, and `--only KIND --first NUMBER --inputs 1` runs it again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import selectors
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

HANG_SECONDS = 120.0
HERE = Path(__file__)


@dataclass
class Tally:
    """What came of the cases of one kind."""

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    tracebacks: int = 0
    crashes: int = 0
    hangs: int = 0
    peak_bytes: int = 0
    told: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """How many cases did not end as they must."""
        return self.tracebacks + self.crashes + self.hangs + self.outcomes["silent"]


def run_inputs(kind: str, count: int, *, first: int = 0, limit_seconds: float = 1e9) -> Tally:
    """Run cases of a kind in processes of their own; another one follows where one dies."""
    tally = Tally()
    number, last, started = first, first + count, time.monotonic()
    while number < last and time.monotonic() - started < limit_seconds:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            environment = os.environ | {
                "HALFMEG_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": "1", "TMPDIR": folder,
            }  # fmt: skip
            arguments = [kind, str(number), str(last), folder]
            with subprocess.Popen(
                [sys.executable, "-W", "ignore", str(HERE), "--worker", *arguments],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
            ) as process:  # fmt: skip
                assert process.stdout is not None
                selector = selectors.DefaultSelector()
                selector.register(process.stdout, selectors.EVENT_READ)
                begun = False
                while time.monotonic() - started < limit_seconds:
                    if not selector.select(HANG_SECONDS):
                        tally.hangs += 1
                        tally.told.append(f"{kind} {number}: hangs")
                        number += 1
                        break
                    line = process.stdout.readline()
                    if not line:
                        process.wait()
                        if number < last:
                            tally.crashes += 1
                            tally.cases += 1
                            how = f"ended with {process.returncode}"
                            tally.told.append(f"{kind} {number}: {how}")
                            number += 1
                            if not begun:
                                raise RuntimeError(f"{kind} cannot be prepared: {how}")
                        break
                    begun = True
                    found = json.loads(line)
                    if found["number"] < 0:
                        continue
                    tally.cases += 1
                    tally.outcomes[found["outcome"]] += 1
                    tally.peak_bytes = max(tally.peak_bytes, found["peak_bytes"])
                    if found["outcome"] == "traceback":
                        tally.tracebacks += 1
                    if found["told"]:
                        tally.told.append(f"{kind} {number}: {found['told']}")
                    number += 1
                process.kill()
    return tally


def work(kind: str, first: int, last: int, folder: Path) -> None:
    """Run cases one after another, a line of JSON for each."""
    sys.path.insert(0, str(HERE.parent))
    import torch
    from inputs import KINDS

    torch.set_num_threads(1)
    case = KINDS[kind](folder)
    print(json.dumps({"number": -1}), flush=True)
    before = peak_bytes()
    for number in range(first, last):
        told = ""
        try:
            outcome = case(random.Random(f"{kind} {number}"))
            told = "silent" if outcome == "silent" else ""
        except Exception as error:
            outcome = "traceback"
            place = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{type(error).__name__} {str(error)[:100]} at {place.name}:{place.lineno}"
        found = {"number": number, "outcome": outcome, "told": told}
        print(json.dumps(found | {"peak_bytes": peak_bytes() - before}), flush=True)


def peak_bytes() -> int:
    """Return this process's largest resident memory so far."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = [row for row in status if row.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def print_inputs(tallies: dict[str, Tally]) -> None:
    """Print the table of docs/reliability.md."""
    head = "kind", "cases", "refused", "as stored", "tracebacks", "crashes", "hangs", "silent", "MB"
    print("| " + " | ".join(head) + " |\n|---|" + "---|" * (len(head) - 1))
    for kind, tally in tallies.items():
        outcomes = tally.outcomes
        cells = (
            kind, tally.cases, outcomes["refused"], outcomes["right"], tally.tracebacks,
            tally.crashes, tally.hangs, outcomes["silent"], round(tally.peak_bytes / 1e6),
        )  # fmt: skip
        print("| " + " | ".join(f"{c:,}" if isinstance(c, int) else c for c in cells) + " |")
    for tally in tallies.values():
        for line in tally.told[:10]:
            print(f"  {line}")


def main() -> None:
    """Run what was asked for, and print the figures."""
    if sys.argv[1:2] == ["--worker"]:
        kind, first, last, folder = sys.argv[2:]
        work(kind, int(first), int(last), Path(folder))
        return
    sys.path.insert(0, str(HERE.parent))
    from inputs import KINDS
    from kills import KILLED, print_kills, run_kills, run_power_cuts

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=0, help="of all kinds together")
    parser.add_argument("--power-cuts", action="store_true", help="one after every operation")
    parser.add_argument("--every", type=int, default=1, help="of so many power cuts take one")
    parser.add_argument("--inputs", type=int, default=0, help="of all kinds together")
    parser.add_argument("--only", action="append", help="a kind; may be repeated")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    asked = parser.parse_args()
    kinds = [kind for kind in KINDS if kind in (asked.only or KINDS)]
    victims = [kind for kind in KILLED if kind in (asked.only or KILLED)]
    found = True
    if asked.kills:
        counts = {
            kind: asked.kills // len(victims) + (i < asked.kills % len(victims))
            for i, kind in enumerate(victims)
        }
        kills = {kind: run_kills(kind, n, first=asked.first) for kind, n in counts.items()}
        print_kills(kills)
        found &= not any(kill.faults for kill in kills.values())
    if asked.power_cuts:
        for kind in victims:
            if KILLED[kind].before is None:
                tally, count = run_power_cuts(kind, every=asked.every)
                print(f"power cuts, {kind}: {count} states of the disk, ", end="")
                print(f"{tally.losses} losses, {tally.mismatches} mismatches, ", end="")
                print(f"{tally.failures} failures")
                print("".join(f"  {line}\n" for line in tally.told[:10]), end="", flush=True)
                found &= not tally.faults
    if asked.inputs:
        each = {
            kind: asked.inputs // len(kinds) + (i < asked.inputs % len(kinds))
            for i, kind in enumerate(kinds)
        }
        tallies = {kind: run_inputs(kind, n, first=asked.first) for kind, n in each.items()}
        print_inputs(tallies)
        found &= not any(tally.faults for tally in tallies.values())
    sys.exit(0 if found else 1)


if __name__ == "__main__":
    main()
