"""Where the time of a training step goes, by operator of torch.

    python benchmarks/operators.py --data PATH [--models sprint record] [--json]

Each operator is timed by the clock as `halfmeg.fit` calls it, forward, backward and in the
optimizer, with the settings of the network's own recipe (`common` where it has none) and images of
full size. torch's own profiler is not used: it slows elementwise operators on large tensors many
times (docs/performance.md). What no operator accounts for is Python and the wait between calls.
A first epoch, not counted, warms up; the set-up before the first step and the evaluation behind the
last one are not counted either.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from arguments import build_parser, open_data
from torch.utils._python_dispatch import TorchDispatchMode

from halfmeg.artifacts.environment import environment
from halfmeg.artifacts.run import Run
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.networks.table import MODELS
from halfmeg.training.fit import fit
from halfmeg.training.listen import Listener, StepReport
from halfmeg.training.recipes import RECIPES, build_recipe, common


class OperatorClock(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Times every operator that is called inside; a processor does one at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        started = time.perf_counter()
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.seconds[name] += time.perf_counter() - started
        self.calls[name] += 1
        return output


class TimedSteps(Listener):
    """Lets a clock run from the first step of an epoch to its last."""

    def __init__(self, clock: OperatorClock) -> None:
        self.clock = clock

    def on_start(self, run: Run, damaged: list[Path]) -> None:
        """Start the clock."""
        self.clock.__enter__()  # type: ignore[no-untyped-call]

    def on_step(self, report: StepReport) -> None:
        """Stop it behind the last step."""
        if report.step == report.steps:
            self.clock.__exit__(None, None, None)  # type: ignore[no-untyped-call]


def terms(model: str, batch_size: int) -> RunConfig:
    """Return the settings of the network's own recipe for one epoch at full size."""
    config = build_recipe(model) if model in RECIPES else common(model)
    return replace(
        config, epochs=1, batch_size=batch_size, small_size=0, first_size=0, val_fraction=0.0,
        monitor="val",
    )  # fmt: skip


def train_once(config: RunConfig, data: DataSplits, listener: Listener | None = None) -> float:
    """Train one epoch and return the seconds of its steps."""
    with tempfile.TemporaryDirectory() as folder:
        result = fit(config, data, Path(folder) / "run", listener=listener).result()
    assert result is not None
    return float(result["seconds"])


def measure(model: str, data: DataSplits, *, batch_size: int) -> dict[str, Any]:
    """Measure one network; operators stand in order of their time."""
    config = terms(model, batch_size)
    plain = train_once(config, data)  # warms up, and shows what the clock itself costs
    clock = OperatorClock()
    seconds = train_once(config, data, TimedSteps(clock))
    steps = len(data.train) // batch_size
    return {
        "model": model,
        "step_ms": 1e3 * seconds / steps,
        "step_ms_without_clock": 1e3 * plain / steps,
        "operators": [
            {
                "name": name,
                "calls": clock.calls[name] / steps,
                "ms": 1e3 * spent / steps,
                "share": spent / seconds,
            }
            for name, spent in sorted(clock.seconds.items(), key=lambda item: -item[1])
        ],
        "batch_size": batch_size,
        "steps": steps,
        "precision": config.precision,
        "data": data.name,
    }


def main() -> None:
    """Measure and print."""
    parser = build_parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["sprint", "record"], choices=list(MODELS))
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", action="store_true", dest="as_json")
    args = parser.parse_args()
    data = open_data(parser, args)
    if args.steps * args.batch_size > len(data.train):
        parser.error(f"--steps {args.steps} of {args.batch_size} images are more than there are")
    train = data.train.subset(slice(args.steps * args.batch_size))
    data = replace(data, train=train, test=data.test.subset(slice(10)), fingerprint="benchmark")
    rows = [measure(model, data, batch_size=args.batch_size) for model in args.models]
    if args.as_json:
        print(json.dumps({"rows": rows, "machine": environment()}, indent=2))
        return
    for row in rows:
        print(f"{row['model']}: {row['step_ms']:.0f} ms a step of {args.batch_size} images")
        for found in row["operators"]:
            if found["share"] >= 0.005:
                print(
                    f"  {found['name']:34} {found['calls']:6.0f} calls "
                    f"{found['ms']:8.1f} ms {found['share']:6.1%}"
                )


if __name__ == "__main__":
    main()
