"""The public Python interface, as its docstrings and the README show it."""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, small_config

import halfmeg
from halfmeg.data.dataset import DataSplits
from halfmeg.studies.sequential import compare_until_decided

SLOW = ("compare", "cross_validate", "fit")  # the first two measure 30 corruptions of each run


@pytest.fixture(scope="module")
def folder_with_a_run(tmp_path_factory: pytest.TempPathFactory, digits: DataSplits) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    halfmeg.fit(small_config(model="mlp", epochs=1), digits, folder / "runs" / "mine")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in halfmeg.__all__
    ],
)
def test_the_example_in_the_docstring_runs(
    name: str, folder_with_a_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder_with_a_run)
    text = getattr(halfmeg, name).__doc__
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    assert example.examples, f"halfmeg.{name} has no example"
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(example, out=told.append).failed == 0, "".join(told)


def test_the_readmes_python_runs(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert "epochs=30" in code
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(pictures)
    exec(code.replace("epochs=30", "epochs=1"), {})
    assert halfmeg.Run.open("runs/pets").result() is not None


def test_a_path_is_a_source_and_never_a_name(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    by_path, by_text = halfmeg.load_dataset(pictures), halfmeg.load_dataset(str(pictures))
    assert (by_path.fingerprint, by_path.source) == (by_text.fingerprint, by_text.source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"'\./digits' does not exist"):
        halfmeg.load_dataset(Path("digits"))
    Path("digits").symlink_to(pictures)
    assert halfmeg.load_dataset(Path("digits")).fingerprint == by_text.fingerprint


def test_what_a_notebook_shows_is_one_line(folder_with_a_run: Path, digits: DataSplits) -> None:
    run = halfmeg.Run.open(folder_with_a_run / "runs" / "mine")
    assert repr(run) == f"Run({str(run.folder)!r})"
    assert repr(digits) == (
        "DataSplits('digits', train=Dataset(1,437 images of 3×32×32, 10 classes), "
        "test=Dataset(360 images of 3×32×32, 10 classes))"
    )


def test_a_name_where_a_thing_is_wanted_is_told(few_digits: DataSplits, tmp_path: Path) -> None:
    config, out = small_config(), tmp_path / "out"
    called: list[Callable[..., Any]] = [
        halfmeg.fit, partial(halfmeg.cross_validate, folds=2),
        lambda config, data, out: halfmeg.compare(
            ["mlp"], data, seeds=1, config=config, out=out
        ),
        lambda config, data, out: compare_until_decided(["mlp"], data, config=config, out=out),
    ]  # fmt: skip
    for call in called:
        with pytest.raises(TypeError, match="config='common' is no RunConfig; build_recipe makes"):
            call("common", few_digits, out=out)
        with pytest.raises(TypeError, match=r"of the type str; give load_dataset\('digits'\)"):
            call(config, "digits", out=out)
    with pytest.raises(TypeError, match="the type Dataset; give load_dataset"):
        halfmeg.resume(tmp_path, few_digits.test)  # type: ignore[arg-type]
    network = halfmeg.build_model("mlp")
    with pytest.raises(TypeError, match=r"type DataSplits; give one part, as load_dataset\(...\)"):
        halfmeg.evaluate(network, few_digits, (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    assert not out.exists()


def test_loaded_sources_are_equal_where_they_are_one(few_digits: DataSplits) -> None:
    other = replace(few_digits)
    assert few_digits != other
    assert few_digits.train == other.train
    assert len({few_digits, other, few_digits}) == 2


def test_one_text_is_not_taken_for_a_list_of_letters(
    few_digits: DataSplits, tmp_path: Path
) -> None:
    config = small_config()
    with pytest.raises(ValueError, match=r"'epochs=3' is one text; .*: \['epochs=3'\]"):
        config.override("epochs=3")
    with pytest.raises(ValueError, match=r"models='cnn' is one text; .*: \['cnn'\]"):
        halfmeg.compare("cnn", few_digits, seeds=1, out=tmp_path / "study", config=config)
