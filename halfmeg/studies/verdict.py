"""The difference between two entrants, and the words that its numbers allow."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from halfmeg.config import BUDGET
from halfmeg.studies.entrant import TERMS, Entrant
from halfmeg.studies.loaded import LoadedRun, test_share
from halfmeg.studies.power import FEWEST_DISCORDANT, SeedsNeeded, seeds_needed
from halfmeg.studies.reading import MARGIN
from halfmeg.studies.resampled import PairTest, folded_tests
from halfmeg.studies.stats import (
    Interval,
    combined_mcnemar_p,
    mcnemar_p,
    paired_tests,
)

MOST_DIGITS = 6
"""Digits of points behind which no two numbers are told apart."""

SEEN_DIFFERENCE = 0.005
"""The difference for which the number of seeds is planned: half a point."""

MANY_FOLDS = 10
"""Beyond which more of them hardly see more (docs/folds.md)."""


@dataclass(frozen=True)
class PairResult:
    """The difference in test accuracy between two entrants, a minus b, over paired seeds.

    Attributes:
        test: the difference against chance; interval, p-values and words all follow from it.
        num_seeds: that both have; of folds, their number.
        num_images: tested, in each seed or in all folds together.
        folded: whether the runs are those of folds rather than of seeds.
        mcnemar: McNemar's exact p-value of each seed or fold.
        p_mcnemar: those combined: chance among the test images alone. It decides nothing.
        num_pairs: of the comparison; the interval holds at all of them at once.
        margin: within which the two are called the same, 0 to 1.
        needed: seeds of a new study to see half a point; None where nothing can be said.
        terms: how the two differ in their terms; empty where these are equal.
    """

    a: str
    b: str
    test: PairTest
    num_seeds: int
    num_images: int
    folded: bool
    mcnemar: tuple[float, ...]
    p_mcnemar: float
    num_pairs: int
    margin: float
    needed: SeedsNeeded | None
    terms: tuple[str, ...]

    @property
    def difference(self) -> Interval:
        """The mean with its interval over seeds and test images, at all pairs at once."""
        return self.test.difference

    @property
    def p_value(self) -> float | None:
        """Of this pair alone, two-sided; None for one seed."""
        return self.test.p_value

    @property
    def p_adjusted(self) -> float | None:
        """Over all pairs at once: below the level exactly where the interval leaves out 0."""
        return self.test.p_adjusted

    @property
    def p_same(self) -> float | None:
        """Of a difference of `margin` or more, over all pairs at once; None for one seed."""
        return self.test.p_beyond(self.margin)

    @property
    def outcome(self) -> str:
        """`better` or `worse` (a than b), `same` (within the margin), or `open`."""
        d = self.difference
        if d.lo is None or d.hi is None:
            return "open"
        if d.lo > 0 or d.hi < 0:
            return "better" if d.lo > 0 else "worse"
        return "same" if -self.margin < d.lo and d.hi < self.margin else "open"

    @property
    def told_apart(self) -> bool:
        """Whether one is better: the interval leaves out 0."""
        return self.outcome in ("better", "worse")

    @property
    def verdict(self) -> str:
        """What the numbers allow to say, in words."""
        d = self.difference
        if d.lo is None or d.hi is None:
            return (
                f"{self.a} and {self.b}: {100 * d.mean:+.1f} points in one {self._unit}, "
                "which cannot tell chance from a difference"
            )
        if self.told_apart:
            first, second, sign = (self.a, self.b, 1) if d.lo > 0 else (self.b, self.a, -1)
            lo, hi = sorted((sign * d.lo, sign * d.hi))
            mean, lo_text, hi_text = in_points([sign * d.mean, lo, hi])
            return (
                f"{first} is better than {second} by {mean} points "
                f"({self._counts(lo_text, hi_text)})"
            )
        mean, lo_text, hi_text = in_points([d.mean, d.lo, d.hi], self.margin, sign=True)
        told = f"{mean} points ({self._counts(lo_text, hi_text)})"
        if self.outcome == "same":
            return f"{self.a} and {self.b} are the same within {margin_text(self.margin)}: {told}"
        return f"{self.a} and {self.b} cannot be told apart: {told}; {self.outlook}"

    def _counts(self, lo: str, hi: str) -> str:
        kind = f"{interval_name(self.test.level)} {lo} to {hi}"
        if self.num_pairs > 1:
            kind += f" with all {self.num_pairs} pairs"
        return f"{kind}; {self.num_seeds} {self._unit}s, {self.num_images:,} images"

    @property
    def _unit(self) -> str:
        return "fold" if self.folded else "seed"

    @property
    def outlook(self) -> str:
        """What would settle an open pair."""
        images = f"{self.num_images:,} images are too few"
        if self.test.discordant < FEWEST_DISCORDANT:
            return f"{images}: the two answer {self.test.discordant:.0f} of them differently"
        if self.folded:
            if self.num_seeds < MANY_FOLDS:
                return (
                    f"{images} for {self.num_seeds} folds; a new study of {MANY_FOLDS} folds "
                    "would see smaller differences"
                )
            return f"{images} for these folds; more of them would settle it, more folds hardly"
        points = f"{100 * SEEN_DIFFERENCE:g} points"
        if self.needed is None or self.needed.least is None:
            few = f"{images} to see a difference of {points} with any number of seeds"
            seen = self.needed.seen if self.needed else None
            return few if seen is None else f"many seeds would see {100 * seen:.1f} points; {few}"
        least, most = self.needed.least, self.needed.most
        span = f"{least}" if least == most else f"{least} to {most}" if most else f"{least} or more"
        return f"a new study of {span} seeds would see a difference of {points}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "a": self.a,
            "b": self.b,
            "difference": self.difference.to_dict(),
            "level": self.test.level,
            "num_seeds": self.num_seeds,
            "num_images": self.num_images,
            "folded": self.folded,
            "discordant": self.test.discordant,
            "mcnemar": list(self.mcnemar),
            "p_mcnemar": self.p_mcnemar,
            "p_value": self.p_value,
            "p_adjusted": self.p_adjusted,
            "margin": self.margin,
            "p_same": self.p_same,
            "outcome": self.outcome,
            "told_apart": self.told_apart,
            "seeds_needed": self.needed.most if self.needed else None,
            "seeds_needed_at_least": self.needed.least if self.needed else None,
            "unequal_terms": list(self.terms),
            "verdict": self.verdict,
        }


def interval_name(level: float) -> str:
    """Return the name of intervals at a level, such as `95% interval`."""
    return f"{100 * (1 - level):g}% interval"


def in_points(
    shares: Sequence[float], *borders: float, digits: int = 1, sign: bool = False
) -> list[str]:
    """Write shares as points with so many digits, or with as many as keep them off a border.

    A bound of 0.0003 is not written as 0.0, nor one of 0.0098 as 1.0 where 0.01 is the margin:
    the words beside it would contradict it. Nor are the last two, the ends of an interval, written
    alike where they differ.
    """

    def written(share: float) -> str:
        text = ""
        for places in range(digits, digits + 6):
            text = f"{100 * share:{'+' if sign else ''}.{places}f}"
            if all(
                abs(float(text)) != round(100 * border, places) or abs(share) == border
                for border in (0.0, *borders)
            ):
                break
        return text

    texts = [written(share) for share in shares]
    if digits < MOST_DIGITS and shares[-1] != shares[-2] and texts[-1] == texts[-2]:
        return in_points(shares, *borders, digits=digits + 1, sign=sign)
    return texts


def margin_text(margin: float) -> str:
    """Write a margin, 0 to 1, in points."""
    points = f"{100 * margin:.1f}" if round(1000 * margin, 6).is_integer() else f"{100 * margin:g}"
    return f"{points} point" if margin == MARGIN else f"{points} points"


def compare_pairs(
    entrants: list[tuple[Entrant, list[LoadedRun]]],
    *,
    level: float,
    margin: float,
    required: bool,
) -> tuple[PairResult, ...]:
    """Compare each entrant with each later one, all pairs at once.

    Two that share no seed, or no fold, are not compared.

    Args:
        entrants: with their runs.
        level: share of studies without a difference in which an interval may leave out 0.
        margin: within which two are called the same, 0 to 1.
        required: whether there has to be a pair, as where no run has failed.

    Raises:
        ValueError: no two share a seed, and a pair is required.
    """
    pairs, tables = [], []
    for i, j in itertools.combinations(range(len(entrants)), 2):
        table = _differences(entrants[i][1], entrants[j][1])
        if table:
            pairs.append((i, j))
            tables.append(table)
    first = entrants[0][1]
    folded = first[0].folded
    if required and len(entrants) > 1 and not pairs:
        unit = "fold" if folded else "seed"
        raise ValueError(f"{entrants[0][0].name} and {entrants[1][0].name} share no {unit}")
    tests: list[PairTest] = []
    if folded:
        tests += folded_tests(tables, test_share(first), level)
    else:
        tests += paired_tests([np.stack(t) for t in tables], len(entrants), level, pairs)
    return tuple(
        PairResult(
            a=(a := entrants[i][0]).name,
            b=(b := entrants[j][0]).name,
            test=test,
            num_seeds=len(table),
            num_images=sum(map(len, table)) if folded else len(table[0]),
            folded=folded,
            mcnemar=tuple(mcnemar_p(row) for row in table),
            # Folds have different images, so all of them are one test.
            p_mcnemar=mcnemar_p(np.concatenate(table))
            if folded
            else combined_mcnemar_p(np.stack(table)),
            num_pairs=len(pairs),
            margin=margin,
            needed=seeds_needed(test, SEEN_DIFFERENCE),
            terms=_unequal_terms(a, b),
        )
        for (i, j), table, test in zip(pairs, tables, tests, strict=True)
    )


def _differences(a_items: list[LoadedRun], b_items: list[LoadedRun]) -> list[np.ndarray]:
    """Return right answers, a minus b, of each seed or fold that both have."""
    by_unit = {item.unit: item for item in b_items}
    shared = [(item, by_unit[item.unit]) for item in a_items if item.unit in by_unit]
    return [a.right - b.right for a, b in shared]


def _unequal_terms(a: Entrant, b: Entrant) -> tuple[str, ...]:
    first, second = (entrant.terms for entrant in (a, b))
    notes = [
        f"{key}: {first[key]} against {second[key]}" for key in TERMS if first[key] != second[key]
    ]
    notes += [
        f"{entrant.name} has {entrant.params:,} parameters, over the budget of {BUDGET:,}"
        for entrant in (a, b)
        if not entrant.within_budget
    ]
    small, large = sorted((a, b), key=lambda entrant: entrant.params)
    if large.params > 2 * small.params:
        times = large.params / small.params
        notes.append(f"{large.name} has {times:.1f} times the parameters of {small.name}")
    return tuple(notes)
