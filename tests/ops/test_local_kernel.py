"""The kernel loss with a bandwidth for each code, against plain autograd."""

import pytest
import torch

from nsvq.ops import code_distances, kernel_codebook_loss, local_kernel_codebook_loss


def plain(latents, codes, bandwidths, weight):
    """The formula as it stands, in float64."""
    latents, bandwidths = latents.double(), bandwidths.double()
    distances = (latents[:, None] - codes[None]).square().sum(dim=2)
    weights = weight * torch.exp(-distances / bandwidths)
    indices = distances.argmin(dim=1)
    weights[torch.arange(len(latents)), indices] = 1
    return (weights.detach() * distances).sum() / latents.numel(), indices


def problem(dtype=torch.float64, count=40, size=12, dim=3, offset=0.0):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(count, dim, generator=generator, dtype=torch.float64) + offset
    codes = 2 * torch.randn(size, dim, generator=generator, dtype=torch.float64) + offset
    return latents.to(dtype), codes.to(dtype).requires_grad_()


@pytest.mark.parametrize("memory_cap", [None, 1, 700])
@pytest.mark.parametrize("factor", [1e-3, 0.5, 1.0, 30.0])
def test_loss_and_gradient_are_those_of_the_formula(factor, memory_cap):
    latents, codes = problem()
    bandwidths = factor * code_distances(latents, codes)
    sweep = local_kernel_codebook_loss(latents, codes, bandwidths, 0.5, memory_cap)
    (3 * sweep.loss).backward()
    reference = codes.detach().clone().requires_grad_()
    loss, indices = plain(latents, reference, bandwidths, 0.5)
    (3 * loss).backward()
    torch.testing.assert_close(sweep.loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(codes.grad, reference.grad, rtol=1e-10, atol=1e-14)
    assert sweep.indices.equal(indices)
    assert sweep.winner_distance == pytest.approx(float((latents - codes[indices]).square().sum(dim=1).mean()))


def test_float32_far_from_the_origin_keeps_its_digits():
    latents, codes = problem(torch.float32, offset=1e3)
    bandwidths = code_distances(latents, codes)
    local_kernel_codebook_loss(latents, codes, bandwidths, 0.5).loss.backward()
    reference = codes.detach().double().requires_grad_()
    plain(latents, reference, bandwidths, 0.5)[0].backward()
    assert (codes.grad - reference.grad).abs().max() < 1e-5 * reference.grad.abs().max()


def test_equal_bandwidths_give_the_gaussian_kernel():
    latents, codes = problem()
    local = local_kernel_codebook_loss(latents, codes, torch.full((12,), 0.7), 0.5)
    one = kernel_codebook_loss(latents, codes, "gaussian", 0.7, 0.5)
    torch.testing.assert_close(local.loss, one.loss)
    gradients = [torch.autograd.grad(sweep.loss, codes)[0] for sweep in (local, one)]
    torch.testing.assert_close(*gradients)


def test_a_code_is_pulled_to_its_nearest_latent_however_far_it_is():
    latents = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    for distance in (10.0, 1e4):
        codes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, distance]], dtype=torch.float64, requires_grad=True)
        bandwidths = code_distances(latents, codes)
        assert bandwidths.tolist() == [0, 0, distance**2]
        local_kernel_codebook_loss(latents, codes, bandwidths, 0.5).loss.backward()
        # Both latents weigh ½·exp(−1) nearly, and the loss is the sum over pairs divided by N·d.
        assert codes.grad[2, 1].item() == pytest.approx(0.5 * 2.718281828**-1 * distance, rel=0.01)
        assert codes.grad[:2].abs().max() == 0


def test_scaling_latents_and_codes_changes_the_loss_by_the_square_of_the_scale():
    latents, codes = problem()
    small = local_kernel_codebook_loss(latents, codes, code_distances(latents, codes), 0.5).loss
    latents, codes = 1e-3 * latents, 1e-3 * codes
    torch.testing.assert_close(
        local_kernel_codebook_loss(latents, codes, code_distances(latents, codes), 0.5).loss, 1e-6 * small
    )


def test_what_cannot_be_is_refused():
    latents, codes = problem()
    with pytest.raises(ValueError, match="expected a bandwidth for each of 12 codes, got"):
        local_kernel_codebook_loss(latents, codes, torch.ones(3), 0.5)
    with pytest.raises(ValueError, match="neighbor_weight must be at least 0 and finite, got -1"):
        local_kernel_codebook_loss(latents, codes, torch.ones(12), -1)
    loss = local_kernel_codebook_loss(latents, codes, torch.ones(12, dtype=torch.float64), 0.5).loss
    (gradient,) = torch.autograd.grad(loss, codes, create_graph=True)
    with pytest.raises((NotImplementedError, RuntimeError)):
        gradient.sum().backward()
