"""The published comparison of a plain CNN and a ResNet, and the fair pair beside it."""

import argparse
from dataclasses import replace

from halfmeg.data import load_dataset
from halfmeg.recipes import study_compare
from halfmeg.study import run_study

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", default="cifar10")
parser.add_argument("--data-dir", default="data")
parser.add_argument("--epochs", type=int, default=25)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", default="runs/comparison")
args = parser.parse_args()
data = load_dataset(args.data, data_dir=args.data_dir)
run_study(
    [
        replace(study_compare(model), epochs=args.epochs, seed=args.seed)
        for model in ("cnn", "resnet", "resnet-linear")
    ],
    data,
    args.out,
)
