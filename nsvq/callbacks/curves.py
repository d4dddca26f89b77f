"""Curves on disk: what a run measured, step by step, in plain files."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from nsvq.callbacks.folder import replacing, run_folder, writing


class CurvesOnDisk(Callback):
    """Writes the rows that other callbacks record to `<run folder>/curves/`.

    `codebook.csv` (from `CodebookHealth`), `drift.csv` (from `EncoderDrift`) have one row per measurement, appended
    and flushed at once, so that an interrupted run loses nothing. `counts_<split>_<step>.npz` holds per-code counts
    under the name `counts`, `snapshot_<step>.npz` what `CodebookSnapshots` took. Only rank 0 writes. A run that goes on
    in the same folder first drops what lies beyond the step it goes on from.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut curves of an earlier part of the run back to the present step."""
        folder = curves_folder(trainer)
        if folder is None:
            return
        for path in sorted(folder.glob("*.csv")):
            truncate(path, trainer.global_step)
        for path in sorted(folder.glob("*_*.npz")):
            if int(path.stem.rsplit("_", 1)[1]) > trainer.global_step:
                path.unlink()

    def append(self, trainer: Trainer, curve: str, row: dict[str, Any]) -> None:
        """Append a row to `<curve>.csv`.

        Args:
            trainer: The trainer whose run folder is written to.
            curve: File name without its ending.
            row: Values by column; a curve's rows all have the same columns.
        """
        folder = curves_folder(trainer)
        if folder is None:
            return
        path = folder / f"{curve}.csv"
        with writing(path):
            folder.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists() or path.stat().st_size == 0
        with writing(path), path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if is_new:
                writer.writeheader()
            writer.writerow(row)

    def save_arrays(self, trainer: Trainer, name: str, **arrays: Tensor) -> None:
        """Write arrays of the present step to `<name>_<step>.npz`.

        Args:
            trainer: The trainer whose run folder is written to.
            name: What they are.
            arrays: The arrays by their names in the file.
        """
        folder = curves_folder(trainer)
        if folder is None:
            return
        path = folder / f"{name}_{trainer.global_step:08d}.npz"
        with replacing(path) as part:
            folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                plain: dict[str, Any] = {key: array.cpu().numpy() for key, array in arrays.items()}
                np.savez_compressed(file, **plain)


def curves_folder(trainer: Trainer) -> Path | None:
    """Return where this process writes curves; None if it writes none."""
    folder = run_folder(trainer)
    return None if folder is None else folder / "curves"


def record(trainer: Trainer, curve: str, row: dict[str, Any]) -> None:
    """Hand a row to the trainer's `CurvesOnDisk`, if it has one."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, CurvesOnDisk):
            callback.append(trainer, curve, row)


def record_arrays(trainer: Trainer, name: str, **arrays: Tensor) -> None:
    """Hand arrays to the trainer's `CurvesOnDisk`, if it has one."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, CurvesOnDisk):
            callback.save_arrays(trainer, name, **arrays)


def truncate(path: Path, last_step: int) -> None:
    """Drop a CSV file's rows whose column `step` lies beyond a step, and a last line that was cut short.

    Args:
        path: A CSV file with a header line and a column `step`.
        last_step: The last step that stays.
    """
    with path.open(newline="") as file:
        header, *lines = file.readlines() or [""]
    if not header.endswith("\n"):
        path.write_text("")
        return
    columns = header.rstrip("\r\n").split(",")
    step = columns.index("step")
    kept = [
        line
        for line in lines
        if line.endswith("\n") and line.count(",") == len(columns) - 1 and int(line.split(",")[step]) <= last_step
    ]
    with replacing(path) as part, part.open("w", newline="") as file:
        file.writelines([header, *kept])
