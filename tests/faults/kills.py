"""Kills: a process ends by SIGKILL at a random file operation or moment, and is started again."""

from __future__ import annotations

import functools
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from inputs import make_study, small_config, small_data
from powercut import Disk, record, states, write_state
from tally import HANG_SECONDS, STEP_SECONDS, KillTally

from halfmeg.artifacts.bundle import BUNDLED, Bundle, is_bundle
from halfmeg.artifacts.hub import pull
from halfmeg.artifacts.run import Run
from halfmeg.data.cache import load_cached
from halfmeg.shipping.export import export as export_run
from halfmeg.studies.compare import compare_runs
from halfmeg.studies.page import write_comparison
from halfmeg.studies.study import open_runs, run_study
from halfmeg.training.fit import train_run

WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.fsync")


def train(folder: Path) -> None:
    error = train_run(small_config(), small_data(), folder / "run")
    assert error is None, error


def study(folder: Path) -> None:
    configs = [small_config(seed=seed, epochs=1) for seed in (0, 1)]
    failures = run_study(configs, small_data(), folder / "study").failures
    assert not failures, failures


def cache(folder: Path) -> None:
    os.environ["HALFMEG_CACHE"] = str(folder / "cache")
    data = small_data()
    assert load_cached("digits", "key", lambda: data).fingerprint == data.fingerprint


def export(folder: Path) -> None:
    tempfile.tempdir = str(folder)
    if not is_bundle(folder / "bundle"):
        run = Run.open(folder / "study" / "cnn-seed-0")
        export_run(run, small_data(), folder / "bundle", allow_loss=True)
    Bundle.open(folder / "bundle").load_model()


def report(folder: Path) -> None:
    runs = open_runs([folder / "study"])
    write_comparison(compare_runs(runs, costs_from=folder / "study"), folder / "page")


class Hub(SimpleHTTPRequestHandler):
    """A hub of one bundle, the shipped one."""

    def translate_path(self, path: str) -> str:
        return str(BUNDLED / path.rpartition("/")[2])

    def log_message(self, *arguments: object) -> None:
        pass


@functools.cache
def serve_hub() -> None:
    """Serve from this process; its children ask here too, as the address is read only once."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"


def pull_bundle(folder: Path) -> None:
    serve_hub()
    if not is_bundle(folder / "bundle"):
        pull("me/mine", folder / "bundle")
    Bundle.open(folder / "bundle").load_model()


@dataclass(frozen=True)
class Killed:
    """What is killed.

    Attributes:
        run: fills a folder, or goes on with one.
        before: makes what has to be there.
        same: the files that have to be the same at the end.
        share: of the kills of all kinds.
    """

    run: Callable[[Path], None]
    before: Callable[[Path], object] | None
    same: tuple[str, ...]
    share: int


KILLED = {
    "training": Killed(train, None, ("run/weights.safetensors", "run/logits.npz"), 30),
    "studies": Killed(study, None, ("study/*/weights.safetensors", "study/study.json"), 25),
    "cache": Killed(cache, None, ("cache/key/*",), 15),
    "exports": Killed(export, make_study, ("bundle/model.safetensors",), 5),
    "pulls": Killed(pull_bundle, None, ("bundle/*",), 15),
    "reports": Killed(report, make_study, ("page/comparison.json", "page/comparison.md"), 10),
}


def run_kills(kind: str, first: int, count: int, seconds: float = STEP_SECONDS) -> KillTally:
    """Kill processes; each case starts from nothing, is killed, and is run to its end.

    Args:
        kind: of `KILLED`.
        first: number of the first case.
        count: of the cases.
        seconds: no case begins later; the tally says how many did.
    """
    killed, tally, started = KILLED[kind], KillTally(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        prepared = prepare(killed, Path(name) / "prepared")
        whole = run_here(killed, prepared)
        counted = Path(shutil.copytree(prepared, Path(name) / "counted"))
        operations, whole_seconds = measure(lambda: killed.run(counted), Path(name) / "count")
        expected = contents(whole, killed.same)
        assert expected
        for number in range(first, first + count):
            if tally.cases and time.monotonic() - started > seconds:
                break
            folder = Path(shutil.copytree(prepared, Path(name) / "work"))
            case = Case(f"{kind} {number}", tally, folder)
            rng = random.Random(case.name)
            for _ in range(1 + (rng.random() < 0.3)):  # some are killed twice
                at = rng.randrange(1, operations + 1) if rng.random() < 0.7 else 0
                moment = rng.uniform(0, whole_seconds)
                status = in_child(
                    functools.partial(run_until, killed.run, folder, at), 0.0 if at else moment
                )
                tally.kills += status == -signal.SIGKILL
                if status not in (0, -signal.SIGKILL):
                    case.note("failures", f"ended with {status}")
                case.compare_finished()
            case.end(killed, expected)
            shutil.rmtree(folder)
            tally.cases += 1
    return tally


def prepare(killed: Killed, folder: Path) -> Path:
    """Make a folder with what has to be there before."""
    folder.mkdir()
    if killed.before:
        before = killed.before
        assert in_child(lambda: before(folder)) == 0
    return folder


def run_here(killed: Killed, prepared: Path) -> Path:
    """Run in a copy, in this process: so all is imported that its children will need."""
    whole = Path(shutil.copytree(prepared, prepared.with_name("whole")))
    killed.run(whole)
    tempfile.tempdir = None
    return whole


class Case:
    """One folder that something happened to."""

    def __init__(self, name: str, tally: KillTally, folder: Path) -> None:
        self.name = name
        self.tally = tally
        self.folder = folder
        self.finished: dict[Path, int] = {}

    def note(self, what: str, told: str) -> None:
        """Count a fault."""
        setattr(self.tally, what, getattr(self.tally, what) + 1)
        self.tally.told.append(f"{self.name}: {told}")

    def compare_finished(self) -> None:
        """Count runs that were finished before, and are lost or made again."""
        for path, changed in self.finished.items():
            if not path.exists() or path.stat().st_mtime_ns != changed:
                self.note("losses", f"{path.parent.name} was lost or made again")
            elif not (path.parent / "test_readings.jsonl").exists():
                self.note("losses", f"the reading of {path.parent.name} was lost")
        results = self.folder.glob("study/*/result.json")
        self.finished = {path: path.stat().st_mtime_ns for path in results}

    def end(self, killed: Killed, expected: dict[str, str]) -> None:
        """Run to the end, and count what is not as it must be then."""
        status = in_child(lambda: killed.run(self.folder))
        if status != 0:
            self.note("failures", f"goes on no more, {status}")
            return
        if contents(self.folder, killed.same) != expected:
            self.note("mismatches", "other bits")
        self.compare_finished()
        left = [path for path in self.folder.rglob("*") if path.name.endswith(".partial")]
        left += list(self.folder.glob("halfmeg-*"))
        if left:
            self.note("leftovers", f"left {left[0].name}")


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

    os.fsync = fsync  # type: ignore[assignment]


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

        watch(path.parent / "counted", notice)
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
    kind: str, first: int, *, every: int = 1, seconds: float = STEP_SECONDS
) -> KillTally:
    """Cut the power after every operation of one run.

    Args:
        kind: of `KILLED`.
        first: number of the first state of the disk.
        every: of so many states take one.
        seconds: no case begins later; the tally says how many did.
    """
    killed, tally, started = KILLED[kind], KillTally(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        # always the same name: it stands in files, and so in their checksums
        folder, place = prepare(killed, Path(name) / "disk"), Path(name) / "work"
        run_here(killed, folder)
        disk = Disk.of(folder)
        code = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import kills; "
            f"kills.{killed.run.__name__}(kills.Path({str(folder)!r}))"
        )
        operations = record(code, folder, Path(name) / "log")
        expected = contents(folder, killed.same)
        assert expected
        disks = list(states(disk, operations))[::every]
        assert disk.content() == Disk.of(folder).content(), "the log is not what happened"
        tally.states = len(disks)
        for number, what, state in disks[first:]:
            if tally.cases and time.monotonic() - started > seconds:
                break
            write_state(state, folder, place)
            case = Case(f"{kind}: {what} after operation {number}", tally, place)
            if number == len(operations) - 1 and contents(place, killed.same) != expected:
                case.note("losses", "not all is there at the end")
            case.compare_finished()
            case.end(killed, expected)
            shutil.rmtree(place)
            tally.cases += 1
            tally.kills += 1
    return tally
