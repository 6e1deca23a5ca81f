"""Mutated inputs by kind: what each is, how a case of it is made, and what must come of it.

A case ends as `refused` (a ValueError or OSError, which the command line makes one line of), as
`right` (the damage changed nothing that was used), or as `silent`: something else was used than
what had been stored, without a word. Any other exception is a traceback.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gzip
import io
import json
import os
import pickle
import random
import shutil
import tarfile
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from halfmeg.artifacts.bundle import BUNDLED, Bundle, checksum
from halfmeg.artifacts.run import Run
from halfmeg.artifacts.weights import read_checkpoint
from halfmeg.config import RunConfig
from halfmeg.data import cifar
from halfmeg.data.cache import load_cached, save_splits
from halfmeg.data.dataset import DataSplits
from halfmeg.data.decode import decode_image
from halfmeg.data.load import load_dataset
from halfmeg.data.unpack import read_members
from halfmeg.studies.measure import mean_robustness, read_costs
from halfmeg.studies.page import _environment
from halfmeg.studies.study import open_runs, run_study
from halfmeg.training.distributed import Ranks
from halfmeg.training.fit import fit
from halfmeg.training.job import set_up

Case = Callable[[random.Random], str]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert, or repeat bytes; headers are where it hurts, so they get more."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        place = rng.randrange(len(changed)) if changed else 0
        what = rng.randrange(6)
        if what == 0 and changed:
            changed[place] ^= 1 << rng.randrange(8)
        elif what == 1:
            del changed[place : place + rng.choice((1, 4, 100, 10**6))]
        elif what == 2:
            changed[place:place] = rng.randbytes(rng.choice((1, 4, 100)))
        elif what == 3 and changed:
            end = min(len(changed), 256)
            changed[rng.randrange(end)] = rng.choice((0, 1, 127, 128, 255))
        elif what == 4 and changed:
            length = rng.choice((1, 512, 4096))  # a sector that was never written
            changed[place : place + length] = bytes(len(changed[place : place + length]))
        else:
            changed[place:place] = changed[place : place + 50]
    return bytes(changed)


ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**63, 2**70, 1e308, -0.5, "", "x", "x" * 5000, "../../x",
    "\ud800", [], {}, [[]], [None], {"": None}, [0] * 1000, "NaN", [{}] * 3,
)  # fmt: skip


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Replace, remove or add values anywhere, or damage the text."""
    if rng.random() < 0.3:
        return mutate(content, rng)
    if rng.random() < 0.05:
        return rng.choice((b"[" * 100_000, b'{"a":' * 50_000, b"", b"null", b"\xff\xfe", b"1e999"))
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        node: Any = value
        while True:
            if not isinstance(node, dict | list) or not node:
                break
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
            if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.7:
                node = node[key]
                continue
            what = rng.randrange(3)
            if what == 0:
                del node[key]
            elif what == 1 and isinstance(node, dict):
                node[rng.choice(("new", "", "sha256", "files"))] = copy.deepcopy(rng.choice(ODD))
            else:
                node[key] = copy.deepcopy(rng.choice(ODD))
            break
    return json.dumps(value).encode("utf-8", "surrogatepass")


@functools.cache
def small_data(count: int = 60) -> DataSplits:
    """The first training and test images of the digits."""
    digits = load_dataset("digits", image_size=32)
    train = digits.train.subset(torch.arange(count))
    test = digits.test.subset(torch.arange(30))
    return replace(digits, train=train, test=test, fingerprint=f"{count:016}", source="digits")


def small_config(**changes: Any) -> RunConfig:
    """A run of less than a second."""
    settings: dict[str, Any] = {
        "model": "cnn", "epochs": 2, "batch_size": 30, "optimizer": "adamw", "lr": 0.003,
        "val_fraction": 0.2, "ema": 0.5, "precision": "fp32", "threads": 1,
    }  # fmt: skip
    return RunConfig(**settings | changes)


def refused(call: Callable[[], Any]) -> tuple[bool, Any]:
    """Call; return whether it was refused in a way that becomes one line, and its result."""
    try:
        return False, call()
    except (ValueError, OSError) as error:
        assert str(error)
        return True, None


def picture_files() -> list[bytes]:
    """Encode a picture of noise in nine formats."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    originals = []
    for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, form)
        originals.append(buffer.getvalue())
    return originals


def images(folder: Path) -> Case:
    originals = picture_files()

    def case(rng: random.Random) -> str:
        content = mutate(rng.choice(originals), rng)
        no, found = refused(lambda: decode_image(content, 32))
        assert no or found[0].shape == (3, 32, 32)
        return "refused" if no else "right"  # a changed pixel is an image too

    return case


def parquet(folder: Path) -> Case:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def encode(index: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.full((9, 9, 3), 20 * index, np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    rows = [{"bytes": encode(index), "path": None} for index in range(12)]
    table = pa.table({"img": rows, "label": [index % 2 for index in range(12)]})
    path = folder / "all.parquet"
    pq.write_table(table, path)
    original = path.read_bytes()

    def case(rng: random.Random) -> str:
        path.write_bytes(mutate(original, rng))
        no, _ = refused(lambda: load_dataset(str(path), image_size=16))
        shutil.rmtree(os.environ["HALFMEG_CACHE"], ignore_errors=True)
        return "refused" if no else "right"  # as above

    return case


class Call:
    """Writes any call into a pickle."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> Any:
        return self.parts


def cifar_files(folder: Path) -> Case:
    """Pickles and archives whose checksum is taken for the official one."""
    marker = folder / "attacked"
    pixels = np.zeros((2, 3072), np.uint8)
    address = (0x41414141414).to_bytes(8, "little")
    field = (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)
    datas: tuple[Any, ...] = (
        pixels, Call(np.ndarray, ((6144,), "O", address * 6144)),
        Call(np.ndarray, ((6144,), Call(np.dtype, ("V8",), field), address * 6144)),
        Call(os.system, (f"touch {marker}",)), np.array([None] * 9), pixels.astype(np.int64),
        Call(np.ndarray, ((2**40,), "u1", b"")), b"\0" * 6144, bytearray(6144), [0], {}, 2**80,
    )  # fmt: skip
    one = b"\x03" + bytes(3072)
    form = replace(cifar.BINARY, files=dict.fromkeys(cifar.BINARY.files, ""))

    def archive(rng: random.Random) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=rng.choice((0, 1, 2))) as tar:
            for name in (*form.files, "../../escaped", "/absolute"):
                member = tarfile.TarInfo(rng.choice((name, f"a/{name}", f"../{name}", f"/{name}")))
                member.size = len(one)
                member.type = rng.choice((tarfile.REGTYPE,) * 9 + tuple(b"1234567gxLKS"[i : i + 1]
                    for i in range(11)))  # fmt: skip
                member.linkname = rng.choice(("", "/etc/passwd", "../x"))
                tar.addfile(member, io.BytesIO(one))
        content = mutate(buffer.getvalue(), rng) if rng.random() < 0.7 else buffer.getvalue()
        if rng.random() < 0.05:
            content = buffer.getvalue()[:1024] + bytes(2**28 + 512)  # unpacks to too much
        packed = gzip.compress(content, 1)
        return mutate(packed, rng) if rng.random() < 0.2 else packed

    def case(rng: random.Random) -> str:
        if rng.random() < 0.3:
            path = folder / "archive.tar.gz"
            path.write_bytes(archive(rng))
            no, _ = refused(lambda: read_members(path, form.files))
            assert {item.name for item in folder.iterdir()} <= {"archive.tar.gz", "cache"}
        else:
            labels = rng.choice(([3, 4], [3], [-1, 300], None, "ab", [2**70, 1], [[1], [2]]))
            batch = {b"data": rng.choice(datas), b"labels": labels}
            content = pickle.dumps(batch, rng.choice((2, 3, 4)))
            content = mutate(content, rng) if rng.random() < 0.7 else content
            no, _ = refused(lambda: cifar._parse_python(content, "data_batch_1"))
        assert not marker.exists()
        return "refused" if no else "right"

    return case


def damage(path: Path, rng: random.Random) -> None:
    """Damage one file, or put something else in its place."""
    what = rng.random()
    content = path.read_bytes()
    path.unlink()
    if what < 0.02:
        os.mkfifo(path)
    elif what < 0.04:
        path.mkdir()
    elif what < 0.06:
        path.symlink_to("/dev/zero")
    elif what > 0.08:
        change = mutate_json if path.suffix == ".json" else mutate
        path.write_bytes(change(content, rng))


@contextlib.contextmanager
def damaged(path: Path, rng: random.Random) -> Any:
    """Damage a file for the time."""
    content = path.read_bytes()
    damage(path, rng)
    try:
        yield not path.is_file() or path.read_bytes() != content
    finally:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(content)


def cache(folder: Path) -> Case:
    data = small_data()
    store = Path(os.environ["HALFMEG_CACHE"])

    def case(rng: random.Random) -> str:
        if not (store / "key").is_dir():
            save_splits(data, store / "key")
        damage(rng.choice(sorted((store / "key").iterdir())), rng)
        found = load_cached("digits", "key", lambda: data)
        same = (
            torch.equal(found.train.images, data.train.images)
            and torch.equal(found.train.labels, data.train.labels)
            and torch.equal(found.test.images, data.test.images)
            and torch.equal(found.test.labels, data.test.labels)
            and (found.mean, found.std, found.classes) == (data.mean, data.std, data.classes)
        )
        return "right" if same else "silent"

    return case


def make_run(folder: Path) -> Run:
    return fit(small_config(epochs=1), small_data(), folder / "run")


def make_study(folder: Path) -> list[Run]:
    from halfmeg.studies.measure import measure

    data = small_data()
    configs = [small_config(seed=seed, epochs=1) for seed in (0, 1)]
    study = run_study(configs, data, folder / "study")
    measure(study.runs, data, folder / "study")
    return list(study.runs)


def same_state(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_state(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_state, one, other))
    return bool(one == other)


def checkpoints(folder: Path) -> Case:
    """Damaged ones, and ones that were changed and sealed again."""
    run = make_run(folder)
    (path,) = run.checkpoints()
    state = read_checkpoint(path)
    job = set_up(run, small_data(), Ranks())
    odd = (*ODD, torch.zeros(3), torch.zeros(1, 3072), torch.zeros(1).expand(2**40), b"")

    def case(rng: random.Random) -> str:
        if rng.random() < 0.5:
            with damaged(path, rng):
                found = read_checkpoint(path)
            return "refused" if found is None else "right" if same_state(state, found) else "silent"
        changed: Any = copy.deepcopy(state)
        node = changed
        while True:
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
            inner = node[key]
            if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
                node = inner
                continue
            break
        if rng.random() < 0.3:
            del node[key]
        else:
            node[key] = copy.deepcopy(rng.choice(odd))
        sealed = path.with_name("epoch_00099_step_0000000.pt")
        torch.save(changed, sealed)
        found = read_checkpoint(sealed)
        sealed.unlink()
        no = found is None or refused(lambda: job.load(found))[0]
        return "refused" if no else "right"

    return case


def run_files(folder: Path) -> Case:
    """The JSON and CSV files of runs and studies."""
    runs = make_study(folder)
    study = folder / "study"
    run = runs[0].folder
    paths = [
        study / "study.json", study / "costs.json", run / "config.json", run / "result.json",
        run / "robustness.json", run / "environment.json", run / "metrics.csv",
    ]  # fmt: skip

    def read() -> None:
        opened = open_runs([study])
        for one in opened:
            one.result()
            one.read_metrics()
            _environment(one)
        mean_robustness(opened)
        read_costs(study)

    def case(rng: random.Random) -> str:
        with damaged(rng.choice(paths), rng):
            no, _ = refused(read)
        return "refused" if no else "right"  # another number of the right kind is not noticed

    return case


def search_files(folder: Path) -> Case:
    """What a search is remembered by, as it is read to go on, and to ship a network."""
    from halfmeg.data.options import DataOptions
    from halfmeg.data.shape import data_shape
    from halfmeg.search import journal, record
    from halfmeg.search.budget import Costs, Limits
    from halfmeg.search.front import COST_NAMES, best_of, front
    from halfmeg.search.schedule import Plan
    from halfmeg.studies.trials import SEARCH

    data = small_data()
    plan, final = (
        Plan(2, 1, 0, 1.0, 2.0, 3.0, 9.0, 10.0),
        record.Final(0, "final-1", 1, (("cnn", 9),), 2),
    )
    place = folder / "search"
    place.mkdir()
    record.write_stored(place, record.Stored(
        record.describe_data(data), [("lr", "1 to 2")], "", [], [], Limits(params=9), 1, 0.2, None,
        True, 0, "tpe", 60.0, plan=plan, final=final,
    ))  # fmt: skip
    trials_of = journal.Journal(place, 0, "tpe")
    for number in range(3):
        trial = trials_of.ask()
        journal.suggest(trial, "lr", (0.1, 1.0))
        costs, config = asdict(Costs(1000, 9)), small_config(seed=number).to_dict()
        trials_of.keep(trial, drawn={"lr": 0.5}, costs=costs, config=config, reached={"2": 0.5})
        trials_of.tell(trial, "done", (0.5, 1000.0))
    record.Clock(place).save()

    def read() -> None:
        stored = record.read_stored(place)
        facts = stored.data
        DataOptions.from_dict(facts["options"])
        data_shape(facts["image_size"], 3)
        assert isinstance(facts["source"] + facts["name"] + facts["fingerprint"], str)
        trials = journal.read_trials(place)
        best_of(trials)
        for cost in COST_NAMES:
            front(trials, cost)
        assert stored.final is None or record.decided(trials, stored.final).config
        assert record.Clock(place).spent() is not None

    read()

    def case(rng: random.Random) -> str:
        with damaged(place / rng.choice((SEARCH, record.JOURNAL, "clock.json")), rng):
            no, _ = refused(read)
        return "refused" if no else "right"  # as above

    return case


def stored_arrays(folder: Path) -> Case:
    """Weights and logits of a run."""
    run = make_run(folder)
    weights, logits = run.load_model().state_dict(), run.load_logits()

    def case(rng: random.Random) -> str:
        name = rng.choice(("weights.safetensors", "logits.npz"))
        with damaged(run.folder / name, rng):
            if name == "logits.npz":
                no, found = refused(run.load_logits)
                same = no or same_state(logits, found)
            else:
                no, found = refused(lambda: run.load_model().state_dict())
                same = no or same_state(dict(weights), dict(found))
        return "refused" if no else "right" if same else "silent"

    return case


def bundles(folder: Path) -> Case:
    """Damaged, and described anew by somebody who means harm."""
    place = Path(shutil.copytree(BUNDLED, folder / "bundle"))
    weights = Bundle.open(place).load_model().state_dict()

    def case(rng: random.Random) -> str:
        sealed = rng.random() < 0.3
        described = (place / "model.json").read_bytes()
        name = rng.choice(("model.json", "model.safetensors"))
        with damaged(place / name, rng):
            if sealed and name == "model.safetensors" and (place / name).is_file():
                stated = json.loads(described)
                stated["files"][name] = checksum((place / name).read_bytes()[: 2**26])
                (place / "model.json").write_text(json.dumps(stated))
            no, found = refused(lambda: Bundle.open(place).load_model().state_dict())
            (place / "model.json").unlink() if name != "model.json" else None
        (place / "model.json").write_bytes(described)
        if no or sealed:
            return "refused" if no else "right"
        return "right" if same_state(dict(weights), dict(found)) else "silent"

    return case


def onnx_files(folder: Path) -> Case:
    """ONNX files that are no longer the network's, sealed again."""
    import onnx

    from halfmeg.artifacts.graph import onnx_logits
    from halfmeg.data.shape import image_shape
    from halfmeg.shipping.onnx import to_onnx
    from halfmeg.shipping.predict import open_runner
    from halfmeg.shipping.verify import _probes

    run = make_run(folder)
    model = run.load_model()
    original = to_onnx(model, run.data.mean, run.data.std, 32)
    weights = (run.folder / "weights.safetensors").read_bytes()
    place = folder / "bundle"
    place.mkdir()
    (place / "model.safetensors").write_bytes(weights)
    facts = json.loads((BUNDLED / "model.json").read_text())
    facts |= {"model": "cnn", "classes": list(run.data.classes), "mean": run.data.mean,
              "std": run.data.std}  # fmt: skip
    true = onnx_logits(original, pictures := _probes(image_shape(32), run.data.mean, run.data.std))

    def change(rng: random.Random) -> bytes:
        if rng.random() < 0.4:
            return mutate(original, rng)
        proto = onnx.ModelProto.FromString(original)
        graph = proto.graph
        what = rng.randrange(6)
        if what == 0:  # another weight
            tensor = rng.choice(graph.initializer)
            raw = bytearray(tensor.raw_data)
            if raw:
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
                tensor.raw_data = bytes(raw)
        elif what == 1:  # an operator less, or another
            node = rng.choice(graph.node)
            node.op_type = rng.choice(("Identity", "Loop", "Tile", "Sigmoid", "Nothing", "If"))
        elif what == 2:
            del graph.node[rng.randrange(len(graph.node))]
        elif what == 3:  # huge sizes
            tensor = rng.choice(graph.initializer)
            if tensor.dims:
                tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((-1, 0, 2**31, 2**62))
        elif what == 4:
            for attribute in rng.choice(graph.node).attribute:
                if attribute.ints:
                    attribute.ints[0] = rng.choice((-1, 0, 1000, 2**31, 2**62))
        else:
            graph.input[0].type.tensor_type.elem_type = rng.randrange(20)
        return bytes(proto.SerializeToString())

    def case(rng: random.Random) -> str:
        content = change(rng)
        (place / "model.onnx").write_bytes(content)
        facts["files"] = {"model.safetensors": checksum(weights), "model.onnx": checksum(content)}
        (place / "model.json").write_text(json.dumps(facts))
        no, runner = refused(lambda: open_runner(Bundle.open(place)))
        if no:
            return "refused"
        return "right" if (runner(pictures) - true).abs().max() < 0.01 else "silent"

    return case


def hub(folder: Path) -> Case:
    """A server that sends what it likes."""
    from halfmeg.artifacts import hub as halfmeg_hub
    from halfmeg.data import hub as data_hub

    files = {path.name: path.read_bytes() for path in BUNDLED.iterdir() if path.is_file()}
    answers: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            rng: random.Random = answers["rng"]
            name = self.path.rpartition("/")[2].partition("?")[0]
            body = files.get(name, b"")
            what = rng.random()
            if what < 0.4:
                change = mutate_json if name.endswith("json") else mutate
                body = change(body, rng)
            with contextlib.suppress(OSError):
                if what > 0.95:
                    self.wfile.write(rng.randbytes(200))
                    return
                self.send_response(rng.choice((200,) * 12 + (204, 206, 302, 404, 500, 999)))
                if rng.random() < 0.1:
                    target = rng.choice(("/x", "file:///etc/passwd", "http://127.0.0.1:1/", "::"))
                    self.send_header("Location", target)
                if rng.random() < 0.1:
                    self.send_header("Content-Encoding", rng.choice(("gzip", "br", "zstd", "x")))
                if rng.random() < 0.9:
                    self.send_header("Content-Length", str(len(body) + rng.choice((0, 0, 0, 9))))
                self.end_headers()
                self.wfile.write(body)
                if name == "model.json" and rng.random() < 0.05:
                    while True:  # until the other side has enough
                        self.wfile.write(bytes(2**16))
            self.close_connection = True

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    data_hub.TIMEOUT_SECONDS = 2.0
    weights = Bundle.open(BUNDLED).load_model().state_dict()

    def case(rng: random.Random) -> str:
        answers["rng"] = random.Random(rng.random())
        out = folder / "pulled"
        no, found = refused(lambda: halfmeg_hub.pull("me/mine", out))
        same = no or same_state(dict(weights), dict(found.load_model().state_dict()))
        assert out.exists() is not no
        shutil.rmtree(out, ignore_errors=True)
        left = [path.name for path in folder.iterdir() if path.name != "cache"]
        assert left == [], left
        return "refused" if no else "right" if same else "silent"

    return case


KINDS: dict[str, Callable[[Path], Case]] = {
    "images": images,
    "parquet": parquet,
    "cifar": cifar_files,
    "cache": cache,
    "checkpoints": checkpoints,
    "run files": run_files,
    "search files": search_files,
    "weights and logits": stored_arrays,
    "bundles": bundles,
    "onnx": onnx_files,
    "hub": hub,
}

SHARES = {
    "images": 500, "parquet": 150, "cifar": 120, "weights and logits": 100, "cache": 50,
    "checkpoints": 30, "run files": 30, "search files": 30, "bundles": 10, "onnx": 5, "hub": 5,
}  # fmt: skip
"""Of a thousand cases: fewer where each takes long."""
