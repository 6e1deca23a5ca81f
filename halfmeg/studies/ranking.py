"""Networks over several data sets, by their ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfmeg.studies.letters import compact_letters
from halfmeg.studies.stats import LEVEL, MANY, critical_value


@dataclass(frozen=True)
class RankedPair:
    """Two networks over several data sets.

    Attributes:
        rank_difference: of mean ranks, a minus b; below 0, a is the better one.
        p_wilcoxon: of the signed-rank test of the data sets' differences (Wilcoxon 1945), after
            Holm's correction over all pairs.
    """

    a: str
    b: str
    rank_difference: float
    p_wilcoxon: float


@dataclass(frozen=True)
class Ranking:
    """Networks over several data sets (Demšar 2006, "Statistical comparisons of classifiers").

    The data sets are the sample: a verdict stands for other data sets of their kind.

    Attributes:
        networks: in the order of their mean rank; none where so many have failed that there are no
            ranks.
        data: names of the data sets.
        accuracies: mean test accuracy, data sets × networks.
        mean_ranks: 1 is the best.
        p_friedman: that the networks do not differ (Friedman 1937); None for two networks.
        critical_difference: of mean ranks, at 5%: by Nemenyi's test of all pairs, and of two
            networks by the sign test, which is exact. None where so few data sets cannot tell the
            first of all from the last of all.
        pairs: each network with each later one.
    """

    networks: tuple[str, ...]
    data: tuple[str, ...]
    accuracies: tuple[tuple[float, ...], ...]
    mean_ranks: tuple[float, ...]
    p_friedman: float | None
    critical_difference: float | None
    pairs: tuple[RankedPair, ...]

    @property
    def letters(self) -> tuple[str, ...]:
        """Networks that share a letter are nearer in mean rank than the critical difference."""
        least = math.inf if self.critical_difference is None else self.critical_difference
        apart = [
            (i, j)
            for i, first in enumerate(self.mean_ranks)
            for j, second in enumerate(self.mean_ranks)
            if i < j and second - first >= least - 1e-9  # ranks are rounded
        ]
        return tuple(compact_letters(len(self.networks), apart))

    @property
    def verdict(self) -> str:
        """What the ranks allow to say, in words."""
        if not self.networks:
            return "There are no ranks: fewer than two networks have finished on every data set"
        ranks = ", ".join(
            f"{name} {rank:.2f} ({letter})"
            for name, rank, letter in zip(self.networks, self.mean_ranks, self.letters, strict=True)
        )
        sets = f"{len(self.data)} data sets"
        if len(set(self.letters)) == 1:
            enough = (
                "so few data sets cannot tell any apart"
                if self.critical_difference is None
                else f"a pair would have to be {self.critical_difference:.2f} apart"
            )
            return f"Over {sets} no two networks are told apart: mean ranks {ranks}; {enough}"
        return f"Mean ranks over {sets}: {ranks}; those that share a letter are not told apart"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "networks": list(self.networks),
            "data": list(self.data),
            "accuracies": [list(row) for row in self.accuracies],
            "mean_ranks": list(self.mean_ranks),
            "letters": list(self.letters),
            "p_friedman": self.p_friedman,
            "critical_difference": self.critical_difference,
            "pairs": [asdict(pair) for pair in self.pairs],
            "verdict": self.verdict,
        }


def rank_networks(
    networks: Sequence[str], data: Sequence[str], accuracies: NDArray[np.float64]
) -> Ranking:
    """Rank networks by their accuracies on several data sets.

    Args:
        networks: two or more names.
        data: names of two or more data sets.
        accuracies: data sets × networks.

    Raises:
        ValueError: fewer than two data sets or networks.
    """
    from scipy import stats
    from statsmodels.stats.multitest import multipletests

    if min(accuracies.shape) < 2:
        raise ValueError(
            f"{len(data)} data sets and {len(networks)} networks give no ranking; two of each do"
        )
    num_sets, num_networks = accuracies.shape
    ranks = stats.rankdata(-accuracies, axis=1).mean(0)
    order = sorted(range(num_networks), key=lambda i: (ranks[i], i))
    sorted_accuracies = accuracies[:, order]
    indices = [(i, j) for i in range(num_networks) for j in range(i + 1, num_networks)]
    differences = [sorted_accuracies[:, i] - sorted_accuracies[:, j] for i, j in indices]
    p_values = [float(stats.wilcoxon(d).pvalue) if d.any() else 1.0 for d in differences]
    adjusted = multipletests(p_values, method="holm")[1]
    friedman = None
    if num_networks > 2:
        all_ties = not np.ptp(accuracies, axis=1).any()
        friedman = 1.0 if all_ties else float(stats.friedmanchisquare(*accuracies.T).pvalue)
    names, mean_ranks = [networks[i] for i in order], [float(ranks[i]) for i in order]
    return Ranking(
        networks=tuple(names),
        data=tuple(data),
        accuracies=tuple(tuple(float(v) for v in row) for row in sorted_accuracies),
        mean_ranks=tuple(mean_ranks),
        p_friedman=friedman,
        critical_difference=_critical_difference(num_networks, num_sets),
        pairs=tuple(
            RankedPair(names[i], names[j], mean_ranks[i] - mean_ranks[j], float(p))
            for (i, j), p in zip(indices, adjusted, strict=True)
        ),
    )


def _critical_difference(num_networks: int, num_sets: int) -> float | None:
    """Return the difference of mean ranks that tells two networks apart; None: none does.

    Nemenyi's test takes ranks as normal. Of two networks they are a count of wins, for which that
    is far off: each of four data sets won would do, which chance brings in 12.5% of studies.
    """
    from scipy import stats

    if num_networks == 2:
        for wins in range(num_sets // 2 + 1, num_sets + 1):
            if 2 * stats.binom.sf(wins - 1, num_sets, 0.5) <= LEVEL:
                return (2 * wins - num_sets) / num_sets
        return None
    # The range of M ranks that differ by chance alone, each with variance M (M + 1) / 12.
    critical = critical_value(LEVEL, num_networks, MANY) * math.sqrt(
        num_networks * (num_networks + 1) / (6 * num_sets)
    )
    return critical if critical <= num_networks - 1 else None
