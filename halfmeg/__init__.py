"""Find, train, compare and ship image classifiers of fewer than 500,000 parameters.

The public names are imported when they are first used, so that a command that needs none of them
does not wait for torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halfmeg.artifacts.run import Run
    from halfmeg.config import RunConfig
    from halfmeg.data.load import load_dataset
    from halfmeg.evaluation.evaluate import evaluate
    from halfmeg.networks.table import build_model
    from halfmeg.studies.compare import compare, cross_validate
    from halfmeg.training.fit import fit, resume
    from halfmeg.training.recipes import build_recipe

__version__ = "0.1.0"

# onnxruntime tells its makers how it is used, from its import on, unless it is told not to.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "Run",
    "RunConfig",
    "build_model",
    "build_recipe",
    "compare",
    "cross_validate",
    "evaluate",
    "fit",
    "load_dataset",
    "resume",
]

_HOMES = {
    "Run": "artifacts.run",
    "RunConfig": "config",
    "build_model": "networks.table",
    "build_recipe": "training.recipes",
    "compare": "studies.compare",
    "cross_validate": "studies.compare",
    "evaluate": "evaluation.evaluate",
    "fit": "training.fit",
    "load_dataset": "data.load",
    "resume": "training.fit",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'halfmeg' has no attribute {name!r}")
    return getattr(import_module(f"halfmeg.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
