"""A local page on which bundles classify images: bars, and where each network looked."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from halfmeg.artifacts.bundle import BUNDLED, Bundle
from halfmeg.artifacts.markdown import escape_markdown
from halfmeg.data.augment import normalize
from halfmeg.data.decode import decode_beside_others, no_warnings, to_image
from halfmeg.data.shape import ImageShape
from halfmeg.errors import one_line
from halfmeg.evaluation.explain import grad_cam
from halfmeg.files import read_limited, scratch_folder
from halfmeg.networks.protocol import last_map
from halfmeg.shipping.gate import MAX_UPLOAD_BYTES, Gate, Sweeper, check_upload
from halfmeg.shipping.predict import NO_NUMBERS, open_runner, top_classes, unfamiliar
from halfmeg.shipping.unfamiliar import REMARK

MAX_BARS = 5
HEAT_SIZE = 256
HEAT_SHARE = 0.5
"""How much of the heat map's colour covers the image where it is hottest."""

MAX_SESSIONS = 100
"""Page loads that gradio remembers, at about 40 kB each; the page keeps nothing in them."""

PROXIES = ("http_proxy", "https_proxy", "all_proxy")

UNFAMILIAR = REMARK.replace("Unfamiliar", "**Unfamiliar**")

CSS = ".gradio-container {max-width: 1100px !important; margin: 0 auto}"


@contextmanager
def serve(bundles: Sequence[Bundle], *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve the page in the background, and yield its address.

    Nothing is asked of any other machine, so no proxy either: its variables are out of
    `os.environ` meanwhile. Only the page's own script is answered (`halfmeg.shipping.gate`).
    Uploads lie in a folder of their own and are deleted as they are answered; the folder is deleted
    at the end.

    Args:
        bundles: shown side by side.
        host: the address to bind to; 0.0.0.0 opens the page to the network.
        port: 0 takes the first free one from 7860 on.

    Raises:
        ValueError: the `demo` extra is missing or cannot be used, or nothing can listen there.
    """
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise ValueError(
            f"cannot listen on host={host} port={port}: {error.strerror}; "
            "choose another --host or --port"
        ) from None
    with scratch_folder() as folder, _without_proxies():
        os.environ["GRADIO_TEMP_DIR"] = str(folder)  # read when gradio is imported
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        try:
            import gradio
        except ImportError as error:
            if error.name == "gradio":
                raise ValueError("the page needs gradio: pip install -e '.[demo]'") from None
            raise ValueError(f"gradio cannot be imported: {one_line(error)}") from None
        from starlette.middleware import Middleware

        # Of two lines on one request for a WebSocket this one asks for a library.
        server_log = logging.getLogger("uvicorn.error")
        server_log.addFilter(lambda record: "WebSocket library" not in record.getMessage())
        sweeper = Sweeper(folder)
        page = _build_page(bundles, folder, sweeper)
        gate = Middleware(Gate, host=host, sweeper=sweeper, functions=lambda: _functions(page))
        _, address, _ = page.launch(
            server_name=host, server_port=port or None, prevent_thread_lock=True, quiet=True,
            max_file_size=MAX_UPLOAD_BYTES, footer_links=[], ssr_mode=False, share=False, css=CSS,
            theme=gradio.themes.Default(), enable_monitoring=False,
            state_session_capacity=MAX_SESSIONS,
            app_kwargs={"middleware": [gate]},
        )  # fmt: skip
        sweeper.start()
        try:
            with no_warnings():  # for gradio's threads, which decode
                yield address
        finally:
            sweeper.stop()
            page.close(verbose=False)


@contextmanager
def _without_proxies() -> Iterator[None]:
    """Keep gradio from asking a proxy for the page itself, as it does before it answers."""
    names = [name for name in os.environ if name.lower() in PROXIES]
    taken = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(taken)


def _functions(page: Any) -> dict[int, int]:
    """Return by the number of each function of the page how many examples it chooses from."""
    given = {number: function.inputs[0] for number, function in page.fns.items()}
    return {number: len(getattr(part, "raw_samples", ())) for number, part in given.items()}


def _build_page(bundles: Sequence[Bundle], folder: Path, sweeper: Sweeper) -> Any:
    import gradio

    answers = [_answerer(bundle) for bundle in bundles]

    def classify(path: str | None) -> list[Any]:
        if path is None:
            return [None] * (3 * len(answers))
        try:
            upload = check_upload(path, folder)
            sweeper.note_answered(upload)
            content = read_limited(upload, MAX_UPLOAD_BYTES)
            return [part for answer in answers for part in answer(content)]
        except (ValueError, OSError) as error:
            raise gradio.Error(
                f"This image cannot be read: {error}", title="No image", print_exception=False
            ) from None

    with gradio.Blocks(title="halfmeg", analytics_enabled=False) as page:
        gradio.Markdown(
            "# halfmeg\nDrop an image, or take a photograph, and see what "
            f"{'the network makes' if len(bundles) == 1 else 'each network makes'} of it. "
            "The image stays on this machine."
        )
        with gradio.Row():
            with gradio.Column(min_width=280):
                upload = gradio.Image(
                    label="Image", type="filepath", sources=["upload", "webcam", "clipboard"],
                    height=300,
                )  # fmt: skip
                # Our own decoder reads the file as it was sent, and says what is wrong with it.
                upload.preprocess = lambda sent: None if sent is None else sent.path  # type: ignore[method-assign, assignment]
                if examples := draw_examples(bundles[0].classes, folder):
                    gradio.Examples(
                        [str(path) for path in examples], upload,
                        cache_examples=False, label="Drawn by the program",
                    )  # fmt: skip
            outputs: list[Any] = []
            for bundle in bundles:
                with gradio.Column(min_width=280):
                    gradio.Markdown(_describe(bundle))
                    outputs.append(gradio.Label(label="Class", num_top_classes=MAX_BARS))
                    outputs.append(gradio.Markdown())
                    gradio.Markdown("What spoke for the first class (Grad-CAM)")
                    outputs.append(
                        gradio.Image(
                            show_label=False,
                            buttons=[],
                            interactive=False,
                            height=HEAT_SIZE,
                        )
                    )
        upload.change(classify, upload, outputs, show_progress="hidden", api_visibility="private")
    return page


def _describe(bundle: Bundle) -> str:
    measured = bundle.accuracy
    name = bundle.model if bundle.folder == BUNDLED else f"{bundle.folder.name}: {bundle.model}"
    return (
        f"### {escape_markdown(name)}\n{bundle.described['params']:,} parameters, "
        f"{measured['test_accuracy']:.2%} of {measured['test_n']:,} test images of "
        f"{escape_markdown(measured['data'])}"
    )


def _answerer(bundle: Bundle) -> Callable[[bytes], tuple[dict[str, float], str, Image.Image]]:
    """Return a function from a file's content to class probabilities, a remark and a heat map."""
    run = open_runner(bundle)
    model, layer = None, None
    if not bundle.is_own:  # whose maps are not to be had without its Python
        model = bundle.load_model().requires_grad_(False)
        layer = last_map(model, bundle.image_shape)
    mean, std = torch.tensor(bundle.mean), torch.tensor(bundle.std)

    def answer(content: bytes) -> tuple[dict[str, float], str, Image.Image]:
        image = decode_beside_others(content, bundle.image_shape, bundle.options.fit)
        pixels = torch.from_numpy(image.pixels.copy())[None]
        logits = run(pixels)
        heat = torch.zeros(pixels.shape[2:])  # of a network without a map: the image alone
        if not logits.isfinite().all():
            return {}, f"{NO_NUMBERS.capitalize()}.", _overlay(pixels[0], heat)
        if model is not None and layer is not None:
            heat = grad_cam(model, layer, normalize(pixels, mean, std), logits.argmax(1))[0]
        (is_unfamiliar,) = unfamiliar(bundle, pixels, logits)
        remark = UNFAMILIAR if is_unfamiliar else ""
        return dict(top_classes(bundle, logits, MAX_BARS)[0]), remark, _overlay(pixels[0], heat)

    return answer


def _overlay(pixels: torch.Tensor, heat: torch.Tensor) -> Image.Image:
    """Lay a heat map H×W over its image C×H×W, both enlarged."""
    _, height, width = ImageShape(*pixels.shape).scaled_to(HEAT_SIZE)
    size = (width, height)
    image = to_image(pixels.numpy()).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    gray = Image.fromarray((255 * heat.numpy()).astype(np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    share = np.asarray(gray)[:, :, None] / 255
    colours = 255 * matplotlib.colormaps["inferno"](share[:, :, 0])[:, :, :3]
    blended = np.asarray(image) * (1 - HEAT_SHARE * share) + colours * HEAT_SHARE * share
    return Image.fromarray(blended.astype(np.uint8))


def draw_examples(classes: Sequence[str], folder: Path) -> list[Path]:
    """Draw a few images to try, of classes that the network knows; there may be none.

    Where each class's name is a sign or two, as for digits, the names themselves are drawn.
    """
    if all(len(name) <= 2 for name in classes):
        drawn = {name: _draw_sign(name) for name in classes[:3]}
    else:
        things = {"ship": _draw_ship, "airplane": _draw_airplane, "automobile": _draw_car}
        drawn = {name: draw() for name, draw in things.items() if name in classes}
    paths = []
    for number, (name, image) in enumerate(drawn.items()):
        # a class may be called anything, "/" and "1" too
        paths.append(folder / f"{number}{f'-{name}' if name.isalnum() else ''}.png")
        image.save(paths[-1])
    return paths


def _draw_sign(text: str) -> Image.Image:
    image = Image.new("RGB", (128, 128), "black")
    font = ImageFont.load_default(110)
    ImageDraw.Draw(image).text((64, 64), text, fill="white", font=font, anchor="mm")
    return image


def _draw_ship() -> Image.Image:
    image = Image.new("RGB", (128, 128), "#a9c9e2")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 82, 128, 128), fill="#2f5d86")
    draw.polygon([(12, 70), (116, 70), (104, 94), (26, 94)], fill="#3a3f46")
    draw.polygon([(12, 70), (116, 70), (114, 75), (14, 75)], fill="#b03a2e")
    draw.rectangle((44, 48, 92, 70), fill="#f4f4f0")
    draw.rectangle((62, 28, 76, 48), fill="#c0392b")
    for left in range(49, 88, 10):
        draw.rectangle((left, 55, left + 4, 60), fill="#41566b")
    return image


def _draw_airplane() -> Image.Image:
    image = Image.new("RGB", (128, 128), "#8fc0ea")
    draw = ImageDraw.Draw(image)
    draw.polygon([(56, 64), (76, 64), (50, 104), (38, 104)], fill="#8b98a5")
    draw.polygon([(58, 60), (78, 60), (54, 26), (44, 26)], fill="#9eabb8")
    draw.ellipse((14, 54, 118, 72), fill="#eef1f4")
    draw.polygon([(16, 60), (34, 58), (20, 34), (10, 34)], fill="#c0392b")
    draw.ellipse((100, 57, 114, 64), fill="#41566b")
    return image


def _draw_car() -> Image.Image:
    image = Image.new("RGB", (128, 128), "#c9cdd2")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 88, 128, 128), fill="#5c5f63")
    draw.polygon([(34, 62), (48, 40), (88, 40), (104, 62)], fill="#a32015")
    draw.polygon([(41, 60), (51, 44), (66, 44), (66, 60)], fill="#bcd6e6")
    draw.polygon([(70, 60), (70, 44), (86, 44), (96, 60)], fill="#bcd6e6")
    draw.rounded_rectangle((10, 58, 120, 90), 10, fill="#c0281b")
    for left in (24, 82):
        draw.ellipse((left, 76, left + 26, 102), fill="#1d1d1f")
        draw.ellipse((left + 8, 84, left + 18, 94), fill="#b9bdc2")
    return image
