"""TFLite Micro's arena: the estimate, against what its interpreter took."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec

import pytest
from conftest import ROOT, Cli
from torch import nn

from halfmeg.networks.memory import Memory, measure_memory
from halfmeg.networks.micro import micro_arena
from halfmeg.networks.table import IN_MICRO, MODELS, build_model
from halfmeg.networks.trace import trace

TOLERANCE = 0.05
MEASURED = json.loads((ROOT / "results" / "arena.json").read_text())
"""By `benchmarks/arena.py`, of the real interpreter."""


def estimate(name: str, image_size: int = 32) -> int:
    return micro_arena(trace(build_model(name, image_size=image_size), image_size)).total_bytes


def test_what_is_stored_for_the_table_is_what_the_interpreter_takes() -> None:
    rows = {row["network"]: row for row in MEASURED if row["image_size"] == 32}
    assert set(rows) == set(IN_MICRO) == set(MODELS)
    for name, row in rows.items():
        measured, stored = row["measured_bytes"], IN_MICRO[name]
        assert (measured is None) == (stored is None), name
        if measured is not None and stored is not None:
            assert abs(stored / measured - 1) < TOLERANCE, name


@pytest.mark.parametrize("name", ["cnn", "resnet8", "sprint"])
def test_the_estimate_is_what_is_stored(name: str) -> None:
    assert estimate(name) == IN_MICRO[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_each_estimate_is_what_is_stored(name: str) -> None:
    assert measure_memory(build_model(name)).tflite_micro_bytes == IN_MICRO[name]


@pytest.mark.parametrize("row", [row for row in MEASURED if row["image_size"] != 32],
                         ids=lambda row: row["network"])  # fmt: skip
def test_networks_that_nothing_was_fitted_to(row: dict[str, int], request: object) -> None:
    name, size = str(row["network"]), row["image_size"]
    assert abs(estimate(name, size) / row["measured_bytes"] - 1) < TOLERANCE


def test_an_operator_that_it_lacks_is_named() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.LazyLinear(2))
    network(next(iter([__import__("torch").zeros(1, 3, 8, 8)])))
    memory = measure_memory(network, 8)
    assert memory.tflite_micro_bytes is None
    assert memory.tflite_micro_missing == "gelu (1) has no known form in TFLite Micro"
    assert isinstance(memory, Memory)
    assert memory.ram_bytes > 0
