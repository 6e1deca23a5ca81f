"""The difference between two entrants, and the words that its numbers allow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from halfmeg.config import BUDGET
from halfmeg.studies.entrant import TERMS, Entrant, LoadedRun, cut
from halfmeg.studies.stats import (
    CrossedVariance,
    Interval,
    combined_mcnemar_p,
    difference_interval,
    holm,
    mcnemar_p,
    seeds_p,
)

ALPHA = 0.05


SEEN_DIFFERENCE = 0.005
"""The difference for which the number of seeds is planned: half a point."""


@dataclass(frozen=True)
class PairResult:
    """The difference in test accuracy between two entrants, a minus b, over paired seeds.

    Attributes:
        difference: mean with its 95% interval over seeds and test images.
        mcnemar: McNemar's exact p-value of each seed.
        p_mcnemar: those combined: chance among the test images.
        p_value: the larger of `p_mcnemar` and the p-value over both sources of chance; a
            difference has to hold against both. None for one seed.
        p_adjusted: `p_value` after Holm's correction over all pairs of the comparison.
        num_pairs: of that correction.
        seeds_needed: to see half a point; None where the test images are too few for that.
        terms: how the two differ in their terms; empty where these are equal.
    """

    a: str
    b: str
    difference: Interval
    num_seeds: int
    num_images: int
    mcnemar: tuple[float, ...]
    p_mcnemar: float
    p_value: float | None
    p_adjusted: float | None
    num_pairs: int
    seeds_needed: int | None
    terms: tuple[str, ...]

    @property
    def told_apart(self) -> bool:
        """Whether the difference is more than chance at 5%, corrected for the number of pairs."""
        d = self.difference
        outside = d.lo is not None and d.hi is not None and (d.lo > 0 or d.hi < 0)
        return outside and self.p_adjusted is not None and self.p_adjusted < ALPHA

    @property
    def verdict(self) -> str:
        """What the numbers allow to say, in words."""
        d = self.difference
        if d.lo is None or d.hi is None:
            return (
                f"{self.a} and {self.b}: {100 * d.mean:+.1f} points in one seed, "
                "which cannot tell chance from a difference"
            )
        counts = f"{self.num_seeds} seeds, {self.num_images:,} images"
        if self.told_apart:
            first, second, sign = (self.a, self.b, 1) if d.mean > 0 else (self.b, self.a, -1)
            lo, hi = sorted((100 * sign * d.lo, 100 * sign * d.hi))
            return (
                f"{first} is better than {second} by {100 * sign * d.mean:.1f} points "
                f"(95% interval {lo:.1f} to {hi:.1f}; {counts})"
            )
        if self.seeds_needed is None:
            outlook = f"{self.num_images:,} images are too few to see a difference of 0.5 points"
        else:
            outlook = (
                f"about {self.seeds_needed} seeds would be needed to see a difference of 0.5 points"
            )
        reason = ""
        if (d.lo > 0 or d.hi < 0) and self.p_value is not None:
            reason = f", since p = {self.p_value:.2f}"
            if self.p_value < ALPHA:
                reason = f", after Holm's correction for {self.num_pairs} pairs"
        return (
            f"{self.a} and {self.b} cannot be told apart{reason}: {100 * d.mean:+.1f} points "
            f"(95% interval {100 * d.lo:+.1f} to {100 * d.hi:+.1f}; {counts}); {outlook}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "a": self.a,
            "b": self.b,
            "difference": self.difference.to_dict(),
            "num_seeds": self.num_seeds,
            "num_images": self.num_images,
            "mcnemar": list(self.mcnemar),
            "p_mcnemar": self.p_mcnemar,
            "p_value": self.p_value,
            "p_adjusted": self.p_adjusted,
            "told_apart": self.told_apart,
            "seeds_needed": self.seeds_needed,
            "unequal_terms": list(self.terms),
            "verdict": self.verdict,
        }


def compare_pairs(entrants: list[tuple[Entrant, list[LoadedRun]]]) -> tuple[PairResult, ...]:
    """Compare each entrant with each later one; p-values are corrected for their number."""
    drafts = [
        _pair(a, b, a_items, b_items)
        for i, (a, a_items) in enumerate(entrants)
        for b, b_items in entrants[i + 1 :]
    ]
    tested = [pair for pair in drafts if pair.p_value is not None]
    adjusted = iter(holm([pair.p_value for pair in tested if pair.p_value is not None]))
    return tuple(
        replace(pair, p_adjusted=next(adjusted), num_pairs=len(tested))
        if pair.p_value is not None
        else pair
        for pair in drafts
    )


def _pair(a: Entrant, b: Entrant, a_items: list[LoadedRun], b_items: list[LoadedRun]) -> PairResult:
    by_seed = {item.run.config.seed: item for item in b_items}
    shared = [(item, by_seed[s]) for item in a_items if (s := item.run.config.seed) in by_seed]
    if not shared:
        raise ValueError(f"{a.name} and {b.name} share no seed")
    differences = np.stack([first.right - second.right for first, second in shared])
    several = len(shared) > 1
    p_mcnemar = combined_mcnemar_p(differences)
    num_images = differences.shape[1]
    return PairResult(
        a=a.name,
        b=b.name,
        difference=cut(difference_interval(differences), -1.0, 1.0),
        num_seeds=len(shared),
        num_images=num_images,
        mcnemar=tuple(mcnemar_p(row) for row in differences),
        p_mcnemar=p_mcnemar,
        p_value=max(p_mcnemar, seeds_p(differences)) if several else None,
        p_adjusted=None,
        num_pairs=1,
        seeds_needed=CrossedVariance.of(differences).seeds_needed(SEEN_DIFFERENCE, num_images)
        if several
        else None,
        terms=_unequal_terms(a, b),
    )


def _unequal_terms(a: Entrant, b: Entrant) -> tuple[str, ...]:
    first, second = (entrant.runs[0].config.to_dict() for entrant in (a, b))
    notes = [
        f"{key}: {first[key]} against {second[key]}" for key in TERMS if first[key] != second[key]
    ]
    if len(a.runs) != len(b.runs):
        notes.append(f"seeds: {len(a.runs)} against {len(b.runs)}")
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
