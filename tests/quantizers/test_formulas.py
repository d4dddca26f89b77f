"""One training step of each method against its formula, written out in float64."""

import copy

import pytest
import torch
from torch import nn

from nsvq.quantizers import EMAVQ, NSVQ, FactorizedVQ, KernelCodebookLoss, SimVQ, TransVQ

DIM, K, N = 6, 12, 40
LEARNING_RATE = 0.3


def float64_twin(*tensors):
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def squared_distances(latents, codes):
    return (latents[:, None] - codes[None]).square().sum(dim=2)


def vq_loss(latents, codes):
    winners = squared_distances(latents, codes).argmin(dim=1)
    chosen = codes[winners]
    commitment = 0.25 * (latents - chosen.detach()).square().mean()
    return commitment + (latents.detach() - chosen).square().mean(), winners


def kernel_loss(latents, codes, kernel, bandwidth):
    distances = squared_distances(latents.detach(), codes)
    winners = distances.argmin(dim=1)
    with torch.no_grad():
        if kernel == "gaussian":
            weights = 0.5 * (-distances / bandwidth).exp()
        else:
            weights = 0.1 * (-distances / bandwidth).softmax(dim=1)
        weights[torch.arange(len(latents)), winners] = 1
    commitment = 0.25 * (latents - codes.detach()[winners]).square().mean()
    return commitment + (weights * distances).sum() / latents.numel(), winners


def assert_step_agrees(quantizer, z, loss, indices, parameters, z64):
    """Compare loss, indices, gradients and the parameters after a step of gradient descent."""
    z = z.clone().requires_grad_()
    out = quantizer(z)
    assert out.indices.equal(indices)
    torch.testing.assert_close(out.loss.double(), loss.detach(), rtol=1e-6, atol=0)
    ours = list(quantizer.parameters())
    optimizer = torch.optim.SGD(ours, lr=LEARNING_RATE)
    out.loss.backward()
    optimizer.step()
    expected = torch.autograd.grad(loss, [z64, *parameters])
    torch.testing.assert_close(z.grad.double(), expected[0], rtol=1e-5, atol=1e-7)
    for parameter, twin, gradient in zip(ours, parameters, expected[1:], strict=True):
        torch.testing.assert_close(parameter.grad.double(), gradient, rtol=1e-5, atol=1e-7)
        stepped = twin.detach() - LEARNING_RATE * gradient
        torch.testing.assert_close(parameter.detach().double(), stepped, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("kernel", "bandwidth"), [("gaussian", 1.0), ("softmax", 0.35)])
def test_nsvq_with_published_values(kernel, bandwidth):
    quantizer = NSVQ(DIM, K, kernel=kernel)
    nn.init.normal_(quantizer.codebook)
    z = torch.randn(N, DIM)
    z64, codes = float64_twin(z, quantizer.codebook)
    loss, winners = kernel_loss(z64, codes, kernel, bandwidth)
    assert_step_agrees(quantizer, z, loss, winners, [codes], z64)


def test_transvq_with_the_kernel_loss():
    bandwidth = 20.0
    quantizer = TransVQ(DIM, K, width=16, codebook_loss=KernelCodebookLoss("gaussian", bandwidth))
    z = torch.randn(N, DIM)
    plain = copy.deepcopy(quantizer).double()
    z64 = z.double().requires_grad_()
    codes = plain.transform(plain.frozen_codebook)
    loss, winners = kernel_loss(z64, codes, "gaussian", bandwidth)
    winner_only, _ = vq_loss(z64, codes)
    assert (loss - winner_only) / loss > 0.1
    assert_step_agrees(quantizer, z, loss, winners, list(plain.parameters()), z64)


def test_simvq():
    quantizer = SimVQ(DIM, K)
    z = torch.randn(N, DIM)
    z64, weight, bias = float64_twin(z, quantizer.transform.weight, quantizer.transform.bias)
    codes = quantizer.frozen_codebook.double() @ weight.T + bias
    assert_step_agrees(quantizer, z, *vq_loss(z64, codes), [weight, bias], z64)


def unit(rows):
    return rows / rows.square().sum(dim=1, keepdim=True).sqrt()


def test_factorized_vq():
    quantizer = FactorizedVQ(DIM, K, code_dim=3)
    names = [name for name, _ in quantizer.named_parameters()]
    z, upstream = torch.randn(N, DIM, requires_grad=True), torch.randn(N, DIM)
    z64, *parameters = float64_twin(z, *quantizer.parameters())
    twin = dict(zip(names, parameters, strict=True))
    projected = unit(z64 @ twin["project_in.weight"].T + twin["project_in.bias"])
    codes = unit(twin["code_vectors"])
    loss, winners = vq_loss(projected, codes)
    assert winners.equal((projected @ codes.T).argmax(dim=1))
    estimate = projected + (codes[winners] - projected).detach()
    quantized = estimate @ twin["project_out.weight"].T + twin["project_out.bias"]
    out = quantizer(z)
    assert out.indices.equal(winners)
    torch.testing.assert_close(out.loss.double(), loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(out.quantized.double(), quantized, rtol=1e-5, atol=1e-6)
    ours = torch.autograd.grad(out.loss + (out.quantized * upstream).sum(), [z, *quantizer.parameters()])
    expected = torch.autograd.grad(loss + (quantized * upstream.double()).sum(), [z64, *parameters])
    for gradient, reference in zip(ours, expected, strict=True):
        torch.testing.assert_close(gradient.double(), reference, rtol=1e-4, atol=1e-5)


def test_ema_vq():
    decay, eps = 0.9, 1e-5
    quantizer = EMAVQ(DIM, K, decay=decay, eps=eps)
    codes = quantizer.codebook.double()
    sizes, sums = torch.ones(K, dtype=torch.float64), codes.clone()
    for _ in range(3):
        z = torch.randn(N, DIM)
        winners = squared_distances(z.double(), codes).argmin(dim=1)
        commitment = 0.25 * (z.double() - codes[winners]).square().mean()
        hot = nn.functional.one_hot(winners, K).double()
        sizes = decay * sizes + (1 - decay) * hot.sum(dim=0)
        sums = decay * sums + (1 - decay) * hot.T @ z.double()
        smoothed = (sizes + eps) / (sizes.sum() + K * eps) * sizes.sum()
        looked_up = codes[winners]
        codes = sums / smoothed[:, None]
        out = quantizer(z)
        assert out.indices.equal(winners)
        torch.testing.assert_close(out.loss.double(), commitment, rtol=1e-6, atol=0)
        torch.testing.assert_close(out.quantized.double(), looked_up, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(quantizer.codebook.double(), codes, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(quantizer.cluster_sizes.double(), sizes, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(quantizer.latent_sums.double(), sums, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ema_sums_keep_their_precision_in_a_half_module(dtype):
    quantizer = EMAVQ(dim=1, codebook_size=1).to(dtype)
    for _ in range(600):
        quantizer(torch.full((1000, 1), 2.0, dtype=dtype))
    # γ^600 of the start's weight 1 at place 0 against 1 − γ^600 of 1000 latents at 2.
    assert quantizer.codebook.item() == pytest.approx(2.0, rel=5e-3)
    assert quantizer.cluster_sizes.dtype == torch.float32
    quantizer(torch.full((70_000, 1), 2.0, dtype=dtype))
    assert quantizer.codebook.isfinite().all()
