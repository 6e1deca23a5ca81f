"""The LiteRT file: accuracy in LiteRT, and TFLite Micro's own interpreter on it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Cli
from test_export import unsettled
from test_finetune import smooth
from test_graph import MEAN, STD, float_logits
from torch import nn

from halfmeg.artifacts.bundle import Bundle
from halfmeg.data.dataset import Dataset
from halfmeg.shipping.litert import LitertFile, Micro, build_litert, run_micro

needs_litert = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("litert_torch", "ai_edge_quantizer", "tflite_micro")),
    reason="the extra litert is not installed",
)


class Ends(nn.Module):
    """Weights of more bytes than stand inside the file's tables, and a maximum at the end."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1), nn.SiLU(), nn.Conv2d(24, 32, 3, stride=2), nn.ReLU()
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).amax((2, 3)))  # type: ignore[no-any-return]


@needs_litert
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the converter's own
@pytest.mark.parametrize("name", ["ends", "record"])
def test_the_file_runs_in_both(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    model, size = (Ends().eval(), 16) if name == "ends" else (unsettled("record"), 32)
    images = torch.nn.functional.interpolate(smooth(80, 1).float(), size=size).to(torch.uint8)
    labels = float_logits(model, images).argmax(1)  # its own answers
    held_out = Dataset(images, labels, tuple("0123456789"))
    made = build_litert(model, MEAN, STD, size, images, held_out, 1.0, 1.0)
    assert made.loss < 0.25, "labels of an untrained network lie close together"
    assert made.micro is not None
    assert made.micro.agrees
    assert 10_000 < made.micro.arena_bytes < 200_000
    assert f"arena {made.micro.arena_bytes:,} bytes" in made.proof_text
    assert "Arena" not in capfd.readouterr().err
    with pytest.raises(ValueError, match=r"the LiteRT file loses -?[\d.]+ points"):
        build_litert(model, MEAN, STD, size, images, held_out, 1.0, -1.0)


def test_exactly_what_is_allowed_may_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.929 - 0.924 > 0.005
    runner = (lambda image: np.array([0, 1]), 1.0, 0)
    for name, result in (("require_litert", None), ("convert", b""), ("_litert", runner),
                         ("version", "2"), ("run_micro", (None, ""))):  # fmt: skip
        monkeypatch.setattr(f"halfmeg.shipping.litert.{name}", lambda *_, result=result: result)
    images = torch.zeros(1_000, 3, 1, 1, dtype=torch.uint8)
    held_out = Dataset(images, (torch.arange(1_000) < 924).long(), ("a", "b"))
    made = build_litert(nn.Flatten(), MEAN, STD, 1, images, held_out, 0.929, 0.005)
    assert made.loss == 0.005


def test_the_images_of_tflite_micro_are_spread_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def watched(content: bytes, inputs: np.ndarray, classes: np.ndarray) -> tuple[None, str]:
        given.extend(zip(inputs[:, 0, 0, 0].tolist(), classes.tolist(), strict=True))
        return None, "watched"

    runner = (lambda image: np.eye(10)[image.max()], 1 / 255, 0)
    for name, result in (("require_litert", None), ("convert", b""), ("_litert", runner),
                         ("version", "2")):  # fmt: skip
        monkeypatch.setattr(f"halfmeg.shipping.litert.{name}", lambda *_, result=result: result)
    monkeypatch.setattr("halfmeg.shipping.litert.run_micro", watched)
    labels = torch.arange(10).repeat_interleave(20)  # listed class by class
    images = labels.to(torch.uint8).view(-1, 1, 1, 1)
    held_out = Dataset(images, labels, tuple("0123456789"))
    build_litert(nn.Flatten(), (0.0,), (1.0,), (1, 1, 1), images, held_out, 1.0, 0.0)
    assert len(given) == 100
    assert set(given) == {(label, label) for label in range(10)}


@needs_litert
def test_a_file_that_is_none_says_why() -> None:
    found, why = run_micro(b"TFL3" * 30, np.zeros((1, 8, 8, 3), np.int8), np.zeros(1, np.int64))
    assert found is None
    assert why


def test_runs_on_tflite_micro_is_said_only_where_it_agrees() -> None:
    def text(micro: Micro | None, why: str = "") -> str:
        return LitertFile(b"", (0.02, 0), 0.004, 1_000, "LiteRT 2.3.0", micro, why).proof_text

    start = "loses 0.40 points on 1,000 images in LiteRT 2.3.0"
    assert text(Micro(100, 99, 88_144)) == (
        f"{start}; runs on TFLite Micro: LiteRT's class for 99 of 100 images, arena 88,144 bytes"
    )
    assert text(Micro(100, 11, 88_144)) == (
        f"{start}; does not run on TFLite Micro: LiteRT's class for 11 of 100 images"
    )
    assert text(None, "tflite-micro is not installed") == (
        f"{start}; not run on TFLite Micro: tflite-micro is not installed"
    )


@needs_litert
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_command(cli: Cli, tmp_path: Path, pictures: Path) -> None:
    terms = ["model=cnn", "epochs=2", "batch_size=50", "val_fraction=0.1"]
    assert cli("train", "common", *terms, "--data", str(pictures), "--out", "run").code == 0
    made = cli("export", "run", "--out", "made", "--allow-loss", "--target", "litert")
    assert made.code == 0, made.err
    bundle = Bundle.open(tmp_path / "made")
    assert bundle.described["litert"]["tflite_micro"]["agrees"] is True
    assert bundle.described["litert"]["proof_text"] in (bundle.folder / "README.md").read_text()
    assert (bundle.folder / "model.tflite").read_bytes()[4:8] == b"TFL3"
