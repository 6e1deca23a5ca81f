"""TFLite Micro's arena: the estimate, against what its interpreter took."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
from conftest import ROOT, Cli
from torch import nn

from halfmeg.networks.memory import measure_memory
from halfmeg.networks.micro import micro_arena
from halfmeg.networks.table import MODELS, build_model
from halfmeg.networks.trace import trace

TOLERANCE = 0.05
MEASURED = json.loads((ROOT / "results" / "arena.json").read_text())
"""By `benchmarks/arena.py`, of the real interpreter."""


def estimate(name: str, image_size: int = 32) -> int:
    return micro_arena(trace(build_model(name, image_size=image_size), image_size)).total_bytes


def test_what_is_stored_for_the_table_is_what_the_interpreter_takes() -> None:
    rows = {row["network"]: row for row in MEASURED if row["image_size"] == 32}
    assert set(rows) == set(MODELS)
    for name, row in rows.items():
        measured, stored = row["measured_bytes"], MODELS[name].tflite_micro_bytes
        assert (measured is None) == (stored is None), name
        if measured is not None and stored is not None:
            assert abs(stored / measured - 1) < TOLERANCE, name


@pytest.mark.parametrize("name", ["cnn", "resnet8", "sprint"])
def test_the_estimate_is_what_is_stored(name: str) -> None:
    assert estimate(name) == MODELS[name].tflite_micro_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_each_estimate_is_what_is_stored(name: str) -> None:
    assert measure_memory(build_model(name)).tflite_micro_bytes == MODELS[name].tflite_micro_bytes


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=() if "residual" in row["network"] else pytest.mark.slow)
        for row in MEASURED
        if row["image_size"] != 32
    ],
    ids=lambda row: row["network"],
)
def test_networks_that_nothing_was_fitted_to(row: dict[str, Any]) -> None:
    estimated = estimate(row["network"], row["image_size"])
    assert abs(estimated / row["measured_bytes"] - 1) < TOLERANCE


def test_an_operator_that_it_lacks_is_named() -> None:
    def missing(function: nn.Module) -> str:
        memory = measure_memory(
            nn.Sequential(nn.Conv2d(3, 4, 3), function, nn.Flatten(), nn.Linear(144, 2)), 8
        )
        assert memory.tflite_micro_bytes is None
        assert memory.ram_bytes > 0
        return memory.tflite_micro_missing

    assert missing(nn.GELU()) == "it has no gelu (1)"
    assert missing(nn.Mish()) == "mish (1) has no known form there"


def test_zeros_around_a_map_take_room_where_same_does_not_mean_them() -> None:
    def maps_bytes(padding: int, stride: int) -> int:
        first = nn.Conv2d(3, 16, 3, stride, padding)
        network = nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return micro_arena(trace(nn.Sequential(network, nn.Linear(16, 2)), 32)).maps_bytes

    image, padded = 32 * 32 * 3, 34 * 34 * 3 + 12  # in whole groups of 16
    assert maps_bytes(1, 1) == 2 * 32 * 32 * 16, "the map, and its copy in another order"
    assert maps_bytes(1, 2) == max(image + padded, padded + 16 * 16 * 16, 2 * 16 * 16 * 16)


def test_the_commands_state_the_arena(cli: Cli) -> None:
    text = cli("summary", "cnn").out
    assert "RAM in TFLite Micro: an arena of about 58,056 bytes" in text
    found = cli("summary", "convmixer", "--json").json["memory"]
    assert found["tflite_micro_bytes"] is None
    assert "it has no gelu" in found["tflite_micro_missing"]
    assert "it is not known, as it has no gelu" in cli("summary", "convmixer").out


@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("litert_torch", "ai_edge_quantizer", "tflite_micro")),
    reason="the extra litert is not installed",
)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the converter's own
@pytest.mark.parametrize(("name", "size"), [("resnet8", 32), ("whitened(width1=16)", 24)])
def test_the_interpreter_takes_what_was_estimated(name: str, size: int) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "arena.py"), name, "--image-size"]
    done = subprocess.run([*command, str(size)], capture_output=True, text=True, check=True)
    (row,) = json.loads(done.stdout)
    assert row["estimated_bytes"] == estimate(name, size)
    assert abs(row["estimated_bytes"] / row["measured_bytes"] - 1) < TOLERANCE
