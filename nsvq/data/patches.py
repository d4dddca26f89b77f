"""Square patches out of photographs whose tiles are dealt out to training and validation."""

from dataclasses import dataclass
from itertools import product
from math import ceil

import numpy as np
import torch
from torch import Tensor

from nsvq.data.base import ImageDataset
from nsvq.data.tensor_images import flip, to_unit_range

VALIDATION_PERIOD = 4


@dataclass(frozen=True)
class Tile:
    """A square region: the photograph's index and the pixel of its upper left corner."""

    photograph: int
    top: int
    left: int


def deal_tiles(shape: tuple[int, int, int], tile: int) -> tuple[list[Tile], list[Tile]]:
    """Cut photographs into a grid of tiles without overlap and deal these out.

    Every fourth diagonal of the grid is for validation: along each row and each column one tile in four, so that both
    sides see every region of a photograph and share no pixel. Strips narrower than a tile at the lower and right
    border are left out.

    Args:
        shape: Number, height and width of the photographs.
        tile: Side of a tile in pixels.

    Returns:
        Training tiles and validation tiles, in reading order.
    """
    photographs, height, width = shape
    train: list[Tile] = []
    validation: list[Tile] = []
    for photograph, row, column in product(range(photographs), range(height // tile), range(width // tile)):
        side = train if (photograph + row + column) % VALIDATION_PERIOD else validation
        side.append(Tile(photograph, row * tile, column * tile))
    return train, validation


def regular_crops(tiles: list[Tile], tile: int, size: int) -> list[Tile]:
    """Cover each tile with evenly spaced crops whose spacing is at most half their size.

    Args:
        tiles: The tiles to cover.
        tile: Side of a tile in pixels.
        size: Side of a crop in pixels.

    Returns:
        The crops, tile by tile in reading order; neighbours within a tile overlap.
    """
    room = tile - size
    steps = ceil(room / max(1, size // 2))
    offsets = [round(room * step / steps) for step in range(steps + 1)] if steps else [0]
    return [
        Tile(corner.photograph, corner.top + down, corner.left + right)
        for corner in tiles
        for down, right in product(offsets, offsets)
    ]


class RandomPatches(ImageDataset):
    """Random crops inside random tiles, mirrored left to right half of the time; each draw has its own.

    Args:
        photographs: uint8, shape (P, 3, H, W).
        tiles: The tiles to crop from.
        names: One name per tile.
        tile: Side of a tile in pixels.
        size: Side of a crop in pixels.
        length: Items per epoch.
    """

    def __init__(
        self, photographs: Tensor, tiles: list[Tile], names: list[str], tile: int, size: int, length: int
    ) -> None:
        self.names = names
        self._windows = photographs.unfold(2, size, 1).unfold(3, size, 1)
        self._corners = torch.tensor([(corner.photograph, corner.top, corner.left) for corner in tiles])
        self._positions = tile - size + 1
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, draw: int) -> Tensor:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: list[int]) -> list[Tensor]:
        bounds = (len(self._corners), self._positions, self._positions, 2)
        choices = torch.from_numpy(np.stack([self.randomness(draw).integers(bounds) for draw in draws]))
        chosen, down, right, mirrored = choices.T
        photograph, top, left = self._corners[chosen].T
        patches = self._windows[photograph, :, top + down, left + right]
        return list(to_unit_range(flip(patches, mirrored.bool())).unbind())
