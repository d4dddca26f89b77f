"""The Fréchet distance against its closed form, and its Inception against torch-fidelity's own."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from nsvq.distributed import rank, world_size
from nsvq.metrics import fid_name, frechet_distance, frechet_inception_distance
from nsvq.pretrained import find


class Projection(nn.Module):
    """Features that are linear in the pixels."""

    num_features = 4

    def __init__(self):
        super().__init__()
        weight = torch.randn(4, 3 * 8 * 8, generator=torch.Generator().manual_seed(1))
        self.weight = nn.Parameter(weight)

    def forward(self, images):
        return images.flatten(1).to(self.weight.dtype) @ self.weight.T / 255


def closed_form(real, fake):
    """‖μ − μ'‖² + tr(Σ + Σ' − 2 (Σ Σ')^½) of features (n, d)."""
    real, fake = (np.asarray(side, dtype=np.float64) for side in (real, fake))
    covariances = [np.atleast_2d(np.cov(side, rowvar=False)) for side in (real, fake)]
    product = sqrtm(covariances[0] @ covariances[1])
    shift = np.square(real.mean(axis=0) - fake.mean(axis=0)).sum()
    return shift + np.trace(covariances[0] + covariances[1] - 2 * product.real)


def grey_images(count, side=8):
    levels = torch.randint(256, (count, 3, side, side), dtype=torch.uint8)
    return levels, (levels.double() * 0.7 + 20).round().to(torch.uint8)


def test_equals_the_closed_form():
    real, fake = grey_images(50)
    extractor = Projection()
    metric = frechet_distance(extractor)
    for part in real.split([7, 43]):
        metric.update(part, real=True)
    for part in fake.split([30, 20]):
        metric.update(part, real=False)
    result = metric.compute()
    assert result.dtype == torch.float64
    assert not result.requires_grad
    assert float(result) == pytest.approx(closed_form(extractor(real), extractor(fake)), rel=1e-9)


def test_equal_sets_have_no_distance():
    real, _ = grey_images(20)
    metric = frechet_distance(Projection())
    metric.update(real, real=True)
    metric.update(real, real=False)
    assert float(metric.compute()) == pytest.approx(0, abs=1e-9)


def measure_share(shares):
    """Measure this rank's share, or all shares without a group."""
    metric = frechet_distance(Projection())
    for real, fake in shares if world_size() == 1 else [shares[rank()]]:
        metric.update(real, real=True)
        metric.update(fake, real=False)
    return float(metric.compute())


def test_two_ranks_with_uneven_batches_equal_one_process(rank_pool):
    shares = [grey_images(5), grey_images(2)]
    expected = measure_share(shares)
    assert expected > 0.1
    assert rank_pool.run(measure_share, shares) == pytest.approx([expected] * 2, rel=1e-9)


@pytest.fixture
def inception(fake_hub):
    fake_hub("inception")
    return find("inception")


def test_inception_is_torch_fidelitys_in_float64_whatever_the_autocast(inception):
    before = torch.get_rng_state()
    metric = frechet_inception_distance(inception)
    assert torch.get_rng_state().equal(before)

    real, fake = grey_images(3, side=64)
    with torch.autocast("cpu", torch.bfloat16):
        metric.update(real, real=True)
    metric.update(fake, real=False)
    theirs = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(inception))
    features = [theirs(side)[0].double() for side in (real, fake)]

    assert features[0].shape == (3, 2048)
    assert metric.real_features_sum.dtype == metric.orig_dtype == torch.float64
    assert torch.allclose(metric.real_features_sum, features[0].sum(dim=0), rtol=1e-4, atol=1e-5)
    # Theirs is float32: what is left between the two is its rounding.
    assert not metric.real_features_sum.equal(features[0].sum(dim=0))
    assert metric.real_features_cov_sum.trace() == pytest.approx(float(features[0].square().sum()), rel=1e-5)

    result = metric.compute()
    assert result.dtype == torch.float64
    assert float(result) == pytest.approx(distance_of_few(*features), rel=1e-3)


def distance_of_few(real, fake):
    """The closed form for fewer images than features: tr (Σ Σ')^½ is the sum of the singular values of A A'ᵀ."""
    centred = [(side - side.mean(dim=0)) / (len(side) - 1) ** 0.5 for side in (real, fake)]
    shift = (real.mean(dim=0) - fake.mean(dim=0)).square().sum()
    spread = sum(side.square().sum() for side in centred)
    return float(shift + spread - 2 * torch.linalg.svdvals(centred[0] @ centred[1].T).sum())


@pytest.mark.parametrize(
    ("images", "literature", "name"),
    [(3000, True, "rfid_n3000"), (2048, True, "rfid_n2048"), (2047, True, "fid_smoke"), (50000, False, "fid_smoke")],
)
def test_a_number_that_compares_with_nothing_has_another_name(images, literature, name):
    assert fid_name(images, literature) == name
