import copy
import math

import pytest
import torch

from nsvq.quantizers import EMAVQ, NSVQ, SimVQ, TransVQ, VanillaVQ

DIM, K = 6, 32


def scale(rows):
    return (rows - rows.mean(dim=0)).square().sum(dim=1).mean().sqrt()


def latents(size=3.0, offset=5.0):
    return size * torch.randn(4, DIM, 5, 5) + offset


def rows(z):
    return z.movedim(1, -1).reshape(-1, DIM)


def build(cls, **options):
    torch.manual_seed(7)
    quantizer = cls(dim=DIM, codebook_size=K, **options)
    torch.manual_seed(8)
    return quantizer


@pytest.fixture(params=[VanillaVQ, NSVQ, EMAVQ, SimVQ, TransVQ], ids=lambda cls: cls.__name__)
def cls(request):
    return request.param


def codes_before_the_update(quantizer, z):
    """Return the codes that the first training lookup saw; EMA moves them after it."""
    seen = []
    learn = quantizer.learn
    quantizer.learn = lambda u, codes: seen.append(codes.detach().clone()) or learn(u, codes)
    quantizer(z)
    del quantizer.learn
    return seen[0]


@pytest.mark.parametrize("multiple", [0.5, 1.0, 3.0])
def test_the_first_training_forward_sets_the_scale(cls, multiple):
    z = latents()
    codes = codes_before_the_update(build(cls, initial_scale=multiple), z)
    assert (scale(codes) / scale(rows(z))).item() == pytest.approx(multiple, rel=1e-4)


def test_rescaling_is_a_multiplication_of_the_published_codes(cls):
    published = build(cls).codebook.detach().clone()
    codes = codes_before_the_update(build(cls, initial_scale=1.0), latents())
    torch.testing.assert_close(codes, published * (scale(codes) / scale(published)), rtol=1e-4, atol=1e-5)


def test_without_it_the_published_codes_stay(cls):
    published = build(cls).codebook.detach().clone()
    assert codes_before_the_update(build(cls), latents()).equal(published)
    assert not build(cls).scale_is_set


def test_evaluation_never_rescales(cls):
    quantizer = build(cls, initial_scale=1.0).eval()
    before = copy.deepcopy(quantizer.state_dict())
    quantizer(latents())
    assert all(tensor.equal(before[name]) for name, tensor in quantizer.state_dict().items())
    z = latents()
    codes = codes_before_the_update(quantizer.train(), z)
    assert (scale(codes) / scale(rows(z))).item() == pytest.approx(1.0, rel=1e-4)


def test_later_batches_do_not_rescale(cls):
    quantizer = build(cls, initial_scale=1.0)
    quantizer(latents())
    settled = quantizer.codebook.detach().clone()
    assert codes_before_the_update(quantizer, latents(size=50.0)).equal(settled)


def test_a_reload_does_not_rescale_again(cls):
    quantizer = build(cls, initial_scale=1.0)
    quantizer(latents())
    fresh = build(cls, initial_scale=1.0)
    fresh.load_state_dict(quantizer.state_dict())
    assert codes_before_the_update(fresh, latents(size=50.0)).equal(quantizer.codebook)


def test_ema_sums_are_rescaled_with_the_codes():
    quantizer = build(EMAVQ, initial_scale=1.0, decay=0.9)
    z = latents(offset=0.0)
    codes = codes_before_the_update(quantizer, z)
    hits = torch.bincount(quantizer.eval()(z).indices.flatten(), minlength=K)
    untouched = quantizer.cluster_sizes < 0.95
    assert untouched.any()
    assert hits.sum() == len(rows(z))
    torch.testing.assert_close(quantizer.latent_sums[untouched], 0.9 * codes[untouched])


def test_replaced_ema_codes_restart_their_sums():
    quantizer = build(EMAVQ, decay=0.5)
    quantizer(latents())
    chosen, vectors = torch.tensor([3, 9]), torch.randn(2, DIM) + 100
    quantizer.replace_codes(chosen, vectors)
    assert quantizer.cluster_sizes[chosen].eq(1).all()
    assert quantizer.latent_sums[chosen].equal(vectors)
    quantizer(latents())
    assert quantizer.codebook[chosen].gt(50).all()


def test_equal_latents_leave_the_codes_finite(cls):
    quantizer = build(cls, initial_scale=1.0)
    quantizer(torch.ones(4, DIM))
    assert quantizer.codebook.isfinite().all()


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_bad_values_are_refused_by_name(cls, value):
    with pytest.raises(ValueError, match="initial_scale"):
        cls(dim=DIM, codebook_size=K, initial_scale=value)


def test_a_first_batch_that_is_not_finite_is_refused_and_leaves_the_scale_to_the_next(cls):
    quantizer = build(cls, initial_scale=1.0)
    before = copy.deepcopy(quantizer.state_dict())
    broken = latents()
    broken[1, 2, 3, 4] = math.nan
    with pytest.raises(ValueError, match="latents with non-finite values"):
        quantizer(broken)
    assert all(tensor.equal(before[name]) for name, tensor in quantizer.state_dict().items())
    z = latents()
    codes = codes_before_the_update(quantizer, z)
    assert (scale(codes) / scale(rows(z))).item() == pytest.approx(1.0, rel=1e-4)
