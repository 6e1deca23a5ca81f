from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

from halfmeg.evaluation.calibration import calibrate, fit_temperature, mean_calibration
from halfmeg.evaluation.evaluate import compute_logits, evaluate, score
from halfmeg.evaluation.precision import compute_dtype
from halfmeg.networks.table import build_model


def test_score_equals_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 7, generator=generator)
    labels = torch.randint(0, 7, (500,), generator=generator)
    result = score(logits, labels)
    predicted = logits.argmax(1)
    assert result.accuracy == accuracy_score(labels, predicted)
    assert np.array_equal(result.confusion, confusion_matrix(labels, predicted))
    probs = logits.double().softmax(1)
    assert result.loss == pytest.approx(log_loss(labels, probs, labels=range(7)))
    for index, value in enumerate(result.per_class):
        mine = labels == index
        assert value == pytest.approx(accuracy_score(labels[mine], predicted[mine]))
    assert result.n == 500


def test_a_class_without_images_has_no_accuracy() -> None:
    result = score(torch.eye(3)[[0, 1]], torch.tensor([0, 1]))
    assert result.per_class == (1.0, 1.0, None)


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        score(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="label 3 is outside the 3 classes"):
        score(torch.zeros(1, 3), torch.tensor([3]))


def test_logits_do_not_depend_on_batches_or_mode(digits) -> None:
    model = build_model("resnet-linear").train()
    images = digits.test.images
    logits = compute_logits(model, images, digits.mean, digits.std, precision="fp32")
    assert model.training
    alone = compute_logits(model, images[:3], digits.mean, digits.std, precision="fp32")
    assert logits.shape == (360, 10)
    assert torch.allclose(logits[:3], alone, atol=1e-4)


@pytest.mark.slow
def test_bf16_is_near_float32(digits) -> None:
    torch.manual_seed(0)
    model = build_model("cnn")
    wide, narrow = (
        compute_logits(model, digits.test.images, digits.mean, digits.std, precision=precision)
        for precision in ("fp32", "bf16")
    )
    assert narrow.dtype == torch.float32
    assert not torch.equal(wide, narrow)
    assert torch.allclose(wide, narrow, atol=0.05)


def test_auto_takes_bf16_only_with_hardware(monkeypatch) -> None:
    cpu = torch.device("cpu")
    for capable, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capable: {"avx512_bf16": c})
        assert compute_dtype("auto", cpu) == expected
    assert compute_dtype("fp32", cpu) == torch.float32
    assert compute_dtype("bf16", cpu) == torch.bfloat16


def test_evaluate_reads_a_data_set(digits) -> None:
    result = evaluate(build_model("cnn"), digits.test, digits.mean, digits.std)
    assert result.n == 360
    assert sum(map(sum, result.confusion)) == 360
    assert result.to_dict()["accuracy"] == result.accuracy


def test_calibration_by_hand() -> None:
    """Three answers at 0.5, 0.75 and 0.9 of two classes, of which the second is wrong."""
    probs = torch.tensor([[0.5 + 1e-9, 0.5], [0.75, 0.25], [0.9, 0.1]], dtype=torch.float64)
    found = calibrate(probs.log(), torch.tensor([0, 1, 0]))
    assert found.ece == pytest.approx((0.5 + 0.75 + 0.1) / 3, abs=1e-6)
    assert found.nll == pytest.approx(-(math.log(0.5) + math.log(0.25) + math.log(0.9)) / 3)
    assert sum(found.share) == pytest.approx(1)
    assert [value for value in found.accuracy if value is not None] == [1.0, 0.0, 1.0]


def test_the_temperature_mends_overconfidence() -> None:
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(4_000, 5, generator=generator)
    labels = torch.multinomial(honest.softmax(1), 1, generator=generator).flatten()
    temperature = fit_temperature(honest * 3, labels)
    assert temperature == pytest.approx(3, rel=0.1)
    before, after = calibrate(honest * 3, labels), calibrate(honest * 3 / temperature, labels)
    assert after.ece < 0.03 < 0.2 < before.ece
    assert after.nll < before.nll


def perfect_logits(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of ten classes, and labels drawn from what they say."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, 10, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize(("images", "expected"), [(100, 0.107), (1_000, 0.035)])
def test_the_error_of_a_perfect_network_is_all_by_chance(images: int, expected: float) -> None:
    """200 sets of labels that are drawn from the logits themselves."""
    found = [calibrate(*perfect_logits(images, seed)) for seed in range(200)]
    ece = sum(c.ece for c in found) / len(found)
    assert ece == pytest.approx(expected, rel=0.15)  # it was printed as miscalibration
    assert sum(c.ece_by_chance for c in found) / len(found) == pytest.approx(ece, rel=0.06)


def test_one_seed_too_sure_and_one_not_sure_enough_do_not_make_up_for_each_other() -> None:
    logits, labels = perfect_logits(20_000, 0)
    apart = [calibrate(scale * logits, labels) for scale in (2.0, 0.5)]
    together = mean_calibration(apart)
    assert together.ece == pytest.approx((apart[0].ece + apart[1].ece) / 2)
    assert sum(together.share) == pytest.approx(1)
    both = calibrate(torch.cat([2.0 * logits, 0.5 * logits]), torch.cat([labels, labels]))
    assert together.ece > 1.2 * both.ece  # what pooling hides
    for index, share in enumerate(both.share):
        assert together.share[index] == pytest.approx(share)
        if share:
            assert together.accuracy[index] == pytest.approx(both.accuracy[index])


@pytest.mark.parametrize("wrong", [0, 9, 10])
def test_below_ten_mistakes_no_temperature_is_fitted(wrong: int) -> None:
    """All right, it would run to its bound: confidence 1.000 on noise."""
    labels = torch.arange(144) % 10
    logits = 5.0 * torch.nn.functional.one_hot(labels, 10)
    labels[:wrong] = (labels[:wrong] + 1) % 10
    temperature = fit_temperature(logits, labels)
    assert (temperature is None) == (wrong < 10)
    if temperature is not None:
        assert temperature > 1
