from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import NUM_TEST, Cli, small_config
from torch import nn

from halfmeg.artifacts.run import Run
from halfmeg.data.dataset import DataSplits
from halfmeg.training.distributed import Ranks, join_ranks
from halfmeg.training.fit import fit
from halfmeg.training.job import check_shares

TERMS = [
    "train", "common", "epochs=2", "precision=fp32", "optimizer=sgd", "lr=0.02", "weight_decay=0",
    "val_fraction=0.1", "batch_size=51", "threads=1",
]  # fmt: skip


def torchrun(processes: int, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
        "--standalone", *arguments,
    ]  # fmt: skip
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_one_process_has_nothing_to_do() -> None:
    with join_ranks("cpu") as ranks:
        assert type(ranks) is Ranks
        batch = torch.arange(5)
        assert ranks.share(batch) is batch
        assert ranks.weigh(batch, 5) is batch
        assert ranks.num_own(5) == 5
        assert ranks.first(lambda: 3) == 3


def test_a_batch_that_leaves_a_process_one_image_is_refused(few_digits) -> None:
    class TwoRanks(Ranks):
        size = 2

    config = small_config(model="resnet", batch_size=8, val_fraction=0.0)
    few = replace(few_digits, train=few_digits.train.subset(slice(0, 19)))  # 8, 8 and 3
    check_shares(config, few, Ranks())
    check_shares(replace(config, sync_bn=True), few, TwoRanks())
    check_shares(replace(config, model="resnet20"), few, TwoRanks())  # over positions
    with pytest.raises(ValueError, match="a batch of 3 images leaves one of 2 processes fewer"):
        check_shares(config, few, TwoRanks())


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [["model=cnn", "hard_share=0.6"], ["model=resnet20", "sync_bn=true", "epochs=1", "lr=0.002"]],
    ids=["cnn", "synchronized BatchNorm"],
)
def test_two_processes_train_what_one_trains(
    cli: Cli, tmp_path: Path, pictures: Path, settings: list[str]
) -> None:
    """The same loss trace; every image is evaluated once, though two do not divide them.

    An existing folder is refused by all processes at once; a finished run is returned.
    """
    terms = [*TERMS, *settings, "--data", str(pictures), "--json"]
    assert cli(*terms, "--out", "one").code == 0
    done = torchrun(2, "-m", "halfmeg", *terms, "--out", "two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)  # only the first process prints
    one, two = (Run.open(tmp_path / name) for name in ("one", "two"))
    for mine, theirs in zip(one.read_metrics(), two.read_metrics(), strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)
    first, second = one.load_logits(), two.load_logits()
    assert torch.equal(first["test_labels"], second["test_labels"])
    assert torch.equal(first["val_labels"], second["val_labels"])
    assert len(second["test_logits"]) == NUM_TEST
    assert torch.allclose(first["test_logits"], second["test_logits"], atol=0.05)
    readings = (two.folder / "test_readings.jsonl").read_text().splitlines()
    assert len(readings) == 1, "only the first process writes"
    if find_spec("tensorboard") is not None:
        assert len(list((two.folder / "tensorboard").iterdir())) == 1
    assert json.loads((two.folder / "result.json").read_text())["test_n"] == NUM_TEST
    again = torchrun(2, "-m", "halfmeg", *terms, "--out", "two", cwd=tmp_path)
    assert again.returncode != 0
    assert again.stderr.count("halfmeg: two exists already") == 1
    assert cli("resume", "two").code == 0


RANKS = """
import copy
import torch
import torch.nn.functional as F
from torch import nn
from halfmeg.training.distributed import SynchronizedBatchNorm, TorchRanks, join_ranks
from halfmeg.training.selection import HardImages
from halfmeg.training.stopping import stop_signals

def check(ranks):
    rows = torch.arange(7 * 2).view(7, 2)
    assert torch.equal(ranks.gather(ranks.share(rows), 7), rows)
    assert torch.equal(ranks.gather(ranks.share(rows[:1]), 1), rows[:1])
    for count in (1, 7):
        parts = ranks.sum(torch.tensor(ranks.num_own(count)))
        assert int(parts) == count
        values = torch.arange(count, dtype=torch.float64)
        means = ranks.weigh(ranks.share(values).mean(), count)
        assert torch.allclose(ranks.sum(means) / ranks.size, values.mean())
    with stop_signals(ranks) as stop:
        assert stop.poll() == 0
        stop.requested = 15 * (ranks.rank == ranks.size - 1)  # a signal to one of them
        assert stop.poll() == stop.requested == 15
    hard = HardImages(8, torch.device("cpu"), ranks)
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(7) % 3
    hard.record(torch.arange(7), ranks.share(logits), ranks.share(labels))
    assert torch.allclose(hard.losses[:7], F.cross_entropy(logits, labels, reduction="none"))

    assert ranks.largest(ranks.rank * 5) == 5 * (ranks.size - 1)
    try:
        ranks.first(lambda: int("x"))
    except ValueError as error:
        assert "invalid literal" in str(error)
    else:
        raise AssertionError("the first rank's error reaches all")

    torch.manual_seed(0)
    x = (torch.randn(9, 4, 3, 3, dtype=torch.float64) * 3 + 5).float()
    weights = torch.randn(9, 4, 3, 3)
    whole = nn.BatchNorm2d(4)
    mine = x.clone().requires_grad_()
    (whole(mine) * weights).sum().backward()
    part = SynchronizedBatchNorm(4)
    theirs = ranks.share(x).clone().requires_grad_()
    y = part(theirs)
    (y * ranks.share(weights)).sum().backward()
    assert torch.allclose(theirs.grad, ranks.share(mine.grad), atol=1e-5)
    assert torch.allclose(ranks.sum(part.weight.grad.clone()), whole.weight.grad, rtol=1e-4)
    assert torch.allclose(part.running_var, whole.running_var, rtol=1e-5)
    assert torch.allclose(part.running_mean, whole.running_mean, rtol=1e-5)

    for settings in ({"affine": False}, {"momentum": None}, {"track_running_stats": False}):
        whole = nn.BatchNorm2d(4, **settings)
        model = nn.Sequential(copy.deepcopy(whole), nn.Conv2d(4, 2, 1))
        wrapped = ranks.wrap(model, synchronize_batchnorm=True)
        assert list(model[0].state_dict()) == list(whole.state_dict())
        for _ in range(2):
            found, expected = model[0](ranks.share(x)), ranks.share(whole(x))
            assert torch.allclose(found, expected, atol=1e-5)
        for a, b in zip(model[0].buffers(), whole.buffers()):
            assert torch.allclose(a, b, rtol=1e-5)

    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    names = list(model.state_dict())
    wrapped = ranks.wrap(model, synchronize_batchnorm=True)
    assert isinstance(model[1], SynchronizedBatchNorm) and list(model.state_dict()) == names
    inputs = torch.randn(6, 3)
    (wrapped(ranks.share(inputs)).square().sum() * ranks.size / 6).backward()
    alone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    alone.load_state_dict({k: v for k, v in model.state_dict().items()})
    (alone(inputs).square().sum() / 6).backward()
    for ours, reference in zip(model.parameters(), alone.parameters()):
        assert torch.allclose(ours.grad, reference.grad, atol=1e-5)

    model = Passing()
    wrapped = ranks.wrap(model, synchronize_batchnorm=False, passes_over=True)
    for model.whole in (False, True, False):
        model.zero_grad()
        wrapped(ranks.share(inputs)).sum().backward()
        assert model.first.weight.grad is not None
        assert (model.second.weight.grad is not None) == model.whole

class Passing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.second(self.first(x)) if self.whole else self.first(x)

with join_ranks("cpu") as ranks:
    check(ranks)
"""


def test_one_rank_of_a_group_acts_as_one(tmp_path: Path) -> None:
    """What several do, which takes processes that import torch; here the group has one."""
    where = f"file://{tmp_path / 'group'}"
    dist.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    try:
        with torch.random.fork_rng():
            exec(RANKS, {})
    finally:
        gc.collect()  # as in `join_ranks`
        dist.destroy_process_group()


class Shifted(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class Own(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        super().__init__(Shifted(3), nn.Flatten(), nn.Linear(3072, num_classes))


def test_a_batchnorm_of_ones_own_is_not_replaced(tmp_path: Path, few_digits: DataSplits) -> None:
    with pytest.raises(ValueError, match=r"^sync_bn=true cannot stand in for Shifted"):
        fit(small_config(sync_bn=True), few_digits, tmp_path / "run", model=Own)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_ranks_act_as_one(tmp_path: Path, processes: int) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    done = torchrun(processes, "ranks.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


HANDED_OVER = """
import sys
from torch import nn
from halfmeg import build_recipe, fit, load_dataset, resume

def linear(num_classes):
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, num_classes))

data, own = load_dataset("digits"), lambda num_classes: linear(num_classes)
terms = build_recipe("common").override(["epochs=1", "val_fraction=0"])
run = fit(terms, data, "run", model=own)
assert resume("run", data, model=own).result() == run.result()
"""


@pytest.mark.slow
def test_each_of_several_processes_has_the_object_that_it_was_handed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(HANDED_OVER)
    done = torchrun(2, "mine.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
