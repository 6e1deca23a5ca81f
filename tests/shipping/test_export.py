from __future__ import annotations

import json
import multiprocessing
import sys
import threading
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import FEW, NETWORKS, Cli, first_digits, small_config
from torch import nn

from halfmeg.artifacts.bundle import BUNDLED, Bundle, checksum
from halfmeg.artifacts.graph import onnx_logits
from halfmeg.artifacts.readings import UnloggedReadingWarning
from halfmeg.artifacts.run import Run
from halfmeg.data.split import hold_out
from halfmeg.evaluation.evaluate import compute_logits
from halfmeg.networks.table import build_model
from halfmeg.shipping.bench import _peak_memory, _recompiling, bench
from halfmeg.shipping.export import Proof, copy_bundle, export
from halfmeg.shipping.finetune import Finetuning
from halfmeg.shipping.onnx import fold_batchnorm, to_onnx
from halfmeg.shipping.proof import loses
from halfmeg.shipping.verify import int8_difference, verify_onnx
from halfmeg.training.fit import fit


def unsettled(name: str, size: int = 32) -> nn.Module:
    """A network whose BatchNorm has statistics other than the first ones."""
    torch.manual_seed(0)
    model = build_model(name, 10, size)
    model.train()
    for _ in range(2):
        model(torch.randn(16, 3, size, size) * 2 + 0.5)
    return model.eval()


UNFOLDED = {"resnet": 2, "densenet-bc-40": 21, "convmixer": 17}
"""BatchNorms behind an activation, a sum or a concatenation."""


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_changes_nothing(name: str) -> None:
    model = unsettled(name)
    folded = fold_batchnorm(model, 32)
    kinds = (nn.BatchNorm2d, nn.BatchNorm1d)
    left = [module for module in folded.modules() if isinstance(module, kinds)]
    assert len(left) == UNFOLDED.get(name, 0)
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(folded(images), model(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FEW)
def test_onnx_equals_torch_at_batches_of_1_2_and_7(name: str) -> None:
    model = unsettled(name)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    content = to_onnx(model, mean, std, 32)
    images = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8)
    expected = compute_logits(model, images, mean, std, precision="fp32")
    for batch in (1, 2, 7):
        found = onnx_logits(content, images, batch_size=batch)
        assert torch.allclose(found, expected, atol=1e-3, rtol=1e-3), f"batch {batch}"
    graph = onnx.load_from_string(content).graph
    assert "BatchNormalization" not in {n.op_type for n in graph.node} or name in UNFOLDED
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == (
        "pixels",
        "tensor(uint8)",
        ["batch", 3, 32, 32],
    )


def test_an_onnx_file_names_no_folder_of_the_machine_it_was_made_on() -> None:
    """The exporter writes for each node where in which source file it stands."""
    for content in (
        to_onnx(unsettled("resnet8"), (0.5,) * 3, (0.5,) * 3, 32),
        (BUNDLED / "model.onnx").read_bytes(),
        (BUNDLED / "model.int8.onnx").read_bytes(),
    ):
        assert b".py" not in content
        onnx.checker.check_model(onnx.load_from_string(content))


def test_other_sizes_export() -> None:
    content = to_onnx(unsettled("resnet8", 48), (0.5,) * 3, (0.5,) * 3, 48)
    images = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8)
    assert onnx_logits(content, images).shape == (3, 10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("trained") / "run"
    return fit(small_config(model="resnet8", epochs=2, batch_size=32), first_digits(600), folder)


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Run:
    """A run of few layers, which exports sooner."""
    folder = tmp_path_factory.mktemp("quick") / "run"
    return fit(small_config(batch_size=32), first_digits(600), folder)


@pytest.fixture
def quick_onnx(quick: Run, onnx_of_quick: bytes, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The run of few layers, of which the float32 file is made already."""
    monkeypatch.setattr("halfmeg.shipping.export.to_onnx", lambda *_: onnx_of_quick)
    return quick


@pytest.fixture(scope="module")
def onnx_of_quick(quick: Run) -> bytes:
    facts = quick.data
    return to_onnx(quick.load_model().eval(), facts.mean, facts.std, facts.image_shape)


@pytest.fixture(scope="module")
def exported(trained: Run, tmp_path_factory) -> tuple[Bundle, Proof]:
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    return export(trained, first_digits(600), folder, allow_loss=True)


def test_a_bundle_is_proved_on_validation_images(
    trained: Run, exported: tuple[Bundle, Proof]
) -> None:
    data = first_digits(600)
    bundle, proof = exported
    assert (proof.images, proof.n) == ("validation", 60)
    assert proof.onnx_accuracy == proof.accuracy
    assert proof.max_difference < 1e-3
    found = bundle.evaluate(data)
    assert found.accuracy == bundle.accuracy["test_accuracy"]
    assert bundle.temperature != 1.0
    sizes = {name: (bundle.folder / name).stat().st_size for name in bundle.described["files"]}
    assert sizes["model.int8.onnx"] < 0.6 * sizes["model.onnx"]
    card = (bundle.folder / "README.md").read_text()
    assert f"{100 * found.accuracy:.2f}%" in card
    assert "78,186 parameters" in card
    assert all(f"`{name}`" in card for name in sizes if name != "README.md")
    purposes = (trained.folder / "test_readings.jsonl").read_text()
    assert "export" in purposes, "the reading of the test set is logged"


@pytest.mark.parametrize("has_part", [True, False])
def test_a_validation_part_is_called_so_also_where_a_run_did_not_look_at_it(
    has_part: bool, tmp_path: Path
) -> None:
    data = first_digits(600)
    if has_part:
        train, validation = data.train.subset(slice(400)), data.train.subset(slice(400, 600))
        data = replace(data, train=train, validation=validation)
    config = small_config(batch_size=32, val_fraction=0, epochs=1)
    run = fit(config, data, tmp_path / "run")
    bundle, proof = export(run, data, tmp_path / "bundle", allow_loss=True)
    assert (proof.images, proof.n) == (("validation", 200) if has_part else ("training", 60))
    card = (bundle.folder / "README.md").read_text()
    assert ("so these were training images" in card) is not has_part
    assert (bundle.familiarity is not None) is has_part
    assert ("held no images out" in bundle.described["temperature_origin"]) is not has_part


@pytest.mark.parametrize("lone", [False, True])
def test_a_run_that_could_hold_nothing_out_is_proved_on_training_images(
    lone: bool, tmp_path: Path
) -> None:
    """Each class is one group, or has one image, so the run was told to set val_fraction=0."""
    data = first_digits(600)
    if lone:
        one_each = torch.cat([(data.train.labels == c).nonzero()[:1, 0] for c in range(10)])
        train = data.train.subset(one_each)
    else:
        train = replace(data.train, groups=data.train.labels)
    data = replace(data, train=train)
    with pytest.raises(ValueError, match="set val_fraction=0"):
        hold_out(data, 0.1, 0)
    run = fit(small_config(batch_size=8, val_fraction=0, epochs=1), data, tmp_path / "run")
    _, proof = export(run, data, tmp_path / "bundle", allow_loss=True)
    assert (proof.images, proof.n) == ("training", 1 if lone else 60)


def test_the_proof_is_spread_over_images_that_are_listed_class_by_class(
    quick_onnx: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from halfmeg.shipping import export as module

    shown: list[torch.Tensor] = []

    def watched(reference: torch.Tensor, held_out: Any, *arguments: Any) -> Proof:
        shown.append(held_out.labels)
        return honest(reference, held_out, *arguments)

    honest = module.prove
    monkeypatch.setattr(module, "prove", watched)
    monkeypatch.setattr(module, "MAX_PROOF_IMAGES", 50)
    data = first_digits(600)
    by_class = torch.cat([(data.train.labels == c).nonzero()[:20, 0] for c in range(10)])
    data = replace(data, validation=data.train.subset(by_class))
    _, proof = export(quick_onnx, data, tmp_path / "out", allow_loss=True)
    assert proof.n == 50
    assert shown[0].bincount(minlength=10).tolist() == [5] * 10


def test_a_network_is_made_integers_of_once(
    quick_onnx: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from halfmeg.shipping import export as exporting
    from halfmeg.shipping import int8

    calls: list[str] = []

    def counted(module: ModuleType, name: str) -> None:
        honest = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return honest(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    steps = {exporting: ("hold_out", "compute_logits")}
    steps[int8] = ("trace", "simplify", "measure_ranges")
    for module, names in steps.items():
        for name in names:
            counted(module, name)
    export(quick_onnx, first_digits(600), tmp_path / "out", allow_loss=True, finetune=True)
    assert sorted(calls) == sorted(steps[exporting] + steps[int8])


def test_a_read_only_run_is_exported_and_the_reading_told(
    quick_onnx: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(self: Run, purpose: str) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Run, "log_test_reading", read_only)
    with pytest.warns(UnloggedReadingWarning, match="this reading of the test set is not noted"):
        export(quick_onnx, first_digits(600), tmp_path / "out", allow_loss=True)


def test_a_loss_of_exactly_what_is_allowed_is_no_more() -> None:
    assert 0.9242 - 0.9222 > 0.002
    assert Proof("validation", 5_000, 0.0, 0.9242, 0.9242, 0.9222, True).int8_loss == 0.002


def test_int8_that_loses_too_much_stops(
    quick_onnx: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Integers that see every image as flat are useless: the export says so and writes nothing."""
    from halfmeg.shipping import int8 as module

    honest = module.simplify
    monkeypatch.setattr(
        module, "simplify", lambda graph, mean, std: honest(graph, mean, [100 * s for s in std])
    )
    with pytest.raises(ValueError, match=r"int8 loses [\d.]+ points on 60 validation images"):
        export(quick_onnx, first_digits(600), tmp_path / "out")
    assert not list(tmp_path.iterdir())
    bundle, proof = export(quick_onnx, first_digits(600), tmp_path / "out", allow_loss=True)
    assert proof.int8_loss > 0.005
    assert (
        f"`model.int8.onnx` {loses(proof.int8_loss)}" in (bundle.folder / "README.md").read_text()
    )


def test_fine_tuning_is_offered_only_where_it_can_mend(
    quick_onnx: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("halfmeg.shipping.export.ALLOWED_LOSS", -1.0)
    with pytest.raises(ValueError, match="more than -100; --finetune may mend it, and with"):
        export(quick_onnx, first_digits(600), tmp_path / "out")

    def refuse(*_: Any) -> Any:
        raise ValueError("aten.cumsum has no int8 form")

    monkeypatch.setattr("halfmeg.shipping.int8.quantize_graph", refuse)
    with pytest.raises(ValueError, match="more than -100; with --allow-loss it is"):
        export(quick_onnx, first_digits(600), tmp_path / "out")


@pytest.mark.parametrize("kept", [0, 2])
def test_a_bundle_that_was_fine_tuned_is_not_exported_without(
    kept: int, quick_onnx: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from halfmeg.shipping import int8 as module

    def tuned(graph: Any, ranges: Any, training: torch.Tensor, *_: Any, **__: Any) -> Any:
        assert len(training) == 540
        told = Finetuning(2 if kept else 0, (0.01, 0.004, 0.002)[: kept + 1], kept, 540)
        return module.quantize_graph(graph, ranges), told

    monkeypatch.setattr(module, "finetune_graph", tuned)
    options = {"allow_loss": True, "finetune": True}
    bundle, _ = export(quick_onnx, first_digits(600), tmp_path / "tuned", **options)
    card = (bundle.folder / "README.md").read_text()
    told = [
        "Its weights are those of plain calibration: int8 loses 1.00 points",
        "Its weights were trained on behind the integers' own rounding: int8 loses 1.00 points",
    ]
    assert [text in card for text in told] == [kept == 0, kept > 0]
    if kept:
        with pytest.raises(ValueError, match=r"tuned was fine-tuned; add --finetune"):
            export(bundle, first_digits(600), tmp_path / "anew", allow_loss=True)
        export(bundle, first_digits(600), tmp_path / "anew", **options)
    else:
        export(bundle, first_digits(600), tmp_path / "anew", allow_loss=True)


def test_a_wrong_onnx_file_stops(
    quick: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from halfmeg.shipping import export as module

    shifted = module.to_onnx
    monkeypatch.setattr(module, "to_onnx", lambda m, mean, std, size: shifted(m, std, std, size))
    with pytest.raises(ValueError, match="does not do what the network does"):
        export(quick, first_digits(600), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("maker", "file"), [("export", "model.onnx"), ("int8", r"model\.int8\.onnx")]
)
def test_a_file_that_would_be_refused_later_stops(
    maker: str, file: str, quick_onnx: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right answers are not enough: what opens a bundle bounds its files too."""
    module = import_module(f"halfmeg.shipping.{maker}")
    honest = module.to_onnx

    def heavy(*arguments: Any) -> bytes:
        model = onnx.ModelProto.FromString(honest(*arguments))
        unused = np.zeros(1_000_000, np.int8)
        model.graph.initializer.append(onnx.numpy_helper.from_array(unused, "unused"))
        content: bytes = model.SerializeToString()
        return content

    monkeypatch.setattr(module, "to_onnx", heavy)
    with pytest.raises(ValueError, match=rf"{file} cannot be used: it holds .* numbers"):
        export(quick_onnx, first_digits(600), tmp_path / "out", allow_loss=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_commands(cli: Cli, tmp_path: Path, pictures: Path) -> None:
    data = ("--data", str(pictures))
    assert cli("train", "common", "model=cnn", "epochs=4", *data, "--out", "run").code == 0
    made = cli("export", str(tmp_path / "run"), "--out", "bundle", "--allow-loss", "--json")
    assert made.code == 0, made.err
    assert made.json["model"] == "cnn"
    command = "halfmeg export run --out bundle --allow-loss --json"
    assert made.json["exported"]["command"] == command
    assert f"\n    {command}\n" in (tmp_path / "bundle" / "README.md").read_text()
    again = cli("export", "run", "--out", "bundle")
    assert again.is_one_line("bundle exists already and is not overwritten")
    found = cli("evaluate", "bundle", *data, "--json")
    assert found.json["accuracy"] == made.json["accuracy"]["test_accuracy"]
    assert cli("evaluate", "bundle").is_one_line("add --data")
    assert cli("bench", "bundle", "--threads", "0").is_one_line("threads='0'")
    assert cli("bench", "bundle", "--rounds", "0").is_one_line("rounds=0")
    assert cli("bench", "bundle", "--mhz", "100").is_one_line("--mhz 100", "--device")
    assert cli("export", "nowhere", "--out", "b").is_one_line("nowhere is no run folder")
    (tmp_path / "run" / "result.json").unlink()
    assert cli("export", "run", "--out", "b").is_one_line("has not finished")


def test_int8_is_compared_with_the_weights(exported: tuple[Bundle, Proof], tmp_path: Path) -> None:
    bundle = copy_bundle(exported[0].folder, tmp_path / "copy")
    for _ in range(5):  # images are others each time, and a network of two epochs agrees on all
        verify_onnx(bundle, "model.int8.onnx")
    model = onnx.load(bundle.folder / "model.int8.onnx")
    last = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    values = onnx.numpy_helper.to_array(last)
    last.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), last.name))
    content = model.SerializeToString()
    (bundle.folder / "model.int8.onnx").write_bytes(content)
    bundle.described["files"]["model.int8.onnx"] = checksum(content)
    with pytest.raises(ValueError, match="does not do what the weights do"):
        verify_onnx(bundle, "model.int8.onnx")
    (bundle.folder / "model.json").write_text(json.dumps(bundle.described))
    (row,) = bench(bundle, threads=[1], rounds=1, runtimes=["onnxruntime int8"])
    assert not row.exact  # it is told, and timed: of a network of few epochs it may be right
    assert "model.int8.onnx does not do what the weights do: logits differ by" in int8_difference(
        bundle
    )
    assert int8_difference(exported[0]) == ""


@pytest.mark.slow
def test_a_bench_compiles_for_each_number_of_threads() -> None:
    compiled = []

    def count(graph: Any, inputs: Any) -> Any:
        compiled.append(len(inputs[-1]))
        return graph.forward

    before = torch.get_num_threads()
    numbers = range(1, 8)
    with _recompiling(8 + 2 * len(numbers)):
        for number in numbers:
            run = torch.compile(nn.Linear(3, 2), backend=count)
            torch.set_num_threads(number)
            for images in (torch.zeros(1, 3), torch.zeros(9, 3)):
                run(images)
    torch.set_num_threads(before)
    assert len(compiled) == 2 * len(numbers)


@pytest.mark.slow
def test_a_bench_times_every_runtime(cli: Cli, exported: tuple[Bundle, Proof]) -> None:
    folder = str(exported[0].folder)
    rows = cli("bench", folder, "--threads", "1", "--rounds", "2", "--json").json
    assert {"torch", "onnxruntime", "onnxruntime int8"} <= {row["runtime"] for row in rows}
    exact = {row["runtime"]: row["exact"] for row in rows}
    assert exact["torch"]
    assert exact["onnxruntime"]
    for row in rows:
        assert 0 < row["latency_ms"] <= row["latency_p95_ms"]
        assert row["peak_memory_bytes"] >= 0


def test_a_runtime_that_is_killed_is_named() -> None:
    def kill() -> None:
        while not (children := multiprocessing.active_children()):
            ended.wait(0.01)
        children[0].kill()

    ended = threading.Event()
    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(ValueError, match=r"of torch .*: its process ended \(out of memory\?\)"):
        _peak_memory(BUNDLED, "torch")
    thread.join()


def test_a_bundle_says_how_it_was_made(trained: Run, exported: tuple[Bundle, Proof]) -> None:
    bundle, _ = exported
    described = json.loads((bundle.folder / "model.json").read_text())
    assert described["recipe"] == trained.config.to_dict()
    assert described["exported"]["command"] == "from Python"  # not what pytest was called with
    card = (bundle.folder / "README.md").read_text()
    assert "## How it was made\n\n    from Python\n" in card
    assert described["data"]["fingerprint"] == trained.data.fingerprint
    assert np.isclose(described["proof"]["accuracy"], described["proof"]["onnx_accuracy"])


def test_what_can_be_told_at_once_is_told_before_data_and_run_are_opened(
    cli: Cli, quick: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "hunt").mkdir()
    (tmp_path / "hunt" / "search.json").write_text("its trials are not read")
    for source in ([str(quick.folder)], ["record"], ["hunt"], ["hunt", "--pick", "ram=32k"]):
        begun = ("export", *source, "--data", "nosuch")
        found = cli(*begun, "--out", "there", "--target", "c")
        assert (found.code, found.is_one_line("there exists already")) == (2, True)
        (tmp_path / "file").touch()
        beneath = cli(*begun, "--out", "file/new", "--target", "c")
        assert beneath.is_one_line("file/new cannot be made: ", "/file is no folder")
        assert cli(*begun, "--out", "new", "--target", "d").is_one_line("target='d'", "allowed: c")
        with monkeypatch.context() as bare:
            bare.setitem(sys.modules, "onnxscript", None)
            lacking = cli(*begun, "--out", "new", "--target", "c")
        assert lacking.is_one_line("exporting needs onnxscript: pip install -e '.[ship]'")


def test_what_does_nothing_for_a_bundle_is_refused(cli: Cli, tmp_path: Path) -> None:
    for idle in (["--data", "nonsense"], ["--allow-loss"]):
        told = cli("export", "record", "--out", "copy", *idle)
        assert (told.code, told.is_one_line(" ".join(idle), "leave it out")) == (2, True)
    assert not list(tmp_path.iterdir())


def test_more_threads_than_a_machine_has_are_refused(cli: Cli) -> None:
    told = cli("bench", "record", "--threads", "1,99999999999")
    assert (told.code, told.is_one_line("'1,99999999999'", "1 to 4,096")) == (2, True)


class Guarded(nn.Module):
    """Looks at the values of its images before it does anything."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.isfinite(x).all():
            raise ValueError("not finite")
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


def test_what_the_exporter_refuses_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^torch\.onnx does not export the network:") as told:
        to_onnx(Guarded(), (0.5,) * 3, (0.2,) * 3, 8)
    assert len(str(told.value).splitlines()) == 1


def test_a_bundle_of_another_budget_is_told(cli: Cli) -> None:
    other = cli("train", "record", "init=record", "budget=20000")
    assert other.is_one_line("was made with budget=500000", "add budget=500000")


@pytest.mark.slow
def test_a_bundle_of_a_network_that_scales_keeps_its_budget(
    cli: Cli, tmp_path: Path, pictures: Path
) -> None:
    terms = ["record", "budget=20000", "epochs=1", "small_size=0", "ema=0.9", "batch_size=60",
             "val_fraction=0.1", "--image-size", "16", "--data", str(pictures)]  # fmt: skip
    assert cli("train", *terms, "--out", "run").code == 0
    made = cli("export", "run", "--out", "bundle", "--allow-loss")
    assert made.code == 0, made.err
    bundle = Bundle.open(tmp_path / "bundle")
    assert sum(p.numel() for p in bundle.load_model().parameters()) < 20_000
    again = cli("train", *terms, "init=bundle", "epochs=1", "--out", "again")
    assert again.code == 0, again.err
    other = cli("train", "record", "init=bundle")
    assert other.is_one_line("was made with budget=20000", "add budget=20000")
