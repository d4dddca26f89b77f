"""Two processes with half a batch each equal one process with the whole batch."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from nsvq.distributed import all_reduce_sum, rank, world_size
from nsvq.quantizers import EMAVQ, NSVQ, BandwidthSchedule, KernelCodebookLoss, SimVQ, TransVQ, VanillaVQ

DIM, K, STEPS = 6, 16, 3
RELATIVE = BandwidthSchedule(0.5, kind="exponential", decay=0.9, unit="winner_distance")
VARIANTS = {
    "gaussian, winner distance": (NSVQ, {"bandwidth": RELATIVE}),
    "gaussian, code distance": (NSVQ, {"bandwidth": BandwidthSchedule(0.5, unit="code_distance")}),
    "softmax, winner distance": (NSVQ, {"kernel": "softmax", "bandwidth": RELATIVE}),
    "clamped softmax": (NSVQ, {"kernel": "clamped_softmax", "neighbor_weight": 0.5}),
    "codebook straight-through": (NSVQ, {"codebook_straight_through": True}),
    "VanillaVQ, scaled": (VanillaVQ, {"initial_scale": 1.0}),
    "NSVQ, scaled": (NSVQ, {"initial_scale": 2.0}),
    "EMAVQ, scaled": (EMAVQ, {"initial_scale": 1.0, "decay": 0.5}),
    "SimVQ, scaled": (SimVQ, {"initial_scale": 1.0}),
    "TransVQ, scaled": (TransVQ, {"initial_scale": 0.5}),
    "TransVQ, kernel": (TransVQ, {"codebook_loss": KernelCodebookLoss(bandwidth=RELATIVE)}),
}


def train(quantizer_class, options, images):
    """Train on this rank's share; return the first step's averaged gradients, the indices and the state."""
    torch.manual_seed(0)
    encoder = nn.Conv2d(3, DIM, 1)
    quantizer = quantizer_class(dim=DIM, codebook_size=K, **copy.deepcopy(options))
    parameters = [*encoder.parameters(), *quantizer.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    share = images.chunk(world_size())[rank()]
    first_gradients = None
    for _ in range(STEPS):
        out = quantizer(encoder(share))
        optimizer.zero_grad()
        (out.loss + (out.quantized - 0.5).square().mean()).backward()
        if world_size() > 1:
            for parameter in parameters:
                dist.all_reduce(parameter.grad)
                parameter.grad /= world_size()
        first_gradients = first_gradients or [parameter.grad.clone() for parameter in parameters]
        optimizer.step()
    quantizer.on_epoch_end()
    return first_gradients, out.indices, [*encoder.state_dict().values(), *quantizer.state_dict().values()]


def assert_two_ranks_equal_one(rank_pool, quantizer_class, options):
    images = torch.randn(8, 3, 4, 4)
    gradients, indices, state = train(quantizer_class, options, images)
    ranks = rank_pool.run(train, quantizer_class, options, images)
    for first, second in zip(ranks[0][2], ranks[1][2], strict=True):
        assert first.equal(second)
    assert torch.cat([ranks[0][1], ranks[1][1]]).equal(indices)
    torch.testing.assert_close(ranks[0][0], gradients, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ranks[0][2], state, rtol=1e-6, atol=1e-6)


def test_every_quantizer(rank_pool, quantizer_class):
    assert_two_ranks_equal_one(rank_pool, quantizer_class, {})


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_that_talks_between_ranks(rank_pool, variant):
    assert_two_ranks_equal_one(rank_pool, *VARIANTS[variant])


def state_after_unequal_shares(quantizer_class, options, latents):
    torch.manual_seed(0)
    quantizer = quantizer_class(dim=DIM, codebook_size=K, **copy.deepcopy(options))
    share = latents if world_size() == 1 else latents.split([5, len(latents) - 5])[rank()]
    quantizer(share)
    return quantizer.state_dict()


@pytest.mark.parametrize("variant", ["gaussian, winner distance", "EMAVQ, scaled", "TransVQ, scaled"])
def test_unequal_shares_count_by_their_latents(rank_pool, variant):
    latents = torch.randn(24, DIM)
    expected = state_after_unequal_shares(*VARIANTS[variant], latents)
    for state in rank_pool.run(state_after_unequal_shares, *VARIANTS[variant], latents):
        torch.testing.assert_close(state, expected, rtol=1e-6, atol=1e-6)


def reduced(value):
    local = torch.tensor([float(rank()), value])
    return local, all_reduce_sum(local), world_size()


def test_the_helpers_reduce_without_touching_their_input(rank_pool):
    results = rank_pool.run(reduced, 2.0)
    for index, (local, total, size) in enumerate(results):
        assert local.tolist() == [index, 2.0]
        assert total.tolist() == [1.0, 4.0]
        assert size == 2


def test_the_helpers_do_nothing_without_a_group():
    local, total, size = reduced(2.0)
    assert total is local
    assert (size, rank()) == (1, 0)
