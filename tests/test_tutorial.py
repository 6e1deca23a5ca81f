"""The commands of docs/tutorial.md, run one after another on photographs."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Cli
from PIL import Image
from sklearn.datasets import load_sample_images

PAGE = (ROOT / "docs" / "tutorial.md").read_text()
CLOTHING = ROOT.parent / "shared" / "data" / "clothing"
CLASSES = ("hat", "pants", "shoes")
PER_CLASS = 15

THEIR_OWN = ("near duplicates", "  pants/")
"""Lines that only the photographs of the page have."""


def steps() -> list[tuple[str, list[str]]]:
    """Return each command of the page with the lines that it prints there."""
    blocks = re.findall(r"^```console\n\$ (.+)\n((?:.*\n)*?)```$", PAGE, flags=re.MULTILINE)
    assert len(blocks) == PAGE.count("```console")
    return [(command, output.splitlines()) for command, output in blocks]


def cut_photographs(folder: Path) -> None:
    """Cut the two photographs that scikit-learn ships into small ones of three classes."""
    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    width, height = china.size
    parts = {
        "hat": china.crop((0, 0, width, height // 3)),  # sky and a roof
        "pants": china.crop((0, height // 2, width, height)),  # a hall, people in front of it
        "shoes": flower,
    }
    draw = np.random.default_rng(0)
    for name, part in parts.items():
        for index in range(PER_CLASS + 1):
            size = draw.integers(60, 120, 2)
            left, top = (
                int(draw.integers(0, end - s)) for end, s in zip(part.size, size, strict=True)
            )
            box = (left, top, left + int(size[0]), top + int(size[1]))
            path = folder / f"photos/{name}/{index}.jpg" if index else folder / f"new/{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            part.crop(box).save(path)


def copy_clothing(folder: Path) -> None:
    """Lay out the photographs that the page was written with."""
    for name in CLASSES:
        found = [path for part in CLOTHING.iterdir() for path in (part / name).glob("*")]
        assert found
        (folder / "photos" / name).mkdir(parents=True)
        (folder / "new").mkdir(exist_ok=True)
        first, *rest = sorted(found, key=lambda path: path.name)
        shutil.copyfile(first, folder / "new" / f"{name}.jpg")
        for path in rest:
            shutil.copyfile(path, folder / "photos" / name / path.name)


def shape(word: str) -> str:
    """Return a word with its numbers as 0: those of another machine differ."""
    return re.sub(r"\d[\d.,]*", "0", word)


def follow(cli: Cli, command: str, printed: list[str]) -> str:
    """Run a command of the page; it prints what each line of the page begins with."""
    program, *arguments = shlex.split(command)
    assert program == "halfmeg"
    outcome = cli(*arguments)
    assert outcome.code == 0, f"{command}\n{outcome.err}"
    words = {shape(word) for word in (outcome.out + outcome.err).split()}
    for line in printed:
        if line.strip() != "…" and not line.startswith(THEIR_OWN):
            assert shape(line.split()[0]) in words, f"{command} prints nothing like {line!r}"
    return outcome.out


def assert_result(folder: Path) -> None:
    assert "halfmeg" in (folder / "study" / "comparison.html").read_text()
    files = {path.name for path in (folder / "mine").iterdir()}
    assert {"model.safetensors", "model.onnx", "model.int8.onnx", "README.md"} <= files


@pytest.mark.slow
def test_the_tutorial_on_a_few_photographs(cli: Cli, tmp_path: Path) -> None:
    cut_photographs(tmp_path)
    for command, printed in steps():
        shorter = re.sub(r"\bepochs=\d+", "epochs=1", command).replace("--seeds 3", "--seeds 2")
        out = follow(cli, shorter, printed)
        if "compare" in command:
            assert re.search(r"is better than|cannot be told apart", out)
        if "predict" in command:
            assert all(f"new/{name}.jpg" in out for name in CLASSES)
    assert_result(tmp_path)


@pytest.mark.slow
def test_the_tutorial_as_it_was_written(cli: Cli, tmp_path: Path) -> None:
    if not CLOTHING.is_dir():
        pytest.skip(f"the photographs are not at {CLOTHING.relative_to(ROOT.parent)}")
    copy_clothing(tmp_path)
    for command, printed in steps():
        out = follow(cli, command, printed)
        if "data check" in command:
            assert {line for line in printed if line.strip() != "…"} <= set(out.splitlines())
        if "predict" in command:  # what the page shows, within what another machine changes
            for name in CLASSES:
                assert re.search(rf"% +{name} +new/{name}\.jpg", out), out
    assert_result(tmp_path)
