"""Weights that a run starts from: those of a bundle, but for a head of other classes."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from halfmeg.artifacts.bundle import Bundle
from halfmeg.artifacts.inherited import Inherited, InheritedBundle, read_inherited_bundles
from halfmeg.artifacts.run import Run
from halfmeg.artifacts.weights import copy_weights
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.networks.protocol import body_parameters
from halfmeg.networks.table import build_model
from halfmeg.places.place import short_name


def inherited_by(config: RunConfig, data: DataSplits) -> Inherited | None:
    """Return what a run takes over from its initial weights and its teacher; None without them."""
    named = {"init": config.init, "teacher": config.teacher}
    bundles = {name: Bundle.open(place) for name, place in named.items() if place}
    if not bundles:
        return None
    described = {
        name: InheritedBundle(bundle.weights_sha256, _tells_what_it_has_seen(bundle, data))
        for name, bundle in bundles.items()
    }
    ids = [ids for bundle in bundles.values() if (ids := bundle.trained_on()) is not None]
    return Inherited(described, np.concatenate(ids) if ids else None)


def _tells_what_it_has_seen(bundle: Bundle, data: DataSplits) -> bool:
    """Whether each image of a run's form that a bundle has seen is among the ids that it leaves."""
    known = bundle.known
    # What was trained on the run's own data has seen its training images, which the run knows.
    says = bundle.knows_its_images or known.fingerprint == data.fingerprint
    return says and known.whole and known.comparable(data)


def require_inherited(run: Run) -> None:
    """Raise where a run's initial weights or its teacher are no longer what it began with.

    Raises:
        ValueError: another bundle lies there now, or none.
    """
    for name, then in read_inherited_bundles(run.folder).items():
        place = getattr(run.config, name)
        now = Bundle.open(place).weights_sha256
        if now != then.sha256:
            raise ValueError(
                f"{name}={place} holds other weights than {run.folder} began with: their SHA-256 "
                f"is {now[:12]}, then it was {then.sha256[:12]}; put those back there, or train "
                "anew with another --out"
            )


def load_initial_weights(model: nn.Module, config: RunConfig, data: DataSplits) -> Bundle:
    """Copy a bundle's weights into a network of the same kind; a head of other classes is left.

    Classes are the same where names and order are.

    Raises:
        ValueError: no bundle, or one of another network, of which any layer but that head differs.
    """
    bundle = Bundle.open(config.init)
    if bundle.model != short_name(config.model):
        raise ValueError(
            f"init={config.init} holds a {bundle.model}, not a {config.model}; "
            f"add model={bundle.model}"
        )
    if bundle.budget != config.budget:
        raise ValueError(
            f"init={config.init} was made with budget={bundle.budget}, "
            f"not {config.budget}; add budget={bundle.budget}"
        )
    left = set() if bundle.classes == data.classes else head_of(model, config, data)
    size = bundle.image_shape.written
    resized = bundle.image_shape != data.image_shape
    remedy = f"{f'add image_size={size}' if resized else 'build it as it was'}, or leave init out"
    copy_weights(model, bundle.load_state(), f"init={config.init}", remedy, left)
    return bundle


def head_of(model: nn.Module, config: RunConfig, data: DataSplits) -> set[str]:
    """Return the names of the weights and buffers whose shapes the number of classes decides.

    Where it decides none, as of an instance that was handed over, they are those of the layer that
    gives the logits.

    Args:
        model: the network that `config` names, built for `data`.
        config: of the run.
        data: of the run.
    """
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    count = len(data.classes)
    # Of two other numbers, since at one of them a budget may choose other widths.
    others = [number for number in (count - 1, count + 1, count + 2) if number >= 2][:2]
    found = set(shapes)
    with torch.random.fork_rng(devices=[]):  # the draws of the run stay as they are
        for number in others:
            try:
                other = build_model(config.model, number, data.image_shape, config.budget)
            except ValueError:  # a network of the user's own for these classes alone
                found = set()
                break
            of_other = {name: value.shape for name, value in other.state_dict().items()}
            found = {name for name in found if of_other.get(name) != shapes[name]}
        if found:
            return found
        body = set(body_parameters(model, data.image_shape))
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if parameter not in body}
