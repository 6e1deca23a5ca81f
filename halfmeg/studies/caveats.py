"""What a reader has to know beside the verdicts of a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from halfmeg.artifacts.inherited import read_inherited_bundles
from halfmeg.artifacts.run import Run
from halfmeg.config import BUDGET
from halfmeg.data.augment import Augmentation
from halfmeg.studies.compare import Comparison
from halfmeg.studies.study import NOT_FINISHED
from halfmeg.studies.tables import readings_table
from halfmeg.studies.verdict import margin_text
from halfmeg.training.plan import augmentation_of


def caveats(comparison: Comparison) -> list[str]:
    """Return all that a page says of sizes, readings and what is missing, a sentence or more each.

    How seeds vary and how often the test set was read stand apart: `seeds_vary`, `test_readings`.
    """
    return [
        *_notes_on_sizes(comparison),
        *_notes_on_reading(comparison),
        *_notes_on_what_is_missing(comparison),
    ]


def _notes_on_sizes(comparison: Comparison) -> Iterator[str]:
    for model in comparison.models:
        if not model.within_budget:
            yield f"{model.name} has {model.params:,} parameters: over the budget of {BUDGET:,}."
    sizes = [model.params for model in comparison.models]
    if max(sizes) > 2 * min(sizes):
        yield (
            f"The networks differ in size by a factor of {max(sizes) / min(sizes):.0f}: "
            "a difference between them is one of size as well as of kind."
        )


def _notes_on_reading(comparison: Comparison) -> Iterator[str]:
    if comparison.folds is not None:
        folds = sorted({fold for model in comparison.models for fold in model.per_seed})
        if len(folds) == comparison.folds:
            told = f"All images of the source, {comparison.num_test:,}, are divided into"
            tested = "Each is tested once, by"
        else:
            told = "All images of the source are divided into"
            named = f"fold{'s' if len(folds) > 1 else ''} {_and([str(fold) for fold in folds])}"
            tested = f"Only {named} with {comparison.num_test:,} images are tested, each once by"
        yield (
            f"{told} {comparison.folds} folds, whatever parts it had. {tested} networks "
            "that were trained on the other folds."
        )
    elif any(1 < pair.num_seeds < 5 for pair in comparison.pairs):
        yield (
            "Fewer than 5 seeds say little of the chance between seeds, so the intervals are wide."
        )
    yield from _grouped(comparison)
    yield from read_before(comparison)
    reading = comparison.reading
    if reading.planned:
        yield (
            f"Planned to be read with {_and([str(n) for n in reading.planned])} seeds until every "
            f"pair is decided; each look is at {100 * reading.level:g}%, so that these together "
            "are at 5%."
        )
    yield from _stopped(comparison)


def _notes_on_what_is_missing(comparison: Comparison) -> Iterator[str]:
    yield from _not_compared(comparison)
    yield from _unchecked(comparison)
    reasons = dict.fromkeys(m.no_temperature for m in comparison.models if m.no_temperature)
    for reason in reasons:
        names = [model.name for model in comparison.models if model.no_temperature == reason]
        have = "has" if len(names) == 1 else "have"
        yield f"{_and(names)} {have} no temperature: {reason}."
    if any(run.config.monitor == "test" for model in comparison.models for run in model.runs):
        yield (
            "The test set was read after every epoch, for the curves only; "
            "each figure is of the last epoch, never the best."
        )
    for name, error in comparison.failures.items():
        failed = "" if error == NOT_FINISHED else " failed and"
        yield f"The run {name}{failed} is not in the figures: {error}"


def without_page(comparison: Comparison) -> list[str]:
    """Return what has to be known where only the verdicts are printed, a sentence or more each."""
    return [
        *_not_compared(comparison),
        *_unchecked(comparison),
        *_stopped(comparison),
        *_grouped(comparison),
        *read_before(comparison),
    ]


def _stopped(comparison: Comparison) -> Iterator[str]:
    if comparison.stopped:
        yield f"The study {comparison.stopped}."


def _grouped(comparison: Comparison) -> Iterator[str]:
    if comparison.folds is None and any(
        run.options.group for model in comparison.models for run in model.runs
    ):
        yield (
            "Images of one group are counted as though they had nothing in common. Where networks "
            "differ by group, verdicts are false more often than stated and intervals too narrow, "
            "the more so the fewer groups are tested; `--folds` allows for it."
        )


def _not_compared(comparison: Comparison) -> Iterator[str]:
    """Say which networks are not compared, as they share no seed or fold."""
    compared = {frozenset((pair.a, pair.b)) for pair in comparison.pairs}
    for a, b in combinations(comparison.models, 2):
        if frozenset((a.name, b.name)) not in compared:
            yield f"{a.name} and {b.name} share no {comparison.unit} and are not compared."


def _unchecked(comparison: Comparison) -> Iterator[str]:
    """Say which networks may have learned from one that has seen test images."""
    names = [
        model.name for model in comparison.models
        if not all(
            bundle.comparable
            for run in model.runs for bundle in read_inherited_bundles(run.folder).values()
        )
    ]  # fmt: skip
    if names:
        yield (
            f"{_and(names)} learned from a network that may have seen some of the test images: "
            "whether it has could not be checked."
        )


def read_before(comparison: Comparison) -> list[str]:
    """Say what was read before this: other numbers of seeds that no plan has counted, or margins.

    Either may have been chosen by what was read. A sentence or more each.
    """
    return [*filter(None, [_other_seeds(comparison), _other_margins(comparison)])]


def _other_margins(comparison: Comparison) -> str:
    reading = comparison.reading
    if not reading.other_margins:
        return ""
    earlier = _and([margin_text(margin) for margin in reading.other_margins])
    return (
        f"This study was read within a margin of {earlier} before, and is read within "
        f"{margin_text(reading.margin)} now. Where a margin is chosen by what was read, networks "
        "are called the same more often than stated."
    )


def _other_seeds(comparison: Comparison) -> str:
    if comparison.folds is not None:  # their number is decided beforehand
        return ""
    now = max(len(m.runs) for m in comparison.models)
    looks = comparison.reading.unplanned_looks(now)
    planned = comparison.reading.planned
    uncounted = looks if now in planned else (*looks, now)
    if planned and uncounted:
        numbers = _and([str(n) for n in uncounted])
        return (
            f"This study is read with {numbers} seeds, which its plan of looks has not counted, so "
            "verdicts may be false more often than stated."
        )
    if not looks:
        return ""
    return (
        f"This study was read with {_and([str(n) for n in looks])} seeds before. Where seeds "
        "are added because of what was read, verdicts are false more often than stated; "
        "`--until-decided` allows for it."
    )


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def seeds_vary(runs: Sequence[Run]) -> str:
    """Say what differs between the seeds or folds of a study, and what does not."""
    configs = [run.config for run in runs]
    varied = ["the initial weights", "the order of the images"]
    # A way to fill the border is no draw.
    if any(augmentation_of(c) != Augmentation(crop_mode=c.crop_mode) for c in configs):
        varied.append("the draws of augmentation")
    # The user's own validation part is the same for each seed.
    split = any(run.config.val_fraction and not run.data.num_validation for run in runs)
    if split:
        varied.append("the split into training and validation images")
    if runs[0].options.fold:
        varied = ["the training images", "the test images", *varied]
        return (
            f"Folds vary {_and(varied)}; they share the settings, with all the tuning behind them. "
            "The intervals allow for other training and test images of the same kind, by the "
            "corrected resampled t (Nadeau and Bengio 2003); not for another tuning."
        )
    same = ["the images before that split" if split else "the training images"]
    same += ["the test images", "the settings, with all the tuning behind them"]
    return (
        f"Seeds vary {_and(varied)}; they share {_and(same)}. The intervals allow for other test "
        "images of the same kind, not for other training images or another tuning."
    )


def test_readings(comparison: Comparison) -> str:
    """Say how often and for what the test set was read, as run folders and study have logged."""
    runs = [run for model in comparison.models for run in model.runs]
    logged = "; ".join(f"{row[0]}: {row[1]}" for row in readings_table(comparison).rows)
    parts = [f"Readings of the test set, {len(runs)} runs: {logged}." if logged else ""]
    silent = sum(not run.test_readings() for run in runs)
    if silent:
        parts.append(f"{silent} of the {len(runs)} runs have no log of their readings.")
    if comparison.reading.looks:
        now = max(len(model.runs) for model in comparison.models)
        looks = _and([str(n) for n in sorted({*comparison.reading.looks, now})])
        parts.append(f"The answers were compared with {looks} {comparison.unit}s.")
    return " ".join(filter(None, parts))
