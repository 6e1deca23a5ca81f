"""What a run takes over from the bundles that it learns from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import first_digits, small_config

from halfmeg.artifacts.bundle import Bundle, checksum
from halfmeg.artifacts.seen import UncheckedImagesWarning, ids_to_bytes, require_unseen
from halfmeg.artifacts.weights import weights_to_bytes
from halfmeg.data.dataset import build_splits
from halfmeg.data.load import load_dataset
from halfmeg.networks.table import build_model
from halfmeg.studies.caveats import caveats
from halfmeg.studies.compare import compare_runs
from halfmeg.studies.page import write_comparison
from halfmeg.training.fit import fit, resume
from halfmeg.training.job import fits

WEIGHTS = "model.safetensors"


def write_weights(folder: Path, content: bytes) -> None:
    """Replace the weights of a bundle, and their checksum."""
    described = json.loads((folder / "model.json").read_text())
    described["files"][WEIGHTS] = checksum(content)
    (folder / WEIGHTS).write_bytes(content)
    (folder / "model.json").write_text(json.dumps(described))


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A bundle whose network says that it was trained on the first 100 digits."""
    data, folder = first_digits(100), tmp_path / "mine"
    folder.mkdir()
    ids = ids_to_bytes(data.train.ids)
    described = {
        "format": 1, "model": "resnet8", "params": 0, "classes": data.classes, "image_size": 32,
        "mean": data.mean, "std": data.std, "temperature": 1.0,
        "accuracy": {"test_accuracy": 0.1, "test_n": 1, "data": "digits"},
        "data": {"name": "digits", "fingerprint": "0" * 16},
        "files": {"trained_on.u64": checksum(ids)},
    }  # fmt: skip
    (folder / "trained_on.u64").write_bytes(ids)
    (folder / "model.json").write_text(json.dumps(described))
    write_weights(folder, weights_to_bytes(build_model("resnet8", 10)))
    return folder


def test_what_was_seen_in_another_form_is_said_not_to_be_checked(
    mine: Path, tmp_path: Path
) -> None:
    """Of these test images the bundle has seen all, at 32 pixels."""
    larger = load_dataset("digits", image_size=40).train
    train, test = larger.subset(slice(400, 420)), larger.subset(slice(0, 10))
    data = build_splits("larger", train, test)
    config = small_config(model="resnet8", epochs=1, init=str(mine))
    assert fits(config, data)  # without a word
    told = "init=.* 3×32×32 .* by fit=crop, and those of larger are of 3×40×40 .* not be checked"
    with pytest.warns(UncheckedImagesWarning, match=told):
        run = fit(config, data, tmp_path / "run")
    assert not run.known.whole
    other = build_splits("other", train, larger.subset(slice(50, 60)))
    with pytest.warns(UncheckedImagesWarning, match="took over weights or answers from a network"):
        assert run.evaluate(other).left_out == 0


def test_another_fit_is_another_form_but_for_the_same_proportions(mine: Path) -> None:
    known = Bundle.open(mine).known
    data = replace(first_digits(60), options={"fit": "pad"}, fingerprint="other")
    with pytest.warns(UncheckedImagesWarning, match="fit=crop, and .* by fit=pad"):
        require_unseen(data, "init=mine", known)
    square = replace(data.test, sizes=torch.full((len(data.test), 2), 64))
    require_unseen(replace(data, test=square), "init=mine", known)
    seen = replace(data, test=data.train.subset(slice(0, 5)))
    with pytest.raises(ValueError, match="init=mine was trained on 5 of the 5 test images"):
        require_unseen(seen, "init=mine", known)
    with pytest.warns(UncheckedImagesWarning, match="init=mine does not say which"):
        require_unseen(data, "init=mine", replace(known, read_ids=lambda: None))


def test_what_a_bundle_does_not_say_is_not_known_later_either(mine: Path, tmp_path: Path) -> None:
    """An old bundle has no ids: what it was trained on may be what a run is tested on."""
    described = json.loads((mine / "model.json").read_text())
    del described["files"]["trained_on.u64"]
    (mine / "model.json").write_text(json.dumps(described))
    config = small_config(model="resnet8", epochs=1, init=str(mine))
    with pytest.warns(UncheckedImagesWarning, match="does not say which images"):
        run = fit(config, first_digits(40), tmp_path / "run")
    assert not run.known.whole
    with pytest.warns(UncheckedImagesWarning, match="or from one that does not say which"):
        run.evaluate(first_digits(50))
    found = compare_runs([run])
    told = "resnet8 learned from a network that may have seen some of the test images"
    assert told in " ".join(caveats(found))
    write_comparison(found, tmp_path / "page")
    for name in ("comparison.html", "comparison.md"):
        assert told in (tmp_path / "page" / name).read_text()


def test_what_was_trained_on_the_same_data_has_seen_what_the_run_knows(
    mine: Path, tmp_path: Path
) -> None:
    data = first_digits(40)
    described = json.loads((mine / "model.json").read_text())
    del described["files"]["trained_on.u64"]
    described["data"]["fingerprint"] = data.fingerprint
    (mine / "model.json").write_text(json.dumps(described))
    run = fit(small_config(model="resnet8", epochs=1, init=str(mine)), data, tmp_path / "run")
    assert run.known.whole
    assert "may have seen" not in " ".join(caveats(compare_runs([run])))


def test_a_run_goes_on_from_the_weights_that_it_began_with(mine: Path, tmp_path: Path) -> None:
    data = first_digits(20)
    config = small_config(model="resnet8", epochs=1, init=str(mine))
    run = fit(config, data, tmp_path / "run")
    (run.folder / "result.json").unlink()
    write_weights(mine, weights_to_bytes(build_model("resnet8", 10)))
    with pytest.raises(ValueError, match=r"init=.*mine holds other weights than .*run began with"):
        resume(run.folder, data)
    (run.folder / "inherited.json").unlink()  # as of older versions
    assert resume(run.folder, data).result()


def test_what_began_with_other_weights_of_one_name_is_not_compared(
    mine: Path, tmp_path: Path
) -> None:
    data = first_digits(100)
    config = small_config(model="resnet8", epochs=1, init=str(mine))
    first = fit(config, data, tmp_path / "first")
    again = fit(replace(config, seed=1), data, tmp_path / "again")
    assert len(compare_runs([first, again]).models[0].runs) == 2
    write_weights(mine, weights_to_bytes(build_model("resnet8", 10)))
    other = fit(replace(config, seed=1, lr=1e-4), data, tmp_path / "other")
    with pytest.raises(ValueError, match=r"other began with other weights of init=.*/mine than"):
        compare_runs([first, other])
