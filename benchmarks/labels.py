"""How many flipped labels `halfmeg data check --run` finds, and how many it names wrongly.

    python benchmarks/labels.py --data eurosat --model cnn --epochs 8 [--share 0.05] [--json]

A share of the training images gets another label, drawn at random. A recipe is trained on 5 folds,
and likely wrong labels are named as the data check names them. Precision is the share of the images
named that were flipped: labels that were wrong before count as mistakes. Recall is the share of the
flipped images that are named. Beside them stands how many of the flipped ones are among the first
named, as many as were flipped, and the accuracy of the answers against the labels before.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import torch
from arguments import build_parser, open_data

from halfmeg.evaluation.confident import find_wrong_labels
from halfmeg.training.labels import FOLDS, out_of_fold_logits
from halfmeg.training.listen import Listener
from halfmeg.training.recipes import common


def main() -> None:
    """Flip, look for them, and print."""
    parser = build_parser(__doc__)
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--share", type=float, default=0.05, help="of labels that are flipped")
    parser.add_argument("--seed", type=int, default=0, help="of what is flipped")
    parser.add_argument("--json", action="store_true", dest="as_json")
    args = parser.parse_args()
    data = open_data(parser, args)
    given = data.train.labels
    generator = torch.Generator().manual_seed(args.seed)
    chosen = torch.randperm(len(given), generator=generator)[: round(args.share * len(given))]
    away = torch.randint(1, len(data.classes), (len(chosen),), generator=generator)
    labels = given.clone()
    labels[chosen] = (labels[chosen] + away) % len(data.classes)
    flipped = replace(data, train=replace(data.train, labels=labels))
    try:
        config = replace(common(args.model), epochs=args.epochs, val_fraction=0.0)
        logits = out_of_fold_logits(config, flipped, lambda _: Listener())
    except (ValueError, OSError) as error:
        parser.error(str(error))
    found, likely = find_wrong_labels(logits.softmax(1), labels)
    is_flipped = torch.zeros(len(labels), dtype=torch.bool)
    is_flipped[chosen] = True
    hits = int(is_flipped[found].sum())
    result = {
        "data": data.name,
        "model": args.model,
        "epochs": args.epochs,
        "folds": FOLDS,
        "images": len(labels),
        "flipped": len(chosen),
        "named": len(found),
        "precision": hits / max(1, len(found)),
        "recall": hits / max(1, len(chosen)),
        "among_the_first": int(is_flipped[found[: len(chosen)]].sum()) / max(1, len(chosen)),
        "restored": int((likely == given[found])[is_flipped[found]].sum()) / max(1, hits),
        "accuracy": (logits.argmax(1) == given).double().mean().item(),
    }
    if args.as_json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
        return
    for key, value in result.items():
        print(f"{key:16} {value:.3f}" if isinstance(value, float) else f"{key:16} {value}")


if __name__ == "__main__":
    main()
