"""LPIPS against its formula, on random trunks with the published names and the heads of the package."""

import copy
import warnings
from pathlib import Path

import lpips
import pytest
import torch
from torch import nn
from torchvision.models import AlexNet
from torchvision.models.vgg import cfgs, make_layers

from nsvq.pretrained import PerceptualDistance, find, lpips_network
from nsvq.pretrained.lpips import SMALLEST_SIDE

# Where LPIPS reads each trunk: behind these layers of torchvision's networks, all of them ReLUs.
TAPS = {"alex": [1, 4, 7, 9, 11], "vgg": [3, 8, 15, 22, 29]}
NETS = sorted(TAPS)


def torchvision_features(net):
    return AlexNet().features if net == "alex" else make_layers(cfgs["D"])


def lpips_by_the_formula(net, trunk, first, second):
    """LPIPS of Zhang et al., Eq. 1, with torchvision's layers, in float64."""
    layers = torchvision_features(net)
    state = torch.load(trunk, weights_only=True)
    layers.load_state_dict({name.removeprefix("features."): value for name, value in state.items()})
    layers = layers.double().eval()
    file = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    heads = torch.load(file, weights_only=True, map_location="cpu")
    shift = torch.tensor([-0.030, -0.088, -0.188]).double().view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).double().view(3, 1, 1)
    sides = [(side.double() - shift) / scale for side in (first, second)]
    total = torch.zeros(len(first), dtype=torch.float64)
    for number, layer in enumerate(layers[: TAPS[net][-1] + 1]):
        sides = [layer(side) for side in sides]
        if number in TAPS[net]:
            unit = [side / (side.square().sum(dim=1, keepdim=True).sqrt() + 1e-10) for side in sides]
            weight = heads[f"lin{TAPS[net].index(number)}.model.1.weight"].double().flatten()
            total += torch.einsum("nchw,c->nhw", (unit[0] - unit[1]).square(), weight).mean(dim=(1, 2))
    return total


def pair(batch=3, side=48):
    images = torch.rand(batch, 3, side, side + 5) * 2 - 1
    noise = torch.randn(images.shape) * torch.linspace(0.1, 1, batch).view(-1, 1, 1, 1)
    return (images + noise).clamp(-1, 1), images


@pytest.mark.parametrize("net", NETS)
def test_equals_the_formula(fake_hub, net):
    fake_hub(net)
    network = lpips_network(net, find(net))
    reconstructions, images = pair()
    values = network(reconstructions, images)
    assert values.shape == (3, 1, 1, 1)
    expected = lpips_by_the_formula(net, find(net), reconstructions, images)
    assert values.flatten().tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert (expected[1:] > expected[:-1]).all()


def test_equals_the_package_that_finds_the_trunk_by_itself(fake_hub, monkeypatch):
    folder = fake_hub("alex")
    # The package builds all of AlexNet, whose file has the classifier too; it is as random as the features.
    file = folder / "alexnet-owt-7be5be79.pth"
    state = torch.load(file, weights_only=True)
    file.unlink()
    torch.save(AlexNet().state_dict() | state, file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lpips.LPIPS(net="alex", verbose=False)
    ours = lpips_network("alex", file)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert ours.state_dict()[name].equal(value), name
    reconstructions, images = pair()
    assert ours(reconstructions, images).equal(theirs(reconstructions, images))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.filterwarnings("error")
def test_is_frozen_and_draws_no_random_number(fake_hub, net):
    fake_hub(net)
    before = torch.get_rng_state()
    network = lpips_network(net, find(net))
    assert torch.get_rng_state().equal(before)
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(value.device.type == "cpu" for value in network.state_dict().values())


@pytest.mark.parametrize("net", NETS)
def test_takes_the_smallest_side_and_the_trunk_no_smaller(fake_hub, net):
    fake_hub(net)
    network, side = lpips_network(net, find(net)), SMALLEST_SIDE[net]
    distance = PerceptualDistance(network)
    assert distance(torch.zeros(1, 3, side, 40), torch.ones(1, 3, side, 40)).isfinite().all()
    with pytest.raises(RuntimeError, match="too small"):
        network(torch.zeros(1, 3, side - 1, 40), torch.ones(1, 3, side - 1, 40))
    with pytest.raises(ValueError, match=f"at least {side} pixels a side, got \\({side - 1}, 40\\)"):
        distance(torch.zeros(1, 3, side - 1, 40), torch.ones(1, 3, side - 1, 40))


@pytest.fixture
def altered(random_weights, tmp_path):
    """Save AlexNet's random features with some changed; None drops one."""

    def save(**changes):
        state = torch.load(random_weights("alex"), weights_only=True)
        for name, value in changes.items():
            state[name.replace("__", ".")] = value
        torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "trunk.pth")
        return tmp_path / "trunk.pth"

    return save


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features__0__bias": None}, r"trunk.pth is not the trunk of LPIPS alex: features.0.bias is missing"),
        ({"features__12__bias": torch.zeros(1)}, "features.12.bias is unexpected"),
        ({"features__0__bias": torch.zeros(3)}, r"features.0.bias has shape \(3,\) in place of \(64,\)"),
    ],
)
def test_a_file_that_is_not_this_trunk_is_refused(altered, changes, message):
    with pytest.raises(ValueError, match=message):
        lpips_network("alex", altered(**changes))


def test_another_trunk_is_refused_in_one_line(random_weights):
    with pytest.raises(ValueError, match=r"is not the trunk of LPIPS vgg: .*, and 2. more$"):
        lpips_network("vgg", random_weights("alex"))


def test_other_weights_in_the_file_and_half_precision_do_not_matter(altered):
    trunk = altered(classifier__1__weight=torch.zeros(2), features__0__bias=torch.ones(64).half())
    network = lpips_network("alex", trunk)
    assert network.get_parameter("net.slice1.0.bias").equal(torch.ones(64))


@pytest.mark.parametrize("content", [b"", b"no weights"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, content):
    (tmp_path / "trunk.pth").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        lpips_network("alex", tmp_path / "trunk.pth")
    torch.save([1, 2], tmp_path / "trunk.pth")
    with pytest.raises(ValueError, match="cannot be read"):
        lpips_network("alex", tmp_path / "trunk.pth")


def test_an_unknown_trunk_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be one of alex, vgg, got 'squeeze'"):
        lpips_network("squeeze", tmp_path)


class MeanDifference(nn.Module):
    """A stand-in of a perceptual network."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, first, second):
        return self.weight * (first - second).abs().mean(dim=(1, 2, 3))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 9), "differ"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8), r"three channels, \(B, 3, H, W\), got \(2, 1, 8, 8\)"),
        (torch.zeros(3, 8, 8), torch.zeros(3, 8, 8), "three channels"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "floats.*uint8"),
    ],
)
def test_images_that_the_distance_does_not_take_are_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        PerceptualDistance(MeanDifference())(first, second)


def test_weights_that_move_in_inference_mode_still_pass_gradients():
    distance = PerceptualDistance(MeanDifference())
    with torch.inference_mode():
        distance._follow(torch.device("meta"))
    assert distance.network.weight.device.type == "meta"
    assert not distance.network.weight.is_inference()


def test_copies_share_the_network():
    distance = PerceptualDistance(MeanDifference())
    assert copy.deepcopy({"distance": distance})["distance"] is distance
