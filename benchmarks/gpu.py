"""What half an hour of a GPU gives: trainings in the order in which they are worth it.

    python benchmarks/gpu.py DATA --out FOLDER [--runs NAME…] [--minutes M] [--bring TO]
    python benchmarks/gpu.py DATA --split PARTS

DATA is what `--data` takes: a folder with the Parquet files, say. Each run of `RUNS` is a process
of its own, as `halfmeg train` starts it, several at once (`--at-once`), since one small network
leaves a large card idle. They share it better under CUDA's MPS:

    nvidia-cuda-mps-control -d
    python benchmarks/gpu.py DATA --out FOLDER
    echo quit | nvidia-cuda-mps-control

When the minutes are over, or at Ctrl-C, SIGTERM or SIGHUP, each run stops with a checkpoint; the
same command goes on with them. FOLDER holds a run folder for each, what they print in `logs`, and
`gpu.json`, written anew after each change. `--bring` packs each run into another folder when it
ends or stops, to take home what may be lost with the machine: without checkpoints where it is done,
else with the newest. Unpacked beside `gpu.json`, into a FOLDER of the same name, they go on.

`--split` cuts Parquet files into parts of about 12 MiB in the same order, for a machine that
takes little at a time; a folder of all parts is DATA again, with the same fingerprint.

It runs on a processor too (`--device cpu`), where `--epochs` cuts it to size.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from arguments import open_data, plain_parser

from halfmeg.artifacts.environment import environment
from halfmeg.artifacts.weights import checkpoints_in
from halfmeg.files import make_folder, read_json, write_json

PART_BYTES = 12 * 2**20

SECONDS_TO_STOP = 30
"""From the request to write a checkpoint to the kill."""

STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)
"""Exit codes of a run that was asked to stop: with a checkpoint, or before it listened."""

TAUGHT = "record teacher=teacher epochs=240 small_size=0 label_smoothing=0 cutout=8"

RUNS = {
    # over the budget, since it only teaches
    "teacher": (
        "record model=whitened-residual(width=64,growth=64) epochs=45 small_size=0 "
        "label_smoothing=0"
    ),
    **{f"record-{seed}": f"record epochs=220 small_size=0 seed={seed}" for seed in (1, 2)},
    "gated": (
        "common model=gated teacher=teacher budget=97600 optimizer=adamw lr=0.02 weight_decay=0.01 "
        "batch_size=500 epochs=200 warmup=0.05 label_smoothing=0 ema=0.999 cutout=8 rotation=10 "
        "brightness=0.1 contrast=0.1 saturation=0.3 val_fraction=0.02"
    ),
    **{f"mobile-{seed}": f"{TAUGHT} model=whitened-mobile() seed={seed}" for seed in range(3)},
    **{f"resnet8-{seed}": f"{TAUGHT} model=resnet8 seed={seed}" for seed in range(3)},
    **{
        f"budget-{budget}": f"record budget={budget} epochs=100 small_size=24 small_share=0.6"
        for budget in (200_000, 350_000)
    },
}
"""Recipe and settings of each run, in the order in which they are worth it.

`teacher=NAME` names another run: its bundle is awaited.
"""


def teacher_of(name: str) -> str | None:
    """Return the run whose bundle a run learns from."""
    named = [text.partition("=")[2] for text in RUNS[name].split() if text.startswith("teacher=")]
    return named[0] if named else None


@dataclass
class Entry:
    """What `gpu.json` says of a run."""

    settings: str
    command: str = ""  # the last that was given for it
    state: str = "waiting"  # or running, done, stopped, failed
    seconds: float = 0.0
    test_accuracy: float | None = None


@dataclass
class Log:
    """What `gpu.json` holds."""

    machine: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, Entry] = field(default_factory=dict)


class Queue:
    """Runs that wait for their turn, and those under way."""

    def __init__(self, folder: Path, data: list[str], log: Log, home: Path | None) -> None:
        self.folder = folder
        self.data = data
        self.log = log
        self.home = home
        self.waiting: list[str] = []
        self.running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
        self.failed = False

    def add(self, name: str) -> None:
        """Let a run wait for its turn, unless it is done."""
        is_begun = (self.folder / name).exists()
        if self.command(name):
            self.waiting.append(name)
            is_trained = (self.folder / name / "result.json").exists()
            self.note(name, "stopped" if is_begun and not is_trained else "waiting")
        else:
            self.note(name, "done")
        if is_begun:
            self.pack(name)

    def bundle(self, teacher: str) -> Path:
        """Return where the bundle of a teacher is, or will be."""
        return self.folder / f"{teacher}-bundle"

    def output(self, name: str) -> Path:
        """Return the file of what a run prints."""
        return self.folder / "logs" / f"{name}.txt"

    def command(self, name: str) -> list[str]:
        """Return how to start a run, go on with it, or export a teacher; nothing if it is done."""
        run = self.folder / name
        if not run.exists():
            words = self.log.runs[name].settings.split()
            if teacher := teacher_of(name):
                words[words.index(f"teacher={teacher}")] = f"teacher={self.bundle(teacher)}"
            return ["train", *words, *self.data, "--out", str(run)]
        if not (run / "result.json").exists():
            return ["resume", str(run), *self.data]
        if name in map(teacher_of, RUNS) and not self.bundle(name).exists():
            return ["export", str(run), *self.data, "--out", str(self.bundle(name)), "--allow-loss"]
        return []

    def work(self, at_once: int, is_over: Callable[[], bool]) -> None:
        """Run all that can be run, until it is over; what then runs is stopped."""
        try:
            while not is_over():
                self.collect()
                for name in [*self.waiting]:
                    teacher = teacher_of(name)
                    is_ready = teacher is None or self.bundle(teacher).exists()
                    if is_ready and len(self.running) < at_once:
                        self.waiting.remove(name)
                        self.start(name)
                if not self.running:
                    for name in self.waiting:
                        print(f"{name}: its teacher is missing", file=sys.stderr, flush=True)
                    return
                time.sleep(0.2)
        finally:  # they have sessions of their own, and would outlive an error here
            self.stop()

    def start(self, name: str) -> None:
        """Start what a run needs next; what it prints is added to its file."""
        command = ["-m", "halfmeg", *self.command(name)]
        with self.output(name).open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,  # a Ctrl-C beside SIGTERM would leave it no checkpoint
            )
        self.running[name] = process, time.monotonic()
        self.log.runs[name].command = shlex.join(["python", *command])
        self.note(name, "running")

    def collect(self, stopped: tuple[int, ...] = STOPPED) -> None:
        """Note the runs that have ended; `stopped` are the exit codes of those that go on later."""
        for name, (process, started) in [*self.running.items()]:
            code = process.poll()
            if code is None:
                continue
            del self.running[name]
            self.log.runs[name].seconds += time.monotonic() - started
            if code in (0, *stopped) and not self.command(name):
                self.note(name, "done")
            elif code == 0:  # a teacher, to be exported
                self.waiting.insert(0, name)
                self.note(name, "waiting")
            elif code in stopped:
                self.note(name, "stopped")
            else:
                self.failed = True
                self.note(name, "failed")
                lines = self.output(name).read_text(errors="replace").split("\n")
                told = next((line for line in reversed(lines) if line.strip()), "it says nothing")
                print(f"{name} failed with exit code {code}: {told}", file=sys.stderr, flush=True)
            self.pack(name)

    def stop(self) -> None:
        """Let each run write a checkpoint and end; kill those that take too long."""
        processes = [process for process, _ in self.running.values()]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + SECONDS_TO_STOP
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.collect((*STOPPED, -signal.SIGKILL))

    def note(self, name: str, state: str) -> None:
        """Write down the state of a run."""
        entry = self.log.runs[name]
        entry.state = state
        result = self.folder / name / "result.json"
        if result.exists():
            entry.test_accuracy = json.loads(result.read_text())["test_accuracy"]
        print(f"{name}: {state}", flush=True)
        for folder in filter(None, (self.folder, self.home)):
            write_json(folder / "gpu.json", asdict(self.log))

    def pack(self, name: str) -> None:
        """Pack a run, and what it printed, to take it home."""
        if self.home is None:
            return
        checkpoints = checkpoints_in(self.folder / name)
        is_trained = (self.folder / name / "result.json").exists()
        dropped = {path.name for path in (checkpoints if is_trained else checkpoints[:-1])}

        def wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
            return None if Path(member.name).name in dropped else member

        part = self.home / f"{name}.part"  # the archive before it stays until this one is whole
        with tarfile.open(part, "w:gz") as archive:
            for path in (self.folder / name, self.output(name)):
                if path.exists():
                    archive.add(path, path.relative_to(self.folder), filter=wanted)
        part.replace(self.home / f"{name}.tar.gz")


def split(source: Path, parts: Path) -> None:
    """Cut the Parquet files of each part of a folder into files of about `PART_BYTES`, in order.

    Raises:
        ValueError: there is none.
    """
    kinds: dict[str, list[Path]] = {}
    for path in sorted(source.glob("*.parquet")):
        kinds.setdefault(path.name.split("-")[0], []).append(path)
    if not kinds:
        raise ValueError(f"{source} holds no Parquet files")
    parts.mkdir(parents=True)
    for kind, paths in kinds.items():
        table = pq.read_table(paths)
        number = -(-sum(path.stat().st_size for path in paths) // PART_BYTES)
        edges = [len(table) * i // number for i in range(number + 1)]
        for index in range(number):
            rows = table.slice(edges[index], edges[index + 1] - edges[index])
            part = parts / f"{kind}-{index:05d}-of-{number:05d}.parquet"
            pq.write_table(rows, part, compression="none")
            print(part)


def open_log(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Log:
    """Return what the folder's `gpu.json` says, the chosen runs added; one line if it is wrong."""
    path = args.out / "gpu.json"
    log = Log()
    if path.exists():
        try:
            log = read_json(path, Log)
        except ValueError as error:
            parser.error(str(error))
    elif args.out.is_file() or (args.out.exists() and any(args.out.iterdir())):
        parser.error(f"{args.out} holds something else; choose another --out")
    log.machine = environment()
    for name in args.runs:
        teacher = teacher_of(name)
        if teacher and teacher not in args.runs and not (args.out / f"{teacher}-bundle").exists():
            parser.error(f"{name} learns from another run; add {teacher} to --runs")
        settings = f"{RUNS[name]} device={args.device}"
        settings += f" epochs={args.epochs}" if args.epochs else ""
        entry = log.runs.setdefault(name, Entry(settings))
        if (args.out / name).exists() and entry.settings != settings:
            parser.error(f"{args.out} has {name} with other settings; choose another --out")
        entry.settings = settings
    return log


def main() -> None:
    """Do the runs for which there is time."""
    parser = plain_parser(__doc__)
    parser.add_argument("data", help="as --data of halfmeg train")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--out", type=Path, help="a folder; what it holds is gone on with")
    parser.add_argument("--split", type=Path, metavar="PARTS", help="cut DATA and do nothing else")
    parser.add_argument("--bring", type=Path, metavar="TO", help="a folder to pack the runs into")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME")
    parser.add_argument("--minutes", type=float, default=25.0, metavar="M")
    parser.add_argument("--at-once", type=int, default=6, metavar="N", help="the most processes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--epochs", type=int, help="of every run, instead of its own")
    args = parser.parse_args()
    if args.split:
        if args.split.exists():
            parser.error(f"{args.split} exists already and is not overwritten")
        try:
            split(Path(args.data), args.split)
        except ValueError as error:
            parser.error(str(error))
        return
    if args.out is None:
        parser.error("--out is missing: the folder to train into")
    for option in ("minutes", "at_once", "epochs"):
        value = getattr(args, option)
        if value is not None and not value > 0:
            parser.error(f"--{option.replace('_', '-')} {value} is out of range; allowed: above 0")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu runs on the processor")
    log = open_log(parser, args)
    open_data(parser, args)  # decoded once, before several runs want it
    make_folder(args.out / "logs")
    if args.bring:
        make_folder(args.bring)

    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: signals.append(number))
    end = time.monotonic() + 60 * args.minutes
    queue = Queue(args.out, ["--data", args.data, "--data-dir", args.data_dir], log, args.bring)
    for name in filter(args.runs.__contains__, RUNS):
        queue.add(name)
    queue.work(args.at_once, lambda: bool(signals) or time.monotonic() > end)
    print(args.out / "gpu.json")
    sys.exit(128 + signals[0] if signals else int(queue.failed))


if __name__ == "__main__":
    main()
