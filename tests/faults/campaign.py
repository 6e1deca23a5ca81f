"""The fault campaign: kills, power cuts, mutated inputs, requests, and what came of them.

    python tests/faults/campaign.py --kills 500 --inputs 100000 --results faults.json

prints the figures of docs/reliability.md. What came is added to the results' file every few
minutes, and the same command goes on from there. Each kind of input runs in processes of its own,
so that a crash, a hang or an appetite for memory is seen from outside; a case that brought one of
them is printed with its number, and `--only KIND --first NUMBER --inputs 1` runs it again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tally import HANG_SECONDS, STEP_SECONDS, InputTally, Job, KillTally, Results

HERE = Path(__file__)


def run_inputs(kind: str, first: int, count: int, seconds: float = STEP_SECONDS) -> InputTally:
    """Run cases of a kind in processes of their own; another one follows where one dies.

    Args:
        kind: of `inputs.KINDS`.
        first: number of the first case.
        count: of the cases.
        seconds: no case begins later; the tally says how many did.
    """
    tally = InputTally()
    number, last, started = first, first + count, time.monotonic()

    def fault(what: str) -> None:
        nonlocal number
        tally.told.append(f"{kind} {number}: {what}")
        tally.cases += 1
        number += 1

    while number < last and time.monotonic() - started < seconds:
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
                while number == first or time.monotonic() - started < seconds:
                    if not selector.select(HANG_SECONDS):
                        tally.hangs += 1
                        fault("hangs")
                        break
                    line = process.stdout.readline()
                    if not line:
                        process.wait()
                        if number < last:
                            how = f"ended with {process.returncode}"
                            if not begun:
                                raise RuntimeError(f"{kind} cannot be prepared: {how}")
                            tally.crashes += 1
                            fault(how)
                        break
                    begun = True
                    found = json.loads(line)
                    if found["number"] < 0:
                        continue
                    tally.peak_bytes = max(tally.peak_bytes, found["peak_bytes"])
                    setattr(tally, found["outcome"], getattr(tally, found["outcome"]) + 1)
                    if found["told"]:
                        fault(found["told"])
                    else:
                        tally.cases += 1
                        number += 1
                process.kill()
    return tally


def work(kind: str, first: int, last: int, folder: Path) -> None:
    """Run cases one after another, a line of JSON for each."""
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
            outcome = "tracebacks"
            place = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{type(error).__name__} {str(error)[:100]} at {place.name}:{place.lineno}"
        found = {"number": number, "outcome": outcome, "told": told}
        print(json.dumps(found | {"peak_bytes": peak_bytes() - before}), flush=True)


def peak_bytes() -> int:
    """Return this process's largest resident memory so far."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = [row for row in status if row.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def main() -> None:
    """Run what was asked for, and print the figures."""
    if sys.argv[1:2] == ["--worker"]:
        kind, first, last, folder = sys.argv[2:]
        work(kind, int(first), int(last), Path(folder))
        return
    from inputs import SHARES
    from kills import KILLED, run_kills, run_power_cuts
    from page_requests import run_requests
    from picture_files import run_files
    from pictures import VARIANTS
    from workers import run_worker_kills

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=0, help="of all kinds together")
    parser.add_argument("--workers", type=int, default=0, help="kills of Ray workers, in one study")
    parser.add_argument("--power-cuts", action="store_true", help="one after every operation")
    parser.add_argument("--every", type=int, default=1, help="of so many power cuts take one")
    parser.add_argument("--inputs", type=int, default=0, help="of all kinds together")
    parser.add_argument("--files", type=int, default=0, help="pictures, of all formats together")
    parser.add_argument("--requests", type=int, default=0, help="to the page")
    parser.add_argument("--only", action="append", help="a kind; may be repeated")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--results", type=Path, help="JSON file to add to, and to go on from")
    asked = parser.parse_args()
    # in a shell's background it would be ignored, by the page too, which is ended by it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kinds = {kind: n for kind, n in SHARES.items() if kind in (asked.only or SHARES)}
    formats = {kind: 1 for kind in VARIANTS if kind in (asked.only or VARIANTS)}
    victims = {kind: k.share for kind, k in KILLED.items() if kind in (asked.only or KILLED)}

    def cut_power(kind: str, first: int, _: int) -> KillTally:
        return run_power_cuts(kind, first, every=asked.every)

    results = Results(asked.results)
    jobs = [Job("inputs", kind, n, run_inputs) for kind, n in divide(asked.inputs, kinds).items()]
    jobs += [Job("files", kind, n, run_files) for kind, n in divide(asked.files, formats).items()]
    jobs += [Job("kills", kind, n, run_kills) for kind, n in divide(asked.kills, victims).items()]
    jobs += [Job("power cuts", kind, asked.power_cuts * sys.maxsize, cut_power) for kind in victims]
    jobs += [Job("kills", "Ray workers", asked.workers, run_worker_kills)]
    jobs += [Job("requests", "the page", asked.requests, run_requests)]
    results.go_on(jobs, asked.first)
    results.print()
    sys.exit(1 if results.faults else 0)


def divide(count: int, shares: dict[str, int]) -> dict[str, int]:
    """Divide cases among kinds by their shares; the first ones get what is left over."""
    counts = {kind: count * share // sum(shares.values()) for kind, share in shares.items()}
    for kind in [*counts][: count - sum(counts.values())]:
        counts[kind] += 1
    return counts


if __name__ == "__main__":
    main()
