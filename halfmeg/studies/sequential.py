"""A study that grows until every pair is decided, at an error that was fixed before."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from halfmeg.config import RunConfig, as_configs
from halfmeg.data.dataset import DataSplits, require_splits
from halfmeg.studies.compare import Comparison, compare_runs, compare_study
from halfmeg.studies.power import LOOKS, is_futile
from halfmeg.studies.reading import MARGIN, Reading, begun_seeds, record_look
from halfmeg.studies.study import HowTrained, PlannedStudy, make_configs, plan_study
from halfmeg.studies.workers import StudyListener


def compare_until_decided(
    models: Sequence[str],
    data: DataSplits,
    *,
    out: str | Path,
    config: RunConfig | Sequence[RunConfig],
    margin: float = MARGIN,
    tuned_on: Sequence[str | Path] = (),
    beside: Sequence[str | Path] = (),
    listener: StudyListener | None = None,
    **how: Unpack[HowTrained],
) -> Comparison:
    """Train and compare with 5, 8, 12, 20 seeds, until every pair is decided.

    The looks and their level are written into `study.json` before the first run, and every
    interval of the study is at that level, 98.75%: so reading it four times makes false verdicts in
    no more than 5% of studies. It also ends when what is open will hardly be decided by the last
    look.

    Args:
        models, data, out, config, margin, tuned_on, beside, listener: as for `compare`.
        how: workers, cluster, gpus_per_run and stack, as for `run_study`.

    Raises:
        ValueError: as for `compare`, or a study that was planned or read otherwise before.
    """
    listener = listener or StudyListener()
    with ExitStack() as held:
        for seeds in _looks_left(Path(out)):
            planned = plan_until_decided(
                models, data, seeds=seeds, out=out, config=config, margin=margin, tuned_on=tuned_on,
                beside=beside, **how,
            )  # fmt: skip
            held.enter_context(planned.holding())
            study = planned.run(listener)
            if study.failures:
                reason = f"ended with {seeds} seeds, since runs have failed"
                break
            if seeds == LOOKS[-1]:
                reason = f"ended with {seeds} seeds, the last look"
                break
            pairs = compare_runs(study.runs, reading=study.reading).pairs
            undecided = [pair for pair in pairs if pair.outcome == "open"]
            record_look(study.folder, seeds, margin)
            if not undecided:
                reason = f"decided with {seeds} seeds"
                break
            if all(is_futile(pair.test, margin, LOOKS[-1]) for pair in undecided):
                reason = (
                    f"ended with {seeds} seeds: what is open would hardly be decided with "
                    f"{LOOKS[-1]}"
                )
                break
            to_come = [look for look in LOOKS if look > seeds]
            listener.on_look(seeds, [f"{pair.a} − {pair.b}" for pair in undecided], to_come)
        return replace(compare_study(study, data, listener), stopped=reason)


def plan_until_decided(
    models: Sequence[str],
    data: DataSplits,
    *,
    seeds: int | None = None,
    out: str | Path,
    config: RunConfig | Sequence[RunConfig],
    margin: float = MARGIN,
    tuned_on: Sequence[str | Path] = (),
    beside: Sequence[str | Path] = (),
    **how: Unpack[HowTrained],
) -> PlannedStudy:
    """Check what `compare_until_decided` would train for a look, as `plan_comparison` does.

    Args:
        seeds: of the look; None: the next one.
        models, data, out, config, margin, tuned_on, beside, how: as for `compare_until_decided`.

    Raises:
        ValueError: as for `compare_until_decided`.
    """
    require_splits(data)
    recipes = as_configs(config)
    seeds = seeds or _looks_left(Path(out))[0]
    configs = make_configs(models, recipes, seeds, tuned_on, [out, *beside])
    return plan_study(configs, data, out, reading=Reading.until_decided(margin), **how)


def _looks_left(out: Path) -> Sequence[int]:
    """Return the numbers of seeds of the looks to come.

    A study goes on with the look that it was stopped before, or that decided it.
    """
    begun = begun_seeds(out)
    return [look for look in LOOKS if look >= begun] or LOOKS[-1:]
