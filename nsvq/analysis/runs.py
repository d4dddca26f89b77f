"""Run folders as data frames."""

import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from nsvq.analysis.configuration import Configuration


@dataclass(frozen=True)
class Run:
    """A run folder that `nsvq fit` wrote.

    Attributes:
        folder: The run folder, which holds `config.yaml`.
    """

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        config: dict[str, Any] = yaml.safe_load((self.folder / "config.yaml").read_text())
        return config

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What `environment.json` records; empty if there is none."""
        path = self.folder / "environment.json"
        if not path.is_file():
            return {}
        with _reading(path):
            record: dict[str, Any] = dict(json.loads(path.read_text()))
        return record

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """`metrics.csv`: logged values by `step`, one column a name, empty where nothing was logged."""
        return _read(self.folder / "metrics.csv")

    @cached_property
    def codebook(self) -> pd.DataFrame:
        """`curves/codebook.csv`: usage by `step` and `split`."""
        return _read(self.folder / "curves" / "codebook.csv")

    @cached_property
    def drift(self) -> pd.DataFrame:
        """`curves/drift.csv`: drift measures by `step`."""
        return _read(self.folder / "curves" / "drift.csv")

    @property
    def last_counts(self) -> np.ndarray | None:
        """How often each code was used in the last validation pass, int64, shape (K,); None if that is not on disk."""
        files = sorted((self.folder / "curves").glob("counts_val_*.npz"))
        return read_arrays(files[-1], "counts")["counts"] if files else None

    @property
    def snapshots(self) -> dict[int, Path]:
        """The files of `CodebookSnapshots` by step."""
        files = {path.stem.removeprefix("snapshot_"): path for path in (self.folder / "curves").glob("snapshot_*.npz")}
        return {int(step): files[step] for step in sorted(files) if step.isdecimal()}

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def method(self) -> str:
        """The quantizer's class, marked where codes are set from data or replaced, or the encoder is frozen."""
        return Configuration(self.config).method

    @property
    def codebook_size(self) -> int:
        """Number of codes K."""
        return Configuration(self.config).codebook_size

    @property
    def seed(self) -> Any:
        """The seed that the run was started with."""
        return Configuration(self.config).seed

    def last(self, name: str) -> float:
        """Return the last logged value of a name in `metrics.csv`, nan if it was never logged."""
        values = self.metrics[name].dropna() if name in self.metrics else pd.Series(dtype=float)
        return float(values.iloc[-1]) if len(values) else float("nan")


def read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Read arrays of finite numbers.

    Args:
        path: A `.npz` file.
        names: The arrays that it must hold.

    Returns:
        These arrays.

    Raises:
        ValueError: If the file is damaged or holds others; it names the file.
    """
    with _reading(path), np.load(path) as file:
        arrays = {name: file[name] for name in names}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("values that are not finite")
    return arrays


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name a file that cannot be read."""
    try:
        yield
    except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is damaged ({' '.join(str(error).split())}): move its run away, or the file"
        ) from error


def _read(path: Path) -> pd.DataFrame:
    frame: pd.DataFrame = pd.DataFrame()
    if path.is_file() and path.read_text(errors="replace").strip():
        with _reading(path):
            content = pd.read_csv(path)
        # Columns without a value have no type that could be calculated with.
        frame = content if len(content) else frame
    return frame


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """Find the run folders at or below some paths.

    Args:
        paths: Run folders, or folders that hold them at any depth.

    Returns:
        The runs, in the order of the paths and within a path by name, numbers in names by their size.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If a path holds no training run of a quantizer.
    """
    runs: list[Run] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        found = [Run(config.parent) for config in sorted(path.rglob("config.yaml"), key=_by_number) if _is_run(config)]
        if not found:
            raise ValueError(f"{path} holds no run: expected a config.yaml that `nsvq fit` wrote, at any depth")
        known = {run.folder.resolve() for run in runs}
        runs += [run for run in found if run.folder.resolve() not in known]
    return runs


def _by_number(path: Path) -> list[tuple[float, str]]:
    pieces = re.split(r"(\d+(?:\.\d+)?)", str(path))
    return [(float(piece), "") if place % 2 else (math.inf, piece) for place, piece in enumerate(pieces)]


def _is_run(config: Path) -> bool:
    try:
        content = yaml.safe_load(config.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        return False
    if not Configuration(content).has_quantizer:
        return False
    # `validate`, `test` and `predict` leave folders too.
    return "nsvq fit" in Run(config.parent).environment.get("command", "nsvq fit")
