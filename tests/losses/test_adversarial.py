"""Adversarial losses against their formulas, their schedule, and the adaptive weight."""

import copy

import pytest
import torch
from torch import nn

from nsvq.losses import AdversarialLoss, adaptive_weight


def logits(seed, shape=(4, 1, 3, 3)):
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_hinge_loss_is_its_formula():
    real, fake = logits(0), logits(1)
    loss = AdversarialLoss("hinge")
    by_hand = sum(max(0.0, 1 - float(x)) for x in real.flatten()) + sum(max(0.0, 1 + float(x)) for x in fake.flatten())
    assert loss.discriminator_loss(real, fake).item() == pytest.approx(by_hand / 2 / real.numel(), rel=1e-5)
    assert loss.tokenizer_loss(fake).item() == pytest.approx(-fake.mean().item(), rel=1e-6)


def test_non_saturating_loss_is_cross_entropy():
    real, fake = logits(0), logits(1)
    entropy = nn.BCEWithLogitsLoss()
    loss = AdversarialLoss("non_saturating")
    expected = (entropy(real, torch.ones_like(real)) + entropy(fake, torch.zeros_like(fake))) / 2
    torch.testing.assert_close(loss.discriminator_loss(real, fake), expected)
    torch.testing.assert_close(loss.tokenizer_loss(fake), entropy(fake, torch.ones_like(fake)))


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_both_sides_pull_in_opposite_directions(kind):
    fake = torch.zeros(3, requires_grad=True)
    loss = AdversarialLoss(kind)
    (tokenizer,) = torch.autograd.grad(loss.tokenizer_loss(fake), fake)
    (discriminator,) = torch.autograd.grad(loss.discriminator_loss(torch.ones(3), fake), fake)
    assert (tokenizer < 0).all()
    assert (discriminator > 0).all()


def test_half_precision_logits_give_a_float32_loss():
    half = logits(0).bfloat16()
    loss = AdversarialLoss()
    assert loss.discriminator_loss(half, half).dtype == torch.float32
    assert loss.tokenizer_loss(half).dtype == torch.float32
    assert loss.tokenizer_loss(half.double()).dtype == torch.float64


def test_the_weight_starts_late_and_grows_linearly():
    loss = AdversarialLoss(weight=0.8, discriminator_start=2, start=10, ramp=3)
    assert [step for step in range(20) if loss.discriminator_learns(step)] == list(range(2, 20))
    assert [loss.weight_at(step) for step in (0, 9)] == [0, 0]
    assert [loss.weight_at(step) for step in range(10, 15)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])


def test_without_a_ramp_the_weight_is_full_at_once():
    loss = AdversarialLoss(weight=0.75, discriminator_start=5)
    assert [loss.weight_at(step) for step in (4, 5, 6)] == [0, 0.75, 0.75]


def test_r1_of_a_linear_discriminator_is_its_squared_weight():
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(12, 1)).double()
    images = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    penalty = AdversarialLoss(r1_weight=10, r1_every_n_steps=4).r1_penalty(discriminator, images, step=8)
    weight = discriminator[1].weight
    torch.testing.assert_close(penalty, 10 / 2 * 4 * weight.square().sum())
    (gradient,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(gradient, 10 * 4 * weight.detach())


def test_r1_is_due_every_n_steps_and_off_by_default():
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    images = torch.randn(5, 3, 2, 2)
    lazy = AdversarialLoss(r1_weight=1, r1_every_n_steps=3)
    due = [lazy.r1_penalty(discriminator, images, step) is not None for step in range(6)]
    assert due == [True, False, False, True, False, False]
    assert AdversarialLoss().r1_penalty(discriminator, images, 0) is None


def test_lecam_is_its_formula_and_its_means_survive():
    loss = AdversarialLoss(lecam_weight=0.3, lecam_decay=0.9)
    plain = AdversarialLoss()
    mean_real = mean_fake = 0.0
    for seed in range(3):
        real, fake = logits(seed), logits(seed + 10)
        mean_real = 0.9 * mean_real + 0.1 * real.mean().item()
        mean_fake = 0.9 * mean_fake + 0.1 * fake.mean().item()
        expected = plain.discriminator_loss(real, fake) + 0.3 * (
            (real - mean_fake).clamp(min=0).square().mean() + (mean_real - fake).clamp(min=0).square().mean()
        )
        torch.testing.assert_close(loss.discriminator_loss(real, fake), expected)
    resumed = AdversarialLoss(lecam_weight=0.3, lecam_decay=0.9)
    resumed.load_state_dict(copy.deepcopy(loss.state_dict()))
    torch.testing.assert_close(
        resumed.discriminator_loss(real, fake), loss.discriminator_loss(real, fake), rtol=0, atol=0
    )


def losses_at(weight, images):
    """Two scalar losses of a one-layer decoder."""
    out = images @ weight
    return out.square().mean(), (3 * out).tanh().mean()


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    weight = torch.randn(4, 2, requires_grad=True)
    task, adversarial = losses_at(weight, torch.randn(8, 4))
    first, second = (torch.autograd.grad(loss, weight, retain_graph=True)[0].norm() for loss in (task, adversarial))
    value = adaptive_weight(task, adversarial, weight)
    torch.testing.assert_close(value, first / (second + 1e-4))
    assert not value.requires_grad
    (task + value * adversarial).backward()


def test_adaptive_weight_is_clamped_and_zero_before_the_start():
    weight = torch.randn(4, requires_grad=True)
    assert adaptive_weight(1e9 * weight.sum(), 0 * weight.sum(), weight) == 1e4
    assert adaptive_weight(weight.sum(), None, weight) == 0


def test_an_infinite_gradient_is_not_hidden_by_the_clamp():
    weight = torch.randn(4, requires_grad=True)
    assert adaptive_weight((weight * float("inf")).sum(), weight.sum(), weight).isnan()
    assert adaptive_weight(weight.sum(), (weight * float("inf")).sum(), weight).isnan()


def test_lecam_keeps_its_means_in_float32():
    loss = AdversarialLoss(lecam_weight=1.0).bfloat16()
    assert (loss.lecam_real.dtype, loss.lecam_fake.dtype) == (torch.float32, torch.float32)
    loss.discriminator_loss(torch.ones(3), -torch.ones(3))
    assert loss.lecam_real.item() == pytest.approx(0.001)


def ranks_share(rank_images, weight):
    import torch.distributed as dist

    weight = weight.clone().requires_grad_()
    task, adversarial = losses_at(weight, rank_images[dist.get_rank()])
    loss = AdversarialLoss(lecam_weight=1.0)
    logit = rank_images[dist.get_rank()]
    loss.discriminator_loss(logit, -logit)
    return adaptive_weight(task, adversarial, weight), adaptive_weight(task, None, weight), loss.lecam_real


def test_two_ranks_weigh_like_one_process(rank_pool):
    images, weight = torch.randn(8, 4), torch.randn(4, 2)
    first, second = rank_pool.run(ranks_share, images.chunk(2), weight)
    parameter = weight.clone().requires_grad_()
    expected = adaptive_weight(*losses_at(parameter, images), parameter)
    torch.testing.assert_close(first[0], expected)
    assert first == second
    loss = AdversarialLoss(lecam_weight=1.0)
    loss.discriminator_loss(images, -images)
    torch.testing.assert_close(first[2], loss.lecam_real)
    # The mean of the two ranks' own weights is another number.
    own = [adaptive_weight(*losses_at(parameter, half), parameter) for half in images.chunk(2)]
    assert abs(sum(own) / 2 - expected) > 1e-3 * expected


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("kind", "wasserstein"),
        ("weight", -1.0),
        ("discriminator_start", -1),
        ("start", -1),
        ("ramp", -1),
        ("r1_weight", -1.0),
        ("r1_every_n_steps", 0),
        ("lecam_weight", -0.1),
        ("lecam_decay", 1.0),
    ],
)
def test_bad_options_are_named(option, value):
    with pytest.raises(ValueError, match=option):
        AdversarialLoss(**{option: value})


def test_the_tokenizer_cannot_feel_a_discriminator_before_it_learns():
    with pytest.raises(ValueError, match="start must be at least discriminator_start=10"):
        AdversarialLoss(discriminator_start=10, start=5)
