"""Codebook usage and quantization error against hand counts and plain formulas."""

import math

import pytest
import torch

from nsvq.distributed import rank, world_size
from nsvq.metrics import CodebookUsage, QuantizationError

K = 8


def usage_of(*batches):
    usage = CodebookUsage(K)
    for batch in batches:
        usage.update(torch.tensor(batch))
    return usage.compute()


def test_usage_equals_a_count_by_hand():
    # Shares 1/2, 1/4, 1/4 have an entropy of 1.5 bits.
    statistics = usage_of([[0, 0, 0, 0], [5, 5, 7, 7]])
    assert statistics == {
        "tokens": 8,
        "codebook_utilization": 3 / 8,
        "codebook_utilization_ceiling": pytest.approx(1 - (7 / 8) ** 8),
        "perplexity": pytest.approx(2**1.5),
        "dead_code_fraction": 5 / 8,
        "dead_codes": 5,
    }


def test_uniform_use_reaches_all_codes_and_nothing_is_dead():
    statistics = usage_of(range(K))
    assert statistics["perplexity"] == pytest.approx(K)
    assert (statistics["codebook_utilization"], statistics["dead_codes"]) == (1.0, 0)


def test_the_ceiling_is_what_uniform_draws_reach_on_average():
    tokens, trials = 12, 4000
    reached = torch.zeros(trials, K).scatter_(1, torch.randint(K, (trials, tokens)), 1.0).mean()
    assert usage_of([0] * tokens)["codebook_utilization_ceiling"] == pytest.approx(float(reached), abs=0.01)


def test_the_split_into_batches_does_not_matter():
    indices = torch.randint(K, (30,)).tolist()
    assert usage_of(indices[:4], indices[4:25], indices[25:]) == usage_of(indices)


def test_perplexity_is_not_the_mean_of_the_batches_perplexities():
    # Each batch alone has perplexity 1.
    assert usage_of([2] * 10, [3] * 10)["perplexity"] == pytest.approx(2.0)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_reset_forgets_and_no_token_has_no_perplexity():
    usage = CodebookUsage(K)
    usage.update(torch.tensor([1, 2]))
    usage.reset()
    statistics = usage.compute()
    assert (statistics["tokens"], statistics["perplexity"], statistics["codebook_utilization_ceiling"]) == (0, 0, 0)


def error_of(batches):
    meter = QuantizationError(batches[0][0].shape[1])
    for latents, chosen in batches:
        meter.update(latents, chosen)
    return float(meter.compute())


def plain_error(batches):
    """The definition in float64 over the joined batches."""
    latents, chosen = (torch.cat(side).double() for side in zip(*batches, strict=True))
    distance = ((latents - chosen) ** 2).sum(dim=1).mean()
    return float(distance / ((latents - latents.mean(dim=0)) ** 2).sum(dim=1).mean())


@pytest.fixture
def batches():
    torch.manual_seed(1)
    scale = torch.tensor([3.0, 1.0, 0.2])
    sizes = (5, 40, 1)
    return [(torch.randn(n, 3) * scale + 0.5, torch.randn(n, 3) * scale) for n in sizes]


def test_error_equals_the_plain_formula_over_joined_batches(batches):
    assert error_of(batches) == pytest.approx(plain_error(batches), rel=1e-12)
    assert error_of([tuple(map(torch.cat, zip(*batches, strict=True)))]) == pytest.approx(error_of(batches), rel=1e-12)


def test_error_ignores_where_the_latents_lie(batches):
    far = [(latents.double() + 1e3, chosen.double() + 1e3) for latents, chosen in batches]
    assert error_of(far) == pytest.approx(error_of(batches), rel=1e-7)
    near_float32 = [(latents.float(), chosen.float()) for latents, chosen in far]
    assert error_of(near_float32) == pytest.approx(plain_error(near_float32), rel=1e-7)


def test_error_ignores_the_unit_of_length(batches):
    assert error_of([(1e3 * u, 1e3 * c) for u, c in batches]) == pytest.approx(error_of(batches), rel=1e-6)


def test_a_single_code_at_the_mean_gives_one_and_perfect_codes_give_zero(batches):
    latents = torch.cat([u for u, _ in batches]).double()
    assert error_of([(latents, latents.mean(dim=0).expand_as(latents))]) == pytest.approx(1.0, rel=1e-12)
    assert error_of([(latents, latents)]) == 0.0


@pytest.mark.parametrize("count", [1, 3, 7, 1000])
def test_equal_latents_have_no_relative_error(count):
    latents = torch.tensor([0.1, -1.7, 12.3]).expand(count, 3)
    assert math.isnan(error_of([(latents, latents + 1)]))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_latents_have_no_relative_error():
    assert math.isnan(float(QuantizationError(3).compute()))


def measure_share(shares, resets):
    """Measure this rank's share, or all shares without a group."""
    usage, error = CodebookUsage(K), QuantizationError(3)
    for _ in range(resets + 1):
        usage.reset()
        error.reset()
        for indices, latents, chosen in shares if world_size() == 1 else [shares[rank()]]:
            usage.update(indices)
            error.update(latents, chosen)
    return usage.compute(), float(error.compute())


def test_two_ranks_with_uneven_tokens_equal_one_process(rank_pool):
    shares = [(torch.randint(K, (n,)), torch.randn(n, 3), torch.randn(n, 3)) for n in (3, 50)]
    usage, error = measure_share(shares, 0)
    for rank_usage, rank_error in rank_pool.run(measure_share, shares, 1):
        assert rank_usage == usage
        assert rank_error == pytest.approx(error, rel=1e-12)
