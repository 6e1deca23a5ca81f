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

from halfmeg.places.settings import Value
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
    widths = [
        d for d in space.dimensions
        if d.parent == NETWORK and d.name in drawn and d.is_drawn and isinstance(d.values, range)
    ]  # fmt: skip

    def scaled(step: int) -> Drawn:
        factor = 2 ** (step / FACTOR_STEPS)
        return drawn | {d.name: _nearest(d.values, float(drawn[d.name]) * factor) for d in widths}

    most = MOST_DOUBLINGS * FACTOR_STEPS
    below, above = -most, (most if grow else 0) + 1
    if not size(scaled(below)):
        return None
    while above - below > 1:  # what grows fits less and less, so the edge is found by halves
        middle = (below + above) // 2
        if size(scaled(middle)):
            below = middle
        else:
            above = middle
    return scaled(below)


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
