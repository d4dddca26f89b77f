"""The search on codes that were fitted to real data, where latents lie near their codes."""

import pytest
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.datasets import load_sample_image

from nsvq.ops import KERNELS, kernel_codebook_loss, nearest_codes


@pytest.fixture(scope="module")
def patches_and_codes():
    """4×4 patches of a photograph in [−1, 1], (N, 48), and their k-means codebook, (512, 48)."""
    image = torch.from_numpy(load_sample_image("china.jpg").copy()).float() / 127.5 - 1
    patches = image[:424, :640].unfold(0, 4, 4).unfold(1, 4, 4).flatten(0, 1).flatten(1)
    means = MiniBatchKMeans(512, n_init=1, random_state=0, max_iter=30).fit(patches.numpy()).cluster_centers_
    return patches, torch.from_numpy(means)


@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_no_index_differs_from_float64_unless_the_gap_is_within_rounding(patches_and_codes, shift):
    patches, codes = (side + shift for side in patches_and_codes)
    distances = torch.cdist(patches.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    truth = distances.argmin(dim=1)
    rounding = 1e-6 * (patches - codes.mean(dim=0)).square().sum(dim=1)
    for indices in (
        nearest_codes(patches, codes),
        *(kernel_codebook_loss(patches, codes, kernel, 0.1, 0.1).indices for kernel in KERNELS),
    ):
        differs = (indices != truth).nonzero().squeeze(1)
        gaps = distances[differs, indices[differs]] - distances[differs, truth[differs]]
        assert (gaps <= rounding[differs]).all()
        assert len(differs) < 1e-3 * len(patches)


@pytest.mark.parametrize("bandwidth", [0.01, 0.3, 10.0])
@pytest.mark.parametrize("kernel", KERNELS)
def test_loss_and_gradient_equal_autograd_in_float64(patches_and_codes, kernel, bandwidth):
    patches, codes = patches_and_codes
    patches = patches[::7]
    exact = codes.double().requires_grad_()
    distances = (
        patches.double().square().sum(dim=1, keepdim=True) - 2 * patches.double() @ exact.T + exact.square().sum(dim=1)
    )
    scaled = -distances.detach() / bandwidth
    if kernel == "gaussian":
        weights = 0.3 * scaled.exp()
    else:
        weights = (0.3 * (len(codes) if kernel == "clamped_softmax" else 1) * scaled.softmax(dim=1)).clamp(max=1)
    weights.scatter_(1, distances.argmin(dim=1, keepdim=True), 1)
    loss = (weights * distances).sum() / patches.numel()
    loss.backward()
    codes = codes.clone().requires_grad_()
    sweep = kernel_codebook_loss(patches, codes, kernel, bandwidth, 0.3)
    sweep.loss.backward()
    # A float32 score is rounded at the latent's norm, and the exponent −d/τ by as much over τ.
    rounding = 1e-5 + 3e-7 * (patches - codes.detach().mean(dim=0)).square().sum(dim=1).mean().item() / bandwidth
    torch.testing.assert_close(sweep.loss.double(), loss.detach(), rtol=rounding, atol=0)
    torch.testing.assert_close(codes.grad.double(), exact.grad, rtol=0, atol=rounding * exact.grad.abs().max().item())
