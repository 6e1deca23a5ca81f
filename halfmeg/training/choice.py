"""What a run's `auto` settings come to on this machine: measured at its start, kept in its folder.

`precision=auto` is not among them: it follows from the processor and needs no measuring.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from halfmeg.artifacts.chosen import Chosen
from halfmeg.artifacts.run import Run
from halfmeg.networks.ways import Ways, right_kernels
from halfmeg.places.place import is_place
from halfmeg.places.source import read_source
from halfmeg.training.compiling import worth_compiling
from halfmeg.training.kernels import choose_kernels
from halfmeg.training.plan import Plan


def chosen_by(
    run: Run, model: nn.Module, plan: Plan, batch_size: int, dtype: torch.dtype
) -> Chosen:
    """Return what a run chose when it started, or choose now and write it to its folder.

    Of several processes the first one asks, and hands the answer to the others.

    Args:
        run: whose settings these are.
        model: on its device, in its order of memory; it stays as it is.
        plan: of the run.
        batch_size: of a step in this process.
        dtype: of the run's products.

    Raises:
        ValueError: the folder says what was chosen, but is damaged.
    """
    config, shape = run.config, run.data.image_shape
    shapes = [shape.scaled_to(size) for size in sorted({e.size for e in plan.epochs})]
    on_cpu = next(model.parameters()).device.type == "cpu"
    right = right_kernels(model, shapes, dtype) if on_cpu else {}
    chosen = Chosen(kernels=right, compile=config.compile is True)
    if config.kernels != "auto" and config.compile != "auto":
        return chosen
    if (stored := run.chosen()) is not None:
        return stored
    batch_size = min(batch_size, max(b.stop - b.start for b in plan.epochs[0].batches))
    if config.kernels == "auto":
        ways: Ways = {}
        note = "a GPU's library chooses for itself"
        if on_cpu:
            ways = choose_kernels(model, shapes, batch_size, dtype)
            note = _describe(ways)
        told = (f"kernels=auto: {note}",) if ways or not on_cpu else ()
        chosen = replace(chosen, kernels=right | ways, notes=told)
    if config.compile == "auto":
        on, why = worth_compiling(model, shape, batch_size, dtype, plan, _facts_of(run))
        chosen = replace(
            chosen, compile=on, notes=(f"compile=auto: {'on' if on else 'off'}; {why}",)
        )
    run.save_chosen(chosen)
    return chosen


def _facts_of(run: Run) -> dict[str, Any]:
    """Return what the time of a run's network depends on."""
    config = run.config
    return {
        "model": config.model,
        "source": read_source(config.model).sha256 if is_place(config.model) else None,
        "budget": config.budget,
        "classes": len(run.data.classes),
        "shape": list(run.data.image_shape),
    }


def _describe(ways: Ways) -> str:
    others = Counter(way for way in ways.values() if way != "conv")
    told = f"{others.total()} of {len(ways)} kinds of grouped or dilated convolution in another way"
    counted = ", ".join(f"{way} {count}×" for way, count in others.most_common())
    return f"{told} ({counted}); see chosen.json" if others else told
