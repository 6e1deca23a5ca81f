"""Fine-tuning behind the oracle's own rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Cli
from test_graph import MEAN, STD, anything
from torch import Tensor, nn

from halfmeg.artifacts.bundle import Bundle
from halfmeg.networks.simplify import simplify
from halfmeg.networks.trace import trace
from halfmeg.shipping import finetune as module
from halfmeg.shipping.finetune import Finetuning, finetune
from halfmeg.shipping.integer import IntegerGraph, run
from halfmeg.shipping.operations import Convolution
from halfmeg.shipping.quantize import measure_ranges, quantize_graph


def smooth(count: int, seed: int) -> Tensor:
    """Images that tell classes apart: noise would be the same to every network."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return (255 * F.interpolate(coarse, size=16, mode="bicubic").clamp(0, 1)).to(torch.uint8)


def outlying() -> nn.Sequential:
    """A network that int8 hurts: one weight of each filter is so large that few steps are left."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
        nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    with torch.no_grad():
        for layer in (model[2], model[4]):
            assert isinstance(layer, nn.Conv2d)
            layer.weight[:, 0, 0, 0] *= 40
    return model.eval()


def test_it_brings_integers_closer_to_float() -> None:
    graph = simplify(trace(outlying(), 16), MEAN, STD)
    images, others = smooth(600, 1), smooth(300, 2)
    ranges = measure_ranges(graph, images[:100])
    expected = graph.logits(others.float())
    plain = quantize_graph(graph, ranges)
    distances = []

    def loss_of(integers: IntegerGraph) -> float:
        found = torch.from_numpy(run(integers, others.numpy()))
        distances.append((found - expected).square().mean().sqrt().item())
        return (found.argmax(1) != expected.argmax(1)).double().mean().item()

    best, told = finetune(graph, ranges, images, loss_of, max_epochs=2)
    assert 1 <= told.epochs <= 2
    assert told.losses[told.kept] == min(told.losses) < told.losses[0]
    assert min(distances[1:]) < 0.7 * distances[0]
    assert loss_of(best) == told.losses[told.kept]
    # scales and zero points of the maps stay; weights are other bytes
    assert [op.quantization for op in best.operations] == [
        op.quantization for op in plain.operations
    ]
    pairs = zip(best.operations, plain.operations, strict=True)
    assert any(
        not np.array_equal(a.weight, b.weight)
        for a, b in pairs
        if isinstance(a, Convolution) and isinstance(b, Convolution)
    )


def test_training_goes_forward_by_the_oracles_bits() -> None:
    graph = simplify(trace(anything(), 16), MEAN, STD)
    images = smooth(8, 1)
    trainer = module._Trainer(graph, measure_ranges(graph, images))
    for _ in range(2):
        logits = trainer._logits(images, trainer._operations())
        oracle = run(trainer.integers(), images.numpy())
        assert np.abs(logits.detach().numpy() - oracle).max() < 1e-6 * np.abs(oracle).max()
        trainer.learn(images, torch.zeros(8, 5))
    for parameter in (*trainer.weights.values(), *trainer.biases.values()):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_nothing_is_trained_where_nothing_is_lost() -> None:
    graph = simplify(trace(outlying(), 16), MEAN, STD)
    images = smooth(20, 1)
    _, told = finetune(graph, measure_ranges(graph, images), images, lambda integers: 0.002)
    assert (told.epochs, told.reached) == (0, True)
    assert str(told) == "int8 loses 0.20 points without fine-tuning; none was needed"


def test_what_is_left_is_said() -> None:
    told = Finetuning(3, (0.011, 0.004, 0.003, 0.005), 2, 1_000)
    assert str(told) == (
        "int8 loses 1.10 points without fine-tuning, and loses 0.30 points after 2 of 3 epochs on "
        "1,000 training images: more than 0.2 are left"
    )


def test_a_gain_is_not_called_a_loss() -> None:
    assert str(Finetuning(0, (-0.0069,), 0, 0)).startswith("int8 gains 0.69 points without")


@pytest.mark.slow
def test_the_command(
    cli: Cli, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ALLOWED_LOSS", -1.0)  # so that there is something to do
    terms = ["model=cnn", "epochs=2", "batch_size=50", "val_fraction=0.1"]
    assert cli("train", "common", *terms, "--data", str(pictures), "--out", "run").code == 0
    made = cli("export", "run", "--out", "made", "--allow-loss", "--finetune", "--target", "c")
    assert made.code == 0, made.err
    assert "of 3 epochs on 180 training images" in made.out
    bundle = Bundle.open(tmp_path / "made")
    told = bundle.described["finetuning"]
    assert (told["epochs"], len(told["losses"]), told["images"]) == (3, 4, 180)
    assert told["text"] in (bundle.folder / "README.md").read_text()
    assert bundle.described["proof"]["int8_exact"] is True
    assert bundle.described["proof"]["int8_loss"] == pytest.approx(min(told["losses"]))
