"""Ray workers killed at random: one study on a cluster of this machine, until so many have died."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from inputs import small_config, small_data
from kills import contents
from tally import KillTally

from halfmeg.config import RunConfig
from halfmeg.studies.study import run_study
from halfmeg.studies.workers import StudyListener

SAME = ("*/weights.safetensors", "*/logits.npz")
KILLS_PER_RUN = 2


def run_worker_kills(kind: str, first: int, count: int) -> KillTally:
    """Kill `count` workers of one study, in a process that Ray may change as it likes."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(kill_workers, kind, first, count).result()


def kill_workers(kind: str, first: int, count: int) -> KillTally:
    """Train a study here, then on a cluster whose workers die; both have to end the same."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    tally = KillTally()
    with tempfile.TemporaryDirectory(prefix="f-") as name:  # short: Ray's sockets lie below
        folder, scratch = Path(name), Path(name) / "tmp"
        scratch.mkdir()
        os.environ["TMPDIR"] = str(scratch)
        configs = [small_config(seed=seed, epochs=30) for seed in range(count // KILLS_PER_RUN + 2)]
        started = time.monotonic()
        run_study(configs, small_data(), folder / "here")
        seconds = (time.monotonic() - started) / len(configs)

        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        killer = Killer(random.Random(f"{kind} {first}"), count, seconds, str(scratch))
        noted = Noted(folder / "far")
        try:
            killer.start()
            study = run_study(
                configs, small_data(), folder / "far", cluster=cluster.address, listener=noted
            )
        finally:
            killer.ended.set()
            killer.join()
            cluster.shutdown()  # type: ignore[no-untyped-call]
        tally.kills = tally.cases = killer.kills
        for run, error in study.failures.items():
            tally.failures += 1
            tally.told.append(f"{kind}, {run}: {error}")
        expected, found = contents(folder / "here", SAME), contents(folder / "far", SAME)
        for path in sorted(expected):
            if found.get(path) != expected[path] and path in found:
                tally.mismatches += 1
                tally.told.append(f"{kind}, {path}: other bits")
        for finished, changed in noted.finished.items():
            if not finished.exists() or finished.stat().st_mtime_ns != changed:
                tally.losses += 1
                tally.told.append(f"{kind}, {finished.parent.name}: was lost or made again")
        left = [*folder.glob("far/**/*.partial"), *scratch.glob("halfmeg-*")]
        if left:
            tally.leftovers += 1
            tally.told.append(f"{kind}: left {left[0].name}")
    return tally


class Noted(StudyListener):
    """Notes when each run was finished."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.finished: dict[Path, int] = {}

    def on_run(self, config: RunConfig, error: str | None, done: int, total: int) -> None:
        for path in self.out.glob("*/result.json"):
            self.finished.setdefault(path, path.stat().st_mtime_ns)


class Killer(threading.Thread):
    """Kills the worker of a run at a random moment of it, again and again."""

    def __init__(self, rng: random.Random, count: int, seconds: float, scratch: str) -> None:
        super().__init__(daemon=True)
        self.rng = rng
        self.count = count
        self.seconds = seconds
        self.scratch = scratch
        self.kills = 0
        self.ended = threading.Event()

    def run(self) -> None:
        """Kill until it is enough, or the study is over."""
        while self.kills < self.count and not self.ended.is_set():
            if not self.ended.wait(self.rng.uniform(0, self.seconds)):
                for process in self.rng.sample(workers := self.workers(), len(workers))[:1]:
                    os.kill(process, signal.SIGKILL)
                    self.kills += 1

    def workers(self) -> list[int]:
        """Return the processes of this cluster that train a run now."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                training = (process / "cmdline").read_bytes().startswith(b"ray::_train_on_node")
                if training and self.scratch.encode() in (process / "environ").read_bytes():
                    found.append(int(process.name))
            except OSError:
                continue
        return found
