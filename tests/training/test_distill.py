from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli, first_digits, small_config

from halfmeg.artifacts.bundle import Bundle
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.evaluation.evaluate import compute_logits
from halfmeg.networks.summary import count_macs
from halfmeg.networks.table import build_model
from halfmeg.shipping.export import export
from halfmeg.training.batches import Batch
from halfmeg.training.distill import Teacher
from halfmeg.training.fit import fit
from halfmeg.training.loss import build_loss

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> DataSplits:
    return first_digits(600)


@pytest.fixture(scope="module")
def teacher_folder(digits: DataSplits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that knows the digits well."""
    folder = tmp_path_factory.mktemp("teacher")
    run = fit(small_config(model="mlp", epochs=8, batch_size=32), digits, folder / "run")
    assert (run.result() or {})["test_accuracy"] > 0.85
    export(run, digits, folder / "bundle", allow_loss=True)
    return folder / "bundle"


def with_teacher(teacher: Path, **changes: Any) -> RunConfig:
    return small_config(teacher=str(teacher), precision="fp32", **changes)


def test_the_loss_is_that_of_the_paper(digits: DataSplits, teacher_folder: Path) -> None:
    """By hand, in probabilities: T² · mean of Σ p · log(p / q)."""
    config = with_teacher(teacher_folder, teacher_share=0.7, teacher_temperature=3.0)
    teacher = Teacher(config, digits, CPU)
    images, logits = torch.randn(8, 3, 32, 32), torch.randn(8, 10, requires_grad=True)
    p = (teacher.answers(images) / 3).softmax(1)
    q = (logits / 3).softmax(1)
    expected = 0.3 * 2.5 + 0.7 * 9 * (p * (p / q).log()).sum(1).mean()
    mixed = teacher.mix(torch.tensor(2.5), images, logits)
    assert mixed.item() == pytest.approx(expected.item(), rel=1e-4)
    mixed.backward()
    assert logits.grad is not None
    labels, taught = torch.arange(8), build_loss(config, digits, CPU)
    of_labels = torch.nn.functional.cross_entropy(logits, labels)
    assert torch.equal(
        taught(logits, Batch(images, labels, labels)), teacher.mix(of_labels, images, logits)
    )
    same = teacher.mix(torch.tensor(2.5), images, teacher.answers(images))
    assert same.item() == pytest.approx(0.3 * 2.5, abs=1e-5)


def test_the_teacher_sees_images_in_its_own_normalization(
    digits: DataSplits, teacher_folder: Path
) -> None:
    bundle = Bundle.open(teacher_folder)
    other = dataclasses.replace(digits, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    teacher = Teacher(with_teacher(teacher_folder), other, CPU)
    pixels = digits.test.images[:16].float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (other.mean, other.std))
    answers = teacher.answers((pixels - mean) / std)
    expected = compute_logits(
        bundle.load_model(), digits.test.images[:16], bundle.mean, bundle.std, precision="fp32"
    )
    assert torch.allclose(answers, expected, atol=1e-3)


def test_a_network_learns_from_its_teacher_alone(
    digits: DataSplits, teacher_folder: Path, tmp_path: Path
) -> None:
    """Labels drawn at random teach nothing; the teacher's answers to the same images do."""
    torch.manual_seed(0)
    drawn = torch.randint(0, 10, digits.train.labels.shape)
    wrong = dataclasses.replace(digits, train=dataclasses.replace(digits.train, labels=drawn))
    terms: dict[str, Any] = {"model": "mlp", "epochs": 4, "batch_size": 32}
    taught = fit(
        with_teacher(teacher_folder, **terms, teacher_share=1.0), wrong, tmp_path / "taught"
    )
    alone = fit(small_config(**terms), wrong, tmp_path / "alone")
    first, second = ((run.result() or {})["test_accuracy"] for run in (taught, alone))
    assert first > 0.6
    assert second < 0.3


def test_the_teachers_arithmetic_counts(teacher_folder: Path, tmp_path: Path) -> None:
    few = first_digits(100)
    run = fit(with_teacher(teacher_folder, epochs=2), few, tmp_path / "run")
    own, of_teacher = (count_macs(build_model(name)) for name in ("cnn", "mlp"))
    images = 2 * len(few.train) * 9 // 10
    assert (run.result() or {})["total_macs"] == images * (3 * own + of_teacher)


def test_mistakes_in_teacher(cli: Cli, teacher_folder: Path) -> None:
    terms = ("train", "common", "epochs=1")
    assert cli(*terms, "teacher=nowhere").is_one_line("nowhere is no bundle")
    assert cli(*terms, "teacher=record").is_one_line("teacher=record knows the classes airplane")
    named = f"teacher={teacher_folder}"
    small = cli("train", "record", "epochs=1", "small_size=24", named)
    assert small.is_one_line("mlp, which does not take images of small_size=24")
    first = cli(*terms, "model=sprint", "small_size=32", "first_size=20", named)
    assert first.is_one_line("which does not take images of first_size=20")
    larger = cli(*terms, "model=resnet20", "--image-size", "40", named)
    assert larger.is_one_line(
        "takes images of 3×32×32 (channels, height, width); the data has 3×40×40"
    )
    assert cli(*terms, named, "teacher_share=2").is_one_line("teacher_share=2.0 is out of range")
