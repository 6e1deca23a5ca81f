from __future__ import annotations

import pytest
import torch
from torch import nn

from halfmeg.evaluation.cost import measure_costs
from halfmeg.networks.table import build_model


def test_costs_are_measured_of_each_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfmeg.evaluation.cost.ROUNDS", 7)  # as where it is not tested
    models = {name: build_model(name) for name in ("cnn", "logistic")}
    costs = measure_costs(models, 32)
    assert costs["cnn"].params == 81_578
    assert costs["cnn"].macs == 14_359_552
    assert costs["cnn"].weights_bytes == 4 * 81_578
    assert costs["cnn"].latency_ms > costs["logistic"].latency_ms > 0
    assert costs["cnn"].images_per_second < costs["logistic"].images_per_second


class Sees(nn.Module):
    """Keeps in what type each of its products was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.types: list[torch.dtype] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        self.types.append(logits.dtype)
        return logits


def test_a_network_is_timed_in_the_type_that_its_runs_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfmeg.evaluation.precision.has_bf16_hardware", lambda device: True)
    fast, exact = Sees(), Sees()
    costs = measure_costs({"net": fast, "net precision=fp32": exact}, 32, {"net precision=fp32"})
    assert len(costs) == 2
    assert fast.types[:4] == [torch.bfloat16] * 4
    assert exact.types[:4] == [torch.float32] * 4


def test_networks_are_left_in_evaluation_mode_without_gradients() -> None:
    model = build_model("resnet8")
    measure_costs({"resnet8": model}, 32)
    assert torch.equal(model.stem_bn.running_mean, torch.zeros(16))
    assert all(parameter.grad is None for parameter in model.parameters())
