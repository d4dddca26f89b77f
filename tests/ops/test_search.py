import pytest
import torch

from nsvq.ops import KERNELS, kernel_codebook_loss, nearest_codes
from nsvq.ops.blocks import row_blocks


def squared_distances(latents, codes):
    return (latents.double()[:, None] - codes.double()[None]).square().sum(dim=2)


@pytest.mark.parametrize(
    ("n", "k", "d"), [(1, 1, 1), (7, 1, 3), (33, 2, 5), (50, 129, 8), (200, 64, 64), (17, 300, 1), (64, 1024, 16)]
)
def test_nearest_codes_equal_brute_force(n, k, d):
    latents, codes = torch.randn(n, d), torch.randn(k, d)
    indices = nearest_codes(latents, codes)
    assert indices.dtype == torch.int64
    assert indices.equal(squared_distances(latents, codes).argmin(dim=1))


@pytest.mark.parametrize("block_size", [1, 2, 7, 40, 41, 1000, None])
def test_block_size_does_not_change_the_result(block_size):
    latents, codes = torch.randn(41, 6), torch.randn(23, 6)
    assert nearest_codes(latents, codes, block_size).equal(squared_distances(latents, codes).argmin(dim=1))


def test_many_blocks_fit_the_default_memory_cap(monkeypatch):
    monkeypatch.setattr("nsvq.ops.blocks.BLOCK_BYTES", 5 * 23 * 4)
    assert [(b.start, b.stop) for b in row_blocks(12, 23, torch.float32)] == [(0, 5), (5, 10), (10, 12)]
    latents, codes = torch.randn(41, 6), torch.randn(23, 6)
    assert nearest_codes(latents, codes).equal(squared_distances(latents, codes).argmin(dim=1))


def test_one_row_larger_than_the_memory_cap_is_still_a_block(monkeypatch):
    monkeypatch.setattr("nsvq.ops.blocks.BLOCK_BYTES", 1)
    assert len(list(row_blocks(3, 10, torch.float32))) == 3


@pytest.mark.parametrize("block_size", [0, -1])
def test_block_size_below_one_is_refused(block_size):
    with pytest.raises(ValueError, match="block_size"):
        nearest_codes(torch.randn(3, 2), torch.randn(4, 2), block_size)


@pytest.mark.parametrize("k", [2, 5, 31, 64, 257])
@pytest.mark.parametrize("d", [1, 3, 8, 37])
@pytest.mark.parametrize("block_size", [1, 3, None])
def test_duplicated_codes_go_to_the_lowest_index(k, d, block_size):
    unique = torch.randn(k, d)
    codes = torch.cat([unique, unique.flip(0), unique])
    indices = nearest_codes(torch.randn(50, d), codes, block_size)
    assert indices.max() < k


def test_all_codes_equal_gives_index_zero():
    assert nearest_codes(torch.randn(9, 4), torch.randn(1, 4).expand(6, 4)).eq(0).all()


@pytest.mark.parametrize("offset", [1e3, -1e3])
def test_an_offset_of_both_sides_costs_no_digits(offset):
    latents, codes = torch.randn(300, 16) + offset, torch.randn(100, 16) + offset
    assert nearest_codes(latents, codes).equal(squared_distances(latents, codes).argmin(dim=1))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_types_are_compared_in_float32(half):
    latents, codes = torch.randn(400, 32).to(half), torch.randn(200, 32).to(half)
    truth = squared_distances(latents, codes).argmin(dim=1)
    assert nearest_codes(latents, codes).equal(truth)
    assert nearest_codes(latents, codes.float()).equal(truth)
    assert nearest_codes(latents.float(), codes).equal(truth)
    assert not (latents @ codes.T * 2 - codes.square().sum(dim=1)).argmax(dim=1).equal(truth)


def test_float64_is_not_lowered():
    codes = torch.tensor([[1.0, 0.0], [1.0 + 1e-12, 0.0]], dtype=torch.float64)
    latents = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    assert nearest_codes(latents, codes).item() == 1
    assert nearest_codes(latents.float(), codes).item() == 1


def test_no_latents_give_no_indices():
    assert nearest_codes(torch.randn(0, 4), torch.randn(6, 4)).shape == (0,)


def test_the_search_keeps_no_graph():
    codes = torch.randn(6, 4, requires_grad=True)
    assert not nearest_codes(torch.randn(5, 4, requires_grad=True), codes).requires_grad


@pytest.mark.parametrize("kernel", KERNELS)
def test_autocast_changes_neither_search_nor_kernel_loss(kernel):
    latents, codes = torch.randn(400, 16), torch.randn(64, 16)
    indices = nearest_codes(latents, codes)
    loss = kernel_codebook_loss(latents, codes, kernel, 1.0, 0.1).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_codes(latents, codes), indices)
        lowered = kernel_codebook_loss(latents, codes, kernel, 1.0, 0.1)
    assert torch.equal(lowered.indices, indices)
    assert torch.equal(lowered.loss, loss)
