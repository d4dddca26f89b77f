"""Reconstruction grids: their size, their rows, and when they are drawn."""

import numpy as np
import pytest
import torch
from PIL import Image

from nsvq.callbacks import ReconstructionGrid

SIDE, GAP = 4, 2


@pytest.fixture
def images():
    """Six images of one grey level each in [-1, 1]; the stub's decoder paints code k as (k, 0, 0)."""
    return torch.linspace(-1, 1, 6).view(6, 1, 1, 1).expand(6, 3, SIDE, SIDE).clone()


def tiles(path, columns):
    """Cut a PNG into its rows of tiles, as grey levels (3, columns, SIDE, SIDE, 3)."""
    pixels = np.asarray(Image.open(path)).astype(int)
    starts = [GAP + number * (SIDE + GAP) for number in range(max(columns, 3))]
    cut = [[pixels[y : y + SIDE, x : x + SIDE] for x in starts[:columns]] for y in starts[:3]]
    return pixels.shape, np.array(cut)


@pytest.mark.parametrize(("asked", "columns"), [(4, 4), (8, 6)])
def test_three_rows_hold_images_reconstructions_and_their_absolute_error(
    foreign, fit, images, tmp_path, asked, columns
):
    fit(foreign(), images, images, [ReconstructionGrid(asked)], batch_size=6)
    (path,) = (tmp_path / "run" / "reconstructions").iterdir()
    assert path.name == "step_00000001.png"
    shape, (originals, reconstructions, errors) = tiles(path, columns)
    assert shape == (3 * (SIDE + GAP) + GAP, columns * (SIDE + GAP) + GAP, 3)
    shown = images[torch.linspace(0, 5, columns).round().int()]
    assert np.abs(originals[:, 0, 0] - (shown[:, :, 0, 0].numpy() + 1) * 127.5).max() <= 1
    codes = shown[:, 0, 0, 0].round().clamp(min=0).numpy()
    assert np.abs(reconstructions[:, 0, 0, 0] - (codes + 1) * 127.5).max() <= 1
    assert np.abs(reconstructions[..., 1:] - 127.5).max() <= 1
    assert np.abs(errors - np.abs(originals - reconstructions)).max() <= 2


def test_a_grid_per_validation_pass_and_none_for_the_sanity_check(foreign, fit, images, tmp_path):
    fit(foreign(), images, images, [ReconstructionGrid()], batch_size=3, max_epochs=2, num_sanity_val_steps=1)
    names = sorted(path.name for path in (tmp_path / "run" / "reconstructions").iterdir())
    assert names == ["step_00000002.png", "step_00000004.png"]


def test_fast_dev_run_draws_nothing(foreign, fit, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(foreign(), images, images, [ReconstructionGrid()], fast_dev_run=True)
    assert not any(tmp_path.iterdir())


def test_batches_with_labels_and_module_modes(foreign, fit, images, tmp_path):
    class Labelled(foreign):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[0], batch_idx)

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch[0], batch_idx)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.arange(6)), batch_size=6)
    module = Labelled()
    fit(module, loader, loader, [ReconstructionGrid()], max_epochs=2)
    assert module.modes[0] == module.modes[1] == {"": True, "quantizer": True, "dropout": True, "frozen": False}
    assert len(list((tmp_path / "run" / "reconstructions").iterdir())) == 2


def test_what_cannot_work_is_refused(foreign, fit, images, monkeypatch):
    with pytest.raises(ValueError, match="num_images must be at least 1, got 0"):
        ReconstructionGrid(num_images=0)
    monkeypatch.delattr(foreign, "decode")
    with pytest.raises(TypeError, match=r"Foreign has no \.decode"):
        fit(foreign(), images, images, [ReconstructionGrid()])
