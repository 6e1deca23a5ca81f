from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torchsummary
from conftest import ONE_OF_A_FAMILY, Cli
from torch import nn

from halfmeg.networks.summary import count_macs, format_table, summarize
from halfmeg.networks.table import build_model

# name: (published parameters, published mult-adds, true multiply-accumulates)
COUNTS = {
    "cnn": (65_568, 14_375_552, 14_359_552),
    "resnet": (485_952, 19_170_400, 18_248_704),
    "resnet-shared": (485_952, 32_661_472, 31_880_192),
}

CNN_TABLE = """\
==========================================================================================
Layer (type:depth-idx)                   Output Shape              Param #
==========================================================================================
├─ModuleList: 1                          []                        --
|    └─Conv2d: 2-1                       [-1, 32, 30, 30]          896
|    └─Conv2d: 2-2                       [-1, 32, 28, 28]          9,248
|    └─ReLU: 2-3                         [-1, 32, 28, 28]          --
|    └─MaxPool2d: 2-4                    [-1, 32, 14, 14]          --
|    └─Conv2d: 2-5                       [-1, 64, 12, 12]          18,496
|    └─Conv2d: 2-6                       [-1, 64, 10, 10]          36,928
|    └─ReLU: 2-7                         [-1, 64, 10, 10]          --
|    └─MaxPool2d: 2-8                    [-1, 64, 5, 5]            --
|    └─MLP: 2-9                          [-1, 10]                  --
==========================================================================================
"""


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.replace("=" * 5, ""))


@pytest.mark.parametrize("name", ONE_OF_A_FAMILY)
def test_table_and_totals_equal_torch_summary(name: str) -> None:
    model = build_model(name)
    ours = summarize(model)
    theirs = torchsummary.summary(model, (3, 32, 32), verbose=0)
    assert ours.published_params == theirs.total_params
    assert ours.published_mult_adds == theirs.total_mult_adds
    table = str(theirs).split("Total params")[0].splitlines()
    # Theirs widens its first column by the names of rows it does not show; cells are compared.
    assert [cells(line) for line in format_table(ours).splitlines()[: len(table)]] == [
        cells(line) for line in table
    ]


@pytest.mark.parametrize(("name", "counts"), COUNTS.items())
def test_counts_of_the_design(name: str, counts: tuple[int, int, int]) -> None:
    summary = summarize(build_model(name))
    assert (summary.published_params, summary.published_mult_adds, summary.macs) == counts
    assert summary.body_params == summary.published_params


def test_the_published_cnn_table_to_the_letter() -> None:
    assert format_table(summarize(build_model("cnn"))).startswith(CNN_TABLE)


def test_the_published_shared_table_marks_repeated_uses() -> None:
    counted = summarize(build_model("resnet-shared"))
    rows = format_table(counted, published=True).splitlines()
    assert "|    └─ResBlock: 2-15                    [-1, 128, 4, 4]           (recursive)" in rows
    assert "|    |    └─ReLU: 3-36                   [-1, 128, 4, 4]           --" in rows
    assert "Total mult-adds (M): 32.66" in rows
    assert "All parameters: 491,082 (fits the budget of 500,000)" in rows


@pytest.mark.parametrize("name", ONE_OF_A_FAMILY)
def test_macs_equal_torchs_own_counter(name: str) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = build_model(name).eval()
    # its formulas lack the processor's attention operator, so that runs as two matrix products
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, 3, 32, 32))
    assert 2 * count_macs(model) == counter.get_total_flops()


def test_the_budget_counts_everything() -> None:
    assert not summarize(build_model("resnet")).within_budget
    frozen = build_model("resnet-linear")
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    summary = summarize(frozen)
    assert (summary.params, summary.trainable_params) == (491_082, 0)


def test_summarizing_leaves_the_network_as_it_was() -> None:
    model = build_model("resnet-shared").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    summarize(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("layer", "call"),
    [
        ("LSTM(48, 48, batch_first=True)", "self.layer(x)[0]"),
        ("GRU(48, 48, batch_first=True)", "self.layer(x)[0]"),
        ("MultiheadAttention(48, 4, batch_first=True)", "self.layer(x, x, x)[0]"),
        ("TransformerEncoderLayer(48, 4, 16, batch_first=True)", "self.layer(x)"),
    ],
)
def test_a_layer_that_gives_several_tensors_has_the_shape_of_the_first(
    layer: str, call: str, cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        f"        self.layer = nn.{layer}\n"
        "        self.head = nn.Linear(48, num_classes)\n"
        "    def forward(self, x):\n"
        "        x = x.reshape(len(x), 64, 48)\n"
        f"        return self.head({call}.mean(1))\n"
    )
    found = cli("summary", "net.py:Net", "--json")
    assert found.code == 0, found.err
    shapes = {row["name"]: row["output_shape"] for row in found.json["layers"]}
    assert shapes[f"{layer.partition('(')[0]}: 1-1"] == [-1, 64, 48]


class Fragile(nn.Module):
    """Has a layer that fails behind one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def test_nothing_is_left_in_a_network_that_fails() -> None:
    model = Fragile()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        summarize(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
