"""A loss, an optimizer, a transform of the user's own, each a function at a place.

| setting | called as | returns |
|---|---|---|
| `loss` | `(logits, labels)`: float32 B×K, int64 B | the mean loss of the batch, a scalar |
| `augment` | `(images, generator)`: normalized float32 B×C×H×W | images of the same shape |
| `optimizer` | `(params, lr, …)`: groups of parameters as torch takes them | a torch optimizer |

A transform follows the recipe's own augmentation. It gets the generator by that name, or as a
second argument that has no default, and draws from it, or from torch's own, which is seeded anew
for each step, so that a run resumes to the same bits; one that keeps what its calls change is
refused, and so is a loss that does or that has weights. A loss gets `label_smoothing` where its
signature has it, a class of losses when an instance is made; an optimizer `betas`, `momentum` and
`weight_decay`; the groups hold the weight decay of each too. The schedule multiplies the
learning rate that each group begins with. Behind the name may stand further settings, as in
`FILE.py:focal(gamma=3)`.
"""

from __future__ import annotations

import functools
import inspect
import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from halfmeg.artifacts.weights import checkpoint_to_bytes, load_checkpoint
from halfmeg.config import RunConfig
from halfmeg.data.shape import ImageShape
from halfmeg.networks.leaves import gradient_leaves
from halfmeg.places.draws import kept_draws, seed_draws
from halfmeg.places.load import call, load, running, settings_of, takes
from halfmeg.places.place import is_place
from halfmeg.places.settings import Value
from halfmeg.training.optim import decay_groups

Transform = Callable[[Tensor, torch.Generator], Tensor]

TRIAL_BATCH = 7


def same_images(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images as they are: the transform of a recipe without one."""
    return images


def build_transform(config: RunConfig) -> Transform:
    """Return the config's transform, which follows the recipe's own augmentation.

    Raises:
        ValueError: there is none at its place.
    """
    place = config.augment
    if not place:
        return same_images
    function = _function(place)
    change = _with_generator(function)

    def transform(images: Tensor, generator: torch.Generator) -> Tensor:
        with running(place, "raises"):
            given = images.float()  # as when it was tried, whatever `precision` the network has
            changed = change(given, generator)
        if not isinstance(changed, Tensor) or changed.shape != images.shape:
            found = "×".join(map(str, getattr(changed, "shape", [type(changed).__name__])))
            expected = "×".join(map(str, images.shape))
            raise ValueError(f"{place} returns {found}; images of {expected} are expected")
        return changed.to(images.dtype)

    return transform


def build_own_loss(config: RunConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss at the config's place.

    Raises:
        ValueError: there is none, or it has no use for the recipe's label smoothing.
    """
    place, smoothing = config.loss, {"label_smoothing": config.label_smoothing}
    function = _function(place, **smoothing)
    settings = smoothing if smoothing.keys() <= _parameters(function).keys() else {}
    at_place = load(place)
    made_with = isinstance(at_place, type) and takes(at_place, "label_smoothing")
    if config.label_smoothing and not (settings or made_with):
        raise ValueError(
            f"label_smoothing={config.label_smoothing:g} is of no use to loss={place}; add "
            f"label_smoothing=0, or give its signature a label_smoothing"
        )

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        with running(place, "raises"):
            value = function(logits, labels, **settings)
        if not isinstance(value, Tensor) or value.ndim:
            found = "×".join(map(str, getattr(value, "shape", [type(value).__name__])))
            raise ValueError(f"{place} returns {found}; a scalar, the mean loss, is expected")
        return value

    return loss


def build_own_optimizer(config: RunConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return the optimizer at the config's place for groups of parameters.

    Raises:
        ValueError: there is none, or it leaves parameters out.
    """
    place = config.optimizer
    optimizer = _make(
        place, params=groups, lr=config.lr, betas=(config.beta1, config.beta2),
        momentum=config.momentum, weight_decay=config.weight_decay,
    )  # fmt: skip
    if not isinstance(optimizer, torch.optim.Optimizer):
        kind = type(optimizer).__name__
        raise ValueError(f"{place} returns a {kind}; a torch.optim.Optimizer is expected")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if left_out := sum(id(p) not in held for group in groups for p in group["params"]):
        raise ValueError(f"{place} leaves {left_out} of the parameters out")
    return optimizer


def try_own(config: RunConfig, num_classes: int, shape: ImageShape) -> None:
    """Try what a config has of the user's own on a small batch, before anything is trained.

    Raises:
        ValueError: a fault, by name.
    """
    with kept_draws():
        generator = torch.Generator().manual_seed(0)
        if config.augment:
            images = torch.randn(TRIAL_BATCH, *shape, generator=generator)
            transform = build_transform(config)
            changed = _call_again(
                config.augment, lambda: transform(images.clone(), generator.manual_seed(1))
            )
            if not changed.isfinite().all():
                raise ValueError(f"{config.augment} returns images that are not finite")
        if config.loss:
            logits = torch.randn(TRIAL_BATCH, num_classes, generator=generator).requires_grad_()
            labels = torch.arange(TRIAL_BATCH) % num_classes
            criterion = build_own_loss(config)
            loss = _call_again(config.loss, lambda: criterion(logits, labels))
            if not (loss.isfinite() and loss.requires_grad):
                raise ValueError(f"{config.loss} returns a loss that is not finite, or constant")
            if [leaf for leaf in gradient_leaves(loss) if leaf is not logits]:
                raise ValueError(
                    f"{config.loss} has weights of its own, which no optimizer would train; let "
                    "the network hold them"
                )
        if is_place(config.optimizer):
            weight, bias = (torch.ones(size, requires_grad=True) for size in ((2, 2), (2,)))
            optimizer = build_own_optimizer(
                config, decay_groups([weight, bias], config.weight_decay)
            )
            (weight.sum() + bias.sum()).backward()  # type: ignore[no-untyped-call]
            with running(config.optimizer, "raises in a step"):
                optimizer.step()
            with running(config.optimizer, "cannot go on from a checkpoint"):
                kept = load_checkpoint(io.BytesIO(checkpoint_to_bytes(optimizer.state_dict())))
                again = build_own_optimizer(
                    config, decay_groups([weight, bias], config.weight_decay)
                )
                again.load_state_dict(kept or {})
                again.step()


def _call_again(place: str, function: Callable[[], Tensor]) -> Tensor:
    """Call with the same draws, three times; return the first value.

    Raises:
        ValueError: the values differ. What calls change is in no checkpoint.
    """
    values = []
    for _ in range(3):
        seed_draws(2)
        values.append(function())
    first, *later = (value.detach().nan_to_num() for value in values)
    if not all(torch.equal(first, value) for value in later):
        raise ValueError(
            f"{place} gives something else each time it is called, with the same draws: what it "
            "keeps could not be resumed; let it keep nothing, and draw from the generator"
        )
    return values[0]


def _function(place: str, **offered: Any) -> Callable[..., Any]:
    """Return what is called: a function or instance, or a new instance of a class."""
    found = load(place)
    if isinstance(found, type):
        found, settings = _make(place, **offered), {}
    else:
        settings = _own_settings(place, offered)
    if not callable(found):
        raise ValueError(f"{place} is a {type(found).__name__}; a function is expected")
    return functools.partial(found, **settings) if settings else found


def _make(place: str, **offered: Any) -> Any:
    """Call what stands at a place with what it takes of the recipe, and the settings behind it."""
    return call(place, load(place), **offered, **_own_settings(place, offered))


def _own_settings(place: str, offered: Mapping[str, Any]) -> dict[str, Value]:
    """Return the settings behind the name at a place, which are none of the recipe's.

    Raises:
        ValueError: one is, or its signature has none of that name.
    """
    settings = settings_of(place, load(place))
    if twice := [key for key in settings if key in offered]:
        raise ValueError(f"{place}: leave {twice[0]} out, which is given by the recipe")
    return settings


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of what is called, of a module those of its `forward`."""
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        return inspect.signature(called).parameters
    except (ValueError, TypeError):  # one that is written in C
        return {}


def _with_generator(function: Callable[..., Any]) -> Transform:
    """Return a transform that hands the generator on by its name or, without one, as second."""
    parameters = _parameters(function)
    named = parameters.get("generator")
    if named is not None and named.kind is not named.POSITIONAL_ONLY:
        return lambda images, generator: function(images, generator=generator)
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters.values() if p.default is p.empty and p.kind in by_position]
    return function if len(needed) > 1 else lambda images, generator: function(images)
