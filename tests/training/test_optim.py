from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import small_config
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, MultiStepLR, OneCycleLR

from halfmeg.training.job import schedule_of
from halfmeg.training.optim import (
    build_average,
    build_optimizer,
    build_schedule,
    cosine_factor,
    onecycle_factor,
    orthogonalize,
    step_factor,
)
from halfmeg.training.plan import Plan


def tiny_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def build(model: nn.Module, name: str, **changes: float) -> torch.optim.Optimizer:
    settings = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1} | changes
    return build_optimizer(model.parameters(), name, betas=(0.9, 0.95), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_fused_optimizers_equal_torchs_plain_ones(name: str) -> None:
    plain_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    options = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {"betas": (0.9, 0.95)}
    ours, theirs = tiny_model(), tiny_model()
    optimizer = build(ours, name)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    reference = plain_class[name](groups, lr=0.01, foreach=False, **options)
    for step in range(5):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        for model, stepper in ((ours, optimizer), (theirs, reference)):
            stepper.zero_grad()
            model(x).square().mean().backward()
            stepper.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "muon"])
def test_a_layer_may_be_passed_over_in_any_step(name: str) -> None:
    model = tiny_model()
    optimizer = build(model, name)
    for passed_over in (True, False, True):
        before = model[3].weight.clone()
        optimizer.zero_grad()
        hidden = model[:3](torch.randn(16, 4))
        (hidden if passed_over else model[3](hidden)).square().mean().backward()
        optimizer.step()
        assert torch.equal(model[3].weight, before) == passed_over


def test_weight_decay_spares_biases_and_normalization() -> None:
    model = tiny_model()
    decay, rest = build(model, "sgd").param_groups
    assert [p.ndim for p in decay["params"]] == [2, 2]
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert len(rest["params"]) == 3


@pytest.mark.parametrize("total", [37, 137, 2000])
@pytest.mark.parametrize("warmup", [0.1, 0.3])
def test_onecycle_equals_torch(total: int, warmup: float) -> None:
    optimizer = build(tiny_model(), "sgd", lr=0.5)
    reference = OneCycleLR(
        optimizer, 0.5, total, pct_start=warmup, anneal_strategy="linear", cycle_momentum=False
    )
    for step in range(total):
        expected = reference.get_last_lr()[0]
        assert 0.5 * onecycle_factor(step, total, warmup) == pytest.approx(expected, abs=1e-9)
        optimizer.step()
        if step + 1 < total:
            reference.step()


def test_step_equals_torch() -> None:
    optimizer = build(tiny_model(), "sgd", lr=1.0)
    reference = MultiStepLR(optimizer, [4, 7], gamma=0.1)
    for step in range(12):
        assert step_factor(step, [4, 7], 0.1) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


def test_exponential_equals_torch_also_where_epochs_differ_in_length() -> None:
    config = small_config(
        schedule="exponential", lr=0.5, lr_drop=0.9, epochs=4, batch_size=40, hard_share=0.5
    )
    plan = Plan.of(config, 180, 32)
    optimizer = build(tiny_model(), "sgd", lr=0.5)
    schedule = schedule_of(config, optimizer, plan)
    reference = ExponentialLR(build(tiny_model(), "sgd", lr=0.5), gamma=0.9)
    for epoch in plan.epochs:
        for step in range(epoch.first_step, epoch.first_step + len(epoch.batches)):
            schedule.set_step(step)
            assert optimizer.param_groups[0]["lr"] == pytest.approx(reference.get_last_lr()[0])
        reference.optimizer.step()
        reference.step()


def test_cosine_equals_torch_after_a_linear_warmup() -> None:
    optimizer = build(tiny_model(), "sgd", lr=1.0)
    reference = CosineAnnealingLR(optimizer, T_max=90)
    for step in range(10, 100):
        assert cosine_factor(step, 100, 10) == pytest.approx(reference.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        reference.step()
    rise = [cosine_factor(step, 100, 10) for step in range(11)]
    assert rise == sorted(rise)
    assert 0 < rise[0] < 0.1


def schedule_for(optimizer: torch.optim.Optimizer, name: str):
    return build_schedule(
        optimizer, name, total_steps=20, milestones=[10], drop=0.1, patience=2, warmup=0.3
    )  # type: ignore[arg-type]


def test_complex_weights_are_averaged_too() -> None:
    model = nn.Module()
    model.real = nn.Parameter(torch.zeros(2))
    model.filter = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    average = build_average(model, 0.5)
    for _ in range(4):
        with torch.no_grad():
            model.real.add_(1)
            model.filter.add_(1)
        average.update(model)
    averaged = average.evaluated(model)
    assert torch.allclose(averaged.filter.real, averaged.real)
    assert averaged.real[0] < model.real[0]


def test_a_constant_rate_is_constant() -> None:
    optimizer = build(tiny_model(), "adam", lr=0.1)
    schedule = schedule_for(optimizer, "constant")
    for step in range(20):
        schedule.set_step(step)
        assert {group["lr"] for group in optimizer.param_groups} == {0.1}


def test_plateau_drops_after_patience_and_resumes() -> None:
    optimizer = build(tiny_model(), "adam", lr=0.1)
    schedule = schedule_for(optimizer, "plateau")
    for loss in (1.0, 0.5, 0.6, 0.6):
        schedule.end_epoch(loss)
    assert optimizer.param_groups[0]["lr"] == 0.1
    stored = copy.deepcopy((schedule.state_dict(), optimizer.state_dict()))
    schedule.end_epoch(0.6)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)

    other = build(tiny_model(), "adam", lr=0.1)
    resumed = schedule_for(other, "plateau")
    resumed.load_state_dict(stored[0])
    other.load_state_dict(stored[1])
    resumed.end_epoch(0.6)
    assert other.param_groups[0]["lr"] == pytest.approx(0.01)


def test_the_average_follows_its_formula() -> None:
    model = tiny_model()
    average = build_average(model, 0.9)
    expected = None
    for step in range(30):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(math.sin(step))
        model[1].num_batches_tracked += 1
        average.update(model)
        weight = model[0].weight.detach().clone()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    averaged = average.evaluated(model)
    assert torch.allclose(averaged[0].weight, expected, atol=1e-6)  # type: ignore[index]
    assert averaged[1].num_batches_tracked == 30  # type: ignore[index]


def test_no_average_evaluates_the_network_itself() -> None:
    model = tiny_model()
    average = build_average(model, 0.0)
    average.update(model)
    assert average.evaluated(model) is model
    assert average.state_dict() == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_orthogonalize_brings_singular_values_near_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for shape in ((32, 216), (216, 32), (64, 64)):
        matrix = torch.randn(shape) * torch.logspace(-1, 1, shape[1])
        u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
        result = orthogonalize(matrix, dtype)
        assert result.dtype == torch.float32
        values = torch.linalg.svdvals(result)
        assert values.max() < 1.3
        assert values.median() > 0.6
        cosine = (result * (u @ vt)).sum() / result.norm() / (u @ vt).norm()
        assert cosine > 0.9  # the nearest orthogonal matrix has the same singular vectors


@pytest.mark.parametrize("head_lr", [1.0, 5.0])
def test_muon_moves_convolutions_by_lr_and_linear_layers_as_sgd(head_lr: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(16 * 4, 5, bias=False))
    model[0].to(memory_format=torch.channels_last)
    twin = copy.deepcopy(model)
    optimizer = build(model, "muon", lr=0.1, head_lr=head_lr)
    reference = build(twin, "sgd", lr=0.1 * head_lr)
    for step in range(3):
        x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        twin[0].load_state_dict(model[0].state_dict())
        before = model[0].weight.detach().clone()
        for network, stepper in ((model, optimizer), (twin, reference)):
            stepper.zero_grad()
            network(x).square().mean().backward()
            stepper.step()
        scaled = before * 16**0.5 / before.norm()
        update = (model[0].weight - scaled).flatten(1).detach()
        singular = torch.linalg.svdvals(update)
        assert singular.min() > 0.06
        assert singular.max() < 0.13
        assert torch.allclose(model[2].weight, twin[2].weight, atol=1e-6)


def test_muon_passes_over_weights_without_a_gradient() -> None:
    model = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)])
    before = copy.deepcopy(model)
    optimizer = build(model, "muon")
    model[0](torch.randn(2, 3, 4, 4)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before[0].weight)
    assert torch.equal(model[1].weight, before[1].weight)


def test_muon_continues_from_its_state() -> None:
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    torch.manual_seed(0)
    whole = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(16 * 4, 5))
    part = copy.deepcopy(whole)
    steps(whole, build(whole, "muon"), range(4))
    first = build(part, "muon")
    steps(part, first, range(2))
    second = build(part, "muon")
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(part, second, range(2, 4))
    for a, b in zip(whole.parameters(), part.parameters(), strict=True):
        assert torch.equal(a, b)
