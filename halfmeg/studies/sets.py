"""The page above the studies of several data sets: ranks, and what they tell apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from halfmeg.files import make_folder, write_atomically, write_json
from halfmeg.studies.compare import Comparison
from halfmeg.studies.entrant import Entrant
from halfmeg.studies.figures import INK, STYLE, figure_svg, in_lines, write_figure
from halfmeg.studies.page import build_templates, require_own
from halfmeg.studies.ranking import Ranking, rank_networks
from halfmeg.studies.stats import LEVEL
from halfmeg.studies.tables import MISSING, TABLES, Table, p_text, percent, write_tables

RANKING = "ranking.json"


def rank_comparisons(comparisons: Sequence[Comparison]) -> Ranking:
    """Rank the networks that all comparisons have, over their data sets; none of fewer than two."""
    data = [comparison.data for comparison in comparisons]
    found = _entrants(comparisons)
    shared = [key for key in found[0] if all(key in entrants for entrants in found)]
    if min(len(shared), len(data)) < 2:
        return Ranking((), tuple(data), ((),) * len(data), (), None, None, ())
    # Where one of two recipes has failed on a data set, the other is named without a recipe there.
    names = [max((entrants[key].name for entrants in found), key=len) for key in shared]
    table = np.array([[entrants[key].test_accuracy.mean for key in shared] for entrants in found])
    return rank_networks(names, data, table)


def _entrants(comparisons: Sequence[Comparison]) -> list[dict[tuple[str, ...], Entrant]]:
    """Return the entrants of each comparison by network and recipe.

    Where runs of one in two precisions are apart, as of two machines, by precision too, everywhere.
    """

    def key(entrant: Entrant) -> tuple[str, ...]:
        config = entrant.runs[0].config
        return config.model, config.recipe

    counts = [Counter(map(key, comparison.models)) for comparison in comparisons]
    return [
        {
            (*key(m), m.terms["precision"]) if any(c[key(m)] > 1 for c in counts) else key(m): m
            for m in comparison.models
        }
        for comparison in comparisons
    ]


def ranking_figure(ranking: Ranking) -> Figure:
    """Draw the critical-difference diagram of Demšar 2006: bars join what is not told apart."""
    count = len(ranking.networks)
    left, right = ranking.networks[: -(-count // 2)], ranking.networks[-(-count // 2) :]
    places = dict(zip(ranking.networks, ranking.mean_ranks, strict=True))
    labels = {name: in_lines(f"{name} {place:.2f}") for name, place in places.items()}
    pitch = 0.04 + 0.28 * max(label.count("\n") + 1 for label in labels.values())
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(7.2, 1.5 + 0.81 * pitch * len(left)), layout="constrained")
        axes = figure.subplots()
        axes.axis("off")
        axes.plot([1, count], [0, 0], color=INK, lw=1)
        for rank in range(1, count + 1):
            axes.plot([rank, rank], [0, 0.12], color=INK, lw=1)
            axes.text(rank, 0.2, str(rank), ha="center")
        for names, end, align in ((left, 0.6, "right"), (right[::-1], count + 0.4, "left")):
            for row, name in enumerate(names):
                depth = -0.75 - pitch * row
                axes.plot([places[name]] * 2 + [end], [0, depth, depth], color=INK, lw=1)
                axes.annotate(
                    labels[name], (end, depth), (4 if align == "left" else -4, 0), ha=align,
                    va="center", textcoords="offset points",
                )  # fmt: skip
        groups = sorted({letter for letters in ranking.letters for letter in letters})
        for row, group in enumerate(groups):
            members = [
                rank
                for rank, letters in zip(ranking.mean_ranks, ranking.letters, strict=True)
                if group in letters
            ]
            if len(members) > 1:
                depth = -0.12 - 0.11 * row
                axes.plot(
                    [members[0] - 0.04, members[-1] + 0.04], [depth] * 2, color=INK, lw=3.5,
                    solid_capstyle="round",
                )  # fmt: skip
        width = ranking.critical_difference
        if width is not None:
            axes.plot([1, 1 + width], [0.75, 0.75], color=INK, lw=1, marker="|")
            axes.text(1 + width / 2, 0.84, f"critical difference {width:.2f}", ha="center")
        axes.set_xlim(-0.4, count + 1.4)
        axes.set_ylim(-0.63 - pitch * max(1, len(left)), 1.2)
    return figure


def ranking_tables(ranking: Ranking) -> dict[str, Table]:
    """Return accuracies and ranks, and the pairs."""
    accuracy_rows = [
        (name, *(percent(row[index], 2) for row in ranking.accuracies), f"{rank:.2f}", letters)
        for index, (name, rank, letters) in enumerate(
            zip(ranking.networks, ranking.mean_ranks, ranking.letters, strict=True)
        )
    ]
    columns = ("network", *(f"{name}, %" for name in ranking.data), "mean rank", "group")
    pair_rows = [
        (f"{p.a} − {p.b}", f"{p.rank_difference:+.2f}", p_text(p.p_wilcoxon, LEVEL))
        for p in ranking.pairs
    ]
    pair_columns = ("pair", "mean ranks apart", "p, Wilcoxon and Holm")
    return {
        "ranks": Table("ranks", "Accuracies and mean ranks", columns, tuple(accuracy_rows)),
        "pairs": Table("pairs", "Pairs of networks", pair_columns, tuple(pair_rows)),
    }


def check_ranking_folder(out: Path) -> None:
    """Raise ValueError where a folder holds files of the page's names, but no page of ours."""
    require_own(out, RANKING, {"networks", "studies"}, (RANKING, "ranking.html", "ranks.png"))


def write_ranking(
    ranking: Ranking,
    comparisons: Sequence[Comparison],
    folders: Sequence[Path],
    out: Path,
    failures: Mapping[str, Mapping[str, str]],
) -> Path:
    """Write the page above the pages of several data sets, its tables and JSON; return its path.

    Args:
        ranking: of `comparisons`.
        comparisons: each with its own page.
        folders: where these pages are, below `out`.
        out: a folder.
        failures: for each data set the runs that failed, with their errors.

    Raises:
        ValueError: `out` holds files of these names that the program did not write.
    """
    make_folder(out)
    check_ranking_folder(out)
    figure = ranking_figure(ranking) if ranking.networks else None
    tables = ranking_tables(ranking)
    write_json(  # first, as it marks the page as ours
        out / RANKING,
        ranking.to_dict()
        | {
            "studies": {c.data: f.name for c, f in zip(comparisons, folders, strict=True)},
            "failures": failures,
        },
    )
    if figure is None:
        (out / "ranks.png").unlink(missing_ok=True)  # of an earlier page
    else:
        write_figure(figure, out / "ranks.png")
    write_tables(list(tables.values()), out / TABLES)
    text = "Critical-difference diagram; mean ranks: " + ", ".join(
        f"{name} {rank:.2f}"
        for name, rank in zip(ranking.networks, ranking.mean_ranks, strict=True)
    )
    page = out / "ranking.html"
    rendered = build_templates().get_template("ranking.html").render(
        ranking=ranking, tables=tables, text=text, missing=MISSING,
        drawing=figure and figure_svg(figure, "ranks"), failures=failures,
        friedman=None if ranking.p_friedman is None else p_text(ranking.p_friedman, LEVEL),
        studies=[
            (comparison, f"{folder.name}/comparison.html")
            for comparison, folder in zip(comparisons, folders, strict=True)
        ],
    )  # fmt: skip
    write_atomically(page, rendered.encode())
    return page
