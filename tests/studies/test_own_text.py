"""A study of a network of the user's own holds runs of one text of it."""

from __future__ import annotations

import json
import linecache
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import small_config
from torch import nn

from halfmeg.artifacts.metrics import MetricsRow
from halfmeg.artifacts.run import Run
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.places.definitions import definitions
from halfmeg.places.place import PlaceWarning
from halfmeg.studies.compare import compare_runs
from halfmeg.studies.measure import measure, read_costs
from halfmeg.studies.study import make_configs, run_study
from halfmeg.studies.workers import StudyListener
from halfmeg.training.fit import fit, resume
from halfmeg.training.listen import Listener

SCRIPT = '''
"""Networks, and the study of them."""
import functools

import torch
from torch import nn

import parts
from halfmeg import compare
from sizes import *

WIDTHS = [4]
WIDTHS.append(8)
seeds = 3
if torch.cuda.is_available():
    GROUPS = 1
else:
    GROUPS = 2


def act(x):
    """Return x after an activation."""
    return torch.relu(x) * SCALE


SCALE = 1.0


class Net(nn.Module):
    """A network."""

    def __init__(self, num_classes):
        super().__init__()
        from parts import pooled
        self.pooled = pooled
        self.conv = nn.Conv2d(3, WIDTHS[-1], 3, STRIDE, 1)
        self.head = parts.Head(WIDTHS[-1], num_classes)

    def forward(self, x):
        seeds = act(self.conv(x))  # a name of its own
        return self.head(self.pooled(seeds))


Net.groups = GROUPS


class Other(Net):
    pass


if __name__ == "__main__":
    result = compare([Net, "cnn"], "digits", seeds=seeds)
'''

PARTS = """
from torch import nn

BIAS = True

def pooled(x):
    return x.mean((2, 3))

class Head(nn.Linear):
    def __init__(self, width, num_classes):
        super().__init__(width, num_classes, bias=BIAS)

class Unused(nn.Module):
    pass
"""

SIZES = "STRIDE = 4\nUNUSED = 1\n"

TEXTS = {"net.py": SCRIPT, "parts.py": PARTS, "sizes.py": SIZES}


def known(texts: dict[str, str]) -> dict[str, list[str]]:
    return definitions(texts, "net.py", "Net")


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("net.py", "seeds = 3", "seeds = 5"),
        ("net.py", "seeds=seeds)", "seeds=5)"),
        ("net.py", '"cnn"]', '"cnn", "resnet20"]'),
        ("net.py", "# a name of its own", "# another remark"),
        ("net.py", '"""Return x after an activation."""', '"""Another text."""'),
        ("net.py", '    """A network."""\n', ""),
        ("net.py", "    pass", "    width = 3"),
        ("net.py", "import functools\n", "import json, functools\n"),
        ("net.py", "WIDTHS = [4]", "WIDTHS  =  [ 4 ]"),
        ("parts.py", "    pass", "    width = 3"),
        ("sizes.py", "UNUSED = 1", "UNUSED = 2"),
    ],
)
def test_what_a_network_does_not_come_to_may_change(file: str, before: str, after: str) -> None:
    assert before in TEXTS[file]
    assert known(TEXTS | {file: TEXTS[file].replace(before, after)}) == known(TEXTS)


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("net.py", "3, STRIDE, 1", "5, STRIDE, 1"),
        ("net.py", "torch.relu(x)", "torch.tanh(x)"),
        ("net.py", "SCALE = 1.0", "SCALE = 2.0"),
        ("net.py", "WIDTHS = [4]", "WIDTHS = [6]"),
        ("net.py", "append(8)", "append(12)"),
        ("net.py", "    GROUPS = 2", "    GROUPS = 4"),
        ("net.py", "Net.groups = GROUPS", "Net.groups = 1 + GROUPS"),
        ("net.py", "from torch import nn", "from mine import nn"),
        ("net.py", "import parts\n", "import sizes as parts\n"),
        ("net.py", "import pooled\n", "import Unused as pooled\n"),
        ("parts.py", "mean((2, 3))", "amax((2, 3))"),
        ("parts.py", "BIAS = True", "BIAS = False"),
        ("sizes.py", "STRIDE = 4", "STRIDE = 2"),
    ],
)
def test_all_that_a_network_comes_to_counts(file: str, before: str, after: str) -> None:
    assert before in TEXTS[file]
    assert known(TEXTS | {file: TEXTS[file].replace(before, after)}) != known(TEXTS)


def test_neighbours_of_a_package_are_followed() -> None:
    texts = {
        "nets/__init__.py": "from .small import Net",
        "nets/small.py": "from . import sizes\nfrom .deep.parts import Head as H\n"
        "def Net(): return H(sizes.WIDTH)",
        "nets/sizes.py": "WIDTH = 3\nDEPTH = 4",
        "nets/deep/parts.py": "from ..sizes import DEPTH\ndef Head(x): return x * DEPTH",
    }
    found = definitions(texts, "nets/__init__.py", "Net")
    assert found["nets/sizes.py: WIDTH"] == ["WIDTH = 3"]
    assert found["nets/sizes.py: DEPTH"] == ["DEPTH = 4"]
    with pytest.raises(ValueError, match=r"sizes.py is no Python"):
        definitions(texts | {"nets/sizes.py": "WIDTH ="}, "nets/__init__.py", "Net")
    with pytest.raises(ValueError, match=r"a.py is no Python"):
        definitions({"a.py": f"x = {'-' * 100_000}1"}, "a.py", "x")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def edit(file: str, before: str, after: str) -> None:
    assert before in Path(file).read_text()
    Path(file).write_text(Path(file).read_text().replace(before, after))


def train(data: DataSplits, seeds: int, model: object = "net.py:Net", **changes) -> int:
    """Train a study of so many seeds; return how many runs it has."""
    terms = small_config(epochs=1, **changes)
    study = run_study(make_configs([model], [terms], seeds), data, "study")
    assert not study.failures
    return len(study.runs)


def test_a_study_refuses_runs_of_another_text(folder: Path, few_digits: DataSplits) -> None:
    assert train(few_digits, 1) == 1
    edit("net.py", "seeds=seeds)", "seeds=5)")
    edit("net.py", '"""A network."""', '"""A network, as described."""')
    assert train(few_digits, 2) == 2
    edit("net.py", "torch.relu(x)", "torch.tanh(x)")
    with pytest.raises(ValueError, match=r"act in net.py has changed since; choose") as told:
        train(few_digits, 3)
    assert str(told.value).endswith("study/net-Net-seed-0/source/model keeps")
    assert not Path("study/net-Net-seed-2").exists()
    edit("net.py", "torch.tanh(x)", "torch.relu(x)")
    assert train(few_digits, 3) == 3


class EditsBetweenRuns(StudyListener):
    """Somebody who goes on working at a network while a study of it trains."""

    def on_begin(self, configs: Sequence[RunConfig]) -> None:
        Path("net.py").write_text(ALONE.replace("mean", "amax"))


ALONE = """\ufefffrom torch import nn
class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(3, num_classes)
    def forward(self, x):
        return self.head(x.mean((2, 3)))
"""


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_edit_while_a_study_trains_is_not_trained(
    tmp_path: Path, few_digits: DataSplits, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(ALONE, "utf-8")
    configs = make_configs(["net.py:Net"], [small_config(epochs=1)], 2)
    study = run_study(configs, few_digits, "study", workers=workers, listener=EditsBetweenRuns())
    assert "amax" in Path("net.py").read_text("utf-8")
    Path("net.py").write_text(ALONE, "utf-8")
    for run in study.runs:
        assert "mean" in (run.folder / "source/model/net.py").read_text("utf-8")
        result = run.result()
        assert result is not None
        assert run.evaluate(few_digits).accuracy == result["test_accuracy"]
    assert len(study.runs) == 2


def test_an_edited_neighbour_counts_and_an_old_run_knows_no_text(
    folder: Path, few_digits: DataSplits
) -> None:
    train(few_digits, 1)
    edit("parts.py", "BIAS = True", "BIAS = False")
    with pytest.raises(ValueError, match=r"another text of net.py:Net: BIAS in parts.py has"):
        train(few_digits, 2)
    Path("study/net-Net-seed-0/source.json").unlink()
    assert train(few_digits, 2) == 2


def test_a_loss_is_held_to_its_text_too(folder: Path, few_digits: DataSplits) -> None:
    text = "from torch.nn import functional as F\ndef loss(logits, labels):\n"
    text += "    return F.cross_entropy(logits, labels)\n"
    Path("mine.py").write_text(text)
    terms = {"model": "logistic", "loss": "mine.py:loss", "label_smoothing": 0.0}
    assert train(few_digits, 1, **terms) == 1
    edit("mine.py", "F.cross_entropy(logits, labels)", "2 * F.cross_entropy(logits, labels)")
    with pytest.raises(ValueError, match=r"another text of mine.py:loss: loss in mine.py has"):
        train(few_digits, 2, **terms)


def test_one_name_stands_for_one_text_in_a_comparison(folder: Path, few_digits: DataSplits) -> None:
    """As where runs of two folders, or of two machines, are reported together."""
    terms = small_config(model="net.py:Net", epochs=1)
    fit(terms, few_digits, "first")
    edit("net.py", "seeds=seeds)", "seeds=5)")
    second = fit(replace(terms, seed=1), few_digits, "second")
    found = compare_runs([Run.open("first"), second])
    assert [len(model.runs) for model in found.models] == [2]
    edit("net.py", "torch.relu(x)", "torch.tanh(x)")
    other = fit(replace(terms, seed=2), few_digits, "other")
    slow = fit(replace(terms, seed=0, lr=1e-4), few_digits, "slow")
    for run in (other, slow):  # a second seed, or another entrant by the network's name alone
        with pytest.raises(ValueError, match=rf"{run.folder} .* than first: act in net.py differs"):
            compare_runs([Run.open("first"), run])


def test_a_run_ends_with_the_text_that_it_began_with(folder: Path, few_digits: DataSplits) -> None:
    terms = small_config(model="net.py:Net", epochs=2)
    with pytest.raises(KeyboardInterrupt):
        fit(terms, few_digits, "run", listener=Stopped())
    edit("net.py", "torch.relu(x)", "torch.tanh(x)")
    with pytest.raises(
        ValueError, match=r"run was .* text of net.py:Net: act in net.py has changed"
    ):
        resume("run", few_digits)
    edit("net.py", "torch.tanh(x)", "torch.relu(x)")
    edit("net.py", "seeds=seeds)", "seeds=5)")
    with pytest.warns(PlaceWarning, match=r"net.py:Net has changed since"):
        assert resume("run", few_digits).result() is not None


class Stopped(Listener):
    """Somebody who stops a run after its first epoch."""

    def on_epoch(self, row: MetricsRow) -> None:
        raise KeyboardInterrupt


def test_a_network_that_was_edited_is_not_measured_as_the_one_that_was_trained(
    folder: Path, few_digits: DataSplits
) -> None:
    run = fit(small_config(model="net.py:Net", epochs=1), few_digits, "run")
    edit("net.py", "torch.relu(x)", "torch.tanh(x)")
    with pytest.warns(PlaceWarning, match=r"no (robustness|costs) of .*act in net.py has changed"):
        measure([run], few_digits, Path())
    assert not Path("run/robustness.json").exists()
    assert read_costs(Path()) == {}
    edit("net.py", "torch.tanh(x)", "torch.relu(x)")
    measure([run], few_digits, Path())
    assert Path("run/robustness.json").exists()
    assert read_costs(Path()).keys() == {"net.py:Net"}


def define(text: str, names: dict[str, object], cell: str) -> None:
    """Run a text as a notebook runs a cell."""
    linecache.cache[cell] = len(text), None, text.splitlines(keepends=True), cell
    exec(compile(text, cell, "exec"), names)


def test_the_cell_of_a_notebook_may_change_but_not_its_network(
    tmp_path: Path, few_digits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run again, in this kernel or another, it is the same place: the first of its name."""
    monkeypatch.chdir(tmp_path)
    cell = """from torch import nn
class CellNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(3, num_classes)
    def forward(self, x):
        return self.head(x.mean((2, 3)))
seeds = 1
"""

    def again(text: str, seeds: int) -> int:
        names: dict[str, object] = {"__name__": "__main__"}
        define(text, names, "<ipython-input-1>")
        return train(few_digits, seeds, names["CellNet"])

    assert again(cell, 1) == 1
    assert again(cell.replace("seeds = 1", "seeds = 2"), 2) == 2
    with pytest.raises(ValueError, match=r"text of python:CellNet: CellNet in python-CellNet.py"):
        again(cell.replace("mean", "amax"), 3)


def test_instances_are_told_apart_by_their_parameters(
    tmp_path: Path, few_digits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are numbered in the order of the call, so another order would take other runs."""
    monkeypatch.chdir(tmp_path)
    terms = [small_config(epochs=1)]

    def compared(*widths: int) -> int:
        models = [nn.Sequential(nn.Flatten(), nn.Linear(3072, w), nn.Linear(w, 10)) for w in widths]
        return len(run_study(make_configs(models, terms, 1), few_digits, "study").runs)

    assert compared(2, 4) == 2
    assert compared(2, 4, 3) == 3
    with pytest.raises(ValueError, match=r"of 6,\d+ parameters, not of 12,\d+; name the networks"):
        compared(4, 2, 3)


def test_an_object_goes_to_another_process_as_its_name() -> None:
    (place,) = make_configs([lambda num_classes: None], [small_config()], 1)
    assert pickle.loads(pickle.dumps(place)).model == place.model


def test_a_study_names_the_first_setting_that_differs(folder: Path, few_digits: DataSplits) -> None:
    train(few_digits, 1, "logistic")
    with pytest.raises(ValueError, match=r"or data: lr is 0.003 there and 0.01 here; choose"):
        train(few_digits, 2, "logistic", lr=0.01)
    described = Path("study/logistic-seed-0/config.json")
    stored = json.loads(described.read_text())
    stored["data"] |= {"name": "elsewhere", "fingerprint": "0" * 16}
    described.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="data is elsewhere there and digits here"):
        train(few_digits, 1, "logistic")
