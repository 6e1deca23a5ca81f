"""The demo page in a real browser: an image goes up and an answer comes back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CHROMIUM, NETWORKS, Cli
from PIL import Image

from halfmeg.artifacts.bundle import BUNDLED, Bundle
from halfmeg.data.scan import find_images
from halfmeg.evaluation.explain import grad_cam
from halfmeg.networks.protocol import last_map
from halfmeg.networks.table import build_model
from halfmeg.shipping.demo import draw_examples
from halfmeg.shipping.predict import predict

browser_needed = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
    pytest.mark.filterwarnings("default"),  # of playwright itself
]


@contextmanager
def serving(temporary: Path, stop: signal.Signals, **variables: str) -> Iterator[str]:
    """The command, in a process of its own, showing two bundles; nothing is left at its end."""
    command = [sys.executable, "-m", "halfmeg", "demo", str(BUNDLED), str(BUNDLED)]
    env = os.environ | variables | {"TMPDIR": str(temporary)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split()[0]
            assert list(temporary.iterdir())
            server.send_signal(stop)
            assert server.wait(timeout=60) == 130
        finally:
            server.kill()
    assert not list(temporary.iterdir())


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("uploads"), signal.SIGINT) as address:
        yield address


@pytest.fixture
def page(address: str, browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("input[type=file]", state="attached", timeout=30_000)
    yield page
    page.close()


def upload(page: Any, path: Path) -> None:
    page.set_input_files("input[type=file]", str(path))


@pytest.mark.slow
class TestPage:
    pytestmark = browser_needed

    def test_an_uploaded_image_is_answered_by_both_networks(
        self, page: Any, address: str, tmp_path: Path
    ) -> None:
        (path,) = (
            p for p in draw_examples(Bundle.open(BUNDLED).classes, tmp_path) if "ship" in p.name
        )
        upload(page, path)
        headings = page.locator("[data-testid=label-output-value]")
        headings.nth(1).wait_for(timeout=30_000)
        (expected,) = predict(Bundle.open(BUNDLED), [path])
        assert headings.all_inner_texts() == [expected.top[0][0]] * 2
        page.locator("img[src*=webp], img[src*=png]").nth(2).wait_for(timeout=10_000)
        assert all(url.startswith((address, "data:", "blob:")) for url in page.asked)

    def test_a_text_renamed_png_gets_a_message_and_the_page_lives_on(
        self, page: Any, tmp_path: Path
    ) -> None:
        fake = tmp_path / "text.png"
        fake.write_text("no image at all")
        upload(page, fake)
        message = page.get_by_text("This image cannot be read")
        message.first.wait_for(timeout=30_000)
        assert str(tmp_path) not in page.content()
        page.get_by_label("Remove Image").click()
        good = draw_examples(["ship", "automobile"], tmp_path)[0]
        upload(page, good)
        page.locator("[data-testid=label-output-value]").first.wait_for(timeout=30_000)

    def test_a_file_above_the_limit_is_refused(self, page: Any, tmp_path: Path) -> None:
        large = tmp_path / "large.png"
        large.write_bytes(b"x" * 11_000_000)
        upload(page, large)
        page.get_by_text("exceed the maximum allowed size").first.wait_for(timeout=30_000)


@pytest.mark.slow
def test_it_listens_on_this_machine_only(address: str) -> None:
    assert address.startswith("http://127.0.0.1:")


def test_it_is_asked_to_listen_on_this_machine_only(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def refuse(address: tuple[str, int]) -> None:
        asked.append(address)
        raise OSError(98, "Address already in use")

    monkeypatch.setattr("halfmeg.shipping.demo.socket.create_server", refuse)
    assert cli("demo").is_one_line("cannot listen on host=127.0.0.1")
    assert [host for host, _ in asked] == ["127.0.0.1"]


@pytest.mark.slow
def test_a_stopped_service_leaves_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, signal.SIGTERM):
        pass


@pytest.mark.slow
def test_the_page_needs_no_proxy_and_asks_none(tmp_path: Path) -> None:
    """Nothing listens at these addresses, and of SOCKS the page's libraries know nothing."""
    dead = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    variables = dead | {"ALL_PROXY": "socks5://127.0.0.1:9"}
    with serving(tmp_path, signal.SIGTERM, **variables) as address:
        assert address.startswith("http://127.0.0.1:")


def test_variables_of_proxies_are_back_afterwards(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    assert cli("demo").is_one_line("the page needs gradio: pip install -e '.[demo]'")
    assert os.environ["ALL_PROXY"] == "socks5://127.0.0.1:9"


def test_a_gradio_that_lacks_something_itself_is_not_called_missing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "gradio", raising=False)
    (tmp_path / "gradio.py").write_text(
        "import os\nassert 'ALL_PROXY' not in os.environ\nimport no_h11\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    outcome = cli("demo")
    assert outcome.code == 2
    assert outcome.is_one_line("gradio cannot be imported: No module named 'no_h11'")


@pytest.mark.parametrize(
    ("place", "told"),
    [(["--port", "99999"], "65535"), (["--host", "192.0.2.1"], "cannot listen on host=192.0.2.1")],
)
def test_an_impossible_address_is_one_line(cli: Cli, place: list[str], told: str) -> None:
    outcome = cli("demo", *place)
    assert outcome.code == 2
    assert outcome.is_one_line(place[1], told)


def test_a_taken_port_is_named(cli: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = cli("demo", "--port", str(port))
    assert outcome.code == 2
    assert outcome.is_one_line(f"port={port}", "choose another")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_heat_map_has_the_images_shape_and_range(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name).eval().requires_grad_(False)
    layer = last_map(model, 32)
    if name in ("mlp", "logistic"):
        assert layer is None
        return
    heat = grad_cam(model, layer, torch.randn(3, 3, 32, 32), torch.tensor([0, 5, 9]))
    assert heat.shape == (3, 32, 32)
    assert heat.min() >= 0
    assert heat.max() <= 1


def test_the_heat_lies_where_the_only_evidence_is() -> None:
    """A layer that counts red is explained by the red corner."""
    model = build_model("cnn").eval().requires_grad_(False)
    for layer in model.layers:  # each passes the mean of its input's first channel on
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[0, 0] = 1 / 9
    head = model.layers[-1].layers[-1]
    head.weight.zero_()
    head.weight[3, :25] = 1.0  # the first channel's 5×5 map
    image = torch.zeros(1, 3, 32, 32)
    image[:, 0, :12, :12] = 1
    heat = grad_cam(model, last_map(model, 32), image, torch.tensor([3]))[0]
    assert heat[:12, :12].mean() > 10 * heat[16:, 16:].mean()


def test_drawn_examples_are_the_signs_themselves_for_digits(tmp_path: Path) -> None:
    paths = draw_examples([str(i) for i in range(10)], tmp_path)
    assert [path.stem for path in paths] == ["0-0", "1-1", "2-2"]
    assert find_images([str(tmp_path)])[0] == sorted(paths)
    assert np.asarray(Image.open(paths[1])).max() == 255


def test_examples_of_signs_that_mean_something_in_paths(tmp_path: Path) -> None:
    paths = draw_examples(["/", "..", "+"], tmp_path)
    assert [path.name for path in paths] == ["0.png", "1.png", "2.png"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_a_sign_is_not_drawn_over_one_whose_number_it_is(tmp_path: Path) -> None:
    paths = draw_examples(["+", "-", "1"], tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert len({path.read_bytes() for path in paths}) == 3


@pytest.mark.parametrize(
    ("classes", "drawn"), [(["cat", "ship", "automobile"], ["ship", "automobile"]), (["cat"], [])]
)
def test_only_things_that_the_network_knows_are_drawn(
    classes: list[str], drawn: list[str], tmp_path: Path
) -> None:
    stems = [path.stem for path in draw_examples(classes, tmp_path)]
    assert stems == [f"{number}-{name}" for number, name in enumerate(drawn)]
