"""Image quality of a validation pass against independent computations, and the record beside the numbers."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from skimage.metrics import peak_signal_noise_ratio
from torch import nn
from torch.utils.data import DataLoader

from nsvq.callbacks import ImageQuality
from nsvq.models import VQVAE
from nsvq.networks import ConvDecoder, ConvEncoder
from nsvq.pretrained import find, lpips_network
from nsvq.quantizers import VanillaVQ

SIDE, COUNT = 48, 10
pytestmark = pytest.mark.filterwarnings("ignore")


class Grey(nn.Module):
    """Features of an image: its mean levels in a 2×2 grid per channel."""

    num_features = 12

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images.double(), 2).flatten(1)


@pytest.fixture
def images():
    smooth = torch.rand(COUNT, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(smooth, SIDE, mode="bicubic").clamp(0, 1) * 2 - 1


@pytest.fixture
def model():
    return VQVAE(VanillaVQ(4, 16), ConvEncoder([8, 8], 1), ConvDecoder([8, 8], 1))


def trainer(folder, *callbacks, **arguments):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    logger = CSVLogger(folder, name="", version="")
    return Trainer(accelerator="cpu", logger=logger, callbacks=list(callbacks), **quiet, **arguments)


def results(folder):
    return json.loads((folder / "results.json").read_text())


def eight_bit(images):
    return ((images.clamp(-1, 1).double().numpy() + 1) * 127.5).round().astype(np.uint8).transpose(0, 2, 3, 1)


def frechet(first, second):
    """The closed form between two Gaussians, by scipy's matrix root."""
    means, covariances = zip(*((f.mean(0), np.cov(f, rowvar=False)) for f in (first, second)), strict=True)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    return ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)


@pytest.mark.parametrize("command", ["validate", "test"])
def test_every_number_is_what_other_code_computes(tmp_path, fake_hub, model, images, command):
    fake_hub("alex", "vgg")
    quality = ImageQuality(fid_extractor=Grey(), ms_ssim=True, ms_ssim_betas=[0.6, 0.4])
    getattr(trainer(tmp_path, quality), command)(model, DataLoader(images, batch_size=4), verbose=False)
    found = results(tmp_path)
    model.eval()
    with torch.no_grad():
        # In the same batches, since a convolution may round differently in others.
        reconstructions = torch.cat([model(batch)[0] for batch in images.split(4)])
        lpips = {
            trunk: lpips_network(trunk, find(trunk))(reconstructions.clamp(-1, 1), images).mean().item()
            for trunk in ("alex", "vgg")
        }
    real, fake = eight_bit(images), eight_bit(reconstructions)
    psnr = np.mean([peak_signal_noise_ratio(r, f, data_range=255) for r, f in zip(real, fake, strict=True)])
    features = [Grey()(torch.from_numpy(pictures.transpose(0, 3, 1, 2))).numpy() for pictures in (real, fake)]
    metrics = found["metrics"]
    assert metrics["psnr"] == pytest.approx(psnr, rel=1e-5)
    assert metrics["lpips_alex"] == pytest.approx(lpips["alex"], rel=1e-4)
    assert metrics["lpips_vgg"] == pytest.approx(lpips["vgg"], rel=1e-4)
    assert metrics["fid_smoke"] == pytest.approx(frechet(*features), rel=1e-6)
    assert 0 < metrics["ms_ssim"] < 1
    assert (found["split"], found["images"]) == ({"validate": "val", "test": "test"}[command], COUNT)
    assert found["not_measured"] == {}


def test_the_record_tells_the_protocol(tmp_path, model, images):
    quality = ImageQuality(fid_extractor=Grey(), lpips=[], ms_ssim=True, ms_ssim_betas=[0.6, 0.4])
    trainer(tmp_path, quality).validate(model, DataLoader(images, batch_size=4), verbose=False)
    protocol = results(tmp_path)["protocol"]
    assert protocol["image_shape"] == [3, SIDE, SIDE]
    assert "Grey" in protocol["rfid"]
    assert "[0.6, 0.4]" in protocol["ms_ssim"]
    assert protocol["model"] == "VQVAE"
    assert (protocol["weights"], protocol["checkpoint"], protocol["split_images"]) == ("live", None, COUNT)
    assert set(protocol["versions"]) >= {"torch", "torchmetrics", "torch-fidelity", "lpips"}


def test_missing_weights_leave_the_rest_and_name_the_gap(tmp_path, fake_hub, model, images):
    fake_hub("alex")
    trainer(tmp_path, ImageQuality()).validate(model, DataLoader(images, batch_size=4), verbose=False)
    found = results(tmp_path)
    assert set(found["not_measured"]) == {"rfid", "lpips_vgg"}
    assert "vgg16-397923af.pth" in found["not_measured"]["lpips_vgg"]
    assert {"psnr", "ssim", "lpips_alex"} <= set(found["metrics"])


def test_a_path_that_is_wrong_is_no_gap(tmp_path, fake_hub, model, images):
    fake_hub()
    quality = ImageQuality(weights={"alex": str(tmp_path / "nothing.pth")})
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        trainer(tmp_path, quality).validate(model, DataLoader(images, batch_size=4), verbose=False)


def test_small_images_have_no_multiscale_ssim(tmp_path, model, images):
    quality = ImageQuality(fid=False, lpips=[], ms_ssim=True)
    trainer(tmp_path, quality).validate(model, DataLoader(images, batch_size=4), verbose=False)
    found = results(tmp_path)
    assert "at least 176 pixels" in found["not_measured"]["ms_ssim"]
    assert "ms_ssim" not in found["metrics"]


def test_images_too_small_for_a_network_are_a_gap_of_that_pass_only(tmp_path, fake_hub, model, images):
    fake_hub("alex")
    runner = trainer(
        tmp_path, ImageQuality(fid_extractor=Grey(), lpips=["alex"], ms_ssim=True, ms_ssim_betas=[0.4, 0.4, 0.2])
    )
    for pictures, gaps in ((images[:1, :, :16, :16], {"lpips_alex", "ms_ssim", "rfid"}), (images, set())):
        runner.validate(model, DataLoader(pictures, batch_size=4), verbose=False)
        found = results(tmp_path)
        assert set(found["not_measured"]) == gaps
        assert ("lpips_alex" in found["metrics"]) == (not gaps)
    assert "at least 31 pixels a side, got 16" not in str(found["not_measured"])


def test_a_pass_begins_afresh(tmp_path, model, images):
    quality = ImageQuality(fid_extractor=Grey(), lpips=[])
    runner = trainer(tmp_path, quality)
    found = []
    for _ in range(2):
        runner.validate(model, DataLoader(images, batch_size=4), verbose=False)
        found.append(results(tmp_path))
    assert found[0] == found[1]


def test_training_measures_every_nth_epoch_and_saves_no_network(tmp_path, fake_hub, model, images):
    fake_hub("alex")
    seen = []

    class Watch(ImageQuality):
        def on_validation_end(self, trainer, pl_module):
            super().on_validation_end(trainer, pl_module)
            path = tmp_path / "results.json"
            seen.append(results(tmp_path)["step"] if path.exists() else None)

    loader = DataLoader(images, batch_size=5)
    quality = Watch(every_n_epochs=2, fid=False, lpips=["alex"])
    runner = trainer(tmp_path, quality, max_epochs=5, num_sanity_val_steps=1, log_every_n_steps=1)
    runner.fit(model, loader, loader)
    assert seen == [None, None, 4, 4, 8, 8]
    assert "val/lpips_alex" in (tmp_path / "metrics.csv").read_text()
    assert not any("lpips" in name or "distance" in name for name in model.state_dict())
    runner.save_checkpoint(tmp_path / "last.ckpt")
    size = (tmp_path / "last.ckpt").stat().st_size
    assert size < 1e6 < sum(value.numel() for value in lpips_network("alex", find("alex")).state_dict().values())


def test_training_asks_for_no_weights_unless_told(tmp_path, fake_hub, model, images):
    fake_hub()
    loader = DataLoader(images, batch_size=5)
    quality = ImageQuality()
    trainer(tmp_path, quality, max_epochs=1, log_every_n_steps=1).fit(model, loader, loader)
    assert not (tmp_path / "results.json").exists()
    assert quality._absent == {}


def test_a_model_that_returns_no_reconstructions_is_named(tmp_path, images):
    class Mute(LightningModule):
        def validation_step(self, batch, batch_idx):
            return None

    with pytest.raises(TypeError, match="Mute's validation and test steps return no `reconstructions`"):
        trainer(tmp_path, ImageQuality(fid=False, lpips=[])).validate(Mute(), DataLoader(images, batch_size=4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs"),
        ({"lpips": ["squeeze"]}, "squeeze"),
        ({"weights": {"resnet": "x"}}, "resnet"),
    ],
)
def test_bad_options_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageQuality(**arguments)
