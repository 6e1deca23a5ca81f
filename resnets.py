"""The published road to 85%: resnet-shared, 150 epochs of Adam with a falling rate.

Writes save/ResNet2_accuracy-85_checkpoints/model_epoch_N.pt after every epoch; where another run
left its own there, it does not start. With --resume FILE it continues from such a file, replaces
the later ones, and its figure shows the curve from the first epoch on.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from halfmeg.artifacts.metrics import MetricsRow
from halfmeg.artifacts.run import Run
from halfmeg.artifacts.weights import read_checkpoint
from halfmeg.data.load import load_dataset
from halfmeg.files import make_folder, write_atomically
from halfmeg.studies.figures import accuracy_curve, curve_figure, write_figure
from halfmeg.training.fit import fit
from halfmeg.training.listen import Listener
from halfmeg.training.recipes import study_shared
from halfmeg.training.stopping import TrainingInterruptedError

CHECKPOINTS = Path("save/ResNet2_accuracy-85_checkpoints")


class EpochSaver(Listener):
    """Prints each epoch and copies its checkpoint to the published place."""

    def on_start(self, run: Run, damaged: list[Path]) -> None:
        """Remember the run."""
        self.run = run

    def on_epoch(self, row: MetricsRow) -> None:
        """Copy the newest checkpoint."""
        epoch = int(row["epoch"] or 0)
        content = self.run.checkpoints()[-1].read_bytes()
        write_atomically(CHECKPOINTS / f"model_epoch_{epoch}.pt", content)
        print(f"epoch {epoch}  test accuracy {row['test_accuracy']:.2%}", flush=True)


def main() -> None:
    """Train, save and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="cifar10", help="as for halfmeg train")
    parser.add_argument("--data-dir", default="data", help="where cifar10 is found or put")
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", metavar="FILE", help="a model_epoch_N.pt to continue from")
    parser.add_argument("--out", help="the run folder (default: runs/resnets-…)")
    args = parser.parse_args()
    suffix = f"-from-{Path(args.resume).stem}" if args.resume else ""
    out = Path(args.out or f"runs/resnets-seed-{args.seed}{suffix}")
    try:
        config = replace(study_shared(), epochs=args.epochs, seed=args.seed)
        if not args.resume:
            require_no_models()
        data = load_dataset(args.data, data_dir=args.data_dir)
        make_folder(CHECKPOINTS)
        # read first, since the file may be one of those that are replaced; `fit` says what is wrong
        checkpoint = read_checkpoint(Path(args.resume)) if args.resume else None
        run = fit(config, data, out, listener=EpochSaver(), start=args.resume)
    except TrainingInterruptedError:
        parser.exit(
            130, f"{parser.prog}: stopped; continue with --resume {CHECKPOINTS}/model_epoch_N.pt\n"
        )
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    _, curve = accuracy_curve(run)
    figure = curve_figure(
        split_curve(curve, checkpoint["position"]["epoch"] if checkpoint else 0),
        "test accuracy, %",
        f"resnet-shared on {data.name}",
    )
    print(f"test accuracy after {args.epochs} epochs: {curve[-1]:.2%}")
    print(write_figure(figure, out / "ResNet_accuracy.png"))


def require_no_models() -> None:
    """Raise where a run that is not continued left its models.

    Raises:
        ValueError: there are some.
    """
    if any(CHECKPOINTS.glob("model_epoch_*.pt")):
        raise ValueError(
            f"{CHECKPOINTS} holds the models of another run, which are not overwritten; "
            "move that folder away, or continue with --resume FILE"
        )


def split_curve(curve: np.ndarray, done: int) -> list[tuple[str, np.ndarray]]:
    """Return the curve in one part, or in two where a model of so many epochs was continued."""
    if not done:
        return [("from scratch", curve)]
    epochs = np.arange(1, len(curve) + 1)
    before = np.where(epochs <= done, curve, np.nan)
    after = np.where(epochs >= done, curve, np.nan)
    return [("saved model", before), (f"continued after epoch {done}", after)]


if __name__ == "__main__":
    main()
