"""The budget of a search: limits, and what a network costs, known before anything is trained.

Parameters, multiply-accumulates, and the flash and RAM of the C form are exact. Latency is measured
on this machine; for a chip it is estimated from the multiply-accumulates.
"""

from __future__ import annotations

import functools
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from halfmeg.config import BUDGET
from halfmeg.data.shape import ImageShape
from halfmeg.errors import one_line
from halfmeg.networks.memory import measure_memory
from halfmeg.networks.protocol import evaluating
from halfmeg.networks.summary import count_macs, count_params
from halfmeg.networks.table import build_model
from halfmeg.places.place import short_name
from halfmeg.places.settings import Value
from halfmeg.search.space import Dimension, Space
from halfmeg.shipping.device import DEVICES

UNITS = {
    "": 1.0, "k": 1e3, "kb": 1e3, "ki": 1024.0, "kib": 1024.0,
    "m": 1e6, "mb": 1e6, "mi": 2.0**20, "mib": 2.0**20,
}  # fmt: skip
"""Behind a count or a number of bytes."""

TIME_UNITS = {"ms": 1.0, "s": 1e3, "us": 1e-3}
"""Behind a latency, in milliseconds; without one it could be any."""

INSTRUCTIONS_PER_MAC = {
    "cortex-m3": 3.59, "cortex-m4": 2.04, "cortex-m7": 1.96, "cortex-m33": 1.70, "cortex-m55": 0.68,
}  # fmt: skip
"""The most that docs/ship.md counts in QEMU of convolutions in C; of M3, M33 and M55 `record`'s."""

AMOUNT = r"((?:[0-9]+(?:_[0-9]+)*|[0-9]*\.[0-9]+)(?:e[0-9]{1,2})?)\s*([a-z]*)"

LATENCY_ROUNDS = 20
PATIENCE = 3.0
"""Seconds of work without a word."""


@dataclass(frozen=True)
class Costs:
    """What a network costs; None where it was not computed, or has no form in C.

    Attributes:
        latency: of one image, in milliseconds.
        no_c: why there is no form in C; empty where there is one.
        tflite_micro: the arena that TFLite Micro would need, in bytes, as `networks.micro`
            estimates it.
    """

    params: int
    macs: int
    flash: int | None = None
    ram: int | None = None
    latency: float | None = None
    no_c: str = ""
    tflite_micro: int | None = None


LEAST_SHARE = 0.5
"""Of a limit, below which costs are not told apart by a search."""


@dataclass(frozen=True)
class Limits:
    """What a network may cost at most; None for no limit.

    Attributes:
        latency: in milliseconds.
        chip: that the latency is estimated for, a key of `INSTRUCTIONS_PER_MAC`; empty: it is
            measured on this machine.
    """

    params: int | None = None
    macs: int | None = None
    flash: int | None = None
    ram: int | None = None
    latency: float | None = None
    chip: str = ""

    @property
    def given(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {
            f.name: value
            for f in fields(self)
            if f.name != "chip" and (value := getattr(self, f.name)) is not None
        }

    def excess(self, costs: Costs) -> dict[str, float]:
        """Return by how much costs are over each limit, as shares of it; 0 or less is within."""
        found = {}
        for name, limit in self.given.items():
            cost = getattr(costs, name)
            found[name] = 1.0 if cost is None else cost / limit - 1
        return found

    def fits(self, costs: Costs) -> bool:
        """Return whether costs are within all limits."""
        return all(value <= 0 for value in self.excess(costs).values())

    def share(self, costs: Costs) -> float:
        """Return the cost that a search keeps small: the largest share of a limit.

        Below half of each limit costs count alike: a search is for the best within the limits. With
        all costs told apart it drew cheap networks most of the time (docs/experiments.md).
        """
        over = self.excess(costs)
        share = 1 + max(over.values()) if over else costs.params / BUDGET
        return max(LEAST_SHARE, share)


def parse_limits(chip: str | None = None, **texts: str | None) -> Limits:
    """Return limits from texts such as `100k`, `12M`, `64KiB`, `5ms`.

    Without any, networks have fewer parameters than the 500,000 that the program is for.

    Raises:
        ValueError: a text that is no amount, or a chip that is not known.
    """
    values: dict[str, Any] = {
        name: parse_amount(name, text) for name, text in texts.items() if text is not None
    }
    if chip is not None:
        if chip not in INSTRUCTIONS_PER_MAC:
            known = ", ".join(INSTRUCTIONS_PER_MAC)
            raise ValueError(f"--chip {chip} is not known; allowed: {known}")
        if "latency" not in values:
            raise ValueError(f"--chip {chip} needs --latency, which is estimated for it")
    return Limits(**values or {"params": BUDGET - 1}, chip=chip or "")


def parse_amount(name: str, text: str, option: str = "") -> float:
    """Return a limit as a number: a whole one, or milliseconds for `latency`.

    Args:
        name: of the limit.
        text: of the amount.
        option: as it was given, for the message; else the limit's own.

    Raises:
        ValueError: no number above 0, or an unknown unit.
    """
    units = TIME_UNITS if name == "latency" else UNITS
    found = re.fullmatch(AMOUNT, text.strip().lower())
    unit = units.get(found[2]) if found else None
    least = 1e-6 if name == "latency" else 1
    if found is None or unit is None or not least <= float(found[1]) * unit < 1e15:
        example = "5ms" if name == "latency" else "100k, 12M, 64KiB"
        unit_too = " and its unit" if name == "latency" else ""
        given = option or f"--{name} {text}"
        raise ValueError(f"{given} is no amount; write a number above 0{unit_too}, as in {example}")
    amount = float(found[1]) * unit
    return amount if name == "latency" else int(amount)


def describe_latency(limits: Limits) -> str:
    """Return where a latency comes from."""
    return f"estimated for {limits.chip}" if limits.chip else "measured on this machine"


def describe_limit(name: str, value: float) -> str:
    """Return a limit or a cost as text."""
    if name == "latency":
        return f"{value:.3g} ms"
    unit = {
        "params": "parameters",
        "macs": "MACs",
        "flash": "bytes of flash",
        "tflite_micro": "bytes of RAM in TFLite Micro",
        "ram": "bytes of RAM",
    }
    return f"{int(value):,} {unit[name]}"


def measure_costs(
    model: str,
    num_classes: int,
    image_shape: ImageShape,
    limits: Limits,
    *,
    budget: int = BUDGET,
    whole: bool = False,
) -> Costs:
    """Return what a network costs.

    What takes longest comes last, and is left out where a limit is exceeded before, or where no
    limit asks for it.

    Args:
        model, budget: as in a config.
        num_classes, image_shape: of the data.
        limits: of the search.
        whole: compute all, also over a limit.

    Raises:
        ValueError: it cannot be built, or takes no images of this size.
    """
    net = build_model(model, num_classes, image_shape, budget)
    params = count_params(net)
    if limits.params is not None and params > limits.params and not whole:
        return Costs(params, 0)
    try:
        macs = count_macs(net, image_shape)
    except Exception as error:  # what a network raises on images that are too small for it
        told = one_line(error, 200)
        raise ValueError(f"{model} takes no images of {image_shape.text} pixels: {told}") from None
    weights = sum(p.numel() for p in net.parameters() if p.ndim > 1)  # a byte each, at the least
    over = limits.macs is not None and macs > limits.macs
    over |= limits.flash is not None and weights > limits.flash
    if over and not whole:
        return Costs(params, macs, flash=weights)
    flash = ram = micro = None
    no_c = ""
    if whole or limits.flash is not None or limits.ram is not None:
        try:
            memory = measure_memory(net, image_shape)
            flash, ram = memory.flash_bytes, memory.ram_bytes
            micro = memory.tflite_micro_bytes
        except ValueError as error:
            no_c = str(error)
    latency = _latency(net, macs, image_shape, limits)
    return Costs(params, macs, flash, ram, latency, no_c, micro)


def _latency(
    net: torch.nn.Module, macs: int, image_shape: ImageShape, limits: Limits
) -> float | None:
    if limits.latency is None:
        return None
    if limits.chip:
        clock = DEVICES[limits.chip].clock_mhz
        return macs * INSTRUCTIONS_PER_MAC[limits.chip] / clock / 1e3
    image = torch.zeros(1, *image_shape)
    seconds = []
    with torch.inference_mode(), evaluating(net):
        for _ in range(LATENCY_ROUNDS):
            started = time.perf_counter()
            net(image)
            seconds.append(time.perf_counter() - started)
    return 1000 * min(seconds)  # what else runs, as trials do, only adds to it


def require_room(
    space: Space,
    limits: Limits,
    num_classes: int,
    shape: ImageShape,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Check that something of a space may be built within limits.

    Args:
        space: of the search.
        limits: of the search.
        num_classes, shape: of the data.
        tell: is told once what takes longer than some seconds.

    Raises:
        ValueError: nothing is; the message says what the smallest needs.
    """

    # Without bounds, so that what limits are on is computed whatever it is.
    asked: Any = dict.fromkeys(limits.given, math.inf)
    reasons: list[str] = []

    started: float | None = time.monotonic()

    @functools.cache
    def costs_of(model: str) -> Costs | None:
        nonlocal started
        if started is not None and time.monotonic() - started > PATIENCE:
            started = None
            tell("looking for the smallest network of the space")
        try:
            found = measure_costs(model, num_classes, shape, replace(limits, **asked))
        except ValueError as error:
            reasons.append(str(error))
            return None
        if found.no_c:
            reasons.append(f"a limit of flash or RAM needs a form in C: {found.no_c}")
        return found

    def fits(drawn: dict[str, Value]) -> bool:
        found = costs_of(space.model(drawn))
        return found is not None and limits.fits(found)

    for network in space.networks:
        low = space.of_network(network, lambda d: d.at(0))
        one_at_its_end = (low | {d.name: d.at(1)} for d in parameters_of(space, network))
        if any(map(fits, (low, space.scaled(network, 0), *one_at_its_end))):
            return
    told = []
    for name, limit in limits.given.items():

        def cost(drawn: dict[str, Value], name: str = name) -> float | None:
            return getattr(costs_of(space.model(drawn)), name, None)

        smallest = _smallest(space, cost)
        if smallest is None:
            raise ValueError(f"no network of the space can be taken; {reasons[0]}")
        network, least = smallest
        if least > limit:
            told.append(
                f"--{name} {describe_limit(name, limit)}: the smallest, {network}, has "
                f"{describe_limit(name, least)}"
            )
    if told:
        raise ValueError(f"no network of the space fits {'; '.join(told)}")
    raise ValueError(
        "no network of the space fits all limits together, though each alone: "
        + ", ".join(f"{describe_limit(name, value)}" for name, value in limits.given.items())
    )


def _smallest(
    space: Space, cost: Callable[[dict[str, Value]], float | None]
) -> tuple[str, float] | None:
    """Return the least that a candidate of the space costs, and its network; None without any.

    Each parameter is set to whichever end costs less, one after another.
    """
    best: tuple[str, float] | None = None
    for network in space.networks:
        drawn = space.of_network(network, lambda d: d.at(0))
        least = cost(drawn)
        for dimension in parameters_of(space, network):
            other = drawn | {dimension.name: dimension.at(1)}
            found = cost(other)
            if found is not None and (least is None or found < least):
                drawn, least = other, found
        if least is not None and (best is None or least < best[1]):
            best = short_name(space.model(drawn)), least
    return best


def parameters_of(space: Space, network: str) -> list[Dimension]:
    """Return what is drawn of a network: its own dimensions of more than one value."""
    return [
        d for d in space.dimensions
        if d.parent == "network" and d.choice == network and d.is_drawn
    ]  # fmt: skip
