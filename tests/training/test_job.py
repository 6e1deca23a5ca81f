from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import small_config
from torch import Tensor, nn

from halfmeg.data.augment import normalize
from halfmeg.networks.table import MODELS, ModelEntry
from halfmeg.training.fit import fit
from halfmeg.training.job import PREPARATION_IMAGES, build_network


class Looking(nn.Module):
    """A network of no family of ours that starts from the images."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def prepare(self, images: Tensor) -> None:
        self.seen = images

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)))


class Failing(Looking):
    def prepare(self, images: Tensor) -> None:
        raise RuntimeError("no\nfilters")


def test_a_network_of_any_family_is_prepared_from_normalized_training_images(
    monkeypatch, few_digits
) -> None:
    monkeypatch.setitem(MODELS, "looking", ModelEntry(Looking, ""))
    train = torch.arange(50, 90)
    model = build_network(small_config(model="looking"), few_digits, train)
    mean, std = torch.tensor(few_digits.mean), torch.tensor(few_digits.std)
    assert torch.equal(model.seen, normalize(few_digits.train.images[train], mean, std))
    many = torch.zeros(PREPARATION_IMAGES + 1, dtype=torch.int64)
    assert len(build_network(small_config(model="looking"), few_digits, many).seen) == 5_000


def test_a_network_is_prepared_from_images_of_all_classes(monkeypatch, few_digits) -> None:
    """Folders are read class by class, so the first images are of the first classes alone."""
    monkeypatch.setitem(MODELS, "looking", ModelEntry(Looking, ""))
    monkeypatch.setattr("halfmeg.training.job.PREPARATION_IMAGES", 40)
    train = few_digits.train.labels.argsort(stable=True)
    model = build_network(small_config(model="looking"), few_digits, train)
    mean, std = torch.tensor(few_digits.mean), torch.tensor(few_digits.std)
    images = normalize(few_digits.train.images, mean, std)
    found = [int((images == seen).flatten(1).all(1).nonzero()[0, 0]) for seen in model.seen]
    assert len(found) == 40
    assert set(few_digits.train.labels[found].tolist()) == set(range(10))


def test_what_a_network_raises_while_it_is_prepared_is_one_line(monkeypatch, few_digits) -> None:
    monkeypatch.setitem(MODELS, "failing", ModelEntry(Failing, ""))
    with pytest.raises(ValueError, match=r"^Failing\.prepare failed: RuntimeError: no filters$"):
        build_network(small_config(model="failing"), few_digits, torch.arange(9))


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class FailingSilently(Looking):
    def prepare(self, images: Tensor) -> None:
        raise SilentError


def test_an_error_that_cannot_say_itself_is_one_line_too(monkeypatch, few_digits) -> None:
    monkeypatch.setitem(MODELS, "failing", ModelEntry(FailingSilently, ""))
    with pytest.raises(ValueError, match=r"^FailingSilently\.prepare failed: SilentError$"):
        build_network(small_config(model="failing"), few_digits, torch.arange(9))


def test_one_image_a_batch_is_refused_where_batchnorm_has_no_variance(few_digits, tmp_path) -> None:
    """Of maps of several positions it has."""
    with pytest.raises(ValueError, match=r"batch_size=1 leaves BatchNorm one image.*2 or more"):
        fit(small_config(model="resnet", batch_size=1, epochs=1), few_digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    few = replace(few_digits, train=few_digits.train.subset(torch.arange(20)))
    run = fit(small_config(model="resnet8", batch_size=1, epochs=1), few, tmp_path / "run")
    assert run.result() is not None


def test_the_first_weights_come_from_the_seed_alone(few_digits) -> None:
    first, again, other = (
        build_network(small_config(seed=seed), few_digits, torch.arange(9)).state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())
