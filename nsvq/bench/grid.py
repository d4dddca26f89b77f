"""The sizes that quantizers are measured at."""

from typing import Literal, NamedTuple

GridName = Literal["default", "full", "tiny"]


class Cell(NamedTuple):
    """One size."""

    latents: int
    """Number of latents N."""
    codes: int
    """Number of codes K."""
    dim: int
    """Dimension D."""

    def __str__(self) -> str:
        return f"N={self.latents:,} K={self.codes:,} D={self.dim}"


class GridCell(NamedTuple):
    """A size and who is measured there."""

    cell: Cell
    everyone: bool
    """False: only the contenders that the growth fits and goals need at this size."""


def grid_cells(grid: GridName) -> list[GridCell]:
    """List the sizes of a grid.

    Args:
        grid: `full`: every size; `default`: one line over K, N and D each, the largest sizes for few contenders, so
            that a run stays short; `tiny`: sizes that only show that everything runs.

    Returns:
        The cells, small ones first.
    """
    if grid == "tiny":
        return [
            GridCell(Cell(64, 32, 8), True),
            GridCell(Cell(64, 64, 8), True),
            GridCell(Cell(128, 64, 8), False),
        ]
    if grid == "full":
        return [
            GridCell(Cell(n, k, d), True)
            for k in (1_024, 8_192, 65_536, 262_144)
            for n in (4_096, 16_384)
            for d in (16, 64, 256)
        ]
    return [
        GridCell(Cell(4_096, 1_024, 64), True),
        GridCell(Cell(4_096, 8_192, 16), True),
        GridCell(Cell(4_096, 8_192, 64), True),
        GridCell(Cell(4_096, 8_192, 256), True),
        GridCell(Cell(16_384, 8_192, 64), True),
        GridCell(Cell(4_096, 65_536, 64), True),
        GridCell(Cell(16_384, 65_536, 64), False),
        GridCell(Cell(4_096, 262_144, 64), False),
    ]
