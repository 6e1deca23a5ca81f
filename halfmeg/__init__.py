"""Train, compare and ship image classifiers of fewer than 500,000 parameters."""

__version__ = "0.1.0"

from halfmeg.compare import compare
from halfmeg.config import RunConfig
from halfmeg.data import load_dataset
from halfmeg.evaluate import evaluate
from halfmeg.models import build_model
from halfmeg.recipes import build_recipe
from halfmeg.runs import Run
from halfmeg.train import fit, resume

__all__ = [
    "Run",
    "RunConfig",
    "build_model",
    "build_recipe",
    "compare",
    "evaluate",
    "fit",
    "load_dataset",
    "resume",
]
