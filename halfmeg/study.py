"""Studies: many runs in one folder, of which a second call trains only what is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from halfmeg.config import RunConfig
from halfmeg.data import DataSplits
from halfmeg.runs import Run, write_json
from halfmeg.train import Listener, fit, resume


def run_study(
    configs: Sequence[RunConfig],
    data: DataSplits,
    out: str | Path,
    *,
    listener: Callable[[RunConfig], Listener | None] = lambda config: None,
) -> list[Run]:
    """Train every config into `out`/MODEL-seed-N; finished runs are kept, others continued.

    Runs of the same seed are paired: they share split, order and augmentation draws.

    Args:
        configs: the runs; no two may have the same model and seed.
        data: what all of them are trained on.
        out: the study's folder. It may hold an earlier part of the same study.
        listener: returns who is told how a run goes.

    Raises:
        ValueError: `out` holds something else than an earlier part of the same study.
    """
    out = Path(out)
    folders = [out / f"{config.model}-seed-{config.seed}" for config in configs]
    if len(set(folders)) < len(folders):
        raise ValueError("a study needs a different model or seed for each run")
    _check_folder(out, configs, folders, data)
    runs = []
    for config, folder in zip(configs, folders, strict=True):
        if folder.exists():
            runs.append(resume(folder, data, listener=listener(config)))
        else:
            runs.append(fit(config, data, folder, listener=listener(config)))
    return runs


def _check_folder(
    out: Path, configs: Sequence[RunConfig], folders: Sequence[Path], data: DataSplits
) -> None:
    """Raise before anything is trained if `out` cannot hold this study; write study.json."""
    if out.exists() and any(out.iterdir()) and not (out / "study.json").exists():
        raise ValueError(f"{out} exists and is no study; choose another --out")
    for config, folder in zip(configs, folders, strict=True):
        if not folder.exists():
            continue
        run = Run.open(folder)
        if run.config != config or run.data.fingerprint != data.fingerprint:
            raise ValueError(
                f"{folder} was trained with other settings or data; choose another --out"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
        description = {"runs": [folder.name for folder in folders], "data": data.fingerprint}
        write_json(out / "study.json", description)
    except OSError as error:
        raise ValueError(f"cannot write to {out}: {error.strerror}") from None
