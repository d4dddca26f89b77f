"""Rows of a global batch: the order of one process, whatever the number of ranks."""

import math

import pytest
import torch
import torch.distributed as dist

from nsvq.distributed import GlobalRows, all_reduce_min, rank, world_size

IMAGES, TOKENS, DIM = 12, 3, 2


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


def global_batch(dtype=torch.float32):
    rows = torch.randn(IMAGES, TOKENS, DIM, generator=torch.Generator().manual_seed(1)).to(dtype)
    # Sums of floats lose the sign of zero and the payload of a NaN.
    rows[4, 0, 0], rows[7, 2, 1], rows[0, 1, 0] = -0.0, math.nan, math.inf
    return rows


def taken_when_dealt(rows, positions):
    """Deal images out in turn, as `DistributedSampler` does, and take rows of the global batch."""
    share = GlobalRows(rows[rank() :: world_size()])
    return len(share), share.positions, share.take(positions)


@pytest.fixture(params=["rank_pool", "rank_pool_of_three"])
def ranks(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_all_ranks_take_the_rows_of_one_process_bit_for_bit(ranks, dtype):
    rows = global_batch(dtype)
    positions = torch.cat([torch.randint(IMAGES * TOKENS, (50,)), torch.tensor([12, 23, 1])])
    expected = rows.flatten(0, 1)[positions]
    for length, _, taken in ranks.run(taken_when_dealt, rows, positions):
        assert length == IMAGES * TOKENS
        assert bits(taken).equal(bits(expected))
    assert bits(taken_when_dealt(rows, positions)[2]).equal(bits(expected))


@pytest.mark.parametrize("images", [7, 2, 1, 0])
def test_shares_of_a_batch_that_is_not_divisible_keep_its_order(ranks, images):
    rows = global_batch()[:images]
    everything = torch.arange(images * TOKENS)
    for length, positions, taken in ranks.run(taken_when_dealt, rows, everything):
        assert length == images * TOKENS
        assert len(positions) % TOKENS == 0
        assert bits(taken).equal(bits(rows.flatten(0, 1)))


def positions_of_share(shares):
    return GlobalRows(torch.zeros(shares[rank()], TOKENS, DIM)).positions


def test_ranks_that_have_no_image_left_are_passed_over(rank_pool_of_three):
    images = [share.view(-1, TOKENS)[:, 0] // TOKENS for share in rank_pool_of_three.run(positions_of_share, [1, 4, 0])]
    assert [share.tolist() for share in images] == [[0], [1, 2, 3, 4], []]
    images = [share.view(-1, TOKENS)[:, 0] // TOKENS for share in rank_pool_of_three.run(positions_of_share, [2, 1, 3])]
    assert [share.tolist() for share in images] == [[0, 3], [1], [2, 4, 5]]


def bytes_exchanged(positions):
    sizes, reduce = [], dist.all_reduce

    def watched(tensor, *arguments, **options):
        sizes.append(tensor.numel() * tensor.element_size())
        return reduce(tensor, *arguments, **options)

    dist.all_reduce = watched
    try:
        GlobalRows(global_batch()[rank() :: world_size()]).take(positions)
    finally:
        dist.all_reduce = reduce
    return sizes


def test_what_is_exchanged_depends_on_sizes_alone(ranks):
    choices = [torch.zeros(5, dtype=torch.int64), torch.tensor([35, 0, 17, 18, 3])]
    for positions in choices:
        for sizes in ranks.run(bytes_exchanged, positions):
            assert sizes == [8 * ranks.size, 5 * DIM * 4]


@pytest.mark.parametrize("position", [-1, IMAGES * TOKENS])
def test_a_position_outside_is_refused(position):
    with pytest.raises(IndexError, match=r"\[0, 36\)"):
        GlobalRows(global_batch()).take(torch.tensor([0, position]))


def own_minimum(values):
    return all_reduce_min(torch.tensor(values[rank()]))


def test_minima_are_taken_over_processes_and_leave_the_local_values(rank_pool):
    for result in rank_pool.run(own_minimum, [[1.0, 5.0], [3.0, 2.0]]):
        assert result.tolist() == [1, 2]
    alone = torch.ones(2)
    assert all_reduce_min(alone) is alone
