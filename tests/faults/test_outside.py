"""What comes from outside: page requests, ONNX files, a hub."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import with_tests
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent))

from inputs import KINDS, small_data
from page_requests import question

from halfmeg.artifacts.bundle import BUNDLED, Bundle, checksum
from halfmeg.shipping.device import bench_device, missing_tool, run_on
from halfmeg.shipping.gate import ANSWER, ASK, UPLOAD, Gate, Sweeper, check_upload, is_own_name
from halfmeg.shipping.predict import open_runner

# --- the page's gate ---------------------------------------------------------------------------


def ask(
    folder: Path,
    method: str,
    path: str,
    body: bytes = b"",
    **headers: str,
) -> int:
    """Ask the gate as the server would; return the status, 200 where it lets it through."""
    statuses: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while body and (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    fields = {"host": "127.0.0.1:7860", "content-length": str(len(body))} | {
        key.replace("_", "-"): value for key, value in headers.items()
    }
    scope = {
        "type": "http", "method": method, "path": path,
        "headers": [(key.encode(), value.encode("latin-1")) for key, value in fields.items()],
    }  # fmt: skip
    gate = Gate(app, "127.0.0.1", Sweeper(folder), lambda: {0: 3, 1: 0})
    asyncio.run(gate(scope, receive, send))
    return statuses[0]


def test_the_pages_own_script_is_let_through(tmp_path: Path) -> None:
    (tmp_path / "image.png").touch()
    assert ask(tmp_path, "GET", "/") == 200
    assert ask(tmp_path, "POST", ASK, question(str(tmp_path / "image.png"))) == 200
    form = {"content_type": "multipart/form-data; boundary=x"}
    assert ask(tmp_path, "POST", UPLOAD, b"x", **form) == 200
    assert ask(tmp_path, "GET", "/", origin="http://127.0.0.1:7860") == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"}, {"host": "evil.example:7860"}, {"host": ""}, {"host": "[::1"},
        {"host": "localhost.evil.example"}, {"host": "10.0.0.1"}, {"origin": "null"},
        {"origin": "http://evil.example"}, {"origin": "http://localhost:7860"},
        {"sec_fetch_site": "cross-site"},
    ],
)  # fmt: skip
def test_other_hosts_and_pages_are_refused(tmp_path: Path, headers: dict[str, str]) -> None:
    assert ask(tmp_path, "GET", "/", b"", **headers) == 403


def test_names_of_the_page() -> None:
    assert is_own_name("192.168.1.5", "0.0.0.0")
    assert is_own_name("::1", "127.0.0.1")
    assert not is_own_name("evil.example", "0.0.0.0")


def test_files_that_nobody_uploaded(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    secret = tmp_path / "secret.png"
    secret.touch()
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(secret)
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "large").touch()
    os.truncate(folder / "large", 11 * 2**20)
    for path in (
        secret, "/dev/zero", folder / "pipe", folder / "link", folder / "zero", folder / "large",
        folder / ".." / "secret.png", folder, "", "\0", folder / "gone",
    ):  # fmt: skip
        with pytest.raises(ValueError, match="upload"):
            check_upload(str(path), folder)
        assert ask(folder, "POST", ASK, question(str(path))) == 400
    (folder / "image").touch()
    for meta in (None, {}, {"_type": "x"}):
        body = json.dumps({"data": [{"path": str(folder / "image"), "meta": meta}],
                           "fn_index": 1, "session_hash": "a"}).encode()  # fmt: skip
        assert ask(folder, "POST", ASK, body) == 400


def test_other_requests_are_refused(tmp_path: Path) -> None:
    assert ask(tmp_path, "POST", ASK, b"{") == 400
    assert ask(tmp_path, "POST", ASK, question(None, fn_index=7)) == 400
    assert ask(tmp_path, "POST", ASK, question(None, session_hash="../x")) == 400
    upload = {"path": str(tmp_path / "image.png"), "meta": {"_type": "gradio.FileData"}}
    (tmp_path / "image.png").touch()
    for given in ([upload], [3], [-1], [True], ["x"], [0, 0], []):  # a function of 3 examples
        assert ask(tmp_path, "POST", ASK, question("", fn_index=0, data=given)) == 400
    for allowed in ([None], [2]):
        assert ask(tmp_path, "POST", ASK, question("", fn_index=0, data=allowed)) == 200
    assert ask(tmp_path, "POST", ASK, question("", data=[0])) == 400  # a function of uploads
    assert ask(tmp_path, "POST", ASK, b"x" * 70_000) == 413
    assert ask(tmp_path, "POST", UPLOAD, b"x") == 400
    assert ask(tmp_path, "POST", UPLOAD, b"x", content_length="99999999") == 413
    assert ask(tmp_path, "POST", UPLOAD, b"x", content_length="") == 411
    assert ask(tmp_path, "PUT", "/") == 404
    assert ask(tmp_path, "POST", "/gradio_api/run/predict", b"{}") == 404
    assert ask(tmp_path, "GET", "/gradio_api/proxy=http://10.0.0.1/") == 403


@pytest.mark.parametrize("sent", [0, 1, 2, 3])
def test_what_the_pages_library_raises_is_one_line(tmp_path: Path, caplog, sent: int) -> None:
    """As for the stream of a session that nobody knows: the answer has begun by then."""
    answer: list[Any] = [
        {"type": "http.response.start", "status": 200, "headers": []},
        {"type": "http.response.body", "body": b"a", "more_body": True},
        {"type": "http.response.body", "body": b"b"},
    ]
    got: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in answer[:sent]:
            await send(message)
        raise RuntimeError("response already started") from KeyError("one\nhalfmeg: two")

    async def send(message: Any) -> None:
        got.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": ANSWER, "headers": [(b"host", b"localhost")]}
    asyncio.run(Gate(app, "127.0.0.1", Sweeper(tmp_path), dict)(scope, receive, send))
    assert [message["type"] for message in got].count("http.response.start") == 1
    assert got[0]["status"] == (200 if sent else 500)
    assert not got[-1].get("more_body")
    assert got[-1]["type"] == "http.response.body"
    (record,) = caplog.records
    assert record.getMessage().startswith("halfmeg: a request was not answered: ")
    assert "\n" not in record.getMessage()


def test_uploads_are_deleted_as_they_are_answered(tmp_path: Path) -> None:
    sweeper = Sweeper(tmp_path)
    (tmp_path / "example.png").touch()
    sweeper.start()
    sweeper.stop()
    answered, waiting = tmp_path / "answered", tmp_path / "waiting"
    answered.touch()
    waiting.touch()
    now = time.monotonic()
    sweeper.sweep(now - 1)
    sweeper.note_answered(answered)
    sweeper.sweep(now + 1)
    assert answered.exists()
    sweeper.sweep(now + 5)
    assert not answered.exists()
    assert waiting.exists()
    sweeper.sweep(now + 70)
    assert [path.name for path in tmp_path.iterdir()] == ["example.png"]


def test_folders_of_deleted_uploads_are_deleted_while_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    sweeper = Sweeper(tmp_path)
    sweeper.start()
    sweeper.stop()
    upload = tmp_path / "0123abcd" / "image.png"
    upload.parent.mkdir()
    now = time.monotonic()
    with sweeper.writing():  # its folder is made, and the file is not yet in it
        sweeper.sweep(now)
        upload.touch()
    sweeper.sweep(now + 1)
    assert upload.exists()
    with sweeper.writing(), sweeper.writing():
        sweeper.sweep(now + 70)
        assert list(upload.parent.iterdir()) == []
    sweeper.sweep(now + 71)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_no_folder_is_deleted_while_the_page_takes_an_upload_or_answers(tmp_path: Path) -> None:
    busy: dict[str, bool] = {}
    sweeper = Sweeper(tmp_path)
    body = question("", fn_index=0, data=[2])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        busy[scope["path"]] = sweeper.writers == 1

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    gate = Gate(app, "127.0.0.1", sweeper, lambda: {0: 3})
    for method, path in (("POST", UPLOAD), ("POST", ASK), ("GET", ANSWER), ("GET", "/")):
        fields = {"host": "127.0.0.1", "content-length": str(len(body)),
                  "content-type": "multipart/form-data; boundary=x"}  # fmt: skip
        headers = [(key.encode(), value.encode()) for key, value in fields.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": headers}
        asyncio.run(gate(scope, receive, send))
    assert busy == {UPLOAD: True, ASK: True, ANSWER: True, "/": False}
    assert sweeper.writers == 0


@pytest.mark.slow
def test_the_page_remembers_few_sessions() -> None:
    """gradio copies its settings for each, 40 kB that nobody uses."""
    code = """
import gradio, page_requests
from halfmeg.artifacts.bundle import BUNDLED, Bundle
from halfmeg.shipping import demo
pages = []
class Noted(gradio.Blocks):
    def launch(self, *arguments, **settings):
        pages.append(self)
        return super().launch(*arguments, **settings)
gradio.Blocks = Noted
demo.MAX_SESSIONS = 3
with demo.serve([Bundle.open(BUNDLED)]) as address:
    for number in range(6):
        asked = page_requests.question('', data=[None], session_hash=f's{number}')
        assert page_requests.ask(address.rstrip('/'), asked) == 'nothing'
    print(*pages[0].state_holder.session_data)
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=with_tests(), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["s3", "s4", "s5"]


def test_uploads_are_answered_while_others_are_deleted(tmp_path: Path) -> None:
    """Notes that come while the sweeper goes through its own must not end it."""

    class Noting(type(tmp_path)):  # type: ignore[misc]
        def exists(self, **settings: Any) -> bool:
            sweeper.note_answered(tmp_path / f"new-{len(sweeper.answered)}")
            return bool(super().exists(**settings))

    sweeper = Sweeper(tmp_path)
    for name in ("one", "two"):
        Noting(tmp_path / name).touch()
        sweeper.note_answered(Noting(tmp_path / name))
    now = time.monotonic()
    sweeper.sweep(now - 1)
    sweeper.sweep(now + 5)
    assert not list(tmp_path.iterdir())
    assert len(sweeper.answered) == 2  # those noted meanwhile are kept for the next time
    sweeper.sweep(now + 6)


def test_an_upload_that_cannot_be_deleted_does_not_end_the_sweeping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    sweeper = Sweeper(tmp_path)
    (tmp_path / "upload").touch()
    now = time.monotonic()
    sweeper.sweep(now)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", busy)
        sweeper.sweep(now + 70)
    assert (tmp_path / "upload").exists()
    sweeper.sweep(now + 71)
    assert not (tmp_path / "upload").exists()


# --- ONNX files sealed again -------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLED, tmp_path / "bundle"))


def seal(place: Path, model: onnx.ModelProto | bytes) -> Bundle:
    content = model if isinstance(model, bytes) else model.SerializeToString()
    (place / "model.onnx").write_bytes(content)
    described = json.loads((place / "model.json").read_text())
    described["files"]["model.onnx"] = checksum(content)
    (place / "model.json").write_text(json.dumps(described))
    return Bundle.open(place)


def graph(*nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    return helper.make_model(
        helper.make_graph(
            list(nodes), "g",
            [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["b", 3, 32, 32])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 10])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=9,
    )  # fmt: skip


def always_seven() -> onnx.ModelProto:
    return graph(
        helper.make_node("Cast", ["pixels"], ["f"], to=1),
        helper.make_node("ReduceMean", ["f", "axes"], ["m"], keepdims=0),
        helper.make_node("Unsqueeze", ["m", "one"], ["u"]),
        helper.make_node("Mul", ["u", "zeros"], ["z"]),
        helper.make_node("Add", ["z", "seven"], ["logits"]),
        axes=np.array([1, 2, 3]), one=np.array([1]), zeros=np.zeros((1, 10), np.float32),
        seven=np.eye(10, dtype=np.float32)[7:8] * 9,
    )  # fmt: skip


def endless() -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, [])],
    )  # fmt: skip
    return graph(helper.make_node("Loop", ["", "go"], ["logits"], body=body), go=np.array(True))


def huge() -> onnx.ModelProto:
    return graph(
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["logits"]),
        shape=np.array([2**30]),
    )


def huge_by_data() -> onnx.ModelProto:
    return graph(
        helper.make_node("Cast", ["pixels"], ["n"], to=7),
        helper.make_node("ConstantOfShape", ["n"], ["logits"]),
    )


def no_rows() -> onnx.ModelProto:
    return graph(
        helper.make_node("ConstantOfShape", ["shape"], ["logits"]), shape=np.array([0, 10])
    )


def gathered(indices: np.ndarray, *more: onnx.NodeProto) -> onnx.ModelProto:
    return graph(
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("Gather", ["flat", "indices"], ["logits"], axis=1),
        *more,
        indices=indices,
    )


def many_indices() -> onnx.ModelProto:
    return gathered(np.zeros(2**21 + 1, np.int64))


def indices_that_the_file_lacks() -> onnx.ModelProto:
    model = gathered(np.zeros(10, np.int64))
    model.graph.initializer[0].dims[:] = [2_000_000]
    return model


def indices_that_are_also_weights() -> onnx.ModelProto:
    return gathered(
        np.zeros(2_000_000, np.int64), helper.make_node("ReduceSum", ["indices"], ["sum"])
    )


def outside() -> onnx.ModelProto:
    model = always_seven()
    tensor = model.graph.initializer[3]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return model


def laborious() -> onnx.ModelProto:
    """Four thousand convolutions that share their weights: an hour of work in a file of 4 MB."""
    convolutions = [
        helper.make_node("Conv", [f"m{index}", "weight"], [f"m{index + 1}"])
        for index in range(4_000)
    ]
    return graph(
        helper.make_node("Cast", ["pixels"], ["f"], to=1),
        helper.make_node("Tile", ["f", "repeats"], ["m0"]),
        *convolutions,
        helper.make_node("GlobalAveragePool", ["m4000"], ["logits"]),
        repeats=np.array([1, 320, 1, 1]), weight=np.zeros((960, 960, 1, 1), np.float32),
    )  # fmt: skip


def recurrent() -> onnx.ModelProto:
    """Recurrent layers that share their weights, over 3,072 steps each."""
    size = 128
    layers = [
        node
        for index in range(400)
        for node in (
            helper.make_node("GRU", [f"m{index}", "w", "r"], [f"y{index}"], hidden_size=size),
            helper.make_node("Squeeze", [f"y{index}", "one"], [f"m{index + 1}"]),
        )
    ]
    return graph(
        helper.make_node("Cast", ["pixels"], ["f"], to=1),
        helper.make_node("Reshape", ["f", "steps"], ["s"]),
        helper.make_node("Transpose", ["s"], ["t"], perm=[1, 0, 2]),
        helper.make_node("Tile", ["t", "repeats"], ["m0"]),
        *layers,
        helper.make_node("ReduceMean", ["m400", "zero"], ["logits"], keepdims=0),
        steps=np.array([0, 3072, 1]), repeats=np.array([1, 1, size]), one=np.array([1]),
        zero=np.array([0]), w=np.zeros((1, 3 * size, size), np.float32),
        r=np.zeros((1, 3 * size, size), np.float32),
    )  # fmt: skip


def cubic() -> onnx.ModelProto:
    return graph(
        helper.make_node("Cast", ["pixels"], ["f"], to=1),
        helper.make_node("Det", ["f"], ["logits"]),
    )


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (laborious, "steps for an image; allowed"),
        (recurrent, "steps for an image; allowed"),
        (cubic, "Det takes steps that are not counted"),
        (always_seven, "does not do what the weights do"),
        (endless, "Loop branches or loops"),
        (huge, "unknown or huge size"),
        (huge_by_data, "unknown or huge size|cannot be used"),
        (no_rows, "gives logits of shape|cannot be used"),
        (many_indices, "a Gather has 2,097,153 indices; allowed: 2,097,152"),
        (indices_that_the_file_lacks, "it holds 2,000,000 numbers"),
        (indices_that_are_also_weights, "it holds 2,000,000 numbers"),
        (outside, "data outside of the file"),
        (lambda: b"\xff" * 100, "cannot be used"),
        (lambda: b"", "cannot be used"),
    ],
)
def test_an_onnx_file_that_means_harm(place: Path, make: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told) as refused:
        open_runner(seal(place, make()))
    assert "\n" not in str(refused.value)
    assert torch.get_num_threads() >= 1


def seven_of_eleven() -> onnx.ModelProto:
    return graph(
        helper.make_node("Cast", ["pixels"], ["f"], to=1),
        helper.make_node("ReduceMean", ["f", "axes"], ["m"], keepdims=0),
        helper.make_node("Unsqueeze", ["m", "one"], ["u"]),
        helper.make_node("Mul", ["u", "row"], ["logits"]),
        axes=np.array([1, 2, 3]), one=np.array([1]), row=np.ones((1, 11), np.float32),
    )  # fmt: skip


@pytest.mark.parametrize(
    "make", [seven_of_eleven, endless, laborious, lambda: b"\xff", lambda: b""]
)
def test_the_graph_of_a_network_of_ones_own_means_harm(place: Path, make: Any) -> None:
    """It is all that a bundle has of such a network; there are no weights to compare it with."""
    described = json.loads((place / "model.json").read_text())
    (place / "model.json").write_text(json.dumps(described | {"model": "mine.py:Net"}))
    bundle = seal(place, make())
    assert bundle.is_own
    data = small_data()
    test = dataclasses.replace(data.test, classes=bundle.classes)
    with pytest.raises(ValueError, match=r"model.onnx (cannot be used|gives)"):
        open_runner(bundle)
    with pytest.raises(ValueError, match=r"model.onnx (cannot be used|gives)"):
        bundle.evaluate(dataclasses.replace(data, test=test))


# --- C of a bundle -----------------------------------------------------------------------------

HEADER = """#include <stdint.h>
#define NET_IMAGE_BYTES 12
#define NET_CLASSES 2
void net_classify(const uint8_t *image, float *logits);
"""
SOURCE = """#include "net.h"
static const char command[] = "touch attacked";
void net_classify(const uint8_t *image, float *logits)
{
    uint32_t block[2] = {(uint32_t)command, sizeof command - 1};
    register uint32_t r0 __asm__("r0") = 0x12; /* SYS_SYSTEM: a command for the host */
    register void *r1 __asm__("r1") = block;
    logits[0] = image[0];
    logits[1] = image[11];
    %s
}
"""
CALL = '__asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");'


@pytest.mark.skipif(missing_tool() is not None, reason=str(missing_tool()))
def test_c_on_an_emulated_board_reaches_nothing_of_this_machine(tmp_path, monkeypatch) -> None:
    """An emulator with semihosting would open any file and run any command for it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    found = run_on("cortex-m4", SOURCE % "(void)r0, (void)r1;", HEADER, "net", images)
    assert found.logits.tolist() == [[0, 11], [12, 23]]
    with monkeypatch.context() as patched:
        patched.setattr("halfmeg.files.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(ValueError, match="stopped before it had finished"):
            run_on("cortex-m4", SOURCE % CALL, HEADER, "net", images)
    assert list(tmp_path.rglob("sent.bin"))
    assert not list(tmp_path.rglob("attacked"))
    with pytest.raises(ValueError, match="stopped before it had finished"):
        run_on("cortex-m4", SOURCE % "*(volatile int *)0xFFFFFFF0 = 0;", HEADER, "net", images)


@pytest.mark.parametrize("described", [5, {}, {"name": 3}, {"name": "../net"}, {"name": "other"}])
def test_c_that_a_bundle_describes_wrongly(place: Path, described: Any) -> None:
    path = place / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"c": described}))
    with pytest.raises(ValueError, match=r"model.json is damaged|has no c/src/other.c"):
        bench_device(Bundle.open(place), "cortex-m4")


# --- a hub -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_hub_that_sends_without_end(tmp_path: Path) -> None:
    code = (
        f"import sys, os, random; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path; from inputs import KINDS\n"
        f"case = KINDS['hub'](Path({str(tmp_path)!r}))\n"
        "print({case(random.Random(i)) for i in range(20)})"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "silent" not in done.stdout
    assert "hub" in KINDS
