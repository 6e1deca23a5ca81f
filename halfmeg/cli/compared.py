"""What a comparison found: its page written, its verdicts printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from halfmeg.cli.show import (
    TextTable,
    format_range,
    print_error,
    print_json,
    print_line,
    print_table,
)

if TYPE_CHECKING:
    from halfmeg.studies.compare import Comparison
    from halfmeg.studies.folder import StudyData

    Finished = tuple[Comparison, Path, StudyData]
    """What a study has found on a data set, its folder, and the data set."""


def write_and_print(
    result: Comparison, folder: Path, data: StudyData | None, as_json: bool
) -> None:
    """Write a comparison's page and print what it found; exit with 1 where a run failed."""
    # matplotlib: half a second for others
    from halfmeg.studies.page import comparison_numbers, write_comparison

    page, figure = write_comparison(result, folder, data)
    if as_json:
        print_json(comparison_numbers(result) | {"page": str(page), "figure": str(figure)})
    else:
        _print_comparison(result)
        print_line(f"page    {page}")
        print_line(f"figure  {figure}")
    if result.failures:
        raise typer.Exit(1)


def write_and_print_sets(
    finished: list[Finished], failures: dict[str, dict[str, str]], above: Path, as_json: bool
) -> None:
    """Write a page for each data set and one above them; exit with 1 where a run failed.

    A data set on which every run failed has no page: it is among the failures alone.
    """
    from halfmeg.studies.caveats import without_page
    from halfmeg.studies.page import comparison_numbers, write_comparison
    from halfmeg.studies.sets import rank_comparisons, write_ranking

    results = [result for result, _, _ in finished]
    ranking = rank_comparisons(results)
    for result, folder, loaded in finished:
        write_comparison(result, folder, loaded)
    page = write_ranking(ranking, results, [folder for _, folder, _ in finished], above, failures)
    if as_json:
        studies = [comparison_numbers(result) for result in results]
        more = {"studies": studies, "failures": failures, "page": str(page)}
        print_json(ranking.to_dict() | more)
    else:
        for result in results:
            print_line(f"{result.data}: {result.ranking}")
            for note in without_page(result):
                print_line(f"  {note}")
        print_line(ranking.verdict)
        print_line(f"page    {page}")
    for data, runs in failures.items():
        for name, error in runs.items():
            print_error(f"failed: {data}: {name}: {error}")
    if failures:
        raise typer.Exit(1)


def _print_comparison(result: Comparison) -> None:
    from halfmeg.studies.caveats import without_page
    from halfmeg.studies.study import NOT_FINISHED

    between, units = result.interval_name, f"{result.unit}s"
    table = TextTable(("network", "test accuracy", between, units, "parameters", "training, s"))
    for model in result.models:
        interval = model.test_accuracy
        over = "" if model.within_budget else " (over budget)"
        table.add_row(
            model.name, f"{interval.mean:.2%}", format_range(interval), str(len(model.per_seed)),
            f"{model.params:,}{over}", f"{model.seconds:.1f}",
        )  # fmt: skip
    print_table(table)
    if len(result.models) > 2:
        print_line(result.ranking)
    for pair in result.pairs:
        print_line(pair.verdict)
        if pair.terms:
            print_line(f"  not on equal terms: {'; '.join(pair.terms)}")
    for note in without_page(result):
        print_line(note)
    for name, error in result.failures.items():
        told = "left out" if error == NOT_FINISHED else "failed"
        print_error(f"{told}: {name}: {error}")
