"""The front: what is best within each limit of a cost, and which neighbours are told apart.

All by validation images. Two neighbours are compared by McNemar's exact test on the same images:
chance between images, not between seeds, which one run of each cannot show. An image that several
folds hold out counts once, for the neighbour that answers it rightly in more of them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from halfmeg.artifacts.run import Run
from halfmeg.data.dataset import DataSplits
from halfmeg.files import read_limited, write_atomically
from halfmeg.search.budget import Costs, describe_limit, parse_amount
from halfmeg.search.record import Trial
from halfmeg.studies.stats import LEVEL, Interval, mcnemar_p, wilson_interval
from halfmeg.training.distributed import Ranks
from halfmeg.training.fit import open_to_resume
from halfmeg.training.job import set_up
from halfmeg.training.process import kept_process

COST_NAMES = ("params", "macs", "flash", "ram", "latency")
ANSWERS = "validation.npz"
MAX_ANSWERS_BYTES = 2**26


@dataclass(frozen=True)
class FrontPoint:
    """A trial on the front against one cost.

    Attributes:
        apart: whether it is told apart from the next cheaper one; None for the cheapest, or where
            the answers are not known.
    """

    trial: Trial
    cost: float
    apart: bool | None = None


def finished(trials: Sequence[Trial]) -> list[Trial]:
    """Return the candidates that were trained to their end."""
    return [
        t for t in trials
        if t.outcome == "done" and t.accuracy is not None and t.costs and t.repeats is None
    ]  # fmt: skip


def best_of(trials: Sequence[Trial], cost: str = "macs") -> Trial | None:
    """Return the most accurate finished trial; of equal ones the cheapest.

    Where some were trained again, it is one of them, or one that is above what each had the first
    time: the rest were below them when all had been read once.
    """
    known = finished(trials)
    first = max((trial.first_accuracy for trial in known if trial.repeated), default=-1.0)
    known = [trial for trial in known if trial.repeated or trial.first_accuracy > first]
    return max(known, key=lambda t: (t.accuracy or 0.0, -_cost(t, cost)), default=None)


def front(
    trials: Sequence[Trial], name: str, right: dict[int, np.ndarray] | None = None
) -> list[FrontPoint]:
    """Return the front against one cost, the cheapest first: the best within each limit.

    The last one is the best of all, and `pick` takes the last within its limit. Accuracy falls on
    it where one that was trained once is followed by one that was trained again.

    Args:
        trials: of the search.
        name: of the cost, one of `COST_NAMES`.
        right: by trial how often it answers each validation image rightly, N.
    """
    known = [t for t in finished(trials) if getattr(t.costs, name) is not None]
    points: list[FrontPoint] = []
    for limit in sorted({_cost(t, name) for t in known}):
        trial = best_of([t for t in known if _cost(t, name) <= limit], name)
        if trial is None or (points and points[-1].trial.number == trial.number):
            continue
        apart = None
        if points and right is not None:
            before, own = right.get(points[-1].trial.number), right.get(trial.number)
            if before is not None and own is not None:
                apart = mcnemar_p(own - before) < LEVEL
        points.append(FrontPoint(trial, _cost(trial, name), apart))
    return points


def pick(trials: Sequence[Trial], text: str) -> Trial:
    """Return the most accurate finished trial within a limit such as `ram=32k`.

    Raises:
        ValueError: no such limit, or nothing is within it.
    """
    name, separator, amount = text.partition("=")
    if not separator or name not in COST_NAMES:
        raise ValueError(
            f"--pick {text} is not allowed; write one of {', '.join(COST_NAMES)}, as in ram=32k"
        )
    limit = parse_amount(name, amount, f"--pick {text}")
    known = [t for t in finished(trials) if getattr(t.costs, name) is not None]
    within = best_of([t for t in known if _cost(t, name) <= limit], name)
    if within is None:
        least = min((_cost(t, name) for t in known), default=None)
        told = f"{name} is known of none"
        if least is not None:
            told = f"the smallest needs {describe_limit(name, least)}"
        raise ValueError(f"no trial that came to its end is within --pick {text}; {told}")
    return within


def accuracy_interval(trial: Trial, num_images: int) -> Interval:
    """Return an accuracy with its interval of other validation images (Wilson 1927)."""
    assert trial.accuracy is not None
    return wilson_interval(trial.accuracy * num_images, num_images)


def read_answers(folders: Sequence[Path], data: DataSplits) -> np.ndarray:
    """Return which validation images the runs of a trial answer rightly, bool N; once measured.

    Raises:
        ValueError: a run is damaged, or of other data.
    """
    return np.concatenate([_answers_of(folder, data) for folder in folders])


def by_image(right: np.ndarray, held_out: Sequence[np.ndarray]) -> np.ndarray:
    """Return how often each image is answered rightly, float N.

    Args:
        right: bool, fold by fold.
        held_out: the images of each fold; nothing where there is one, of the user's own images.
    """
    if not held_out:
        return right.astype(float)
    return np.bincount(np.concatenate(held_out), weights=right)


def _answers_of(folder: Path, data: DataSplits) -> np.ndarray:
    path = folder / ANSWERS
    epochs = len(Run.open(folder).read_metrics())
    try:
        content = read_limited(path, MAX_ANSWERS_BYTES)
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            if int(stored["epochs"]) == epochs:
                return np.asarray(stored["right"], dtype=bool)
    except FileNotFoundError:
        pass
    except Exception:  # what a damaged archive raises depends on where the damage is
        path.unlink(missing_ok=True)
    right = _measure_answers(folder, data)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, right=right, epochs=np.array(epochs))
    write_atomically(path, buffer.getvalue())
    return right


@kept_process()
def _measure_answers(folder: Path, data: DataSplits) -> np.ndarray:
    run, checkpoint, _ = open_to_resume(folder, data)
    if checkpoint is None:  # it was finished
        logits = run.load_logits()
        return (logits["val_logits"].argmax(1) == logits["val_labels"]).numpy()
    job = set_up(run, data, Ranks())
    job.load(checkpoint)
    with torch.no_grad():
        return (job.logits(job.val.images).argmax(1) == job.val.labels).numpy()


def _cost(trial: Trial, name: str) -> float:
    costs = trial.costs or Costs(0, 0)
    return float(getattr(costs, name) or 0)
