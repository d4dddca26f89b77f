import math
import pickle

import pytest
import torch

from nsvq.ops import local_kernel_codebook_loss
from nsvq.quantizers import NSVQ, BandwidthSchedule, KernelCodebookLoss

DIM, K = 4, 8


def course(schedule, positions):
    return [schedule.value(torch.tensor(position)).item() for position in positions]


def step(loss, latents=None, codes=None):
    latents = torch.randn(20, DIM) if latents is None else latents
    return loss(latents, torch.randn(K, DIM) if codes is None else codes)


def test_a_constant_schedule_stays():
    assert course(BandwidthSchedule(0.35), [0, 1, 10**6]) == pytest.approx([0.35] * 3)


def test_an_exponential_schedule_decays_from_its_initial_value():
    schedule = BandwidthSchedule(2.0, kind="exponential", decay=0.5)
    assert course(schedule, range(4)) == pytest.approx([2.0, 1.0, 0.5, 0.25])


def test_warmup_holds_the_initial_value():
    schedule = BandwidthSchedule(10.0, kind="exponential", decay=0.1, warmup=2)
    assert course(schedule, range(5)) == pytest.approx([10.0, 10.0, 10.0, 1.0, 0.1])


@pytest.mark.parametrize("kind", ["constant", "exponential"])
def test_the_floor_bounds_the_value(kind):
    schedule = BandwidthSchedule(1.0, kind=kind, decay=0.5, floor=0.25)
    assert min(course(schedule, [0, 2, 3, 10**6])) >= 0.25
    assert course(BandwidthSchedule(0.1, kind=kind, decay=0.5, floor=0.25), [0]) == [0.25]


def test_the_default_floor_keeps_the_bandwidth_above_zero():
    assert course(BandwidthSchedule(1.0, kind="exponential", decay=0.5), [10**6]) == pytest.approx([1e-8])


@pytest.mark.parametrize(
    ("kernel", "bandwidths", "weight"),
    [
        ("gaussian", [1.0, 0.5, 0.25, 0.125], 0.5),
        ("clamped_softmax", [1.0, 0.5, 0.25, 0.125], 0.01),
        ("softmax", [0.35] * 4, 0.1),
    ],
)
def test_published_defaults_by_epoch(kernel, bandwidths, weight):
    quantizer = NSVQ(DIM, K, kernel=kernel)
    assert quantizer.codebook_loss.neighbor_weight == weight
    for bandwidth in bandwidths:
        for _ in range(3):
            quantizer(torch.randn(5, DIM))
            assert quantizer.codebook_loss.bandwidth.item() == pytest.approx(bandwidth)
        quantizer.on_epoch_end()


def test_a_number_is_a_constant_bandwidth():
    loss = KernelCodebookLoss(bandwidth=3.0)
    step(loss)
    loss.on_epoch_end()
    assert loss.bandwidth.item() == 3.0


def test_per_step_advances_with_training_forwards_only():
    loss = KernelCodebookLoss(bandwidth=BandwidthSchedule(1.0, kind="exponential", decay=0.5))
    step(loss)
    step(loss)
    loss.on_epoch_end()
    loss.eval()
    step(loss)
    assert loss.bandwidth.item() == 0.25


def test_per_epoch_advances_with_epochs_only():
    loss = KernelCodebookLoss(bandwidth=BandwidthSchedule(1.0, kind="exponential", decay=0.5, per="epoch"))
    step(loss)
    loss.on_epoch_end()
    step(loss)
    assert loss.bandwidth.item() == 0.5


def test_the_first_step_uses_the_initial_bandwidth():
    latents, codes = torch.randn(20, DIM), torch.randn(K, DIM)
    fast = KernelCodebookLoss(bandwidth=BandwidthSchedule(1.0, kind="exponential", decay=0.1))
    constant = KernelCodebookLoss(bandwidth=1.0)
    assert step(fast, latents, codes).loss.equal(step(constant, latents, codes).loss)
    assert step(fast, latents, codes).loss < step(constant, latents, codes).loss


def test_winner_distance_units_follow_the_latents_scale():
    latents, codes = torch.randn(50, DIM), torch.randn(K, DIM)
    schedule = BandwidthSchedule(2.0, unit="winner_distance")
    losses, bandwidths = [], []
    for scale in (1.0, 10.0):
        loss = KernelCodebookLoss("gaussian", schedule)
        losses.append(step(loss, scale * latents, scale * codes).loss)
        bandwidths.append(loss.bandwidth)
    distance = torch.cdist(latents, codes).square().amin(dim=1).mean()
    torch.testing.assert_close(bandwidths[0], 2 * distance)
    torch.testing.assert_close(bandwidths[1], 100 * bandwidths[0])
    torch.testing.assert_close(losses[1], 100 * losses[0])


def test_the_winner_distance_is_a_running_mean():
    loss = KernelCodebookLoss("gaussian", BandwidthSchedule(1.0, unit="winner_distance"), winner_distance_decay=0.75)
    codes = torch.zeros(1, DIM)
    expected = None
    for radius in (1.0, 2.0, 0.5):
        step(loss, torch.full((6, DIM), radius), codes)
        distance = DIM * radius**2
        expected = distance if expected is None else 0.75 * expected + 0.25 * distance
        assert loss.mean_winner_distance.item() == pytest.approx(expected)


def test_code_distance_units_give_each_code_its_own_bandwidth():
    latents, codes = torch.randn(50, DIM), torch.randn(K, DIM)
    loss = KernelCodebookLoss("gaussian", BandwidthSchedule(0.5, kind="exponential", decay=0.5, unit="code_distance"))
    for factor in (0.5, 0.25):
        nearest = torch.cdist(latents, codes).square().amin(dim=0)
        expected = local_kernel_codebook_loss(latents, codes, factor * nearest, 0.5).loss
        torch.testing.assert_close(step(loss, latents, codes).loss, expected)


def test_code_distance_units_need_the_gaussian_kernel():
    with pytest.raises(ValueError, match="code_distance units need the gaussian kernel, got softmax"):
        KernelCodebookLoss("softmax", BandwidthSchedule(1.0, unit="code_distance"))


def test_winner_distance_zero_still_gives_a_finite_loss():
    loss = KernelCodebookLoss("softmax", BandwidthSchedule(1.0, unit="winner_distance"))
    codes = torch.randn(K, DIM)
    for _ in range(2):
        assert step(loss, codes.clone(), codes).loss.isfinite()
    assert loss.bandwidth > 0


def follower():
    schedule = BandwidthSchedule(2.0, kind="exponential", decay=0.9, unit="winner_distance")
    return NSVQ(DIM, K, kernel="softmax", bandwidth=schedule)


def through_state_dict(quantizer, tmp_path):
    torch.save(quantizer.state_dict(), tmp_path / "state.pt")
    fresh = follower()
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    return fresh


def through_checkpoint(quantizer, tmp_path):
    torch.save({"quantizer": quantizer}, tmp_path / "whole.ckpt")
    return torch.load(tmp_path / "whole.ckpt", weights_only=False)["quantizer"]


@pytest.mark.parametrize("save", [through_state_dict, through_checkpoint, lambda q, _: pickle.loads(pickle.dumps(q))])
def test_the_position_survives_saving(save, tmp_path):
    quantizer = follower()
    for _ in range(4):
        quantizer(torch.randn(20, DIM))
    restored = save(quantizer, tmp_path)
    assert restored.codebook_loss.bandwidth.equal(quantizer.codebook_loss.bandwidth)
    assert restored.codebook_loss.bandwidth_position == 4
    latents = torch.randn(20, DIM)
    assert restored(latents).loss.equal(quantizer(latents).loss)


def test_schedules_are_values():
    schedule = BandwidthSchedule(1.0, kind="exponential", decay=0.5)
    first, second = (KernelCodebookLoss(bandwidth=schedule) for _ in range(2))
    step(first)
    assert (first.bandwidth_position, second.bandwidth_position) == (1, 0)
    assert schedule == BandwidthSchedule(1.0, kind="exponential", decay=0.5)
    with pytest.raises(AttributeError):
        schedule.initial = 2.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("initial", 0.0),
        ("initial", -1.0),
        ("initial", math.nan),
        ("initial", math.inf),
        ("kind", "cosine"),
        ("decay", 0.0),
        ("decay", 1.5),
        ("decay", math.nan),
        ("per", "batch"),
        ("warmup", -1),
        ("floor", 0.0),
        ("floor", math.nan),
        ("unit", "pixels"),
    ],
)
def test_bad_schedule_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*{value}"):
        BandwidthSchedule(**({"initial": 1.0} | {field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kernel", "cauchy"),
        ("neighbor_weight", -0.1),
        ("neighbor_weight", math.nan),
        ("neighbor_weight", math.inf),
        ("winner_distance_decay", 1.0),
        ("winner_distance_decay", math.nan),
        ("bandwidth", 0.0),
        ("bandwidth", -1.0),
    ],
)
def test_bad_kernel_loss_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}.*{value}"):
        KernelCodebookLoss(**{field: value})
