"""Groups of networks that are not told apart, as letters."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase


def compact_letters(num_networks: int, apart: Sequence[tuple[int, int]]) -> list[str]:
    """Return letters for each network: two that share one are not told apart.

    By insertion and absorption (Piepho 2004, "An algorithm for a letter-based representation of
    all-pairwise comparisons").

    Args:
        num_networks: in the order of their accuracy; the first letter goes to the first.
        apart: the pairs of indices that are told apart.
    """
    groups = [frozenset(range(num_networks))]
    for a, b in apart:
        split = [
            part
            for group in groups
            for part in ([group - {a}, group - {b}] if {a, b} <= group else [group])
        ]
        groups = [g for g in dict.fromkeys(split) if not any(g < other for other in split)]
    groups.sort(key=sorted)
    return [
        "".join(_letter(i) for i, group in enumerate(groups) if network in group)
        for network in range(num_networks)
    ]


def _letter(index: int) -> str:
    """Return a to z, then a1 to z1 and so on."""
    turn, place = divmod(index, len(ascii_lowercase))
    return ascii_lowercase[place] + (str(turn) if turn else "")
