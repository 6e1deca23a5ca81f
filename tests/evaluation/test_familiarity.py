"""Unfamiliar images: the score and its threshold, kept in run folder and bundle, said beside."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Cli, first_digits, small_config
from PIL import Image
from test_own import network, write

from halfmeg import fit
from halfmeg.artifacts.bundle import BUNDLED, Bundle, open_network
from halfmeg.artifacts.run import Run
from halfmeg.evaluation.familiarity import FEWEST, NUM_STATISTICS, Familiarity, statistics
from halfmeg.shipping.demo import UNFAMILIAR, _answerer
from halfmeg.shipping.export import export
from halfmeg.shipping.predict import predict

SMALL = network(
    "self.conv = nn.Conv2d(3, 8, 3, 2, 1)\nself.head = nn.Linear(8, num_classes)",
    "return self.head(F.relu(self.conv(x)).mean((2, 3)))",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("familiar")
    write(folder, SMALL)
    config = small_config(model=f"{folder}/net.py:Net", epochs=1, batch_size=100, val_fraction=0.2)
    config = replace(config, precision="fp32")  # as a bundle computes its threshold
    return fit(config, first_digits(400), folder / "run")


def noise(path: Path) -> Path:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(path)
    return path


def digit(path: Path, index: int = 0) -> Path:
    pixels = first_digits(400).train.images[index].permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path)
    return path


def test_logits_of_a_network_that_has_diverged_make_no_threshold() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (200, 3, 8, 8), dtype=torch.uint8, generator=generator)
    logits = 1e8 * torch.randn(200, 10, generator=generator)
    assert Familiarity.fit(images, torch.arange(100), images[100:], logits[100:]) is None


def test_the_threshold_keeps_95_percent_of_new_images() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3000, 3, 8, 8), dtype=torch.uint8, generator=generator)
    logits = torch.randn(3000, 10, generator=generator)
    found = Familiarity.fit(images, torch.arange(1000), images[1000:2000], logits[1000:2000])
    assert found is not None
    assert 0.95 <= found.kept <= 0.952
    called = found.unfamiliar(images[2000:], logits[2000:])
    assert 0.02 < sum(called) / 1000 < 0.08
    assert all(found.unfamiliar(images[:5] // 4, logits[:5])), "darker than any"
    assert Familiarity.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_too_few_held_out_images_set_none(digits) -> None:
    few = digits.train.images[: FEWEST - 1]
    assert Familiarity.fit(few, torch.arange(9), few, torch.zeros(len(few), 10)) is None
    enough = digits.train.images[:FEWEST]
    found = Familiarity.fit(enough, torch.arange(FEWEST), enough, torch.zeros(FEWEST, 10))
    assert found is not None
    assert found.kept == 1


def test_statistics_of_one_channel_are_those_of_gray() -> None:
    gray = torch.randint(0, 256, (4, 1, 9, 12), dtype=torch.uint8)
    found = statistics(gray)
    assert found.shape == (4, NUM_STATISTICS)
    assert torch.equal(found, statistics(gray.expand(-1, 3, -1, -1)))
    assert found.isfinite().all()


def test_a_run_knows_what_is_unfamiliar(run: Run, tmp_path: Path) -> None:
    result = json.loads((run.folder / "result.json").read_text())
    assert result["familiarity"]["n"] == 80
    bundle = open_network(run.folder)
    own, other = predict(bundle, [digit(tmp_path / "own.png"), noise(tmp_path / "other.png")])
    assert own.unfamiliar is False
    assert other.unfamiliar is True


def test_a_bundle_of_graphs_alone_knows_it_too(run: Run, tmp_path: Path, cli: Cli) -> None:
    exported, _ = export(run, first_digits(400), tmp_path / "bundle", allow_loss=True)
    bundle = Bundle.open(exported.folder)
    assert bundle.is_own
    stated = bundle.described["familiarity"]
    kept = open_network(run.folder).familiarity
    assert kept is not None
    assert stated["threshold"] == pytest.approx(kept.threshold, abs=1e-3)
    card = (bundle.folder / "README.md").read_text()
    assert f'"unfamiliar" beside the class where its score is above {kept.threshold:.2f}' in card
    noise(tmp_path / "other.png")
    digit(tmp_path / "own.png")
    paths = ("own.png", "other.png", "--bundle", "bundle")
    assert [row["unfamiliar"] for row in cli("predict", *paths, "--json").json] == [False, True]
    lines = cli("predict", *paths).out.splitlines()
    assert " (unfamiliar)  other.png" in lines[1]
    assert "unfamiliar" not in lines[0]
    rows = cli("predict", *paths, "--csv").out.splitlines()
    assert [row.rsplit(",", 1)[1] for row in rows] == ["unfamiliar", "no", "yes"]
    answer = _answerer(bundle)
    assert answer((tmp_path / "other.png").read_bytes())[1] == UNFAMILIAR
    assert answer((tmp_path / "own.png").read_bytes())[1] == ""


def test_a_run_that_held_nothing_out_says_nothing(tmp_path: Path, cli: Cli) -> None:
    run = fit(small_config(epochs=1, val_fraction=0.0), first_digits(200), tmp_path / "run")
    assert json.loads((run.folder / "result.json").read_text())["familiarity"] is None
    noise(tmp_path / "other.png")
    (row,) = cli("predict", "other.png", "--bundle", "run", "--json").json
    assert "unfamiliar" not in row


def test_an_older_bundle_opens_and_says_nothing(tmp_path: Path, cli: Cli) -> None:
    shutil.copytree(BUNDLED, tmp_path / "older")
    described = json.loads((BUNDLED / "model.json").read_text())
    assert described.pop("familiarity")["n"] == 1000
    (tmp_path / "older" / "model.json").write_text(json.dumps(described))
    noise(tmp_path / "other.png")
    answered = cli("predict", "other.png", "--bundle", "older")
    assert answered.code == 0, answered.err
    assert "unfamiliar" not in answered.out
    (row,) = cli("predict", "other.png", "--bundle", "older", "--json").json
    assert "unfamiliar" not in row
    rows = cli("predict", "other.png", "--bundle", "older", "--csv").out.splitlines()
    assert rows[1].endswith(",")


@pytest.mark.parametrize(
    ("key", "value"),
    [("threshold", "high"), ("energy_std", 0), ("centre", [0.0]), ("precision", [1e300] * 144)],
)
def test_a_damaged_threshold_is_one_line(tmp_path: Path, cli: Cli, key: str, value: object) -> None:
    shutil.copytree(BUNDLED, tmp_path / "bad")
    described = json.loads((BUNDLED / "model.json").read_text())
    described["familiarity"][key] = value
    (tmp_path / "bad" / "model.json").write_text(json.dumps(described))
    answered = cli("predict", str(noise(tmp_path / "other.png")), "--bundle", "bad")
    assert answered.code == 2
    assert answered.is_one_line("bad/model.json is damaged", key)


def test_the_installed_network_calls_noise_unfamiliar(tmp_path: Path) -> None:
    bundle = Bundle.open(BUNDLED)
    (found,) = predict(bundle, [noise(tmp_path / "noise.png")])
    assert found.unfamiliar is True
    (silent,) = predict(replace(bundle, familiarity=None), [tmp_path / "noise.png"])
    assert silent.unfamiliar is None
