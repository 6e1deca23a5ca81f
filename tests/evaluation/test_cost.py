from __future__ import annotations

import pytest
import torch

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


def test_networks_are_left_in_evaluation_mode_without_gradients() -> None:
    model = build_model("resnet8")
    measure_costs({"resnet8": model}, 32)
    assert torch.equal(model.stem_bn.running_mean, torch.zeros(16))
    assert all(parameter.grad is None for parameter in model.parameters())
