import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nsvq.ops import KERNELS, kernel_codebook_loss, kernel_weights, nearest_codes

N, K, D = 60, 37, 5
WEIGHT = {"gaussian": 0.5, "clamped_softmax": 0.3, "softmax": 0.1}
BANDWIDTHS = [1e-8, 1e-3, 0.1, 1.0, 30.0, 1e4]


def plain_loss(latents, codes, kernel, bandwidth, neighbor_weight):
    distances = (latents[:, None] - codes[None]).square().sum(dim=2)
    scaled = -distances.detach() / bandwidth
    if kernel == "gaussian":
        weights = neighbor_weight * scaled.exp()
    else:
        exponentials = (scaled - scaled.amax(dim=1, keepdim=True)).exp()
        weights = neighbor_weight * exponentials / exponentials.sum(dim=1, keepdim=True)
        if kernel == "clamped_softmax":
            weights = (weights * len(codes)).clamp(max=1)
    winners = distances.argmin(dim=1)
    weights[torch.arange(len(latents)), winners] = 1
    return (weights * distances).sum() / latents.numel(), winners


def plain_loss_and_gradient(latents, codes, *kernel_arguments):
    codes = codes.detach().double().requires_grad_()
    loss, _ = plain_loss(latents.double(), codes, *kernel_arguments)
    return loss.detach(), *torch.autograd.grad(loss, codes)


@pytest.mark.parametrize("bandwidth", BANDWIDTHS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_loss_and_gradient_equal_autograd_through_the_plain_formula(kernel, bandwidth):
    latents = torch.randn(N, D, dtype=torch.float64)
    codes = torch.randn(K, D, dtype=torch.float64, requires_grad=True)
    arguments = (kernel, bandwidth, WEIGHT[kernel])
    sweep = kernel_codebook_loss(latents, codes, *arguments)
    (3 * sweep.loss).backward()
    loss, gradient = plain_loss_and_gradient(latents, codes, *arguments)
    torch.testing.assert_close(sweep.loss, loss, rtol=1e-10, atol=0)
    torch.testing.assert_close(codes.grad, 3 * gradient, rtol=1e-10, atol=1e-10 * gradient.abs().max().item())
    assert sweep.loss.dtype == codes.grad.dtype == torch.float64


@pytest.mark.parametrize("block_size", [1, 7, N - 1, N, 10 * N, None])
@pytest.mark.parametrize("bandwidth", [1e-8, 0.1, 1.0, 1e4])
@pytest.mark.parametrize("kernel", KERNELS)
def test_float32_agrees_with_float64_for_every_block_size(kernel, bandwidth, block_size):
    latents = torch.randn(N, D)
    codes = torch.randn(K, D, requires_grad=True)
    arguments = (kernel, bandwidth, WEIGHT[kernel])
    sweep = kernel_codebook_loss(latents, codes, *arguments, block_size)
    sweep.loss.backward()
    loss, gradient = plain_loss_and_gradient(latents, codes, *arguments)
    assert sweep.loss.dtype == torch.float32
    torch.testing.assert_close(sweep.loss.double(), loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(codes.grad.double(), gradient, rtol=0, atol=1e-5 * gradient.abs().max().item())


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_offset_of_both_sides_costs_no_digits(kernel):
    latents = torch.randn(N, D) + 1e3
    codes = (torch.randn(K, D) + 1e3).requires_grad_()
    sweep = kernel_codebook_loss(latents, codes, kernel, 1.0, WEIGHT[kernel])
    sweep.loss.backward()
    loss, gradient = plain_loss_and_gradient(latents, codes, kernel, 1.0, WEIGHT[kernel])
    torch.testing.assert_close(sweep.loss.double(), loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(codes.grad.double(), gradient, rtol=0, atol=2e-5 * gradient.abs().max().item())


@pytest.mark.parametrize("kernel", KERNELS)
def test_latents_on_their_codes_give_no_winner_loss(kernel):
    codes = torch.randn(K, D)
    sweep = kernel_codebook_loss(codes + 0, codes, kernel, 1e-8, WEIGHT[kernel])
    assert sweep.winner_distance == 0
    assert sweep.indices.equal(torch.arange(K))
    assert 0 <= sweep.loss < 1e-6


def test_latents_close_to_far_flung_codes_keep_the_digits_of_their_distance():
    codes = 5 * torch.randn(K, 64)
    latents = codes + 1e-4 * torch.randn(K, 64)
    sweep = kernel_codebook_loss(latents, codes, "gaussian", 1.0, 0.5)
    expected = (latents.double() - codes.double()).square().sum(dim=1).mean()
    torch.testing.assert_close(sweep.winner_distance.double(), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(sweep.loss.double(), expected / 64, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_indices_and_winner_distance_are_those_of_the_search(kernel):
    latents, codes = torch.randn(N, D), torch.randn(K, D)
    sweep = kernel_codebook_loss(latents, codes, kernel, 1.0, WEIGHT[kernel], block_size=8)
    assert sweep.indices.equal(nearest_codes(latents, codes))
    expected = (latents - codes[sweep.indices]).square().sum(dim=1).mean()
    torch.testing.assert_close(sweep.winner_distance, expected)


@pytest.mark.parametrize("k", [2, 5, 31])
@pytest.mark.parametrize("d", [8, 37])
def test_duplicated_codes_have_the_lowest_index_as_winner(k, d):
    unique = torch.randn(k, d)
    codes = torch.cat([unique, unique.flip(0), unique])
    assert kernel_codebook_loss(torch.randn(N, d), codes, "gaussian", 1.0, 0.5).indices.max() < k


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_code_alone_is_pulled_by_every_latent_as_in_plain_vq(kernel):
    latents, code = torch.randn(N, D), torch.randn(1, D, requires_grad=True)
    sweep = kernel_codebook_loss(latents, code, kernel, 1.0, WEIGHT[kernel])
    sweep.loss.backward()
    torch.testing.assert_close(sweep.loss, (latents - code).square().mean())
    torch.testing.assert_close(code.grad, 2 * (code - latents).sum(dim=0, keepdim=True) / latents.numel())


@pytest.mark.parametrize("kernel", KERNELS)
def test_codes_that_win_nothing_are_pulled_towards_the_latents(kernel):
    latents = torch.randn(N, D)
    codes = torch.cat([latents[:5], torch.full((1, D), 4.0)]).requires_grad_()
    sweep = kernel_codebook_loss(latents, codes, kernel, 10.0, WEIGHT[kernel])
    assert 5 not in sweep.indices
    sweep.loss.backward()
    assert codes.grad[5].gt(0).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_latents_receive_no_gradient(kernel):
    latents = torch.randn(N, D, requires_grad=True)
    codes = torch.randn(K, D, requires_grad=True)
    kernel_codebook_loss(latents, codes, kernel, 1.0, WEIGHT[kernel]).loss.backward()
    assert latents.grad is None
    assert codes.grad.any()


class LargestResult(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_of_latents_times_codes_is_saved_or_made(kernel):
    n, k, d, block_size = 500, 300, 4, 10
    saved = []
    codes = torch.randn(k, d, requires_grad=True)
    largest = LargestResult()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t), largest:
        loss = kernel_codebook_loss(torch.randn(n, d), codes, kernel, 1.0, WEIGHT[kernel], block_size).loss
        held = [t.numel() for t in vars(loss.grad_fn).values() if isinstance(t, torch.Tensor)]
        loss.backward()
    assert saved
    assert max(saved + held) <= k * d
    assert largest.elements == block_size * k


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_types_are_raised_and_the_gradient_returns_in_the_codes_type(half):
    latents, codes = torch.randn(N, D).to(half), torch.randn(K, D).to(half).requires_grad_()
    sweep = kernel_codebook_loss(latents, codes, "gaussian", 1.0, 0.5)
    sweep.loss.backward()
    loss, gradient = plain_loss_and_gradient(latents, codes, "gaussian", 1.0, 0.5)
    assert sweep.loss.dtype == torch.float32
    torch.testing.assert_close(sweep.loss.double(), loss, rtol=1e-5, atol=0)
    assert codes.grad.dtype == half
    torch.testing.assert_close(codes.grad.double(), gradient, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_of_shards_average_to_the_gradient_of_the_whole(kernel):
    latents, codes = torch.randn(2 * N, D), torch.randn(K, D, requires_grad=True)

    def gradient(part):
        sweep = kernel_codebook_loss(part, codes, kernel, 1.0, WEIGHT[kernel])
        return torch.autograd.grad(sweep.loss, codes)[0]

    shards = (gradient(latents[:N]) + gradient(latents[N:])) / 2
    torch.testing.assert_close(shards, gradient(latents), rtol=1e-5, atol=1e-6)


def test_no_latents_give_a_zero_loss_and_gradient():
    codes = torch.randn(K, D, requires_grad=True)
    sweep = kernel_codebook_loss(torch.randn(0, D), codes, "gaussian", 1.0, 0.5)
    sweep.loss.backward()
    assert sweep.loss == sweep.winner_distance == 0
    assert not codes.grad.any()


def test_an_unknown_kernel_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'cauchy'.*gaussian, clamped_softmax, softmax"):
        kernel_codebook_loss(torch.randn(N, D), torch.randn(K, D), "cauchy", 1.0, 0.5)


def test_kernel_weights_by_hand():
    distances = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    e = torch.tensor(-1.0, dtype=torch.float64).exp()
    rows = {
        "gaussian": [0.5, 0.5 * e],
        "softmax": [0.1 / (1 + e), 0.1 * e / (1 + e)],
        "clamped_softmax": [1.0, 2 * 0.9 * e / (1 + e)],
    }
    for kernel, weight in (("gaussian", 0.5), ("softmax", 0.1), ("clamped_softmax", 0.9)):
        actual = kernel_weights(distances.clone(), kernel, 2.0, weight)
        torch.testing.assert_close(actual, torch.tensor([rows[kernel]], dtype=torch.float64))
