from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from halfmeg.evaluation.explain import grad_cam
from halfmeg.networks.protocol import body_parameters, last_map, preparation, run_once
from halfmeg.networks.table import MODELS, build_model


class Plain(nn.Module):
    """A stranger's network: it says nothing, and a layer of it is called as a method would be."""

    def __init__(self) -> None:
        super().__init__()
        self.last_map = nn.Linear(8, 10)  # registered before the layers that run before it
        self.prepare = nn.Conv2d(3, 4, 3, 2, 1)
        self.body = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(True))
        self.unused = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.prepare(x))
        self.unused(x)  # the logits do not depend on it
        return self.last_map(x.mean((2, 3)))


class Perceptron(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))


def names(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    return {name for name, value in model.named_parameters() if any(value is p for p in parameters)}


def test_a_network_that_says_nothing_is_looked_at_while_it_runs() -> None:
    model = Plain()
    assert preparation(model) is None
    assert last_map(model, 16) is model.body
    head = {"last_map.weight", "last_map.bias"}
    assert names(model, body_parameters(model, 16)) == set(dict(model.named_parameters())) - head
    heat = grad_cam(model.eval(), model.body, torch.randn(2, 3, 16, 16), torch.tensor([1, 9]))
    assert heat.shape == (2, 16, 16)


def test_no_map_is_found_where_none_is_finer_than_three_by_three() -> None:
    assert last_map(Perceptron(), 16) is None
    assert body_parameters(Perceptron(), 16) == []
    for kernel, found in ((6, False), (4, True)):  # maps of 3×3 and of 4×4 positions
        layers = nn.Sequential(nn.Conv2d(3, 8, kernel, kernel), nn.Flatten())
        assert last_map(layers, 16 if found else 18) is (layers[0] if found else None)


@pytest.mark.parametrize("name", MODELS)
def test_the_last_map_of_ours(name: str) -> None:
    sides = {
        "cnn": 10, "resnet8": 8, "resnet20": 8, "resnet32": 8, "resnet56": 8, "densenet-bc-40": 8,
        "convmixer": 16, "gated": 16, "cct2": 8, "sprint": 7, "record": 8, "mlp": 0, "logistic": 0,
    }  # fmt: skip
    model = build_model(name)
    found, shapes = last_map(model, 32), []
    if sides.get(name) == 0:
        assert found is None
        return
    with torch.no_grad():
        run_once(model, 32, lambda layer, out: shapes.extend([out.shape] * (layer is found)),
                 nn.Module)  # fmt: skip
    side = sides.get(name, 4)
    assert shapes[-1][2:] == (side, side)


def test_networks_that_start_from_images_say_so() -> None:
    assert [name for name in MODELS if preparation(build_model(name))] == ["sprint", "record"]


def test_a_network_is_left_as_it_was() -> None:
    model = Plain().train()
    model.body[1].eval()  # a frozen layer stays so
    before = {name: value.clone() for name, value in model.state_dict().items()}
    last_map(model, 16)
    body_parameters(model, 16)
    assert [m.training for m in (model, model.body, model.body[1])] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
