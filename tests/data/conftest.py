from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _write_image(path: Path, seed: int = 0, size: tuple[int, int] = (12, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def write_image() -> Callable[..., None]:
    """Write random RGB pixels; size is (width, height)."""
    return _write_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty sound images, half of them in a sub-folder."""
    root = tmp_path / "images"
    for index in range(20):
        _write_image(root / ("" if index % 2 else "even") / f"{index:05d}.png", seed=index)
    return root
