"""Each drift measure against its closed form."""

import math

import pytest
import torch

from nsvq.metrics import ProbeState, drift_measures, scale


def state(latents=None, codes=None, indices=None):
    torch.manual_seed(0)
    drawn_latents, drawn_codes = torch.randn(40, 3), torch.randn(6, 3)
    drawn_indices = torch.arange(40) % 6
    return ProbeState(
        drawn_latents if latents is None else latents,
        drawn_codes if codes is None else codes,
        drawn_indices if indices is None else indices,
    )


def test_scale_is_the_root_of_the_summed_variances():
    vectors = torch.randn(100, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 7
    assert float(scale(vectors)) == pytest.approx(math.sqrt(sum(vectors.numpy().var(axis=0))), rel=1e-5)


def test_nothing_moved():
    measures = drift_measures(state(), state())
    moved = ("drift_rms", "drift_relative", "churn", "codebook_shift")
    assert [measures[name] for name in moved] == [0, 0, 0, 0]


def test_a_translation_drifts_by_its_length():
    before = state()
    now = state(latents=before.latents + torch.tensor([2.0, -1.0, 2.0]))
    measures = drift_measures(now, before)
    assert measures["drift_rms"] == pytest.approx(3.0, rel=1e-6)
    assert measures["latent_scale"] == pytest.approx(float(scale(before.latents)), rel=1e-6)
    assert measures["drift_relative"] == pytest.approx(3.0 / float(scale(before.latents)), rel=1e-6)
    assert measures["codebook_shift"] == 0


def test_drift_is_a_root_mean_square_over_tokens():
    before = state(latents=torch.zeros(2, 3))
    now = state(latents=torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]))
    assert drift_measures(now, before)["drift_rms"] == pytest.approx(math.sqrt(25 / 2))


def test_drift_is_relative_to_the_present_scale():
    before = state()
    measures = drift_measures(state(latents=3 * before.latents), before)
    assert measures["latent_scale"] == pytest.approx(3 * float(scale(before.latents)), rel=1e-6)


def test_churn_is_the_share_of_tokens_whose_code_changed():
    before = state(indices=torch.tensor([0, 1, 2, 3]))
    now = state(indices=torch.tensor([0, 2, 1, 3]))
    assert drift_measures(now, before)["churn"] == 0.5


def test_codebook_shift_is_the_codes_root_mean_square_movement():
    before = state()
    codes = before.codes.clone()
    codes[0] += torch.tensor([0.0, 3.0, 4.0])
    assert drift_measures(state(codes=codes), before)["codebook_shift"] == pytest.approx(5 / math.sqrt(6), rel=1e-6)


@pytest.mark.parametrize("block_elements", [1, 160, 2**23])
def test_lag_is_the_mean_distance_of_codes_to_their_nearest_latent(monkeypatch, block_elements):
    monkeypatch.setattr("nsvq.metrics.drift.BLOCK_ELEMENTS", block_elements)
    codes = torch.randn(11, 3)
    now = state(codes=codes)
    nearest = [min(math.dist(code, latent) for latent in now.latents.tolist()) for code in codes.tolist()]
    expected = sum(nearest) / len(nearest) / float(scale(now.latents))
    assert drift_measures(now, now)["codebook_lag"] == pytest.approx(expected, rel=1e-5)


def test_codes_on_latents_do_not_lag():
    before = state()
    assert drift_measures(state(codes=before.latents[:6].clone()), before)["codebook_lag"] == pytest.approx(0, abs=1e-6)


def test_codebook_scale_of_scaled_latents_is_the_factor():
    latents = state().latents
    now = state(codes=0.25 * latents + 9)
    assert drift_measures(now, now)["codebook_scale"] == pytest.approx(0.25, rel=1e-5)
