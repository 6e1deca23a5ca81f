"""How well a network tells images of other things from those of its own kind.

    python benchmarks/unfamiliar.py --data cifar10-jpeg --others clothing eurosat digits [--json]

The threshold is the bundle's, set on validation images. The score was chosen among these
by its AUROC with the bundle's validation images on one side and the others' training parts on the
other (`chosen`). What is stated are the test parts of both (`stated`): the share of images of its
own kind that are called unfamiliar, AUROC, and the share of the others that are caught. An energy
(Liu et al. 2020) needs logits, a distance of statistics pixels alone, a distance in the last
features (Lee et al. 2018) the network too.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import build_parser
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from halfmeg.artifacts.bundle import Bundle
from halfmeg.data.augment import normalize
from halfmeg.data.dataset import Dataset
from halfmeg.data.load import load_dataset
from halfmeg.data.split import hold_out
from halfmeg.evaluation.familiarity import KEPT, MAX_IMAGES, energy, log_distance


def look(bundle: Bundle, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits B×K and the features B×F that the last linear layer takes."""
    model = bundle.load_model()
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[Tensor] = []
    head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].flatten(1)))
    mean, std = torch.tensor(bundle.mean), torch.tensor(bundle.std)
    with torch.inference_mode():
        chunks = images.split(250)  # type: ignore[no-untyped-call]
        logits = torch.cat([model(normalize(chunk, mean, std)) for chunk in chunks])
    return logits, torch.cat(seen).double()


class Scores:
    """The candidates: each maps images to float64 B, the higher the less familiar."""

    def __init__(self, bundle: Bundle, train: Dataset) -> None:
        assert bundle.familiarity is not None
        self.bundle = bundle
        self.kept = bundle.familiarity
        some = train.subset(torch.linspace(0, len(train) - 1, MAX_IMAGES).long())
        _, features = look(bundle, some.images)
        labels = range(len(bundle.classes))
        self.centres = torch.stack([features[some.labels == k].mean(0) for k in labels])  # K×F
        away = features - self.centres[some.labels]
        covariance = away.T @ away / len(away)
        ridge = 1e-6 * covariance.trace() / len(covariance)
        self.precision = torch.linalg.inv(covariance + ridge * torch.eye(len(covariance)))

    def __call__(self, images: Tensor) -> dict[str, np.ndarray]:
        """Return each candidate's scores."""
        logits, features = look(self.bundle, images)
        kept = self.kept
        energies = energy(logits)
        both = kept.scores(images, logits)
        nearest = torch.stack([log_distance(features, c, self.precision) for c in self.centres])
        return {
            "energy": energies.numpy(),
            "distance of statistics": (both - (energies - kept.energy_mean) / kept.energy_std)
            .numpy(),
            "both": both.numpy(),
            "distance in last features": nearest.min(0).values.numpy(),
        }  # fmt: skip


def compare(
    own: dict[str, np.ndarray], others: dict[str, np.ndarray], thresholds: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Return for each candidate AUROC and the shares above its threshold."""
    rows = {}
    for name, scores in own.items():
        is_other = np.repeat([0, 1], [len(scores), len(others[name])])
        rows[name] = {
            "auroc": float(roc_auc_score(is_other, np.concatenate([scores, others[name]]))),
            "caught": float((others[name] > thresholds[name]).mean()),
            "own_called_unfamiliar": float((scores > thresholds[name]).mean()),
        }
    return rows


def main() -> None:
    """Measure and print."""
    parser = build_parser(__doc__)
    parser.add_argument("--bundle", default="record")
    parser.add_argument("--others", nargs="+", required=True, help="sources, as for --data")
    parser.add_argument("--json", action="store_true", dest="as_json")
    args = parser.parse_args()
    try:
        found = measure(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if args.as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    print(f"{found['n_validation']:,} validation and {found['n_test']:,} test images of its own")
    for part in ("chosen", "stated"):
        print(f"\n{part:7}  {'others':22}{'n':>7}  {'score':26}  AUROC  caught  own unfamiliar")
        for row in found[part]:
            print(
                f"{'':7}  {row['others']:22}{row['n']:7,}  {row['score']:26}  {row['auroc']:.3f}"
                f"  {row['caught']:6.1%}  {row['own_called_unfamiliar']:14.1%}"
            )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the rows of both parts."""
    bundle = Bundle.open(args.bundle)
    if bundle.familiarity is None:
        raise ValueError(f"{args.bundle} has no threshold; a run that held images out has one")
    size = bundle.image_size
    data = load_dataset(args.data, data_dir=args.data_dir, image_size=size)
    if data.fingerprint != bundle.fingerprint:
        raise ValueError(f"{args.bundle} was trained on other data than {args.data}")
    recipe = bundle.described["recipe"]
    trained, held_out = hold_out(data, recipe["val_fraction"], recipe["seed"])
    scores = Scores(bundle, data.train.subset(trained))
    own = {"chosen": scores(held_out.images), "stated": scores(data.test.images)}
    thresholds = {k: float(np.quantile(v, KEPT)) for k, v in own["chosen"].items()}
    thresholds["both"] = bundle.familiarity.threshold
    found: dict[str, Any] = {"n_validation": len(held_out), "n_test": len(data.test)}
    found |= {"bundle": args.bundle, "data": data.name, "chosen": [], "stated": []}
    for source in args.others:
        other = load_dataset(source, data_dir=args.data_dir, image_size=size, to_train=False)
        for part, images in (("chosen", other.train.images), ("stated", other.test.images)):
            if len(images):
                rows = compare(own[part], scores(images), thresholds)
                facts = {"others": Path(source).name, "n": len(images)}
                found[part] += [facts | {"score": name} | row for name, row in rows.items()]
    return found


if __name__ == "__main__":
    main()
