"""Candidates made of others: a good one changed a little, and any brought to the limits' size.

A search begins with settings that are good already. Near them are better ones more often than
anywhere else in the space, and a network that is much smaller than it may be is seldom better. So
part of the candidates are mutations of the best (Real et al. 2019, "Regularized Evolution for Image
Classifier Architecture Search"), and those that are drawn for accuracy alone are as wide as fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain, zip_longest

import numpy as np

from halfmeg.places.place import is_place
from halfmeg.places.settings import Value
from halfmeg.search.budget import parameters_of
from halfmeg.search.space import NETWORK, Dimension, Space, Values

Drawn = dict[str, Value]

SECOND_CHANGE = 0.5
"""How often a mutation changes two settings, not one."""

FAR = 2
"""So many steps of a range a mutation goes at most."""

DEVIATION = 0.15
"""Of a mutation between lowest and highest, as a share of the way."""

FACTOR_STEPS = 16
"""Factors of width that are tried between one and its double."""

MOST_DOUBLINGS = 4

AHEAD = 4
"""So many values of a width are tried beyond one that fits, in a network of one's own: it may take
multiples alone."""

NARROW = 1 / 8
"""Of the way from a network's smallest width to its largest."""


def parents(best_first: Sequence[Drawn], count: int) -> list[Drawn]:
    """Return what mutations are made of: the best of each network, then the second of each.

    Networks whose best are near each other all deserve a try. Without this, mutations were of one.
    """
    of_network: dict[Value, list[Drawn]] = {}
    for drawn in best_first:
        of_network.setdefault(drawn[NETWORK], []).append(drawn)
    ranked = chain.from_iterable(zip_longest(*of_network.values()))
    return [drawn for drawn in ranked if drawn is not None][:count]


def mutated(space: Space, drawn: Drawn, random: np.random.Generator) -> Drawn:
    """Return a candidate with one or two settings changed, each to a value near it.

    The network stays the same one. What belongs to a choice that is left is that of a start.
    """
    by_name = {d.name: d for d in space.dimensions}
    open_to_change = [n for n in drawn if n != NETWORK and by_name[n].is_drawn]
    count = min(1 + (random.random() < SECOND_CHANGE), len(open_to_change))
    chosen = random.choice(len(open_to_change), count, replace=False)
    changed = dict(drawn)
    for name in (open_to_change[place] for place in chosen):
        changed[name] = _near(by_name[name], drawn[name], random)

    def suggest(name: str, values: Values) -> Value:
        return changed.get(name, by_name[name].first())

    return space.draw(suggest)


def fitted(space: Space, drawn: Drawn, size: Callable[[Drawn], int], *, grow: bool) -> Drawn | None:
    """Return a candidate with all its widths changed by one factor, so that it just fits.

    Args:
        space: of the search.
        drawn: the candidate; its widths are the ranges among its network's parameters.
        size: the parameters of a candidate; 0 where it does not fit.
        grow: whether one that fits is made wider.
    """
    network = str(drawn[NETWORK])
    widths = [d for d in parameters_of(space, network) if isinstance(d.values, range)]

    def scaled(step: int) -> Drawn:
        factor = 2 ** (step / FACTOR_STEPS)
        return drawn | {d.name: _nearest(d.values, float(drawn[d.name]) * factor) for d in widths}

    most = MOST_DOUBLINGS * FACTOR_STEPS
    below, above = -most, (most if grow else 0) + 1
    if not size(scaled(below)):
        return None
    return scaled(_last(lambda step: size(scaled(step)), below, above))


def _last(fits: Callable[[int], int], below: int, above: int) -> int:
    """Return the last step that fits, as `below` does; what grows fits less and less."""
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if fits(middle) else (below, middle)
    return below


def largest_within(
    space: Space, network: str, size: Callable[[Drawn], int], work: Callable[[Drawn], int]
) -> Drawn | None:
    """Return the largest candidate of a network that fits; None where nothing does.

    All widths grow by one share, and then each by itself, a step in turn. Its choices are those
    that a search begins with, unless they leave room for little more than its narrowest. Then one
    of them is another: that with which the most parameters fit. Where widths leave room, its counts
    grow, as that of its layers. What is between two numbers is halfway.

    Args:
        space: of the search.
        network: of the space.
        size: the parameters of a candidate; 0 where it does not fit.
        work: the multiply-accumulates of one that fits.
    """
    evenly = _evenly_wide(space, network, size)
    if evenly is None:
        return None
    return _deepened(space, network, _widened(space, network, evenly, size), size, work)


def _evenly_wide(space: Space, network: str, size: Callable[[Drawn], int]) -> Drawn | None:
    """Return the candidate of the best choices whose widths are all at one share of their way."""
    parameters = parameters_of(space, network)
    choices = [d for d in parameters if isinstance(d.values, list)]
    usual = {d.name: d.first() for d in parameters if not isinstance(d.values, range)}
    share, widest = _widest(space, network, usual, size, 32)
    if share > NARROW:
        return widest
    for form in (usual, usual | {d.name: d.at(0) for d in choices}):
        changed = [form | {d.name: value} for d in choices for value in (d.at(0), d.at(1))]
        others = [_widest(space, network, one, size, 16)[1] for one in changed]
        fitting = [drawn for drawn in (widest, *others) if drawn is not None]
        if fitting:
            return max(fitting, key=size)
    return None


def _widened(space: Space, network: str, drawn: Drawn, size: Callable[[Drawn], int]) -> Drawn:
    """Return a candidate that fits, with each width as large as the others leave room for."""
    growing = [d for d in parameters_of(space, network) if isinstance(d.values, range)]
    ahead = AHEAD if is_place(network) else 1
    while growing:
        for dimension in list(growing):
            after = dimension.values.index(int(drawn[dimension.name])) + 1
            wider = ({dimension.name: v} for v in dimension.values[after : after + ahead])
            fitting = next((drawn | one for one in wider if size(drawn | one)), None)
            if fitting is None:
                growing.remove(dimension)
            drawn = fitting or drawn
    return drawn


def _deepened(
    space: Space, network: str, drawn: Drawn, size: Callable[[Drawn], int],
    work: Callable[[Drawn], int],
) -> Drawn:  # fmt: skip
    """Return a candidate that fits, with more layers or filters where its widths left room.

    Widths go by steps, and a step of all of them may be more than half as much again. The choices
    that are counts grow, that first which adds the fewest parameters. It has to add arithmetic,
    too, which a larger patch or stride does not.
    """
    counts = [
        d for d in parameters_of(space, network)
        if isinstance(d.values, list) and all(type(value) is int for value in d.values)
    ]  # fmt: skip
    while True:
        larger = [
            drawn | {d.name: min(more)}
            for d in counts if (more := [v for v in d.values if float(v) > float(drawn[d.name])])
        ]  # fmt: skip
        fitting = [
            one for one in larger if size(one) > size(drawn) and work(one) > work(drawn)
        ]  # fmt: skip
        if not fitting:
            return drawn
        drawn = min(fitting, key=size)


def _widest(
    space: Space, network: str, form: Drawn, size: Callable[[Drawn], int], steps: int
) -> tuple[float, Drawn | None]:
    """Return the widest candidate with these choices that fits, and how wide that is; 0 to 1."""

    def at(step: int) -> Drawn:
        return space.of_network(network, lambda d: form.get(d.name, d.at(step / steps)))

    if not size(at(0)):
        return 0.0, None
    step = _last(lambda step: size(at(step)), 0, steps + 1)
    return step / steps, at(step)


def _near(dimension: Dimension, value: Value, random: np.random.Generator) -> Value:
    """Return another value of a dimension."""
    values = dimension.values
    if isinstance(values, tuple):
        low, high = values
        where = (float(value) - low) / (high - low)
        if low > 0:
            where = math.log(float(value) / low) / math.log(high / low)
        return dimension.at(float(np.clip(where + random.normal(0, DEVIATION), 0, 1)))
    if isinstance(values, range):
        place = values.index(int(value))
        near = [v for i, v in enumerate(values) if 0 < abs(i - place) <= FAR]
        return near[random.integers(len(near))]
    others = [v for v in values if v != value]
    return others[random.integers(len(others))]


def _nearest(values: Values, wanted: float) -> Value:
    return min(values, key=lambda value: abs(float(value) - wanted))
