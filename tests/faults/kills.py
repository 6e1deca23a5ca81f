"""Kills: a process ends by SIGKILL at a random file operation or moment, and is started again."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from inputs import make_study, small_config, small_data
from powercut import record, states, write_state

WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.fsync")
HANG_SECONDS = 120.0


@dataclass
class KillTally:
    """What came of the kills of one kind.

    Attributes:
        losses: what was finished before and was not there any more, or was made again.
        mismatches: other bits at the end than without a kill.
        failures: what could not be started again.
        leftovers: what is still there after the same has been run once more.
    """

    kills: int = 0
    losses: int = 0
    mismatches: int = 0
    failures: int = 0
    leftovers: int = 0
    told: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """How many did not go on as if nothing had been."""
        return self.losses + self.mismatches + self.failures + self.leftovers


def train(folder: Path) -> None:
    from halfmeg.training.fit import train_run

    error = train_run(small_config(), small_data(), folder / "run")
    assert error is None, error


def study(folder: Path) -> None:
    from halfmeg.studies.study import run_study

    configs = [small_config(seed=seed, epochs=1) for seed in (0, 1)]
    failures = run_study(configs, small_data(), folder / "study").failures
    assert not failures, failures


def cache(folder: Path) -> None:
    from halfmeg.data.cache import load_cached

    os.environ["HALFMEG_CACHE"] = str(folder / "cache")
    data = small_data()
    assert load_cached("digits", "key", lambda: data).fingerprint == data.fingerprint


def export(folder: Path) -> None:
    from halfmeg.artifacts.bundle import Bundle, is_bundle
    from halfmeg.artifacts.run import Run
    from halfmeg.shipping.export import export as export_run

    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None
    if not is_bundle(folder / "bundle"):
        run = Run.open(folder / "study" / "cnn-seed-0")
        export_run(run, small_data(), folder / "bundle", allow_loss=True)
    Bundle.open(folder / "bundle").load_model()


def report(folder: Path) -> None:
    from halfmeg.studies.compare import compare_runs
    from halfmeg.studies.page import write_comparison
    from halfmeg.studies.study import open_runs

    runs = open_runs([folder / "study"])
    write_comparison(compare_runs(runs, costs_from=folder / "study"), folder / "page")


@dataclass(frozen=True)
class Killed:
    """What is killed, what has to be there before, and what must be the same at the end."""

    run: Callable[[Path], None]
    before: Callable[[Path], object] | None
    same: tuple[str, ...]


KILLED = {
    "training": Killed(train, None, ("run/weights.safetensors", "run/logits.npz")),
    "studies": Killed(study, None, ("study/*/weights.safetensors", "study/study.json")),
    "cache": Killed(cache, None, ("cache/key/*",)),
    "exports": Killed(export, make_study, ("bundle/model.safetensors",)),
    "reports": Killed(report, make_study, ("page/comparison.json", "page/comparison.md")),
}


def run_kills(kind: str, count: int, *, first: int = 0, limit_seconds: float = 1e9) -> KillTally:
    """Kill `count` times; each starts from nothing, is killed, and is run to its end."""
    killed, tally, started = KILLED[kind], KillTally(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        prepared = Path(name) / "prepared"
        prepared.mkdir()
        if killed.before:
            before = killed.before
            assert in_child(lambda: before(prepared)) == 0
        whole = Path(shutil.copytree(prepared, Path(name) / "whole"))
        operations, seconds = measure(lambda: killed.run(whole), Path(name) / "count")
        expected = contents(whole, killed.same)
        assert expected
        for number in range(first, first + count):
            if time.monotonic() - started > limit_seconds:
                break
            rng = random.Random(f"{kind} {number}")
            folder = Path(shutil.copytree(prepared, Path(name) / "work"))
            finished: dict[Path, int] = {}
            again = 1 + (rng.random() < 0.3)  # some are killed twice
            for _ in range(again):
                at = rng.randrange(1, operations + 1) if rng.random() < 0.7 else 0
                moment = rng.uniform(0, seconds)
                status = in_child(
                    lambda at=at: run_until(killed.run, folder, at), 0.0 if at else moment
                )
                tally.kills += status == -signal.SIGKILL
                if status not in (0, -signal.SIGKILL):
                    tally.failures += 1
                    tally.told.append(f"{kind} {number}: ended with {status}")
                for path, changed in finished.items():
                    if not path.exists() or path.stat().st_mtime_ns != changed:
                        tally.losses += 1
                        tally.told.append(f"{kind} {number}: {path.name} was lost or made again")
                finished = {p: p.stat().st_mtime_ns for p in folder.glob("study/*/result.json")}
            status = in_child(lambda: killed.run(folder))
            if status != 0:
                tally.failures += 1
                tally.told.append(f"{kind} {number}: goes on no more, {status}")
            elif contents(folder, killed.same) != expected:
                tally.mismatches += 1
                tally.told.append(f"{kind} {number}: other bits")
            for path, changed in finished.items():
                if not path.exists() or path.stat().st_mtime_ns != changed:
                    tally.losses += 1
                    tally.told.append(f"{kind} {number}: {path.name} was lost or made again")
            left = [p for p in folder.rglob("*") if p.name.endswith(".partial")]
            left += list(folder.glob("halfmeg-*"))
            if left and status == 0:
                tally.leftovers += 1
                tally.told.append(f"{kind} {number}: left {left[0].name}")
            shutil.rmtree(folder)
    return tally


def in_child(run: Callable[[], object], kill_after: float = 0.0) -> int:
    """Run in a forked process; return its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            if "FAULTS_SPEAK" not in os.environ:
                os.dup2(silence, 2)
            run()
            code = 0
        except BaseException:
            if "FAULTS_SPEAK" in os.environ:
                import traceback

                traceback.print_exc()
        finally:
            os._exit(code)
    started = time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        elapsed = time.monotonic() - started
        if (kill_after and elapsed > kill_after) or elapsed > HANG_SECONDS:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            return -signal.SIGKILL if kill_after else 999
        time.sleep(0.002)


def watch(folder: Path, notice: Callable[[], None]) -> None:
    """Call `notice` before each operation that changes files of a folder."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in WATCHED:
            return
        writes = event != "open" or (
            isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writes and isinstance(arguments[0], str | Path) and str(folder) in str(arguments[0]):
            notice()

    sys.addaudithook(hook)
    plain = os.fsync

    def fsync(descriptor: int) -> None:
        notice()
        plain(descriptor)

    os.fsync = fsync


def run_until(run: Callable[[Path], None], folder: Path, at: int) -> None:
    """Run, and end by SIGKILL before the file operation of this number; 0 for never."""
    left = at

    def notice() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    watch(folder, notice)
    run(folder)


def measure(run: Callable[[], None], path: Path) -> tuple[int, float]:
    """Return how many file operations a whole run has, and how long it takes."""

    def counted() -> None:
        count = 0

        def notice() -> None:
            nonlocal count
            count += 1

        watch(path.parent / "whole", notice)
        run()
        path.write_text(str(count))

    started = time.monotonic()
    assert in_child(counted) == 0
    return int(path.read_text()), time.monotonic() - started


def contents(folder: Path, patterns: tuple[str, ...]) -> dict[str, str]:
    """Return the checksums of files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
    }


def run_power_cuts(
    kind: str, *, every: int = 1, limit_seconds: float = 1e9
) -> tuple[KillTally, int]:
    """Cut the power after every operation of one run; return what came, and how many states."""
    killed, tally, started, count = KILLED[kind], KillTally(), time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder, place = Path(name) / "disk", Path(name) / "work"
        folder.mkdir()
        code = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import kills; "
            f"kills.{killed.run.__name__}(kills.Path({str(folder)!r}))"
        )
        operations = record(code, folder, Path(name) / "log")
        expected = contents(folder, killed.same)
        assert expected
        for number, what, state in list(states(operations))[::every]:
            if time.monotonic() - started > limit_seconds:
                break
            count += 1
            write_state(state, folder, place)
            if number == len(operations) - 1 and contents(place, killed.same) != expected:
                tally.losses += 1
                tally.told.append(f"{kind}: {what} at the end is not all there")
            status = in_child(lambda: killed.run(place))
            if status != 0:
                tally.failures += 1
                tally.told.append(f"{kind}: {what} after operation {number}: {status}")
            elif contents(place, killed.same) != expected:
                tally.mismatches += 1
                tally.told.append(f"{kind}: {what} after operation {number}: other bits")
            shutil.rmtree(place)
    return tally, count


def print_kills(tallies: dict[str, KillTally]) -> None:
    """Print the table of docs/reliability.md."""
    head = "killed", "kills", "losses", "mismatches", "failures", "left behind"
    print("| " + " | ".join(head) + " |\n|---|" + "---|" * (len(head) - 1))
    for kind, tally in tallies.items():
        cells = (
            tally.kills, tally.losses, tally.mismatches, tally.failures, tally.leftovers,
        )  # fmt: skip
        print(f"| {kind} | " + " | ".join(f"{cell:,}" for cell in cells) + " |")
    for tally in tallies.values():
        for line in tally.told[:10]:
            print(f"  {line}")
