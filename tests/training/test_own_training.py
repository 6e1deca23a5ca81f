"""Losses, optimizers, transforms and recipes of the user's own, and where own networks train."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Cli, small_config
from test_distributed import torchrun
from test_own import HEAD, NET, Mine, network, write
from torch import Tensor, nn

from halfmeg import RunConfig, build_model, build_recipe, compare, fit, resume
from halfmeg.data.dataset import DataSplits
from halfmeg.networks.summary import count_params
from halfmeg.studies.study import run_study
from halfmeg.training.own import build_own_loss, build_own_optimizer, build_transform
from halfmeg.training.stack import train_stack

OWN = """
import torch
import torch.nn.functional as F

def focal(logits, labels, label_smoothing=0.0):
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    return ((1 - (-losses).exp()) ** 2 * losses).mean()

def noise(images, generator):
    return images + 0.1 * torch.randn(images.shape, generator=generator)

def rmsprop(params, lr, momentum):
    return torch.optim.RMSprop(params, lr, momentum=momentum)
"""

SETTINGS = {"loss": "own.py:focal", "augment": "own.py:noise", "optimizer": "own.py:rmsprop"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, OWN, "own.py")
    write(tmp_path, NET)
    return tmp_path


def test_each_changes_what_is_trained_and_is_kept(folder: Path, few_digits: DataSplits) -> None:
    terms: dict[str, Any] = {"model": "net.py:Net", "epochs": 1, "lr": 0.001}
    plain = fit(small_config(**terms), few_digits, "plain")
    weights = {(plain.folder / "weights.safetensors").read_bytes()}
    for name, place in SETTINGS.items():
        run = fit(small_config(**terms), few_digits, f"run-{name}", **{name: place})
        weights.add((run.folder / "weights.safetensors").read_bytes())
        assert getattr(run.config, name) == place
        assert (run.folder / "source" / name / "own.py").read_text().strip() == OWN.strip()
        assert json.loads((run.folder / "source.json").read_text())[name]["place"] == place
    assert len(weights) == 4


def test_all_of_them_continue_to_the_same_bits(folder: Path, few_digits: DataSplits) -> None:
    config = small_config(model="net.py:Net", epochs=3, lr=0.001, **SETTINGS)
    fit(config, few_digits, "whole")
    fit(config, few_digits, "part")
    for name in ("result.json", "weights.safetensors", "checkpoints/epoch_00003_step_0000000.pt"):
        (folder / "part" / name).unlink()
    resume("part", few_digits)
    whole, part = ((folder / n / "weights.safetensors").read_bytes() for n in ("whole", "part"))
    assert whole == part


def test_an_optimizer_whose_state_has_shapes_of_its_own_continues(
    folder: Path, few_digits: DataSplits
) -> None:
    config = small_config(model="net.py:Net", lr=0.001, optimizer="torch.optim:Adafactor")
    run = fit(config, few_digits, "run")
    weights = run.folder / "weights.safetensors"
    whole = weights.read_bytes()
    for path in (run.folder / "result.json", weights, run.checkpoints()[-1]):
        path.unlink()
    resume("run", few_digits)
    assert weights.read_bytes() == whole


GROWING = """
import torch

class Growing(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["weight"] = 0.9 * group.get("weight", 1.0)
            for weight in group["params"]:
                self.state[weight]["told"] = {"steps": [1, 2.0, None, True]}
                weight.data.mul_(group["weight"] ** 0.01)
"""


def test_an_optimizer_that_adds_to_its_groups_continues(
    folder: Path, few_digits: DataSplits
) -> None:
    write(folder, GROWING, "growing.py")
    config = small_config(model="net.py:Net", lr=0.001, optimizer="growing.py:Growing", epochs=2)
    run = fit(config, few_digits, "run")
    weights = run.folder / "weights.safetensors"
    whole = weights.read_bytes()
    for path in (run.folder / "result.json", weights, run.checkpoints()[-1]):
        path.unlink()
    resume("run", few_digits)
    assert weights.read_bytes() == whole


RATES = """
import torch

def two(params, lr):
    groups = [{**group, "lr": rate * lr} for group, rate in zip(params, (1.0, 0.0))]
    return torch.optim.SGD(groups, lr)
"""


@pytest.mark.parametrize("schedule", ["constant", "onecycle", "plateau"])
def test_groups_keep_the_rates_that_they_begin_with(
    folder: Path, few_digits: DataSplits, schedule: str
) -> None:
    """The schedule multiplies them; it gave all groups the recipe's."""
    write(folder, RATES, "rates.py")
    config = small_config(
        model="net.py:Net", lr=0.01, optimizer="rates.py:two", epochs=2, ema=0, schedule=schedule,
        val_fraction=0.2,
    )  # fmt: skip
    run = fit(config, few_digits, "run")
    trained = dict(run.load_model().named_parameters())
    assert trained["bn.weight"].eq(1).all()
    assert trained["bn.bias"].eq(0).all()
    weights = run.folder / "weights.safetensors"
    whole = weights.read_bytes()
    for path in (run.folder / "result.json", weights, run.checkpoints()[-1]):
        path.unlink()
    resume("run", few_digits)
    assert weights.read_bytes() == whole


def test_a_transform_gets_float32_in_any_precision() -> None:
    given: list[torch.dtype] = []

    def keep(images: Tensor) -> Tensor:
        given.append(images.dtype)
        return images

    transform = build_transform(small_config(augment=keep))
    images = torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16)
    assert transform(images, torch.Generator()).dtype == torch.bfloat16
    assert given == [torch.float32]


def test_a_transform_gets_its_generator_as_its_signature_asks() -> None:
    def named(images: Tensor, *, generator: torch.Generator) -> Tensor:
        return images + torch.rand(images.shape, generator=generator)

    def behind(images: Tensor, scale: float = 1.0, generator: Any = None) -> Tensor:
        return images + scale * torch.rand(images.shape, generator=generator)

    def second(images: Tensor, rng: torch.Generator) -> Tensor:
        return images + torch.rand(images.shape, generator=rng)

    class Layer(nn.Module):
        def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
            return images + torch.rand(images.shape, generator=generator)

    images = torch.zeros(2, 3, 4, 4)
    expected = torch.rand(images.shape, generator=torch.Generator().manual_seed(5))
    for augment in (named, behind, second, Layer, Layer()):
        transform = build_transform(small_config(augment=augment))
        assert torch.equal(transform(images, torch.Generator().manual_seed(5)), expected)


def test_settings_behind_a_name_are_those_it_is_called_with(folder: Path) -> None:
    write(
        folder,
        """
        import torch
        from halfmeg import RunConfig
        def powered(logits, labels, gamma=2.0): return logits.sum() * 0 + gamma
        class Powered(torch.nn.Module):
            def __init__(self, gamma=2.0, label_smoothing=0.0):
                super().__init__()
                self.value = gamma + label_smoothing
            def forward(self, logits, labels): return logits.sum() * 0 + self.value
        def brighter(images, by=1.0): return images + by
        def recipe(epochs=1): return RunConfig(model="cnn", epochs=epochs)
        """,
        "own.py",
    )
    batch = torch.ones(3, 2), torch.zeros(3, dtype=torch.int64)

    def value(place: str, **changes: float) -> float:
        return build_own_loss(small_config(loss=place, **changes))(*batch).item()

    assert (value("own.py:powered"), value("own.py:powered(gamma=3.0)")) == (2, 3)
    assert value("own.py:Powered(gamma=3.0)", label_smoothing=0.5) == 3.5
    images = torch.zeros(1, 3, 2, 2)
    brighter = build_transform(small_config(augment="own.py:brighter(by=4.0)"))
    assert brighter(images, torch.Generator()).mean() == 4
    weights = [{"params": [torch.ones(1, requires_grad=True)], "weight_decay": 0.0}]
    place = "torch.optim:SGD(maximize=True)"
    (group,) = build_own_optimizer(small_config(optimizer=place), weights).param_groups
    assert group["maximize"]
    assert build_recipe("own.py:recipe(epochs=7)").epochs == 7


def half_brier(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.softmax(1) - F.one_hot(labels, logits.shape[1])).square().sum(1).mean() / 2


def test_from_python(tmp_path: Path, few_digits: DataSplits) -> None:
    run = fit(
        small_config(epochs=1), few_digits, tmp_path / "run", model=Mine, loss=half_brier,
        optimizer=torch.optim.NAdam, augment=lambda images: images.flip(3),
    )  # fmt: skip
    assert run.config.loss.endswith("test_own_training.py:half_brier")
    assert run.config.optimizer == "torch.optim.nadam:NAdam"
    assert run.config.augment == "python:lambda"
    assert "half_brier" in (run.folder / "source/loss/test_own_training.py").read_text()
    assert "flip(3)" in (run.folder / "source/augment/test_own_training.py").read_text()


def test_a_run_goes_on_with_objects_that_are_handed_over_again(
    tmp_path: Path, few_digits: DataSplits
) -> None:
    given: dict[str, Any] = {
        "loss": lambda logits, labels: F.cross_entropy(logits, labels),
        "augment": lambda images: images.flip(3),
        "optimizer": lambda params, lr: torch.optim.SGD(params, lr),
    }
    run = fit(small_config(epochs=2), few_digits, tmp_path / "run", **given)
    assert [run.config.loss, run.config.augment, run.config.optimizer] == [
        "python:lambda", "python:lambda_2", "python:lambda_3",
    ]  # fmt: skip
    weights = run.folder / "weights.safetensors"
    whole = weights.read_bytes()

    def stop(folder: Path) -> None:
        for name in ("result.json", weights.name, "checkpoints/epoch_00002_step_0000000.pt"):
            (folder / name).unlink()

    stop(run.folder)
    resume(run.folder, few_digits)  # this process knows them
    assert weights.read_bytes() == whole
    moved = run.folder.rename(tmp_path / "moved")  # as another process finds it
    stop(moved)
    with pytest.raises(ValueError, match=r"moved was made with loss=python:lambda, an object"):
        resume(moved, few_digits)
    with pytest.raises(ValueError, match=r"hand it over again from Python \(augment=\)"):
        resume(moved, few_digits, loss=given["loss"])
    with pytest.raises(ValueError, match=r"moved was made with model=cnn; leave out model="):
        resume(moved, few_digits, model=Mine, **given)
    resume(moved, few_digits, **given)
    assert (moved / weights.name).read_bytes() == whole


def test_a_run_goes_on_without_the_file_of_its_recipe(
    tmp_path: Path, few_digits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "TERMS = None", "terms.py")
    run = fit(small_config(recipe="terms.py:TERMS", epochs=1), few_digits, "run")
    (run.folder / "result.json").unlink()
    Path("terms.py").unlink()
    assert resume("run", few_digits).result()


def test_objects_of_one_name_are_told_apart_in_each_call(
    tmp_path: Path, few_digits: DataSplits
) -> None:
    def of_width(width: int) -> Any:
        def net(num_classes: int) -> nn.Module:
            return Mine(num_classes, width)

        return net

    terms = small_config(epochs=1, model="cnn")
    for study in ("first", "second"):  # one call is numbered as the other
        given = [of_width(2), of_width(3)]
        found = compare(given, few_digits, seeds=1, out=tmp_path / study, config=terms)
        params = {model.name: model.params for model in found.models}
        assert params == {"python:net": 56 + 30, "python:net_2": 84 + 40}
    narrow, wide = (RunConfig(model=of_width(width), epochs=1) for width in (2, 3))
    assert narrow.model == wide.model == "python:net"
    built = [count_params(build_model(one.model)) for one in (narrow, wide)]
    assert built == [56 + 30, 84 + 40]


BAD = {
    "loss=bad.py:tuple_": "returns tuple; a scalar",
    "loss=bad.py:each": "returns 7; a scalar",
    "loss=bad.py:constant": "not finite, or constant",
    "loss=bad.py:fails": "raises: RuntimeError: no (line 10)",
    "loss=bad.py:nan": "not finite, or constant",
    "loss=bad.py:Warm": "gives something else each time it is called, with the same draws",
    "loss=bad.py:Learned": "has weights of its own, which no optimizer would train; let the",
    "augment=bad.py:Fade": "keeps could not be resumed; let it keep nothing",
    "augment=bad.py:Own": "keeps could not be resumed; let it keep nothing, and draw from the",
    "loss=bad.py:nothing": "there is no 'nothing'",
    "augment=bad.py:shape": "returns 7×3×31×32; images of 7×3×32×32",
    "augment=bad.py:infinite": "returns images that are not finite",
    "optimizer=bad.py:none": "returns a NoneType; a torch.optim.Optimizer",
    "optimizer=bad.py:first": "leaves 2 of the parameters out",
    "optimizer=bad.py:other": "needs the argument 'betas2'",
    "optimizer=bad.py:Closed": "raises in a step: TypeError: Closed.step() missing 1 required posi",
    "optimizer=torch.optim:LBFGS": "raises when it is called: ValueError: LBFGS doesn't support",
    "optimizer=bad.py:Keeps": "cannot go on from a checkpoint: ValueError: a checkpoint would hold",
    "optimizer=bad.py:decays": "leaves 1 of the parameters out",
    "optimizer=bad.py:decays(lr=1)": "leave lr out, which is given by the recipe",
    "loss=bad.py:each(gamma=2)": "its signature has no 'gamma'",
    "augment=bad.py:shape(2)": "settings stand as NAME(key=value,key=value)",
}


@pytest.mark.parametrize("setting", BAD)
def test_mistakes_are_one_line(cli: Cli, tmp_path: Path, setting: str) -> None:
    write(
        tmp_path,
        """
        import torch
        def tuple_(logits, labels): return logits, labels
        def each(logits, labels): return logits.sum(1)
        def constant(logits, labels): return torch.zeros(())
        def shape(images): return images[:, :, 1:]
        def infinite(images): return images / 0
        def none(params, lr): return None
        def fails(logits, labels):
            raise RuntimeError("no")
        def nan(logits, labels): return (logits * float("nan")).sum()
        class Warm:
            calls = 0
            def __call__(self, logits, labels):
                self.calls += 1
                return logits.square().mean() * self.calls
        class Learned(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = torch.nn.Parameter(torch.ones(()))
            def forward(self, logits, labels):
                return (logits * self.scale).square().mean()
        class Fade(Warm):
            def __call__(self, images):
                self.calls += 1
                return images / self.calls
        class Own:
            def __init__(self):
                self.generator = torch.Generator().manual_seed(0)
            def __call__(self, images):
                return images + torch.randn(images.shape, generator=self.generator)
        def first(params, lr): return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr)
        def other(params, betas2): return None
        def decays(params, lr): return torch.optim.SGD(params[:1], lr)
        class Closed(torch.optim.SGD):
            def __init__(self, params, lr):
                super().__init__(params, lr)
            def step(self, closure):
                closure()
        import collections
        class Keeps(torch.optim.SGD):
            def __init__(self, params, lr):
                super().__init__(params, lr)
            def step(self):
                super().step()
                self.state["losses"] = collections.deque([1.0])
        """,
        "bad.py",
    )
    done = cli("train", "common", setting, "label_smoothing=0", "epochs=1", "--json")
    assert done.code == 2
    assert done.is_one_line(BAD[setting])
    assert not (tmp_path / "runs").exists()


def test_smoothing_is_not_left_out_silently(folder: Path, few_digits: DataSplits) -> None:
    config = small_config(label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"label_smoothing=0\.1 is of no use to loss="):
        fit(config, few_digits, "run", loss=half_brier)


RECIPE = """
from halfmeg import RunConfig

def short(model="net.py:Net"):
    return RunConfig(model=model, epochs=1, batch_size=64, optimizer="adamw", lr=0.01)

def wrong():
    return {"epochs": 1}


def needs_an_argument(lr):
    return short()
"""


def test_a_recipe_of_ones_own(cli: Cli, tmp_path: Path, pictures: Path) -> None:
    write(tmp_path, NET)
    write(tmp_path, RECIPE, "mine.py")
    done = cli("train", "mine.py:short", "--data", str(pictures), "--json")
    assert done.code == 0, done.err
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == "mine-short-net-Net-seed-0"
    assert (run / "source/recipe/mine.py").read_text().strip() == RECIPE.strip()
    assert done.json["recipe"] == "mine.py:short"
    done = cli("train", "mine.py:wrong")
    assert done.code == 2
    assert done.is_one_line("mine.py:wrong returns a dict", "RunConfig")
    assert cli("train", "mine.py").is_one_line("mine.py is a file of Python", "mine.py:NAME")
    assert cli("compare", "net.py", "cnn").is_one_line("net.py is a file of Python", "net.py:NAME")
    assert cli("compare", "gone.py", "cnn").is_one_line("gone.py does not exist", "gone.py:NAME")
    done = cli("train", "mine.py:needs_an_argument")
    assert done.is_one_line("needs the argument 'lr'", "it is called with no arguments")


@pytest.mark.slow
def test_networks_are_compared_by_a_recipe_of_ones_own(
    cli: Cli, tmp_path: Path, pictures: Path
) -> None:
    write(tmp_path, NET)
    write(tmp_path, RECIPE, "mine.py")
    done = cli(
        "compare", "net.py:Net", "logistic", "--recipe", "mine.py:short", "--seeds", "1",
        "--data", str(pictures), "--out", "study", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert {model["name"] for model in done.json["models"]} == {"net.py:Net", "logistic"}


def test_a_recipe_from_json(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "terms.json").write_text(json.dumps({"model": "cnn", "epochs": 3, "lr": 0.1}))
    config = RunConfig.from_json(tmp_path / "terms.json")
    assert (config.model, config.epochs, config.lr) == ("cnn", 3, 0.1)
    stored = {"config": build_recipe("common").to_dict(), "data": {}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert build_recipe(str(tmp_path / "config.json")) == build_recipe("common")
    for text, part in {
        "{": "is no JSON", "[]": "holds no settings", '{"model": "cnn"}': "epochs",
        '{"model": "cnn", "epochs": "3"}': "$.epochs",
        '{"model": "cnn", "epoch": 3}': "unknown setting 'epoch'; did you mean 'epochs'?",
    }.items():  # fmt: skip
        (tmp_path / "bad.json").write_text(text)
        done = cli("train", "bad.json")
        assert done.code == 2
        assert done.is_one_line("bad.json", part)
    assert cli("train", "none.json").is_one_line("none.json does not exist")


def test_a_stack_where_vmap_can(folder: Path, few_digits: DataSplits) -> None:
    config = small_config(model="net.py:Net", epochs=1, precision="fp32")
    tasks = [(config, folder / "stacked")]
    assert train_stack(tasks, few_digits) == [None]
    alone = fit(config, few_digits, "alone")
    result = json.loads((folder / "stacked/result.json").read_text())
    assert result["test_loss"] == pytest.approx(alone.result()["test_loss"], rel=1e-3)
    text = "x = x.flatten(1)\nif x.sum() > 0: x = x + 0\nreturn self.head(x)"
    write(folder, network(HEAD, text), "branch.py")
    branching = small_config(model="branch.py:Net", epochs=1)
    with (
        pytest.warns(UserWarning, match="cannot be exported"),
        pytest.raises(ValueError, match=r"branch\.py:Net takes no stack, leave it out"),
    ):
        train_stack([(branching, folder / "run")], few_digits)
    text = "x = self.head(x.flatten(1))\nif self.training: self.mean = x.mean(0).detach()\n"
    init = f"{HEAD}\nself.register_buffer('mean', torch.zeros(10))"
    write(folder, network(init, text + "return x - self.mean"), "assigns.py")
    assigning = small_config(model="assigns.py:Net", epochs=1, precision="fp32")
    with pytest.raises(ValueError, match=r"takes no stack, leave it out: it assigns mean anew"):
        train_stack([(assigning, folder / "run")], few_digits)
    assert not (folder / "run").exists()
    with pytest.raises(ValueError, match=r"loss=own\.py:focal takes no stack"):
        train_stack([(small_config(loss="own.py:focal"), folder / "run")], few_digits)


def test_own_draws_of_any_kind_are_repeated(folder: Path, few_digits: DataSplits) -> None:
    write(folder, DRAWS, "draws.py")
    config = small_config(model="draws.py:Net", epochs=2, augment="draws.py:shade")
    of_both = random.getstate(), np.random.get_state()  # noqa: NPY002
    runs = []
    for name in ("one", "two"):
        random.seed(name)
        runs.append(fit(config, few_digits, name))
    first, second = (run.folder / "weights.safetensors" for run in runs)
    assert first.read_bytes() == second.read_bytes()
    random.setstate(of_both[0])
    np.random.set_state(of_both[1])  # noqa: NPY002


DRAWS = """
import random
import numpy as np
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(3072, num_classes)
        self.share = np.random.uniform(0.5, 1)
        self.register_buffer("scale", self.head.weight.new_tensor([self.share]))

    def forward(self, x):
        x = x.flatten(1) * self.scale
        return self.head(x * random.uniform(0.5, 1) if self.training else x)

def shade(images):
    return images * float(np.random.uniform(0.5, 1.5))
"""


def test_own_draws_are_not_those_of_the_augmentation(folder: Path, few_digits: DataSplits) -> None:
    write(folder, COINS, "coins.py")
    config = small_config(
        epochs=2, hflip=True, augment="coins.py:both", batch_size=64, val_fraction=0.0
    )
    asymmetric = few_digits.train.images.clone()
    asymmetric[..., :16], asymmetric[..., 16:] = 0, 255  # so that a mirrored one is known
    fit(config, replace(few_digits, train=replace(few_digits.train, images=asymmetric)), "coins")
    agreed = np.loadtxt(folder / "coins.txt")
    assert len(agreed) > 2 * len(few_digits.train)  # the trial before the run draws, too
    assert 0.3 < agreed[-2 * len(few_digits.train) :].mean() < 0.7


COINS = """
import torch

def both(images):
    mirrored = images[:, 0, 0, 0] > images[:, 0, 0, -1]
    coin = torch.rand(len(images)) < 0.5
    with open("coins.txt", "a") as file:
        file.writelines(f"{int(agrees)}\\n" for agrees in coin == mirrored)
    return images
"""


@pytest.mark.slow
def test_other_processes_load_it_themselves(folder: Path, few_digits: DataSplits) -> None:
    config = small_config(epochs=1, loss="own.py:focal")
    study = compare(
        ["net.py:Net", "logistic"], few_digits, seeds=1, out="study", config=config, workers=2
    )
    assert not study.failures


@pytest.mark.slow
def test_two_ranks_train_it(cli: Cli, tmp_path: Path, pictures: Path) -> None:
    write(tmp_path, NET)
    terms = [
        "train", "common", "model=net.py:Net", "epochs=1", "precision=fp32", "threads=1",
        "optimizer=sgd", "lr=0.01", "--data", str(pictures), "--json",
    ]  # fmt: skip
    assert cli(*terms, "--out", "one").code == 0
    done = torchrun(2, "-m", "halfmeg", *terms, "--out", "two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two"))
    assert two["test_loss"] == pytest.approx(one["test_loss"], rel=0.05)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Ray itself
def test_the_text_travels_to_a_cluster(
    folder: Path, few_digits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    write(folder, "WIDTH = 6", "parts.py")
    write(folder, "import parts\n" + NET.replace("width=8", "width=parts.WIDTH"))
    config = small_config(model="net.py:Net", epochs=1, loss="own.py:focal", threads=1)
    run_study([config], few_digits, folder / "local")
    (folder / "elsewhere").mkdir()
    os.chdir(folder / "elsewhere")  # the nodes start here, where there is no net.py
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    os.chdir(folder)
    try:
        found = run_study([config], few_digits, folder / "far", cluster=cluster.address)
    finally:
        cluster.shutdown()
    assert not found.failures
    far, local = (folder / name / "net-Net-seed-0" for name in ("far", "local"))
    for name in ("weights.safetensors", "source.json", "source/model/parts.py"):
        assert (far / name).read_bytes() == (local / name).read_bytes()


LATE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(3072, num_classes)

    def forward(self, x):
        if len(x) > 20:
            raise KeyError("too many")
        return self.head(x.flatten(1))
"""


@pytest.mark.filterwarnings("ignore::halfmeg.places.place.PlaceWarning")
def test_what_is_raised_late_is_one_line_too(cli: Cli, tmp_path: Path, pictures: Path) -> None:
    write(tmp_path, LATE)
    data = ["--data", str(pictures), "--json"]
    done = cli("train", "common", "model=net.py:Net", "epochs=1", *data)
    assert done.code == 2
    assert "halfmeg: KeyError: 'too many' (net.py, line 12)" in done.err
    assert "Traceback" not in done.err
    done = cli("compare", "net.py:Net", "logistic", "epochs=1", "--seeds", "1", *data)
    assert done.code == 1
    assert done.json["failures"] == {"net-Net-seed-0": "KeyError: 'too many' (net.py, line 12)"}


def test_a_faulty_network_stops_a_study_before_it_trains(
    folder: Path, few_digits: DataSplits
) -> None:
    write(folder, network(HEAD, "return x"), "faulty.py")
    with pytest.raises(ValueError, match=r"faulty\.py:Net returns 7×3×32×32"):
        compare(
            ["logistic", "faulty.py:Net"], few_digits, seeds=1, out="study",
            config=small_config(epochs=1),
        )  # fmt: skip
    assert not (folder / "study").exists()
