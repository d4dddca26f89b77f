import os
import subprocess
import sys

import pytest
import torch

from nsvq.ops import kernel_codebook_loss, nearest_codes

LATENTS, CODES = torch.randn(20, 3), torch.randn(9, 3)

# Triton decides at its import whether its interpreter runs the kernels, hence a process of its own.
INTERPRETED = """
import os, torch
from nsvq.ops import backend
from nsvq.quantizers import NSVQ, VanillaVQ

def run(backend_name, quantizer, z):
    os.environ["NSVQ_BACKEND"] = backend_name
    quantizer.zero_grad()
    z = z.clone().requires_grad_()
    out = quantizer(z)
    (out.loss + out.quantized.square().mean()).backward()
    return out.indices, out.loss.detach(), z.grad, quantizer.codebook.grad

torch.manual_seed(0)
for quantizer in (VanillaVQ(6, 40), NSVQ(6, 40), NSVQ(6, 40, kernel="softmax"), NSVQ(6, 40, kernel="clamped_softmax")):
    quantizer.codebook.data.normal_()
    z = torch.randn(4, 6, 5, 5)
    for dtype in (torch.float32, torch.float64):
        for expected, actual in zip(run("torch", quantizer, z.to(dtype)), run("triton", quantizer, z.to(dtype))):
            torch.testing.assert_close(actual, expected)
    try:
        quantizer(torch.full((2, 6), float("nan")))
    except ValueError as error:
        assert "latents with non-finite values" in str(error), error
    else:
        raise AssertionError("accepted")
from sklearn.cluster import MiniBatchKMeans
from sklearn.datasets import load_sample_image
from nsvq.ops import nearest_codes

os.environ["NSVQ_BACKEND"] = "triton"
image = torch.from_numpy(load_sample_image("china.jpg").copy()).float() / 127.5 - 1
patches = image[:424, :640].unfold(0, 4, 4).unfold(1, 4, 4).flatten(0, 1).flatten(1)[::20]
means = MiniBatchKMeans(256, n_init=1, random_state=0, max_iter=10).fit(patches.numpy()).cluster_centers_
for latents, codes in ((patches, torch.from_numpy(means)), (torch.randn(500, 20), torch.randn(300, 20))):
    codes = torch.cat([codes, codes[:50]])
    exact = torch.cdist(latents.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    indices = nearest_codes(latents, codes)
    gaps = exact.gather(1, indices[:, None]).squeeze(1) - exact.amin(dim=1)
    assert (gaps <= 1e-6 * (latents - codes.mean(dim=0)).square().sum(dim=1)).all(), gaps.max()
    assert indices.max() < len(codes) - 50

print(*sorted(name for name in __import__("sys").modules if name.startswith("nsvq.ops.triton")))
"""


def test_both_backends_give_the_same_and_the_nearest_codes_of_fitted_codebooks():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == [f"nsvq.ops.triton_{part}" for part in ("kernel_loss", "search", "tiles")]


@pytest.mark.parametrize(
    "call", [lambda: nearest_codes(LATENTS, CODES), lambda: kernel_codebook_loss(LATENTS, CODES, "gaussian", 1.0, 0.5)]
)
def test_a_backend_that_cannot_run_is_refused(call, monkeypatch):
    monkeypatch.setenv("NSVQ_BACKEND", "triton")
    with pytest.raises(ValueError, match="NSVQ_BACKEND=triton needs tensors on a CUDA device, got cpu"):
        call()
    monkeypatch.setattr("nsvq.ops.backend.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package triton"):
        call()


def test_an_unknown_backend_is_refused_with_the_known_ones(monkeypatch):
    monkeypatch.setenv("NSVQ_BACKEND", "cuda")
    with pytest.raises(ValueError, match="NSVQ_BACKEND must be one of auto, torch, triton, got 'cuda'"):
        nearest_codes(LATENTS, CODES)


def test_an_unknown_precision_is_refused_with_the_known_ones(monkeypatch):
    monkeypatch.setenv("NSVQ_BACKEND", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("NSVQ_TRITON_PRECISION", "bf16")
    with pytest.raises(ValueError, match="NSVQ_TRITON_PRECISION must be one of ieee, tf32x3, tf32, got 'bf16'"):
        nearest_codes(LATENTS, CODES)


def test_float64_is_computed_by_torch(monkeypatch):
    monkeypatch.setenv("NSVQ_BACKEND", "triton")
    assert nearest_codes(LATENTS.double(), CODES).equal(nearest_codes(LATENTS.double(), CODES.double()))
