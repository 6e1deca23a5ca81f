"""Searchers against each other, for the same time on the same task: accuracy over hours.

    python benchmarks/search.py cifar10 --data ../shared/data/cifar10 --hours 4 --out DIR
    python benchmarks/search.py eurosat --data ../shared/data/eurosat --hours 1 --out DIR
    python benchmarks/search.py clothing --data ../shared/data/clothing --hours 1 --out DIR

Searchers: `halfmeg`; `random`, halfmeg's own space drawn at random and without halving; and
`kerastuner`, KerasTuner's Hyperband over small plain CNNs on the torch backend (the extra
`kerastuner`). All choose by the same validation images under the same limits, and have all of the
hours for it; with `--compare` halfmeg's hold its last comparison too. `DIR/search.json` holds for
each the hours that it took, the validation accuracy of what it would have chosen after each trial,
and what it reached on test images, read once; `DIR/search.png` draws it. One that is killed goes on
when it is started again: with `timeout 3600` in front and one of `--searchers` behind, hours are
run one by one.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from arguments import build_parser, open_data

from halfmeg.data.dataset import DataSplits
from halfmeg.data.split import hold_out
from halfmeg.evaluation.evaluate import score
from halfmeg.files import read_json, write_json
from halfmeg.search.budget import Limits, parse_limits
from halfmeg.search.front import best_of
from halfmeg.search.journal import read_trials
from halfmeg.search.record import Clock, with_repeats
from halfmeg.search.run import describe_search, start
from halfmeg.studies.figures import COLOURS, STYLE, write_figure

TASKS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "cifar10": ({"params": "78666", "macs": "12.5M", "ram": "64KiB"}, ("resnet8",)),
    "eurosat": ({"flash": "100k", "ram": "48KiB"}, ("cnn", "resnet20", "record")),
    "clothing": ({"flash": "256k", "ram": "64KiB"}, ("cnn", "resnet20", "record")),
}
"""Limits and baselines. ResNet-8 has 12,501,632 MACs, which MLPerf Tiny states as 12.5 M."""

SEARCHERS = ("halfmeg", "random", "kerastuner")
BATCH_SIZE = 128

MOST_EPOCHS = (81, 27, 9, 3)
"""Of a trial of Hyperband: the most of which an iteration fits the time."""

MIDDLE = {"blocks": 3, "width0": 32, "width1": 32, "width2": 32}
TIMED_BATCHES = 20


def search_ours(
    name: str, task: str, data: DataSplits, hours: float, folder: Path, *, compare: bool
) -> dict[str, Any]:
    """Search with halfmeg; `random` draws at random, stops nothing early and compares nothing."""
    limits, baselines = TASKS[task]
    stored, space = describe_search(
        data, limits=parse_limits(**limits), seconds=3600 * hours, baselines=baselines,
        compare=compare and name == "halfmeg", strategy="tpe" if name == "halfmeg" else "random",
    )  # fmt: skip
    outcome = start(folder, data, stored, space)
    result = outcome.run.result() or {}
    ended = sorted(
        (t for t in read_trials(folder) if t.outcome == "done"), key=lambda t: t.ended or 0.0
    )
    curve = []
    for count, trial in enumerate(ended, 1):  # what it would have chosen then
        best = best_of(with_repeats(ended[:count]))
        if best is not None:
            curve.append([(trial.ended or 0.0) / 3600, best.accuracy])
    assert outcome.winner.config is not None
    outcomes = Counter(t.outcome for t in read_trials(folder) if t.was_trained)
    return {
        "model": outcome.winner.config.model, "hours": Clock(folder).before / 3600, "curve": curve,
        "trained": dict(outcomes), "test_accuracy": result.get("test_accuracy"),
        "verdicts": outcome.verdicts,
    }  # fmt: skip


def search_kerastuner(task: str, data: DataSplits, hours: float, folder: Path) -> dict[str, Any]:
    """Search plain CNNs with KerasTuner's Hyperband until the time is over.

    Its RAM is the most that two maps next to each other need in 8 bits, its flash a byte a weight.
    A trial has so many epochs that one iteration fits the time, as KerasTuner recommends; it takes
    E · log3(E)² epochs, which are timed with a network from the middle of the space. A trial that
    was under way when it was killed begins again.
    """
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    import keras_tuner
    import numpy as np

    limits = parse_limits(**TASKS[task][0])
    indices, held_out = hold_out(data, 0.1 if len(data.train) >= 10_000 else 0.2, 0)
    mean, std = (np.array(values, np.float32) for values in (data.mean, data.std))

    def prepared(images: Any) -> Any:
        return (images.numpy().transpose(0, 2, 3, 1).astype(np.float32) / 255 - mean) / std

    train = prepared(data.train.images[indices]), data.train.labels[indices].numpy()
    val = prepared(held_out.images), held_out.labels.numpy()
    shape = tuple(train[0].shape[1:])
    path = folder / "curve.json"
    curve: list[list[float]] = read_json(path, list[list[float]]) if path.exists() else []
    started = time.monotonic() - 3600 * (curve[-1][0] if curve else 0.0)

    class OutOfTimeError(keras_tuner.errors.FatalError):  # type: ignore[misc]
        """Any other error would only end the trial."""

    def build(hp: Any) -> Any:
        layers: list[Any] = [keras.Input(shape)]
        channels, side, macs, maps = shape[2], min(shape[:2]), 0, [shape[0] * shape[1] * shape[2]]
        for block in range(hp.Int("blocks", 2, 4)):
            width = hp.Int(f"width{block}", 8, 64, step=8)
            for _ in range(hp.Int(f"depth{block}", 1, 2)):
                layers += [
                    keras.layers.Conv2D(width, 3, padding="same", use_bias=False),
                    keras.layers.BatchNormalization(), keras.layers.ReLU(),
                ]  # fmt: skip
                macs += 9 * channels * width * side**2
                channels = width
                maps.append(width * side**2)
            layers.append(keras.layers.MaxPooling2D())
            side //= 2
            maps.append(channels * side**2)
        layers += [
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dropout(hp.Float("dropout", 0.0, 0.4, step=0.1)),
            keras.layers.Dense(len(data.classes)),
        ]  # fmt: skip
        model = keras.Sequential(layers)
        ram = max(a + b for a, b in pairwise(maps[1:]))
        if over_limit(limits, model.count_params(), macs, ram):
            raise keras_tuner.errors.FailedTrialError("over a limit")
        model.compile(
            keras.optimizers.Adam(hp.Float("lr", 3e-4, 1e-2, sampling="log")),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"],
        )  # fmt: skip
        return model

    class Watch(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            hours_spent = (time.monotonic() - started) / 3600
            best = max([float(logs["val_accuracy"])] + [value for _, value in curve])
            curve.append([hours_spent, best])
            write_json(path, curve)
            if hours_spent > hours:
                raise OutOfTimeError

    keras.utils.set_random_seed(0)
    planned = folder / "plan.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not planned.exists():
        hp = keras_tuner.HyperParameters()
        hp.values |= MIDDLE
        model, part = build(hp), [values[: TIMED_BATCHES * BATCH_SIZE] for values in train]
        for _ in range(2):  # the first one warms up
            began = time.monotonic()
            model.fit(*part, batch_size=BATCH_SIZE, verbose=0)
        epoch = (time.monotonic() - began) * len(train[0]) / len(part[0])
        fits = [e for e in MOST_EPOCHS if epoch * e * math.log(e, 3) ** 2 <= 3600 * hours]
        write_json(planned, {"max_epochs": fits[0] if fits else MOST_EPOCHS[-1]})
    max_epochs = read_json(planned, dict[str, int])["max_epochs"]
    tuner = keras_tuner.Hyperband(
        build, "val_accuracy", max_epochs=max_epochs, hyperband_iterations=100,
        directory=str(folder), project_name="hyperband", max_consecutive_failed_trials=10**6,
    )  # fmt: skip
    if not curve or curve[-1][0] <= hours:
        with contextlib.suppress(OutOfTimeError):
            tuner.search(
                *train, validation_data=val, batch_size=BATCH_SIZE, verbose=0, callbacks=[Watch()]
            )
    (best,) = tuner.oracle.get_best_trials(1)
    if best.status != "COMPLETED":
        raise SystemExit(f"KerasTuner ended no trial in {hours:g} hours; give it more by --hours")
    model = tuner.load_model(best)
    import torch

    logits = model.predict(prepared(data.test.images), verbose=0)
    test = score(torch.from_numpy(np.array(logits)), data.test.labels)
    return {
        "model": "plain CNN", "max_epochs": max_epochs, "hours": curve[-1][0], "curve": curve,
        "test_accuracy": test.accuracy, "verdicts": [],
    }  # fmt: skip


def over_limit(limits: Limits, params: int, macs: int, ram: int) -> bool:
    """Return whether a network of Keras is over a limit, by the counts that are at hand."""
    costs = {"params": params, "macs": macs, "flash": params, "ram": ram}
    return any(costs[name] > limit for name, limit in limits.given.items())


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the best validation accuracy of each searcher over hours."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        for (name, result), colour in zip(found.items(), COLOURS, strict=False):
            hours, values = zip(*result["curve"], strict=True) if result["curve"] else ((), ())
            axes.step(hours, [100 * v for v in values], where="post", color=colour, label=name)
        axes.set(xlabel="hours", ylabel="best validation accuracy, %")
        axes.legend(frameon=False, loc="lower right")
        write_figure(figure, path)


def main() -> None:
    """Run the searchers in turn, each for the same time."""
    parser = build_parser(__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--hours", type=float, default=1.0, help="of each searcher")
    parser.add_argument(
        "--compare", action="store_true", help="let halfmeg compare its winner within its hours"
    )
    parser.add_argument("--searchers", nargs="+", default=SEARCHERS, choices=SEARCHERS)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if not args.hours > 0:
        parser.error(f"--hours {args.hours:g} is out of range; allowed: above 0")
    data = open_data(parser, args)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "search.json"
    found: dict[str, Any] = read_json(path, dict[str, Any]) if path.exists() else {}
    for name in args.searchers:
        if name in found:
            continue
        folder = args.out / name
        if name == "kerastuner":
            found[name] = search_kerastuner(args.task, data, args.hours, folder)
        else:
            found[name] = search_ours(
                name, args.task, data, args.hours, folder, compare=args.compare
            )
        write_json(path, found)
        accuracy = found[name]["test_accuracy"] or 0.0
        print(f"{name:<12} {found[name]['model']}: {accuracy:.2%} of the test images")
        for verdict in found[name]["verdicts"]:
            print(f"             {verdict}")
    draw(found, args.out / "search.png")


if __name__ == "__main__":
    main()
