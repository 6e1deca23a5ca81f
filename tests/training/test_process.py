"""What a program that trains finds afterwards: the state of the process that it had before."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_config
from test_own import Mine

from halfmeg import fit, resume
from halfmeg.data.dataset import DataSplits
from halfmeg.training.stack import train_stack


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_a_loop_that_draws_settings_and_trains_draws_others(
    tmp_path: Path, few_digits: DataSplits
) -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    expected = [draw() for _ in range(4)]
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    found = [draw()]
    fit(small_config(), few_digits, tmp_path / "a", model=Mine)
    found.append(draw())
    resume(tmp_path / "a", few_digits)
    found.append(draw())
    train_stack([(small_config(seed=seed), tmp_path / f"{seed}") for seed in range(2)], few_digits)
    assert [*found, draw()] == expected


def test_the_number_of_threads_is_a_runs_own(tmp_path: Path, few_digits: DataSplits) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        run = fit(small_config(threads=1), few_digits, tmp_path / "a")
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError, match="is not there"):
            fit(small_config(threads=1, device="cuda:99"), few_digits, tmp_path / "b")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert '"threads": 1' in (run.folder / "environment.json").read_text()


def test_gradients_that_a_program_has_turned_off_are_on_in_a_run(
    tmp_path: Path, few_digits: DataSplits
) -> None:
    alone = fit(small_config(), few_digits, tmp_path / "alone").folder
    with torch.no_grad():
        fit(small_config(), few_digits, tmp_path / "no-grad")
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        fit(small_config(), few_digits, tmp_path / "inference")
        assert torch.is_inference_mode_enabled()
    weights = (alone / "weights.safetensors").read_bytes()
    for name in ("no-grad", "inference"):
        assert (tmp_path / name / "weights.safetensors").read_bytes() == weights


def test_a_program_that_computes_in_float64_trains_in_float32(
    tmp_path: Path, few_digits: DataSplits
) -> None:
    alone = fit(small_config(), few_digits, tmp_path / "alone").folder
    torch.set_default_dtype(torch.float64)
    try:
        run = fit(small_config(), few_digits, tmp_path / "double")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    weights = (alone / "weights.safetensors").read_bytes()
    assert (run.folder / "weights.safetensors").read_bytes() == weights


def test_threads_that_train_get_the_bits_that_they_get_alone(
    tmp_path: Path, few_digits: DataSplits
) -> None:
    config = small_config(model="resnet", threads=1)  # with dropout, from the global generator
    alone = fit(config, few_digits, tmp_path / "alone").folder
    threads = [
        threading.Thread(target=fit, args=(config, few_digits, tmp_path / f"{index}"))
        for index in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    weights = (alone / "weights.safetensors").read_bytes()
    for index in range(2):
        assert (tmp_path / f"{index}" / "weights.safetensors").read_bytes() == weights
