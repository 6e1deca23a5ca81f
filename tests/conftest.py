"""Shared fixtures: real data, a cache of their own, small configs."""

from __future__ import annotations

import os

# One thread for each process: the tests run side by side. Set before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import contextlib
import dataclasses
import json
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from PIL import Image

from halfmeg.cli.main import main
from halfmeg.config import RunConfig
from halfmeg.data.check import DataReport
from halfmeg.data.dataset import DataSplits
from halfmeg.data.load import inspect_source, load_dataset
from halfmeg.networks.table import MODELS

ROOT = Path(__file__).parent.parent
TESTS = Path(__file__).parent
SHARED = ROOT.parent / "shared" / "data"

# A shell script ignores Ctrl-C for what it starts in the background, and processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium, which `make test` installs."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield started
        started.close()


def with_tests() -> dict[str, str]:
    """Return the environment of a process of its own that imports this file and the tests'."""
    folders = [ROOT, TESTS, *(path for path in TESTS.iterdir() if path.is_dir())]
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}


def of_all_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that the workers of a test session share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = of_all_workers(tmp_path_factory) / "cache"
    patch = pytest.MonkeyPatch()
    patch.setenv("HALFMEG_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True, scope="session")
def few_rounds() -> Iterator[None]:
    """Time the networks of a comparison in fewer rounds: most tests look at other things."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("halfmeg.evaluation.cost.ROUNDS", 2)
        yield


@pytest.fixture(autouse=True, scope="session")
def read_once() -> Iterator[None]:
    """Let torch's exporter read its 500 operators once for all exports: a second each time."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        read = staticmethod(cache(ONNXRegistry.from_torchlib))
        patch.setattr(ONNXRegistry, "from_torchlib", read)
        yield


@pytest.fixture(scope="session")
def digits() -> DataSplits:
    return load_dataset("digits")


COSTLY = (
    "resnet-linear", "resnet20", "resnet32", "resnet56", "densenet-bc-40", "mobilenetv2",
    "convmixer", "gated",
)  # fmt: skip

REPEATED = ("resnet", "resnet-linear", "resnet20", "resnet32", "resnet56", "record", "mlp")
"""Built by the code of another network of their family."""


def slow_where(costly: Iterable[str]) -> list[Any]:
    """All networks as parameters of a test, these among the slow ones."""
    return [pytest.param(m, marks=pytest.mark.slow) if m in costly else m for m in MODELS]


NETWORKS = slow_where(COSTLY)
"""All networks, for tests that take seconds for the costly ones."""

ONE_OF_A_FAMILY = slow_where(REPEATED)
"""All networks, for tests of what a family's code does: one of each is fast."""

FEW = slow_where((*COSTLY, *REPEATED, "resnet-shared", "logistic", "cct2"))
"""All networks, for tests that take seconds for any of them."""

LONGEST = (
    "test_train.py", "test_export.py", "test_cli.py", "test_study.py", "test_report.py",
    "test_images.py", "test_web.py", "test_c.py", "test_faults.py", "test_unfamiliar.py",
    "test_search.py", "test_own_shipping.py", "test_trace.py", "test_stack.py", "test_folded.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that the workers of `make test` end together."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Draw the same weights and images in a test whatever ran before it."""
    torch.manual_seed(0)


NUM_TEST = 31  # odd, so that two processes do not divide them


def first_digits(count: int) -> DataSplits:
    """The first `count` training images of the digits, and some of their test images."""
    digits = load_dataset("digits")
    train = digits.train.subset(torch.arange(count))
    test = digits.test.subset(torch.arange(NUM_TEST))
    return dataclasses.replace(digits, train=train, test=test, fingerprint=f"{count:016}")


@pytest.fixture(scope="session")
def few_digits() -> DataSplits:
    return first_digits(200)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same few digits as a user has images: PNG files in a folder for each class."""
    folder = tmp_path_factory.mktemp("pictures")
    data = first_digits(200)
    for part, images in (("train", data.train), ("test", data.test)):
        for index, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
            path = folder / part / str(int(label)) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    return folder


@pytest.fixture(scope="session")
def cifar_jpeg() -> Path:
    """The folder of CIFAR-10 (JPEG) as Parquet; a user's checkout does not have it."""
    return at_hand("cifar10-jpeg")


@pytest.fixture(scope="session")
def cifar_original() -> Path:
    """The folder of CIFAR-10's own pixels as Parquet; a user's checkout does not have it."""
    return at_hand("cifar10")


def at_hand(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is not at {(SHARED / name).relative_to(ROOT.parent)}")
    return SHARED / name


def inspect_data(source: str, **how: Any) -> DataReport:
    """Return what is wrong with a source."""
    return inspect_source(source, **how)[0]


def small_config(**changes: Any) -> RunConfig:
    """A run of a second or two on the digits."""
    settings: dict[str, Any] = {
        "model": "cnn",
        "epochs": 2,
        "batch_size": 256,
        "optimizer": "adamw",
        "lr": 0.003,
        "schedule": "onecycle",
    }
    return RunConfig(**settings | changes)


@pytest.fixture(scope="session")
def cnn_in_c(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with C of a network that learned next to nothing."""
    from halfmeg.shipping.export import export
    from halfmeg.training.fit import fit

    folder = of_all_workers(tmp_path_factory) / "cnn-in-c"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            data = first_digits(200)
            config = small_config(epochs=1, batch_size=50, val_fraction=0.1)
            run = fit(config, data, tmp_path_factory.mktemp("c") / "run")
            export(run, data, folder, allow_loss=True, targets=("c",))
    return folder


class Outcome:
    """What a command line left: exit code, both streams, and the output read as JSON."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def is_one_line(self, *parts: str) -> bool:
        """Whether the error is one line with these parts, and no traceback."""
        lines = self.err.strip().splitlines()
        return len(lines) == 1 and all(part in lines[0] for part in parts)


Cli = Callable[..., Outcome]


@contextlib.contextmanager
def full_after(count: int) -> Iterator[None]:
    """Let no file of this process grow above so many bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run the real command line in a folder of its own, in this process."""

    def run(*arguments: str, cwd: Path = tmp_path) -> Outcome:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["halfmeg", *arguments])
        capfd.readouterr()
        with warnings.catch_warnings(), pytest.raises(SystemExit) as stopped:
            main()
        code = stopped.value.code
        return Outcome(code if isinstance(code, int) else 1, *capfd.readouterr())

    return run


@pytest.fixture
def process(tmp_path: Path) -> Cli:
    """Run the real command line in a folder and a process of its own."""

    def run(*arguments: str, **options: Any) -> Outcome:
        command = [sys.executable, "-m", "halfmeg", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, **options
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run
