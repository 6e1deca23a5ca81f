"""The ExecuTorch programs: float32 and int8, run by ExecuTorch's own runtime."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import Cli
from test_export import unsettled
from test_finetune import smooth
from test_graph import MEAN, STD, float_logits
from torch import nn

from halfmeg.artifacts.bundle import Bundle
from halfmeg.data.dataset import Dataset
from halfmeg.shipping.executorch import ExecutorchFiles, build_executorch
from halfmeg.shipping.verify import LOGIT_TOLERANCE

needs_executorch = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("executorch", "torchao")),
    reason="the extra executorch is not installed",
)
ignore_its_warnings = pytest.mark.filterwarnings("ignore")


class Ends(nn.Module):
    """A mean and a maximum over all positions, and an operator that XNNPACK does not take."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.SiLU(), nn.Conv2d(24, 16, 3))
        self.gate = nn.Linear(16, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        gate = torch.erf(self.gate(x.mean((2, 3))))
        return self.head(x.amax((2, 3)) * gate)  # type: ignore[no-any-return]


class Tangled(nn.Module):
    """A network whose way depends on the image, which no exporter follows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)[:, :10]
        return flat if x.sum() > 0 else -flat


def answered_by_itself(model: nn.Module, size: int) -> tuple[Dataset, torch.Tensor]:
    images = nn.functional.interpolate(smooth(60, 1).float(), size=size).to(torch.uint8)
    logits = float_logits(model, images)
    return Dataset(images, logits.argmax(1), tuple("0123456789")), logits


def test_exactly_what_is_allowed_may_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.929 - 0.924 > 0.005
    labels = (torch.arange(1_000) < 924).long()
    worse = torch.tensor([[0.0, 1.0]]).repeat(1_000, 1)
    reference = worse.clone()
    reference[-5:] = torch.tensor([1.0, 0.0])
    logits = iter((reference, worse))
    for name, made in (("require_executorch", None), ("_export", None), ("_lower", (b"", ())),
                       ("_quantize", None), ("version", "1")):  # fmt: skip
        monkeypatch.setattr(f"halfmeg.shipping.executorch.{name}", lambda *_, made=made: made)
    monkeypatch.setattr("halfmeg.shipping.executorch.run_program", lambda *_: next(logits))
    images = torch.zeros(1_000, 3, 1, 1, dtype=torch.uint8)
    held_out = Dataset(images, labels, ("a", "b"))
    built = build_executorch(
        nn.Flatten(), MEAN, STD, 1, images, held_out, reference, allowed_loss=0.005
    )
    assert built.loss == 0.005


@needs_executorch
@pytest.mark.slow  # the exporter takes half a minute for any network
@ignore_its_warnings
@pytest.mark.parametrize("name", ["ends", "record"])
def test_both_programs_do_what_the_network_does(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model, size = (Ends().eval(), 16) if name == "ends" else (unsettled("record"), 32)
    held_out, logits = answered_by_itself(model, size)
    made = build_executorch(model, MEAN, STD, size, held_out.images, held_out, logits, 1.0)
    assert made.max_difference < LOGIT_TOLERANCE
    assert made.loss < 0.25, "labels of an untrained network lie close together"
    assert made.n == 60
    assert made.portable == (("aten::erf",) if name == "ends" else ())
    for content in (made.float32, made.int8):
        assert content[4:6] == b"ET"
    if name == "record":
        assert len(made.int8) < 530_000 < 1_900_000 < len(made.float32)
    assert capfd.readouterr() == ("", "")


@needs_executorch
@pytest.mark.slow
@ignore_its_warnings
def test_what_is_lost_or_other_is_refused() -> None:
    model = Ends().eval()
    held_out, logits = answered_by_itself(model, 16)
    terms = (model, MEAN, STD, 16, held_out.images, held_out)
    with pytest.raises(ValueError, match=r"int8 ExecuTorch program loses .* more than -100; with"):
        build_executorch(*terms, logits, -1.0)
    with pytest.raises(ValueError, match=r"does not do what the network does: logits differ by 1"):
        build_executorch(*terms, logits + 1, 1.0)


@needs_executorch
@ignore_its_warnings
def test_a_network_that_cannot_be_exported_gets_one_line() -> None:
    held_out, logits = answered_by_itself(Ends().eval(), 16)
    with pytest.raises(ValueError, match="executorch does not take the network: ") as caught:
        build_executorch(Tangled(), MEAN, STD, 16, held_out.images, held_out, logits, 1.0)
    assert "\n" not in str(caught.value)


def test_what_was_proved_is_said_in_a_line() -> None:
    made = ExecutorchFiles(b"", b"", 1.2e-5, 0.001, 1_000, (), "ExecuTorch 1.5.1")
    assert made.proof_text == (
        "float32 logits differ by at most 1.2e-05, int8 loses 0.10 points on 1,000 images in "
        "ExecuTorch 1.5.1"
    )
    made = ExecutorchFiles(b"", b"", 1.2e-5, 0.001, 1_000, ("aten::erf",), "ExecuTorch 1.5.1")
    assert made.proof_text.endswith("in ExecuTorch 1.5.1; aten::erf by portable kernels")


@needs_executorch
@pytest.mark.slow
@ignore_its_warnings
def test_the_command(cli: Cli, tmp_path: Path, pictures: Path) -> None:
    terms = ["model=cnn", "epochs=2", "batch_size=50", "val_fraction=0.1"]
    assert cli("train", "common", *terms, "--data", str(pictures), "--out", "run").code == 0
    made = cli("export", "run", "--out", "made", "--allow-loss", "--target", "executorch")
    assert made.code == 0, made.err
    bundle = Bundle.open(tmp_path / "made")
    proof = bundle.described["executorch"]["proof_text"]
    assert proof in made.out
    assert proof in (bundle.folder / "README.md").read_text()
    for name in ("model.pte", "model.int8.pte"):
        assert bundle.read_file(name)[4:6] == b"ET"
