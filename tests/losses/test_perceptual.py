"""The perceptual loss: its value, where its gradient goes, and that no model comes to own its network."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from nsvq.losses import PerceptualLoss
from nsvq.pretrained import find, lpips_network


@pytest.fixture
def network(fake_hub):
    fake_hub("alex")
    return lpips_network("alex", find("alex"))


@pytest.fixture
def pair():
    images = torch.rand(4, 3, 32, 40) * 2 - 1
    return images + 0.2 * torch.randn(images.shape), images


def test_is_the_mean_of_the_images_distances(network, pair):
    loss = PerceptualLoss(network)(*pair)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    expected = [float(network(a[None], b[None])) for a, b in zip(*pair, strict=True)]
    assert float(loss) == pytest.approx(sum(expected) / 4, rel=1e-5)
    assert float(PerceptualLoss(network)(pair[1], pair[1])) == 0


def test_the_gradient_flows_to_reconstructions_only(network, pair):
    reconstructions, images = (side.requires_grad_() for side in pair)
    PerceptualLoss(network)(reconstructions, images).backward()
    assert images.grad is None
    assert all(parameter.grad is None for parameter in network.parameters())
    # A step along the gradient changes the loss by as much as the gradient says.
    step = 1e-2 * reconstructions.grad / reconstructions.grad.norm()
    with torch.no_grad():
        change = PerceptualLoss(network)(reconstructions + step, images)
        change -= PerceptualLoss(network)(reconstructions - step, images)
    assert float(change) == pytest.approx(2e-2 * float(reconstructions.grad.norm()), rel=1e-2)


def test_is_float32_under_autocast_and_for_half_precision(network, pair):
    loss = PerceptualLoss(network)
    expected = loss(*pair)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(*pair).equal(expected)
    rounded = [side.bfloat16() for side in pair]
    assert loss(*rounded).equal(loss(*(side.float() for side in rounded)))


def test_training_after_a_pass_in_inference_mode_works(network, pair):
    loss = PerceptualLoss(network)
    with torch.inference_mode():
        loss(*pair)
    reconstructions = pair[0].clone().requires_grad_()
    loss(reconstructions, pair[1]).backward()
    assert reconstructions.grad.abs().sum() > 0


def test_a_model_that_holds_it_does_not_own_its_network(network):
    model = LightningModule()
    model.layer = nn.Linear(1, 1)
    model.perceptual_loss = PerceptualLoss(network)
    assert list(model.state_dict()) == ["layer.weight", "layer.bias"]
    assert len(list(model.parameters())) == 2
    assert [type(module) for module in model.modules()] == [LightningModule, nn.Linear]
    model.train()
    assert not any(module.training for module in network.modules())
    assert copy.deepcopy(model).perceptual_loss.distance.network is network


def test_freezes_a_network_that_is_not(pair):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 1, 3)

        def forward(self, first, second):
            return (self.convolution(first) - self.convolution(second)).abs().mean(dim=(1, 2, 3))

    network = Layer()
    loss = PerceptualLoss(network)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not loss(*pair).requires_grad


def test_grey_and_small_images_are_refused(network):
    loss = PerceptualLoss(network)
    with pytest.raises(ValueError, match="three channels"):
        loss(torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"at least 31 pixels a side, got \(28, 28\)"):
        loss(torch.zeros(1, 3, 28, 28), torch.zeros(1, 3, 28, 28))
