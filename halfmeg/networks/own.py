"""A network of the user's own: built from its place, in the memory order that it needs.

NAME is a class or function that is called with `num_classes`, and with `in_channels`, `image_size`
and `budget` where its signature has them (`image_size` is the side, or (height, width) where images
are not square), and the settings behind the name, as in `FILE.py:NAME(width=24)`; handed over from
Python it may be an instance too, of which every run trains a copy. Nothing has to be inherited,
registered or renamed.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from halfmeg.config import BUDGET
from halfmeg.data.shape import ImageShape, ImageSize, image_shape
from halfmeg.errors import did_you_mean
from halfmeg.places.load import call, load, running, settings_of, takes
from halfmeg.places.place import TIMM, handed_over
from halfmeg.places.source import read_source

MAX_WEIGHTS_BYTES = 256 * 2**20
"""Of a file of weights; a larger one is not read."""


def build_own(
    place: str, num_classes: int, image_size: ImageSize, budget: int = BUDGET
) -> nn.Module:
    """Build the network at a place, initialized from torch's current random state.

    A network that cannot work with the memory order channels_last, as one that calls `view` on a
    map, gets its images in the plain order; `use_channels_last` leaves it alone.

    Raises:
        ValueError: nothing can be built; in one line that says why.
    """
    check_num_classes(num_classes)
    shape = image_shape(image_size)
    model = _build(place, num_classes, shape, budget)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{place} returns a {type(model).__name__}; a torch.nn.Module is expected")
    key = (place, id(handed_over(place)), read_source(place).sha256, num_classes, shape, budget)
    if key not in _needs_plain_order:
        _needs_plain_order[key] = _fails_in_channels_last(model, shape)
    if _needs_plain_order[key]:
        model.register_forward_pre_hook(_in_plain_order)
    return model


def check_num_classes(num_classes: int) -> None:
    """Check the length of the logits.

    Raises:
        ValueError: fewer than two classes.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes} is out of range; allowed: 2 or more")


_needs_plain_order: dict[tuple[str, int, str, int, ImageShape, int], bool] = {}


def _build(place: str, num_classes: int, shape: ImageShape, budget: int) -> Any:
    if place.startswith(TIMM):
        return _build_timm(place, num_classes, shape)
    found = load(place)
    settings = settings_of(place, found)
    if isinstance(found, nn.Module):
        with running(place, "cannot be copied"):
            return copy.deepcopy(found)
    if callable(found) and not takes(found, "num_classes"):
        raise ValueError(
            f"{place} takes no num_classes; give its signature one, "
            f"since it is called with num_classes={num_classes}"
        )
    given = {
        "num_classes": num_classes, "in_channels": shape.channels, "image_size": shape.size,
        "budget": budget,
    }  # fmt: skip
    if twice := [key for key in settings if key in given]:
        where = "the run's own budget" if twice[0] == "budget" else "the data"
        raise ValueError(f"{place}: leave {twice[0]} out, which is given by {where}")
    if budget != BUDGET and not takes(found, "budget"):
        raise ValueError(f"budget={budget} is not for {place}, whose signature has no budget")
    return call(place, found, **given, **settings)


def _build_timm(place: str, num_classes: int, shape: ImageShape) -> Any:
    name = place.removeprefix(TIMM)
    try:
        with running(place, "cannot be had, as timm cannot be imported"):
            import timm
    except ValueError as error:
        raise ValueError(
            f"{error}; pip install -e '.[timm]' and the torchvision that belongs to torch "
            f"{torch.__version__}, or write the network in a FILE.py"
        ) from None
    with running(place, "cannot be had"):
        known = list(timm.list_models())
    if name.partition(".")[0] not in known:
        hint = did_you_mean(name, known)
        raise ValueError(f"{place}: timm has no network {name!r}; {hint}".rstrip("; "))
    settings = {"pretrained": False, "num_classes": num_classes, "in_chans": shape.channels}
    with running(place, "cannot be built"):
        try:  # a transformer has to know the size
            return timm.create_model(name, **settings, img_size=shape.size)
        except TypeError:
            return timm.create_model(name, **settings)


def use_channels_last(model: nn.Module) -> None:
    """Bring a network's weights into the memory order that is fastest for its images."""
    if not needs_plain_order(model):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def needs_plain_order(model: nn.Module) -> bool:
    """Return whether a network asks for its images in the plain order of memory."""
    return _in_plain_order in model._forward_pre_hooks.values()


def _in_plain_order(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous() for x in inputs)


def _fails_in_channels_last(model: nn.Module, shape: ImageShape) -> bool:
    """Return whether a network works in the plain order of memory only; False where in neither."""
    plain = torch.zeros(2, *shape)
    with torch.random.fork_rng(devices=[]):
        return not _runs(model, plain, torch.channels_last) and _runs(
            model, plain, torch.contiguous_format
        )


def _runs(model: nn.Module, images: Tensor, order: torch.memory_format) -> bool:
    try:
        trial = copy.deepcopy(model)
        trial.to(memory_format=order)  # type: ignore[call-overload]
        with torch.no_grad():
            trial(images.to(memory_format=order))
    except (Exception, SystemExit):  # whatever a user's code raises; `trial` says what
        return False
    return True
