from __future__ import annotations

import pytest
import torch
from conftest import small_config

from halfmeg.artifacts.run import Run
from halfmeg.training.batches import Batch
from halfmeg.training.distributed import Ranks
from halfmeg.training.plan import Plan
from halfmeg.training.state import Position
from halfmeg.training.stopping import TrainingDivergedError
from halfmeg.training.totals import Totals, report_step

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory, few_digits) -> Run:
    config = small_config(lr=0.5, epochs=3, batch_size=40)
    return Run.create(tmp_path_factory.mktemp("totals") / "run", config, few_digits)


def step(labels: list, right: list) -> tuple[Batch, torch.Tensor]:
    """A batch of three classes, and logits that are right where asked."""
    truth = torch.tensor(labels)
    answers = (truth + 1 - torch.tensor(right)) % 3
    logits = torch.nn.functional.one_hot(answers, 3).float()
    return Batch(torch.zeros(1), truth, truth), logits


def test_sums_go_on_from_the_position(run: Run) -> None:
    at = Position(epoch=1, step=2, loss_sum=10.0, num_right=5, num_seen=6, epoch_seconds=100.0)
    totals = Totals(run, [at], Ranks(), CPU)
    totals.add(*step([0, 1, 2], [1, 1, 0]), torch.tensor(2.0, requires_grad=True))
    assert (at.step, at.num_seen) == (3, 9)
    assert (at.loss_sum, at.num_right) == (10.0, 5)  # until it is read
    totals.read()
    assert (at.loss_sum, at.num_right) == (16.0, 7)
    assert 100 < at.epoch_seconds < 110
    report = report_step(Plan.of(run.config, 180, 32), at)
    assert (report.epoch, report.epochs, report.step, report.steps) == (2, 3, 3, 5)
    assert report.loss == pytest.approx(16 / 9)
    assert report.accuracy == pytest.approx(7 / 9)
    assert report.seconds_left == pytest.approx((360 - 9) / report.images_per_second)


def test_of_a_stack_each_network_has_its_own_and_all_must_diverge(run: Run) -> None:
    both = [Position(), Position()]
    totals = Totals(run, both, Ranks(), CPU)
    batch, logits = step([[0, 1], [2, 2]], [[1, 1], [0, 1]])
    totals.add(batch, logits, torch.tensor([1.0, float("nan")]))
    totals.read()
    assert [at.num_right for at in both] == [2, 1]
    assert [at.num_seen for at in both] == [2, 2]
    assert both[0].loss_sum == 2.0
    totals.add(batch, logits, torch.tensor([float("inf"), 1.0]))
    with pytest.raises(TrainingDivergedError, match=r"inf in epoch 1, step 2.* than 0\.5"):
        totals.read()
