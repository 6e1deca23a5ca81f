"""Networks by other people, named by FILE.py:NAME and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Cli

from halfmeg.networks.table import build_model
from halfmeg.networks.trial import try_out

FILE = Path(__file__).with_name("strangers.py")

NAMES = [
    "LeNet5", "Inception", "squeezenet", "PreActResNet", "ResNeXt", "ShuffleNetV2", "EfficientNet",
    "ViT", "ConvNeXt", "MlpMixer",
]  # fmt: skip


SOME = ("LeNet5", "Inception", "ShuffleNetV2", "ConvNeXt")
"""A plain one, branches, groups and shuffled channels, LayerNorm."""


@pytest.mark.parametrize(
    "name", [n if n in SOME else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_each_is_taken_as_it_is(name: str) -> None:
    try_out(f"{FILE}:{name}", 7, 32, 500_000)
    assert sum(p.numel() for p in build_model(f"{FILE}:{name}", 7).parameters()) < 500_000


@pytest.mark.slow
def test_all_train_compare_and_export(cli: Cli, tmp_path: Path, pictures: Path) -> None:
    places = [f"{FILE}:{name}" for name in NAMES]
    done = cli(
        "compare", *places, "resnet8", "epochs=2", "batch_size=32", "val_fraction=0.2", "--seeds",
        "1", "--data", str(pictures), "--out", "study", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert len(done.json["models"]) == len(NAMES) + 1
    assert not done.json["failures"]
    assert all(model["robustness"] and model["cost"] for model in done.json["models"])
    for name in NAMES:
        exported = cli(
            "export", f"study/strangers-{name}-seed-0", "--out", name, "--allow-loss", "--json"
        )
        assert exported.code == 0, exported.err
        assert exported.json["proof"]["max_difference"] < 1e-2
        predicted = cli("predict", str(pictures / "test"), "--bundle", name, "--json")
        assert predicted.code == 0, predicted.err
    assert json.loads((tmp_path / "study/strangers-ViT-seed-0/source.json").read_text())
