"""Each network of the table against the numbers that its paper or its authors state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from conftest import ONE_OF_A_FAMILY
from torch import nn

from halfmeg.networks.macs import measure_macs
from halfmeg.networks.sandler2018 import IMAGENET_STRIDES, MobileNetV2
from halfmeg.networks.summary import count_params
from halfmeg.networks.table import MODELS, build_model
from halfmeg.networks.trockman2022 import ConvMixer

M = 1e6


@dataclass(frozen=True)
class Published:
    """What is stated, with half of its last digit as the tolerance; None: not stated."""

    build: Callable[[], nn.Module]
    params: float
    macs: float | None
    digit: float = 1.0  # of the parameters' last stated digit
    macs_digit: float = 0.1 * M
    image_size: int = 32
    buffers: bool = False  # whether the stated parameters hold BatchNorm's statistics too


PUBLISHED = {
    # the reference model of MLPerf Tiny (Banbury et al. 2021): 78,666 and 12.5 M
    "resnet8": Published(partial(build_model, "resnet8"), 78_666, 12.5 * M, buffers=True),
    # He et al. 2015, table 6: 0.27, 0.46 and 0.85 M. Exact counts and MACs as repeated since, for
    # instance by Lin et al. 2020 (HRank): 0.85 M and 125.49 M
    "resnet20": Published(partial(build_model, "resnet20"), 0.27 * M, 40.55 * M, 0.01 * M),
    "resnet32": Published(partial(build_model, "resnet32"), 0.46 * M, None, 0.01 * M),
    "resnet56": Published(
        partial(build_model, "resnet56"), 0.85 * M, 125.49 * M, 0.01 * M, 0.01 * M
    ),
    # as it is stated wherever it is compared with; its MACs are not
    "densenet-bc-40": Published(partial(build_model, "densenet-bc-40"), 0.18 * M, None, 0.01 * M),
    # Sandler et al. 2018, table 4: 3.4 M, as repeated since 3.5 M (3,504,872), and 300 M; at CIFAR
    # strides as chenyaofo/pytorch-cifar-models states: 2.24 M and 87.98 M, 0.70 M and 27.97 M
    "mobilenetv2 on ImageNet": Published(
        lambda: MobileNetV2(1.0, 1000, IMAGENET_STRIDES), 3.5 * M, 300 * M, 0.1 * M, 2 * M, 224
    ),
    "mobilenetv2": Published(lambda: MobileNetV2(1.0, 10), 2.24 * M, 87.98 * M, 0.01 * M, 0.01 * M),
    "mobilenetv2 half": Published(
        lambda: MobileNetV2(0.5, 10), 0.70 * M, 27.97 * M, 0.01 * M, 0.01 * M
    ),
    # the formula of Trockman and Kolter 2022: h(d(k² + h + 6) + 3p² + n + 3) + n, and 594,186
    "convmixer": Published(lambda: ConvMixer(256, 8, 5, 2, 10), 594_186, None),
    # github.com/xvel/cifar10-tiniest
    "gated": Published(partial(build_model, "gated", budget=97_531), 97_530, 43.9 * M),
    # Hassani et al. 2021
    "cct2": Published(partial(build_model, "cct2"), 0.28 * M, 0.04e9, 0.01 * M, 0.01e9),
    # by arithmetic: 3,072 pixels and a bias for each class
    "logistic": Published(partial(build_model, "logistic"), 30_730, 30_720, 1, 1),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name: str) -> None:
    published = PUBLISHED[name]
    model = published.build()
    statistics = sum(b.numel() for b in model.buffers() if b.is_floating_point())
    params = count_params(model) + (statistics if published.buffers else 0)
    assert abs(params - published.params) <= 0.5 * published.digit
    macs = measure_macs(model, published.image_size)
    assert not macs.unknown
    if published.macs is not None:
        assert abs(macs.count - published.macs) <= 0.5 * published.macs_digit


EXACT = {  # parameters and multiply-accumulates by the papers' layers, to hold them as they are
    "resnet8": (78_186, 12_501_632),
    "resnet20": (269_722, 40_551_040),
    "resnet32": (464_154, 68_862_592),
    "resnet56": (853_018, 125_485_696),
    "densenet-bc-40": (176_122, 72_365_352),
    "mobilenetv2": (489_210, 22_388_992),
    "convmixer": (493_938, 122_824_976),
    "gated": (473_718, 214_967_600),
    "cct2": (283_723, 35_341_568),
    "mlp": (491_882, 491_568),
    "logistic": (30_730, 30_720),
}


@pytest.mark.parametrize(("name", "counts"), EXACT.items())
def test_counts_are_exact(name: str, counts: tuple[int, int]) -> None:
    model = build_model(name)
    assert (count_params(model), measure_macs(model).count) == counts


def test_the_formula_of_convmixers_paper() -> None:
    h, d, k, p, n = 64, 3, 9, 4, 100
    model = ConvMixer(h, d, k, p, n)
    assert count_params(model) == h * (d * (k**2 + h + 6) + 3 * p**2 + n + 3) + n


@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if entry.scalable])
@pytest.mark.parametrize(
    "budget", [35_000, *(pytest.param(n, marks=pytest.mark.slow) for n in (100_000, 500_000))]
)
def test_a_budget_chooses_the_widest(name: str, budget: int) -> None:
    params = count_params(build_model(name, budget=budget))
    assert 0.65 * budget < params < budget


@pytest.mark.parametrize("name", ONE_OF_A_FAMILY)
@pytest.mark.parametrize(
    "shape",
    [pytest.param(s, marks=pytest.mark.slow) for s in ((3, 48, 48), (3, 24, 40))] + [(1, 40, 24)],
)
def test_other_sizes_channels_and_classes(name: str, shape: tuple[int, ...]) -> None:
    logits = build_model(name, 7, shape).eval()(torch.randn(2, *shape))
    assert logits.shape == (2, 7)


def test_layers_of_unknown_cost_are_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(96, 8, batch_first=True)
            self.head = nn.Linear(8, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            distances = torch.cdist(x.flatten(1), x.flatten(1))
            return self.head(self.rnn(x.flatten(2).view(len(x), 32, 96))[0][:, -1]) + distances

    macs = measure_macs(Odd())
    assert macs.count >= 80
    assert any("cdist" in name for name in macs.unknown)


def test_attention_is_counted_however_it_is_written() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(24, 2, batch_first=True)
            self.head = nn.Linear(24, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = x.flatten(2).view(len(x), 128, 24)
            return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))

    macs = measure_macs(Attends())
    assert not macs.unknown
    assert macs.count == 128 * 24 * 24 * 4 + 2 * 128 * 128 * 24 + 240
