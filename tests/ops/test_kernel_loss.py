import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nsvq.ops import KERNELS, kernel_codebook_loss, nearest_codes
from nsvq.ops.kernel_sweep import sweep_tiles

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


@pytest.mark.parametrize("memory_cap", [1, 4 * 7, 4 * K, 4 * 5 * K, 4 * (N - 1) * K, 10**6, None])
@pytest.mark.parametrize("bandwidth", [1e-8, 0.1, 1.0, 1e4])
@pytest.mark.parametrize("kernel", KERNELS)
def test_float32_agrees_with_float64_for_every_block_size(kernel, bandwidth, memory_cap):
    latents = torch.randn(N, D)
    codes = torch.randn(K, D, requires_grad=True)
    arguments = (kernel, bandwidth, WEIGHT[kernel])
    sweep = kernel_codebook_loss(latents, codes, *arguments, memory_cap)
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
    sweep = kernel_codebook_loss(latents, codes, kernel, 1.0, WEIGHT[kernel], memory_cap=8 * 4 * K)
    assert sweep.indices.equal(nearest_codes(latents, codes))
    expected = (latents - codes[sweep.indices]).square().sum(dim=1).mean()
    torch.testing.assert_close(sweep.winner_distance, expected)


@pytest.mark.parametrize("k", [2, 5, 31])
@pytest.mark.parametrize("d", [8, 37])
def test_duplicated_codes_have_the_lowest_index_as_winner(k, d):
    unique = torch.randn(k, d)
    codes = torch.cat([unique, unique.flip(0), unique])
    assert kernel_codebook_loss(torch.randn(N, d), codes, "gaussian", 1.0, 0.5).indices.max() < k


@pytest.mark.parametrize("memory_cap", [4, 4 * 5 * N, 4 * 3 * K, None])
@pytest.mark.parametrize("bandwidth", [1e-8, 0.1, 10.0])
@pytest.mark.parametrize("kernel", KERNELS)
def test_equal_codes_have_the_lowest_as_winner_and_the_others_as_neighbors(kernel, bandwidth, memory_cap):
    unique = torch.randn(K, D)
    codes = torch.cat([unique, unique.flip(0), unique]).requires_grad_()
    latents = torch.cat([torch.randn(N, D), unique[:10]])
    arguments = (kernel, bandwidth, WEIGHT[kernel])
    sweep = kernel_codebook_loss(latents, codes, *arguments, memory_cap)
    sweep.loss.backward()
    loss, gradient = plain_loss_and_gradient(latents, codes, *arguments)
    torch.testing.assert_close(sweep.loss.double(), loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(codes.grad.double(), gradient, rtol=0, atol=1e-5 * gradient.abs().max().item())
    assert sweep.indices.max() < K


@pytest.mark.parametrize("memory_cap", [8 * N * 16, 8 * N * 64, None])
@pytest.mark.parametrize("bandwidth", [1e-6, 1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("kernel", KERNELS)
def test_leaving_out_weights_that_vanish_changes_nothing(kernel, bandwidth, memory_cap):
    codes = torch.randn(1000, 2, dtype=torch.float64, requires_grad=True)
    latents = torch.randn(N, 2, dtype=torch.float64)
    arguments = (kernel, bandwidth, WEIGHT[kernel])
    sweep = kernel_codebook_loss(latents, codes, *arguments, memory_cap)
    sweep.loss.backward()
    loss, gradient = plain_loss_and_gradient(latents, codes, *arguments)
    torch.testing.assert_close(sweep.loss, loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(codes.grad, gradient, rtol=0, atol=1e-9 * gradient.abs().max().item())


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
def test_nothing_of_latents_times_codes_is_made(kernel):
    n, k, d, rows = 500, 300, 4, 10
    with LargestResult() as largest:
        sweep_tiles(torch.randn(n, d), torch.randn(k, d), kernel, 1.0, WEIGHT[kernel], 4 * rows * k)
    assert rows * k <= largest.elements <= 5 * n * d


@pytest.mark.parametrize("kernel", KERNELS)
def test_backward_keeps_no_more_than_a_gradient_of_the_codes(kernel):
    saved = []
    codes = torch.randn(300, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        kernel_codebook_loss(torch.randn(500, 4), codes, kernel, 1.0, WEIGHT[kernel]).loss.backward()
    assert saved
    assert max(saved) <= codes.numel()


def test_a_second_derivative_is_refused():
    codes = torch.randn(K, D, requires_grad=True)
    loss = kernel_codebook_loss(torch.randn(N, D), codes, "gaussian", 1.0, 0.5).loss
    (gradient,) = torch.autograd.grad(loss, codes, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        gradient.sum().backward()


def test_a_forward_mode_derivative_is_refused():
    codes = torch.randn(K, D)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(
            lambda c: kernel_codebook_loss(torch.randn(N, D), c, "gaussian", 1.0, 0.5).loss, (codes,), (codes,)
        )


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


@pytest.mark.parametrize(
    ("kernel", "weight", "expected"),
    [
        ("gaussian", 0.5, lambda e: 0.5 * e),
        ("softmax", 0.1, lambda e: 0.1 * e / (1 + e)),
        ("clamped_softmax", 0.4, lambda e: 2 * 0.4 * e / (1 + e)),
        ("clamped_softmax", 9.0, lambda e: 1.0),
    ],
)
def test_one_pair_by_hand(kernel, weight, expected):
    latents = torch.zeros(1, 1, dtype=torch.float64)
    codes = torch.tensor([[1.0], [2.0]], dtype=torch.float64, requires_grad=True)
    sweep = kernel_codebook_loss(latents, codes, kernel, 3.0, weight)
    sweep.loss.backward()
    neighbor = expected(math.exp(-(4 - 1) / 3.0) if kernel != "gaussian" else math.exp(-4 / 3.0))
    torch.testing.assert_close(sweep.loss.item(), 1 + neighbor * 4)
    torch.testing.assert_close(codes.grad.flatten().tolist(), [2.0, neighbor * 4.0])


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, math.nan, math.inf])
def test_a_bandwidth_that_is_none_is_refused(bandwidth):
    for value in (bandwidth, torch.tensor(bandwidth)):
        with pytest.raises(ValueError, match="bandwidth must be above 0 and finite"):
            kernel_codebook_loss(torch.randn(N, D), torch.randn(K, D), "gaussian", value, 0.5)


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_a_neighbor_weight_that_is_none_is_refused(weight):
    with pytest.raises(ValueError, match="neighbor_weight must be at least 0 and finite"):
        kernel_codebook_loss(torch.randn(N, D), torch.randn(K, D), "gaussian", 1.0, weight)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_loss_beyond_the_type_is_refused(kernel):
    codes = torch.randn(200, D)
    codes[17] = 1e20
    with pytest.raises(ValueError, match=r"overflow torch\.float32"):
        kernel_codebook_loss(torch.randn(N, D), codes, kernel, 1.0, 0.5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_sum_of_distances_beyond_the_type_is_refused(kernel):
    with pytest.raises(ValueError, match=r"overflow torch\.float32"):
        kernel_codebook_loss(3e18 * torch.randn(1000, D), torch.randn(K, D), kernel, 1.0, 0.5)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_least_bandwidth_meets_every_scale(kernel, scale):
    latents, codes = scale * torch.randn(N, D), (scale * torch.randn(K, D)).requires_grad_()
    sweep = kernel_codebook_loss(latents, codes, kernel, 1e-8, WEIGHT[kernel])
    sweep.loss.backward()
    loss, gradient = plain_loss_and_gradient(latents, codes, kernel, 1e-8, WEIGHT[kernel])
    torch.testing.assert_close(sweep.loss.double(), loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(codes.grad.double(), gradient, rtol=0, atol=1e-5 * gradient.abs().max().item())


@pytest.mark.parametrize("kernel", KERNELS)
def test_only_latents_with_a_weight_in_a_tile_reach_the_exponential(kernel, monkeypatch):
    exponentials = []
    exp2_ = torch.Tensor.exp2_
    monkeypatch.setattr(torch.Tensor, "exp2_", lambda x: exponentials.append(x.numel()) or exp2_(x))
    monkeypatch.setattr("nsvq.ops.blocks.CPU_TILE", N * 16)
    latents, codes = torch.randn(N, 2), torch.randn(1000, 2)
    counts = []
    for bandwidth in (1e2, 1e-4):
        exponentials.clear()
        sweep_tiles(latents, codes, kernel, bandwidth, 0.1, None)
        counts.append(sum(exponentials))
    assert counts[0] == N * 1000
    assert 0 < counts[1] < 0.2 * N * 1000


def test_codes_that_get_nearer_tile_by_tile_are_not_piled_up():
    """Every code of a latent is its best one until the next tile: the worst case of what is put back."""
    latents, codes = torch.zeros(1000, 1), torch.linspace(9, 1, 500)[:, None]
    with LargestResult() as largest:
        sweep = sweep_tiles(latents, codes, "gaussian", 5.0, 0.5, 4 * 1000)
    assert largest.elements < 5_000
    loss, _ = plain_loss(latents.double(), codes.double(), "gaussian", 5.0, 0.5)
    torch.testing.assert_close(sweep.loss.double(), loss, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "codes", [torch.randn(D, K).T, torch.randn(D, 3).T.repeat(4, 1), torch.randn(1, D).expand(K, D)]
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_operators_keep_torchs_rules(kernel, codes):
    latents = torch.randn(D, N).T
    rules = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.nsvq.search.default, (latents, codes, None), test_utils=rules)
    arguments = (latents, codes.clone().requires_grad_(), kernel, torch.tensor(1.0), 0.5, None)
    torch.library.opcheck(torch.ops.nsvq.kernel_sweep.default, arguments, test_utils=rules)
