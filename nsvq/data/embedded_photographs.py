"""The data module that needs no download: two photographs that scikit-learn carries."""

from pathlib import PurePath

import numpy as np
import torch
from sklearn.datasets import load_sample_images

from nsvq.data.base import ImageDataModule, Splits, require_at_least
from nsvq.data.patches import RandomPatches, Tile, deal_tiles, regular_crops
from nsvq.data.tensor_images import TensorImages


class EmbeddedPhotographs(ImageDataModule):
    """Patches of scikit-learn's two sample photographs, 427×640 pixels each.

    The photographs are cut into tiles, of which every fourth diagonal is for validation; no pixel is on both sides.
    Training patches are random crops inside training tiles, mirrored half of the time. Validation patches are a fixed
    grid inside validation tiles, half a patch apart (261 patches at the defaults); testing and prediction use the same
    ones. The tiling doesn't depend on any seed.

    Args:
        batch_size: Patches per batch and process.
        size: Side of a patch in pixels.
        tile: Side of a tile in pixels, at least `size`.
        samples_per_epoch: Training patches per epoch, all processes together.
        num_workers: Loader processes; cropping is cheap enough for 0.
        seed: Added to the run's seed, which decides the training patches.
    """

    def __init__(
        self,
        batch_size: int = 64,
        size: int = 32,
        tile: int = 64,
        samples_per_epoch: int = 12_800,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        require_at_least("size", size, 1)
        require_at_least("samples_per_epoch", samples_per_epoch, 1)
        if size > tile:
            raise ValueError(f"patches of size {size} don't fit into tiles of {tile} pixels; raise tile or lower size")
        self.size = size
        self.tile = tile
        self.samples_per_epoch = samples_per_epoch

    def make_splits(self) -> Splits:
        """Cut the photographs into tiles and patches."""
        sample = load_sample_images()
        stems = [PurePath(name).stem for name in sample.filenames]
        photographs = torch.from_numpy(np.stack(sample.images)).permute(0, 3, 1, 2).contiguous()
        count, _, height, width = photographs.shape
        if self.tile > min(height, width):
            raise ValueError(f"tile {self.tile} is larger than the photographs' shorter side of {min(height, width)}")
        train_tiles, val_tiles = deal_tiles((count, height, width), self.tile)
        crops = regular_crops(val_tiles, self.tile, self.size)

        def names(corners: list[Tile]) -> list[str]:
            return [f"{stems[corner.photograph]}/{corner.top:03d}-{corner.left:03d}" for corner in corners]

        train = RandomPatches(
            photographs, train_tiles, names(train_tiles), self.tile, self.size, self.samples_per_epoch
        )
        windows = photographs.unfold(2, self.size, 1).unfold(3, self.size, 1)
        patches = torch.stack([windows[crop.photograph, :, crop.top, crop.left] for crop in crops])
        val = TensorImages(patches, names(crops))
        val.preparation = f"{self.size}×{self.size} px windows, not resized"
        return Splits(train, val, val)
