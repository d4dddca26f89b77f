import pytest
import torch

from nsvq.ops import KERNELS, kernel_codebook_loss, nearest_codes
from nsvq.ops.blocks import tile_shape
from nsvq.ops.duplicates import distinct_codes
from nsvq.ops.scores import CHUNK


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


@pytest.mark.parametrize("memory_cap", [1, 4, 8, 200, 41 * 4, 4 * 41 * CHUNK, 4 * 41 * 3 * CHUNK, 10**6, None])
def test_the_memory_cap_does_not_change_the_result(memory_cap):
    latents, codes = torch.randn(41, 6), torch.randn(5 * CHUNK + 3, 6)
    indices = nearest_codes(latents, codes, memory_cap=memory_cap)
    assert indices.equal(squared_distances(latents, codes).argmin(dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("keep_columns", [False, True])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 5), (4096, 1024), (16384, 65536), (1, 262144), (10**6, 3)])
@pytest.mark.parametrize("memory_cap", [None, 10**3, 2**20, 2**24])
def test_tiles_fit_the_memory_cap(n, k, memory_cap, keep_columns, device, dtype):
    rows, columns = tile_shape(n, k, dtype, torch.device(device), memory_cap, keep_columns)
    assert 1 <= rows <= n
    assert 1 <= columns <= k
    held = rows * (k if keep_columns else columns) * dtype.itemsize
    assert held <= (memory_cap or 256 * 2**20) or (keep_columns and rows == 1)


def test_one_latent_larger_than_the_memory_cap_is_still_a_block():
    assert tile_shape(3, 10, torch.float32, torch.device("cpu"), 1) == (1, 1)
    assert tile_shape(3, 10, torch.float32, torch.device("cpu"), 8, keep_columns=True) == (1, 2)


@pytest.mark.parametrize("memory_cap", [0, -1])
def test_a_memory_cap_below_one_is_refused(memory_cap):
    with pytest.raises(ValueError, match="memory_cap"):
        nearest_codes(torch.randn(3, 2), torch.randn(4, 2), memory_cap=memory_cap)


@pytest.mark.parametrize("k", [2, 5, 31, 64, 257])
@pytest.mark.parametrize("d", [1, 3, 8, 37])
@pytest.mark.parametrize("memory_cap", [4, 12, None])
def test_duplicated_codes_go_to_the_lowest_index(k, d, memory_cap):
    unique = torch.randn(k, d)
    codes = torch.cat([unique, unique.flip(0), unique])
    indices = nearest_codes(torch.randn(50, d), codes, memory_cap=memory_cap)
    assert indices.max() < k


def test_distinct_codes_equal_a_plain_search():
    codes = torch.randint(0, 2, (300, 5)).float()
    codes[::7] = torch.randn(43, 5)
    codes[100:110] = codes[0]
    codes[110, 0] = -0.0
    lowest = [min(j for j in range(300) if codes[j].equal(codes[i])) for i in range(300)]
    first, group = distinct_codes(codes)
    assert first.tolist() == sorted(set(lowest))
    assert first[group].tolist() == lowest


def test_codes_that_share_single_components_are_distinct():
    codes = torch.randn(50, 4)
    codes[:, 0] = 1.0
    assert distinct_codes(codes) is None
    assert distinct_codes(torch.randn(50, 4)) is None
    assert distinct_codes(torch.randn(1, 4)) is None


def test_latents_far_from_all_codes_lose_no_digits_to_their_norm():
    codes = 1e-6 * torch.randn(200, 16)
    latents = torch.randn(300, 16)
    assert nearest_codes(latents, codes).equal(squared_distances(latents, codes).argmin(dim=1))


def test_the_cosine_knows_no_lengths():
    latents, codes = torch.randn(200, 12), torch.randn(90, 12)
    indices = nearest_codes(latents, codes, metric="cosine")
    cosine = torch.nn.functional.cosine_similarity(latents.double()[:, None], codes.double()[None], dim=2)
    assert indices.equal(cosine.argmax(dim=1))
    assert not indices.equal(nearest_codes(latents, codes))
    lengths = torch.rand(90, 1) + 0.5
    assert nearest_codes(3 * latents, lengths * codes, metric="cosine").equal(indices)


def test_an_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'manhattan'.*euclidean, cosine"):
        nearest_codes(torch.randn(3, 2), torch.randn(4, 2), metric="manhattan")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["latents", "codes"])
def test_values_that_are_not_finite_are_refused(name, value):
    sides = {"latents": torch.randn(1000, 3), "codes": torch.randn(300, 3)}
    sides[name][200, 1] = value
    with pytest.raises(ValueError, match=f"{name} with non-finite values"):
        nearest_codes(**sides)
    for kernel in KERNELS:
        with pytest.raises(ValueError, match=f"{name} with non-finite values"):
            kernel_codebook_loss(**sides, kernel=kernel, bandwidth=1.0, neighbor_weight=0.1)


def test_distances_beyond_the_type_are_refused():
    with pytest.raises(ValueError, match=r"overflow torch\.float32"):
        nearest_codes(torch.full((3, 2), 1e30), torch.tensor([[1e30, 0.0], [-1e30, 0.0]]))
    assert nearest_codes(torch.full((3, 2), 1e30).double(), torch.tensor([[1e30, 0.0], [-1e30, 0.0]])).eq(0).all()


@pytest.mark.parametrize(
    ("latents", "codes", "message"),
    [
        (torch.randn(3, 1), torch.randn(5, 4), r"latents \(3, 1\) and codes \(5, 4\)"),
        (torch.randn(3, 4), torch.randn(5, 1), r"latents \(3, 4\) and codes \(5, 1\)"),
        (torch.randn(3), torch.randn(5, 3), r"latents \(3,\)"),
        (torch.randn(3, 4), torch.randn(0, 4), r"K and d above 0"),
        (torch.randn(3, 0), torch.randn(5, 0), r"K and d above 0"),
        (torch.zeros(3, 4, dtype=torch.int64), torch.randn(5, 4), r"latents of a floating type, got torch\.int64"),
        (
            torch.randn(3, 4),
            torch.randn(5, 4, dtype=torch.complex64),
            r"codes of a floating type, got torch\.complex64",
        ),
    ],
)
def test_sides_that_do_not_fit_are_refused(latents, codes, message):
    with pytest.raises(ValueError, match=message):
        nearest_codes(latents, codes)
    with pytest.raises(ValueError, match=message):
        kernel_codebook_loss(latents, codes, "gaussian", 1.0, 0.5)


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
@pytest.mark.parametrize("copies", [1, 2])
def test_autocast_changes_neither_search_nor_kernel_loss(kernel, copies):
    latents, codes = torch.randn(400, 16), torch.randn(64, 16).repeat(copies, 1)
    indices = nearest_codes(latents, codes)
    loss = kernel_codebook_loss(latents, codes, kernel, 1.0, 0.1).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_codes(latents, codes), indices)
        lowered = kernel_codebook_loss(latents, codes, kernel, 1.0, 0.1)
    assert torch.equal(lowered.indices, indices)
    assert torch.equal(lowered.loss, loss)
