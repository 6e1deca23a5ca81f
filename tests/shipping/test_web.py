"""The exported page: its scaling against Pillow, its WebAssembly against the oracle, a browser."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CHROMIUM, ROOT, Cli
from PIL import Image
from test_graph import COVERED, example
from test_integer import integers, pixels

from halfmeg.artifacts.bundle import Bundle
from halfmeg.data.decode import FITS, FitName, decode_image
from halfmeg.data.shape import ImageSize, image_shape
from halfmeg.shipping import web
from halfmeg.shipping.answered import Answered
from halfmeg.shipping.integer import run
from halfmeg.shipping.quantize import quantize
from halfmeg.shipping.unfamiliar import REMARK
from halfmeg.shipping.web import WebPage, build_web

TEMPLATES = ROOT / "halfmeg" / "shipping" / "templates" / "web"
DEMO = ROOT / "docs" / "demo"
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "clothing"
ONE_MEGABYTE = 1_000_000
COMPILED_BY = "14.0.6"
"""The clang of the committed demo."""

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine")
needs_clang = pytest.mark.skipif(
    shutil.which("clang") is None or shutil.which("wasm-ld") is None,
    reason="no clang and wasm-ld to compile WebAssembly with",
)
SLOW = pytest.mark.slow
QUICK = ("cnn", "anything")

FACTS = {
    "params": 74_000,
    "accuracy": {"test_accuracy": 0.9, "test_n": 100, "data": "<things>"},
    "preprocessing": {"fit": "crop"},
    "proof": {"int8_accuracy": 0.89, "accuracy": 0.9, "n": 50, "images": "validation"},
}


# --- scaling ---


def scaled_by_the_page(
    folder: Path, contents: Sequence[bytes], size: ImageSize, fit: FitName = "crop"
) -> list[np.ndarray]:
    """Scale the pixels that Pillow decodes, with the page's code, in node."""
    items = []
    for index, content in enumerate(contents):
        with Image.open(io.BytesIO(content)) as opened:
            image = opened.convert("RGBA")
        (folder / str(index)).write_bytes(image.tobytes())
        items.append((image.width, image.height, str(folder / str(index))))
    shape = image_shape(size)
    target = shape._asdict() | {"fit": fit}
    (folder / "items.json").write_text(json.dumps({"target": target, "items": items}))
    (folder / "scale.js").write_text(
        (TEMPLATES / "resize.js").read_text()
        + """
const fs = require("node:fs");
const [, , folder] = process.argv;
const { target, items } = JSON.parse(fs.readFileSync(`${folder}/items.json`));
const scaled = items.map(([width, height, path]) => {
  const pixels = new Uint8ClampedArray(fs.readFileSync(path));
  const rows = (top, count) => pixels.slice(top * width * 4, (top + count) * width * 4);
  return Buffer.from(resize(width, height, rows, target));
});
fs.writeFileSync(`${folder}/scaled`, Buffer.concat(scaled));
"""
    )
    subprocess.run(["node", str(folder / "scale.js"), str(folder)], check=True)
    _, height, width = shape
    found = np.fromfile(folder / "scaled", np.uint8).reshape(-1, height, width, shape.channels)
    return list(found.transpose(0, 3, 1, 2))


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@needs_node
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(
    "size",
    [32, (96, 64), (1, 20, 31), *(pytest.param(size, marks=SLOW) for size in (8, 97, (1, 48, 48)))],
)
def test_the_page_scales_as_pillow_does(tmp_path: Path, size: ImageSize, fit: FitName) -> None:
    random = np.random.default_rng(image_shape(size).width)
    shapes = [(2, 3), (5, 300), (31, 33), (32, 32), (97, 97), (97, 64), (427, 640), (700, 311)]
    contents = [png(random.integers(0, 256, (*shape, 3), np.uint8)) for shape in shapes]
    contents.append(
        png(np.full((41, 50, 3), 255, np.uint8) * random.integers(0, 2, (41, 50, 1), np.uint8))
    )
    if fit == "pad":  # an image that would have no pixel left is refused
        contents = [c for c in contents if min(Image.open(io.BytesIO(c)).size) > 5]
    scaled = scaled_by_the_page(tmp_path, contents, size, fit)
    for content, found in zip(contents, scaled, strict=True):
        expected = decode_image(content, size, fit)
        assert np.array_equal(found, expected[0]), expected[1]


def photographs(count: int) -> list[bytes]:
    if not PHOTOGRAPHS.is_dir():
        pytest.skip("the photographs of clothing are not on this machine")
    paths = sorted(PHOTOGRAPHS.glob("*/*/*.jpg"))
    contents = [path.read_bytes() for path in paths[:: len(paths) // count][:count]]
    assert len(contents) == count
    return contents


@needs_node
@pytest.mark.parametrize("count", [10, pytest.param(200, marks=SLOW)])
def test_photographs_are_scaled_as_pillow_does(tmp_path: Path, count: int) -> None:
    contents = photographs(count)
    for size in (32, 64):
        for content, found in zip(
            contents, scaled_by_the_page(tmp_path, contents, size), strict=True
        ):
            assert np.array_equal(found, decode_image(content, size)[0])


@needs_node
def test_every_transparent_pixel_is_laid_on_white_as_pillow_does(tmp_path: Path) -> None:
    values, alphas = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    content = png(np.stack([values, 255 - values, values // 2, alphas], axis=2))
    (found,) = scaled_by_the_page(tmp_path, [content], 256)
    assert np.array_equal(found, decode_image(content, 256)[0])


# --- WebAssembly ---


LABELS = ("</script><b>", "zwei & drei", "a" * 60)
"""Names that HTML and small screens have trouble with."""


@functools.cache
def page_of(name: str) -> WebPage:
    graph = integers(name)
    images = pixels(6, example(name)[1]).numpy()
    answered = Answered(graph, name, classes_of(name), 1.3, images, run(graph, images))
    return build_web(answered, FACTS)


def classes_of(name: str) -> list[str]:
    return [*LABELS, *(f"class {i}" for i in range(3, integers(name).num_classes))]


@needs_clang
@needs_node
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else SLOW) for n in (*COVERED, "anything")]
)
def test_both_builds_give_the_oracles_logits(name: str) -> None:
    page = page_of(name)
    assert page.proof is not None
    assert page.proof.n == 6
    assert page.proof_text.startswith(f"all {6 * integers(name).num_classes} logits of 6 images")
    size = len(page.files["index.html"])
    assert size < ONE_MEGABYTE or name in ("resnet", "resnet56"), "all within the budget"
    network = read_network(page.files["index.html"].decode())
    parts = sum(len(text) for kind in ("data", "code") for text in network[kind].values())
    assert size - parts < 100_000, "the page itself"
    layers = 120 * len(integers(name).operations)  # the sizes and offsets of each
    most = integers(name).constant_bytes + layers + 1_500
    assert len(network["data"]["simd"]) < 5 / 4 * most, "in base 85"
    assert list(network["data"]) == ["simd"], "the weights stand in the page once"
    assert network["code"]["simd"] != network["code"]["plain"]


@needs_clang
def test_a_network_may_be_called_as_a_file_of_the_page() -> None:
    assert set(web.compile_builds(integers("anything"), "Entry", ["a"] * 5)) == set(web.BUILDS)


def read_network(html: str) -> Any:
    return json.loads(html.split('id="network">')[1].split("</script>")[0])


def parts_of(page: WebPage) -> dict[str, tuple[bytes, bytes]]:
    network = read_network(page.files["index.html"].decode())
    data = read_base85(network["data"]["simd"])
    return {build: (read_base85(code), data) for build, code in network["code"].items()}


def read_base85(text: str) -> bytes:
    return base64.b85decode(text.replace(",", "<"))


@needs_node
def test_the_page_reads_what_is_packed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    contents = [random.integers(0, 256, size, np.uint8).tobytes() for size in range(9)]
    contents += [b"\xff" * 7, bytes(13), random.bytes(100_001)]
    script = tmp_path / "unpack.js"
    script.write_text(
        (TEMPLATES / "network.js").read_text()
        + """
const texts = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
const hex = (bytes) => Buffer.from(bytes).toString("hex");
console.log(JSON.stringify(texts.map((text) => hex(decodeBase85(text)))));
"""
    )
    given = json.dumps([web.base85(content) for content in contents])
    done = subprocess.run(
        ["node", str(script)], input=given, capture_output=True, text=True, check=True
    )
    assert [bytes.fromhex(text) for text in json.loads(done.stdout)] == contents
    assert "<" not in given


@needs_clang
@needs_node
def test_one_other_logit_is_found_out() -> None:
    images = pixels(6, 16).numpy()
    logits = run(integers("anything"), images)
    logits[3, 2] = np.nextafter(logits[3, 2], np.float32(np.inf))
    with pytest.raises(ValueError, match=r"WebAssembly \(simd\) gives 1 of 30 logits differently"):
        web.prove(parts_of(page_of("anything")), images, logits)


@needs_clang
def test_what_clang_or_node_refuse_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(web, "write_c", lambda *arguments: {"net.h": "", "net.c": "int broken("})
        with pytest.raises(ValueError, match=r"clang does not compile .*: .*error: expected"):
            page_of.__wrapped__("anything")
    if shutil.which("node"):
        logits = np.zeros((1, 5), np.float32)
        broken = dict.fromkeys(web.BUILDS, (b"no", b"module"))
        with pytest.raises(ValueError, match=r"node does not run the page's network: .*Error"):
            web.prove(broken, pixels(1, 16).numpy(), logits)


def test_without_node_nothing_is_called_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web.shutil, "which", lambda name: None)
    found = web.prove({}, pixels(1, 16).numpy(), np.zeros((1, 5), np.float32))
    assert found == (None, "no node")
    assert WebPage({}, *found).proof_text == "not proved on this machine: no node"


@needs_clang
@pytest.mark.parametrize(
    ("printed", "told"),
    [
        ("v12.22.9", "node 12.22.9 is older than 16.4"),
        ("v16.3.0", "node 16.3.0 is older than 16.4"),
        ("another program", "node names no version"),
    ],
)
def test_with_a_node_that_does_not_know_simd_nothing_is_called_proved(
    printed: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its errors would be of the page's language, or of nothing."""
    old = tmp_path / "node"
    old.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo {printed} || exit 1\n')
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    page = page_of.__wrapped__("anything")
    assert page.proof is None
    assert page.proof_text == f"not proved on this machine: {told}"
    assert "index.html" in page.files


def test_without_clang_a_line_says_what_to_install(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    have = {"clang"}
    monkeypatch.setattr(web.shutil, "which", lambda name: name if name in have else None)
    outcome = cli("export", "record", "--target", "web", "--data", "digits", "--out", "b")
    assert outcome.code == 2
    assert outcome.is_one_line("--target web needs wasm-ld", "apt-get install clang lld")
    have.clear()
    with pytest.raises(ValueError, match="needs clang, which is not installed"):
        web.require_compiler()


@needs_clang
@needs_node
@pytest.mark.slow
def test_the_command_writes_a_page(cli: Cli, tmp_path: Path, pictures: Path) -> None:
    terms = ["model=cnn", "epochs=2", "batch_size=50", "val_fraction=0.1"]
    assert cli("train", "common", *terms, "--data", str(pictures), "--out", "run").code == 0
    made = cli("export", "run", "--out", "bundle", "--allow-loss", "--target", "web")
    assert made.code == 0, made.err
    assert "all 200 logits of 20 images equal, with SIMD and without (node" in made.out
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.described["web"]["proof"]["logits"] == 200
    assert bundle.has("web/index.html")
    card = (bundle.folder / "README.md").read_text()
    assert "All 200 logits of 20 images equal, with SIMD and without" in card


# --- the page in a browser ---

in_browser = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
    pytest.mark.filterwarnings("default"),  # of playwright itself
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    for name, content in page_of("cnn").files.items():
        (folder / name).write_bytes(content)
    return folder


def open_page(browser: Any, address: str, width: int, **options: Any) -> Any:
    phone = width < 600
    context = browser.new_context(
        viewport={"width": width, "height": 844}, has_touch=phone, is_mobile=phone, **options
    )
    page = context.new_page()
    page.asked, page.complaints = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(address)
    return page


@pytest.fixture(params=[1280, pytest.param(390, marks=SLOW)])
def page(request: pytest.FixtureRequest, browser: Any, folder: Path) -> Iterator[Any]:
    page = open_page(browser, (folder / "index.html").as_uri(), request.param)
    yield page
    assert page.complaints == []
    assert page.asked == [(folder / "index.html").as_uri()], "the page asks for nothing else"
    assert page.evaluate("document.documentElement.scrollWidth") <= request.param
    page.context.close()


def seen(page: Any) -> np.ndarray:
    """Return what the network saw, uint8 3×H×W."""
    values = page.evaluate(
        "() => { const canvas = new OffscreenCanvas(32, 32), context = canvas.getContext('2d');"
        "context.drawImage(document.getElementById('pixels'), 0, 0);"
        "return [...context.getImageData(0, 0, 32, 32).data]; }"
    )
    return np.array(values, np.uint8).reshape(32, 32, 4)[:, :, :3].transpose(2, 0, 1)


def give(page: Any, name: str, content: bytes, by: str = "#file") -> None:
    page.set_input_files(by, {"name": name, "mimeType": "", "buffer": content})


def expect_answer(page: Any, content: bytes) -> None:
    page.wait_for_selector("#seen:not([hidden])")
    expected = decode_image(content, 32)[0]
    assert np.array_equal(seen(page), expected)
    logits = run(integers("cnn"), expected[None])[0]
    shares = torch.from_numpy(logits).double().div(1.3).softmax(0).numpy()
    best = int(shares.argmax())
    classes = classes_of("cnn")
    assert page.text_content("#verdict") == classes[best]
    order = np.argsort(-shares, kind="stable")
    assert page.locator("#bars .name").all_text_contents() == [classes[i] for i in order]
    shown = page.locator("#bars .share").all_text_contents()
    assert [float(text[:-1]) for text in shown] == pytest.approx(100 * shares[order], abs=0.051)
    assert " ms (WebAssembly, SIMD)" in page.text_content("#times")
    assert page.locator("#problem").is_hidden()


def photograph(height: int = 300, width: int = 451, **options: Any) -> bytes:
    """A smooth image with noise, as PNG; or as JPEG, with options of Pillow."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    noise = np.random.default_rng(0).normal(0, 9, (height, width, 3))
    waves = np.stack([np.sin(9 * x), np.cos(7 * y), np.sin(5 * (x + y))], axis=2)
    image = Image.fromarray((128 + 100 * waves + noise).clip(0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if options else "PNG", **options)
    return buffer.getvalue()


on_a_phone = pytest.mark.parametrize("page", [pytest.param(1280, marks=SLOW), 390], indirect=True)
"""Where a telephone has another page: that one is among the fast tests."""


@needs_clang
class TestPage:
    pytestmark = in_browser

    def test_a_chosen_image_gets_its_answer(self, page: Any) -> None:
        assert page.text_content("#verdict") == "Which of these is it?"
        give(page, "photograph.png", photograph())
        expect_answer(page, photograph())

    @on_a_phone
    def test_a_turned_photograph_is_turned(self, page: Any) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        content = photograph(exif=exif, quality=92, subsampling=0)
        by = "#camera" if page.viewport_size["width"] < 600 else "#file"
        assert page.locator(by).is_visible()
        give(page, "photograph.jpg", content, by)
        expect_answer(page, content)

    @on_a_phone
    def test_only_a_phone_offers_its_camera(self, page: Any) -> None:
        phone = page.viewport_size["width"] < 600
        assert page.locator("#camera").is_visible() is phone
        assert page.get_attribute("#camera", "capture") == "environment"

    def test_pasted_and_dropped_images(self, page: Any) -> None:
        for kind, holder in (("paste", "clipboardData"), ("drop", "dataTransfer")):
            content = photograph(60, 50 if kind == "paste" else 90)
            page.evaluate(
                "([kind, holder, bytes]) => { const data = new DataTransfer();"
                "data.items.add(new File([new Uint8Array(bytes)], 'x.png', {type: 'image/png'}));"
                "document.body.dispatchEvent(kind === 'paste'"
                " ? new ClipboardEvent(kind, {[holder]: data, bubbles: true})"
                " : new DragEvent(kind, {[holder]: data, bubbles: true, cancelable: true})); }",
                [kind, holder, list(content)],
            )
            page.wait_for_function("() => document.getElementById('pixels').width === 32")
            expect_answer(page, content)
            page.evaluate("document.getElementById('pixels').width = 1")

    def test_what_is_no_image_gets_a_line(self, page: Any) -> None:
        jpeg = photograph(quality=90)
        for name, content, line in (
            ("notes.txt", b"no image", "notes.txt is no image that this browser can read"),
            ("half.png", photograph()[:2000], "half.png is no image that this browser can read"),
            ("empty.jpg", b"", "empty.jpg is no image that this browser can read"),
            ("deep.png", png(np.arange(4096, dtype=np.uint16).reshape(64, 64)), "deep.png uses 12"),
            ("dot.png", png(np.zeros((1, 1, 3), np.uint8)), "dot.png has 1 × 1 pixels; 2 × 2 and"),
        ):
            give(page, name, content)
            page.wait_for_function(
                "line => document.getElementById('problem').textContent.startsWith(line)", arg=line
            )
            assert page.locator("#problem").is_visible()
            assert page.locator("#seen").is_hidden()
        give(page, "photograph.jpg", jpeg)
        page.wait_for_selector("#seen:not([hidden])")
        assert page.locator("#problem").is_hidden()
        give(page, "notes.txt", b"no image")  # the answer to the photograph goes
        page.wait_for_selector("#problem:not([hidden])")
        assert page.text_content("#verdict") == "Which of these is it?"
        assert page.locator("#seen").is_hidden()
        assert page.locator("#picture").is_hidden()
        assert page.locator("#invitation").is_visible()

    @pytest.mark.slow
    def test_transparency_is_laid_on_white(self, page: Any) -> None:
        pixels = np.random.default_rng(1).integers(0, 256, (60, 40, 4), np.uint8)
        pixels[:, :, 3] = np.where(pixels[:, :, 3] > 127, 255, 0)
        give(page, "sprite.png", png(pixels))
        expect_answer(page, png(pixels))


@needs_clang
class TestOtherBrowsers:
    pytestmark = in_browser

    @pytest.mark.slow
    def test_photographs_as_files_give_the_pixels_of_training(
        self, browser: Any, folder: Path
    ) -> None:
        """The whole way: this browser decodes and scales to the very bytes that Pillow gives."""
        page = open_page(browser, (folder / "index.html").as_uri(), 1280)
        for content in photographs(200):
            found = page.evaluate(
                "async (text) => { const bitmap = await createImageBitmap("
                "new Blob([decodeBase64(text)]), {colorSpaceConversion: 'none'});"
                "return [...resize(bitmap.width, bitmap.height, rowReader(bitmap), network)]; }",
                base64.b64encode(content).decode(),
            )
            expected = decode_image(content, 32)[0]
            assert found == expected.transpose(1, 2, 0).ravel().tolist()

    @pytest.mark.slow
    def test_without_simd_the_plain_build_gives_the_same(self, browser: Any, folder: Path) -> None:
        page = open_page(browser, "about:blank", 1280)
        page.add_init_script("WebAssembly.validate = () => false")
        page.goto((folder / "index.html").as_uri())
        give(page, "photograph.png", photograph())
        page.wait_for_selector("#seen:not([hidden])")
        assert "(WebAssembly, no SIMD)" in page.text_content("#times")
        logits = run(integers("cnn"), decode_image(photograph(), 32)[0][None])[0]
        assert page.text_content("#verdict") == classes_of("cnn")[int(logits.argmax())]

    @pytest.mark.slow
    def test_a_browser_without_webassembly_is_told(self, browser: Any, folder: Path) -> None:
        page = open_page(browser, "about:blank", 1280)
        page.add_init_script("WebAssembly.instantiate = async () => { throw Error('off') }")
        page.goto((folder / "index.html").as_uri())
        page.wait_for_selector("#problem:not([hidden])")
        assert page.text_content("#problem") == "This browser cannot run the network: off"


NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


class TestDemo:
    """The page of the bundled network that is committed under docs/."""

    pytestmark = in_browser

    def test_it_is_the_page_of_today(self) -> None:
        html = (DEMO / "index.html").read_text()
        assert len(html.encode()) < ONE_MEGABYTE
        for name in ("page.css", *web.SCRIPTS):
            assert (TEMPLATES / name).read_text() in html, f"{name} changed; see docs/browser.md"
        version = hashlib.sha256(html.encode()).hexdigest()[:16]
        assert version in (DEMO / "worker.js").read_text(), "what is kept offline is this page"
        network, bundle = read_network(html), Bundle.open("record")
        assert network["classes"] == list(bundle.classes)
        assert network["temperature"] == pytest.approx(bundle.described["temperature"], abs=0.05)
        stored = bundle.described["familiarity"]
        assert network["familiarity"]["threshold"] == pytest.approx(stored["threshold"], abs=0.05)

    @pytest.mark.slow
    @needs_clang
    def test_its_network_is_compiled_from_the_c_of_today(self) -> None:
        told = subprocess.run(["clang", "--version"], capture_output=True, text=True, check=True)
        if f"clang version {COMPILED_BY}" not in told.stdout:
            pytest.skip(f"the demo was compiled by clang {COMPILED_BY}, another writes other code")
        bundle = Bundle.open("record")
        # Of other images the ranges of maps are others, and some zero points stand in the code.
        # What is the same for three kinds of images has to be the same in the demo.
        model = bundle.load_model().eval()
        given = (pixels(4, 32), pixels(4, 32) // 8, 255 - pixels(4, 32) // 16)
        graphs = [quantize(model, bundle.mean, bundle.std, images) for images in given]
        made = [web.compile_builds(graph, bundle.model, bundle.classes) for graph in graphs]
        network = read_network((DEMO / "index.html").read_text())
        stored = np.frombuffer(read_base85(network["data"]["simd"]), np.uint8)
        for build in web.BUILDS:
            codes = [np.frombuffer(builds[build][0], np.uint8) for builds in made]
            in_demo = np.frombuffer(read_base85(network["code"][build]), np.uint8)
            assert {len(code) for code in codes} == {len(in_demo)}, "make the demo anew"
            fixed = np.ptp(np.stack(codes), 0) == 0
            assert fixed.mean() > 0.995  # so the next check is of nearly all bytes
            assert (codes[0] == in_demo)[fixed].all(), "make it anew, as docs/browser.md says"
            of_today = np.frombuffer(made[0][build][1], np.uint8)
            assert len(of_today) == len(stored)
            assert (of_today == stored).mean() > 0.95, "the weights are those of the bundle"

    def test_it_works_from_disk(self, browser: Any) -> None:
        page = open_page(browser, (DEMO / "index.html").as_uri(), 1280)
        for index, name in enumerate(("ship", "airplane", "automobile")):  # they are drawings
            page.locator("#examples button").nth(index).click()
            page.wait_for_function(
                "name => document.getElementById('verdict').textContent === name", arg=name
            )
            assert page.text_content("#unfamiliar") == ""
        give(page, "noise.png", png(NOISE))
        page.wait_for_function(
            "remark => document.getElementById('unfamiliar').textContent === remark", arg=REMARK
        )
        assert (page.asked, page.complaints) == ([(DEMO / "index.html").as_uri()], [])

    @pytest.mark.slow
    def test_from_a_server_it_stays_on_the_device(self, browser: Any, tmp_path: Path) -> None:
        handler = functools.partial(QuietHandler, directory=str(DEMO))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/"
        try:
            page = open_page(browser, address, 390)
            page.wait_for_function("() => navigator.serviceWorker.controller !== null")
            own = page.context.new_cdp_session(page)
            manifest = own.send("Page.getAppManifest")
            assert manifest["errors"] == []
            assert json.loads(manifest["data"])["display"] == "standalone"
            errors = own.send("Page.getInstallabilityErrors")["installabilityErrors"]
            # a test's browser keeps nothing, which is all that stands in the way
            assert {error["errorId"] for error in errors} <= {"in-incognito"}
            assert all(url.startswith((address, "data:")) for url in page.asked)
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
        page.reload()
        page.goto(f"{address}index.html?again")
        page.locator("#examples button").first.click()
        page.wait_for_selector("#seen:not([hidden])")
        assert page.text_content("#verdict") == "ship"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass
