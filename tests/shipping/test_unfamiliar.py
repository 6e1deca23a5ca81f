"""Unfamiliar images in C and on the page: the scores and decisions of `predict`."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CHROMIUM, Cli, first_digits
from PIL import Image
from test_graph import MEAN, STD, Anything
from test_integer import pixels
from test_web import FACTS, give, in_browser, needs_clang, needs_node, open_page

from halfmeg.artifacts.bundle import Bundle
from halfmeg.evaluation.familiarity import Familiarity
from halfmeg.shipping import unfamiliar as module
from halfmeg.shipping.answered import Answered
from halfmeg.shipping.build import CSource, build_c
from halfmeg.shipping.integer import IntegerGraph, run
from halfmeg.shipping.quantize import quantize
from halfmeg.shipping.unfamiliar import REMARK, TOLERANCE, Unfamiliar
from halfmeg.shipping.web import WebPage, build_web

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc to compile C with")
FORMS = [(3, 16, 16), (1, 20, 12)]
ONE_FAST = [FORMS[0], pytest.param(FORMS[1], marks=pytest.mark.slow)]


def pictures(count: int, form: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    """Smooth coloured pictures, some flat, some dark, some of noise."""
    channels, height, width = form
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        coarse = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        array = np.asarray(image).transpose(2, 0, 1) // (1 + index % 3)
        if index % 7 == 3:
            array = np.full_like(array, index)
        if index % 7 == 5:
            array = rng.integers(0, 256, array.shape, dtype=np.uint8)
        made.append(array[:channels])
    return torch.from_numpy(np.stack(made))


@functools.cache
def known(form: tuple[int, int, int]) -> tuple[IntegerGraph, torch.Tensor, Unfamiliar]:
    """A network, images, and what it knows of them."""
    # Some random weights find none of these images unfamiliar.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if form[0] == 3:
            graph = quantize(Anything(), MEAN, STD, pixels(6, form[1]))
        else:
            net = torch.nn.Sequential(
                torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(720, 5)
            )
            graph = quantize(net.eval(), MEAN[:1], STD[:1], pictures(6, form))
    seen, held_out = pictures(200, form), pictures(60, form, seed=1)
    logits = torch.from_numpy(run(graph, held_out.numpy()))
    familiarity = Familiarity.fit(seen, torch.arange(200), held_out, logits)
    assert familiarity is not None
    others = torch.cat([held_out[:20], 255 - pictures(20, form, seed=2) // 4])
    oracle = run(graph, others.numpy())
    return graph, others, Unfamiliar.of(familiarity, others.numpy(), oracle)


@functools.cache
def in_c(form: tuple[int, int, int]) -> CSource:
    graph, images, unfamiliar = known(form)
    arrays = images.numpy()
    labels = ["a", "b", "c", "d", "e"]
    return build_c(Answered(graph, "net", labels, 1.0, arrays, run(graph, arrays), unfamiliar))


@functools.cache
def on_a_page(form: tuple[int, int, int]) -> WebPage:
    graph, images, unfamiliar = known(form)
    arrays = images.numpy()
    answered = Answered(graph, "net", "abcde", 1.0, arrays, run(graph, arrays), unfamiliar)
    return build_web(answered, FACTS)


def call(folder: Path, image: np.ndarray) -> tuple[float, bool]:
    """Compile the C as its Makefile does; return the score of an image and what is above."""
    subprocess.run(["make", "-s"], cwd=folder, check=True)
    sent = np.ascontiguousarray(image.transpose(1, 2, 0)).tobytes()
    done = subprocess.run([folder / "net"], input=sent, capture_output=True, check=True)
    score = float(done.stdout.split(b"\t")[2])
    header = (folder / "src" / "net_unfamiliar.h").read_text()
    threshold = float(header.split("#define NET_UNFAMILIAR (")[1].split(")")[0])
    return score, score > threshold


@needs_gcc
@pytest.mark.parametrize("form", ONE_FAST)
def test_c_scores_as_predict_does(form: tuple[int, int, int], tmp_path: Path) -> None:
    source = in_c(form)  # raises where a score differs
    assert source.proof is not None
    for path, content in source.files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    graph, images, unfamiliar = known(form)
    decisions = unfamiliar.familiarity.unfamiliar(
        images, torch.from_numpy(run(graph, images.numpy()))
    )
    assert {True, False} <= set(decisions)
    for index in (decisions.index(True), decisions.index(False)):
        score, is_above = call(tmp_path, images[index].numpy())
        assert score == pytest.approx(unfamiliar.scores[index], abs=TOLERANCE)
        assert is_above is decisions[index]
    # the network's own file asks for nothing of a library, as before
    assert b"math.h" not in source.files["src/net.c"]


@needs_clang
@needs_node
@pytest.mark.parametrize("form", ONE_FAST)
def test_the_page_scores_as_predict_does(form: tuple[int, int, int]) -> None:
    page = on_a_page(form)  # raises where a score differs
    assert page.proof is not None
    text = page.files["index.html"].decode()
    assert "“Unfamiliar” stands beside it" in text


@pytest.mark.slow
@needs_gcc
@needs_clang
@needs_node
def test_another_score_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = module.PLANES
    monkeypatch.setattr(module, "PLANES", [honest[0], honest[1], [0, 0, 0]])
    with pytest.raises(ValueError, match=r"net_unfamiliar\.c scores an image's familiarity"):
        in_c.__wrapped__(FORMS[0])
    with pytest.raises(ValueError, match=r"unfamiliar\.js scores an image's familiarity"):
        on_a_page.__wrapped__(FORMS[0])


@pytest.mark.slow
@needs_gcc
@needs_clang
@needs_node
def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    graph, images, _ = known(FORMS[0])
    arrays = images.numpy()
    answered = Answered(graph, "net", "abcde", 1.0, arrays, run(graph, arrays))
    source = build_c(answered)
    assert "src/net_unfamiliar.c" not in source.files
    assert b"cannot be told: the run held too few out" in source.files["README.md"]
    page = build_web(answered, FACTS)
    assert "it cannot say: too few were held out" in page.files["index.html"].decode()


@needs_gcc
def test_an_exported_run_decides_in_c_as_predict_does(
    cnn_in_c: Path, tmp_path: Path, cli: Cli
) -> None:
    folder = shutil.copytree(cnn_in_c / "c", tmp_path / "c")
    subprocess.run(["make", "-s"], cwd=folder, check=True)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    digits = first_digits(200).train.images[:5].permute(0, 2, 3, 1).numpy()
    images = [noise, *digits]
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    names = [f"{index}.png" for index in range(len(images))]
    said = cli("predict", *names, "--bundle", str(cnn_in_c), "--json").json
    sent = b"".join(np.ascontiguousarray(image).tobytes() for image in images)
    done = subprocess.run([folder / "cnn"], input=sent, capture_output=True, check=True)
    threshold = Bundle.open(cnn_in_c).described["familiarity"]["threshold"]
    above = [float(line.split(b"\t")[2]) > threshold for line in done.stdout.splitlines()]
    assert above == [row["unfamiliar"] for row in said]
    assert above[0]
    assert not all(above)
    card = (cnn_in_c / "README.md").read_text()
    assert 'the page and the C of a bundle say "unfamiliar"' in card


@needs_clang
@needs_node
@pytest.mark.slow  # the page of the bundled network shows both among the fast ones (test_web)
class TestPage:
    pytestmark = in_browser

    def test_it_stands_beside_the_class(self, browser: Any, tmp_path: Path) -> None:
        assert CHROMIUM is not None
        graph, images, unfamiliar = known(FORMS[0])
        (tmp_path / "index.html").write_bytes(on_a_page(FORMS[0]).files["index.html"])
        page = open_page(browser, (tmp_path / "index.html").as_uri(), 1280)
        assert page.text_content("#unfamiliar") == ""
        above = unfamiliar.scores > unfamiliar.familiarity.threshold
        for is_unfamiliar in (True, False):
            index = int(np.flatnonzero(above == is_unfamiliar)[0])
            path = tmp_path / f"{is_unfamiliar}.png"
            Image.fromarray(images[index].permute(1, 2, 0).numpy()).save(path)
            give(page, path.name, path.read_bytes())
            best = "abcde"[int(run(graph, images[index : index + 1].numpy()).argmax())]
            page.wait_for_function(
                "([name, remark]) => document.getElementById('verdict').textContent === name"
                " && document.getElementById('unfamiliar').textContent === remark",
                arg=[best, REMARK if is_unfamiliar else ""],
            )
        assert page.complaints == []
        page.context.close()
