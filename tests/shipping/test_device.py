"""The C on emulated Cortex-M boards."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Cli
from test_integer import integers, pixels

from halfmeg.artifacts.bundle import BUNDLED, Bundle
from halfmeg.shipping.c import write_c
from halfmeg.shipping.device import (
    COMPILER,
    DEVICES,
    EMULATOR,
    bench_device,
    missing_tool,
    run_on,
)
from halfmeg.shipping.integer import run

MISSING = missing_tool()
needs_tools = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@needs_tools
@pytest.mark.parametrize(
    "device",
    [
        pytest.param(device, marks=() if device == "cortex-m7" else pytest.mark.slow)
        for device in DEVICES
    ],
)
def test_every_board_gives_the_oracles_logits(device: str) -> None:
    images = pixels(5, 16)
    graph = integers("anything")
    files = write_c(graph, "net", ["a"] * 5)
    found = run_on(device, files["net.c"], files["net.h"], "net", images.numpy())
    assert np.array_equal(found.logits, run(graph, images.numpy()))
    assert found.ram_bytes == graph.plan.arena_bytes
    assert found.flash_bytes > graph.constant_bytes
    assert 0 < found.stack_bytes < 1_000
    assert len(set(found.instructions)) <= 5
    assert found.mean_instructions > 100_000


HEADER = """
#include <stdint.h>
#define NET_IMAGE_BYTES 1
#define NET_CLASSES 1
void net_classify(const uint8_t *image, float *logits);
"""
WAITS = """
#include "net.h"
void net_classify(const uint8_t *image, float *logits)
{
    uint32_t rounds = *image * UINT32_C(1000000);
    __asm__ volatile("1: nop\\n\\tnop\\n\\tsubs %0, %0, #1\\n\\tbne 1b" : "+r"(rounds) : : "cc");
    *logits = *image;
}
"""


@needs_tools
@pytest.mark.parametrize(
    "device",
    [
        pytest.param(device, marks=() if device == "cortex-m4" else pytest.mark.slow)
        for device in DEVICES
    ],
)
def test_instructions_are_counted_beyond_the_24_bits_of_the_timer(device: str) -> None:
    """At 25 MHz they count 671 million; each round of the loop is of four."""
    images = np.array([1, 50, 200, 145], np.uint8).reshape(-1, 1, 1, 1)
    found = run_on(device, WAITS, HEADER, "net", images)
    assert found.logits.ravel().tolist() == images.ravel().tolist()
    assert found.instructions == pytest.approx(images.ravel() * 4e6, rel=1e-4, abs=2_000)


@needs_tools
@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_a_hundred_images_on_each_board(device: str) -> None:
    images = pixels(100)
    graph = integers("resnet-linear")
    files = write_c(graph, "net", ["a"] * 10)
    found = run_on(device, files["net.c"], files["net.h"], "net", images.numpy())
    assert np.array_equal(found.logits, run(graph, images.numpy()))


@needs_tools
def test_the_command(cli: Cli, cnn_in_c: Path) -> None:
    folder = str(cnn_in_c)
    found = cli("bench", folder, "--device", "cortex-m7", "--mhz", "100", "--json").json
    assert found["ram_bytes"] == 36_224
    assert found["flash_bytes"] > 83_536
    assert found["estimated_ms"] == pytest.approx(found["instructions"] / 1e5)
    # fewer than 2.3 instructions for a multiply-accumulate
    assert 0 < found["instructions"] < 2.3 * 14_359_552
    text = cli("bench", folder, "--device", "cortex-m4").out
    assert "instructions are counted here, not cycles" in text
    assert cli("bench", folder, "--device", "z80").is_one_line("device='z80'", "cortex-m7")


def test_a_bundle_without_c_says_what_to_do(cli: Cli, tmp_path: Path) -> None:
    told = cli("bench", "record", "--device", "cortex-m7")
    command = "`halfmeg export record --data DATA --out NEW --target c`"
    assert told.is_one_line("holds no C; export it anew", command)
    assert cli("bench", "record", "--device", "z80").is_one_line("device='z80'", "cortex-m7")
    shutil.copytree(BUNDLED, tmp_path / "my own")
    told = cli("bench", "my own", "--device", "cortex-m7")
    assert told.is_one_line("`halfmeg export 'my own' --data DATA")
    # whose weights nothing loads without its Python
    own = replace(Bundle.open(BUNDLED), model="net.py:Net")
    with pytest.raises(ValueError, match="holds no C; export its run with --target c"):
        bench_device(own, "cortex-m7")


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (
            r"In file included from net.c:1:\nnet.h:2: error: no such name\n",
            "net.h:2: error: no such",
        ),
        ("", "exit code 3"),
    ],
)
def test_a_compiler_that_fails_is_told_by_its_error(
    says: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool in (COMPILER, EMULATOR):
        (tmp_path / tool).write_text(f"#!/bin/sh\nprintf '{says}' >&2\nexit 3\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(ValueError, match=f"^{COMPILER} fails: {told}"):
        run_on("cortex-m7", WAITS, HEADER, "net", np.ones((1, 1, 1, 1), np.uint8))
