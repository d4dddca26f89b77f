"""LPIPS, the perceptual distance of images (Zhang et al., arXiv 1801.03924)."""

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

# What the poolings of a trunk need; torch's own message would not name the image.
SMALLEST_SIDE = {"alex": 31, "vgg": 16}


def lpips_network(net: Literal["alex", "vgg"], trunk: Path) -> nn.Module:
    """Build LPIPS, version 0.1: a trunk that is read from a file and the linear heads of the package `lpips`.

    No random number is drawn.

    Args:
        net: The trunk: `alex`, with which LPIPS is mostly reported, or `vgg`, with which it is mostly trained.
        trunk: torchvision's file of weights of this trunk, see `nsvq.pretrained.obtain`; only its `features.*` are
            used.

    Returns:
        The frozen network in evaluation mode. It maps two float batches (B, 3, H, W) in [−1, 1] to distances
        (B, 1, 1, 1).

    Raises:
        ValueError: If the trunk is unknown, or the file cannot be read or holds other features.
    """
    if net not in SMALLEST_SIDE:
        raise ValueError(f"LPIPS's net must be one of {', '.join(SMALLEST_SIDE)}, got {net!r}")
    import lpips

    # On the meta device nothing is drawn for the 120 million weights of VGG's classifier, which LPIPS throws away.
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        network: Any = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    heads = torch.load(
        Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth", map_location="cpu", weights_only=True
    )
    network.lins.load_state_dict({name.removeprefix("lin"): head for name, head in heads.items()}, assign=True)
    network.net.load_state_dict(_trunk_weights(trunk, net, network.net), assign=True)
    frozen: nn.Module = network.eval().requires_grad_(False)
    return frozen


class PerceptualDistance:
    """The distance of image pairs under a frozen network.

    Deliberately no nn.Module: a module that holds it as an attribute has no such network in its parameters, its state,
    its averaged copies or its distributed wrapper. The network follows the images' device.

    Args:
        network: Maps two float batches (B, 3, H, W) to B distances, such as `lpips_network` returns.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)
        self.smallest_side = SMALLEST_SIDE.get(getattr(network, "pnet_type", ""), 1)
        self.device: torch.device | None = None

    def __call__(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """Compare reconstructions with images, in float32 whatever the autocast.

        Args:
            reconstructions: Images in [−1, 1], shape (B, 3, H, W); the gradient flows here.
            images: The originals, like them.

        Returns:
            Distances, float32, shape (B,).

        Raises:
            ValueError: If the shapes differ, there are not three channels, the values are integers or the sides are
                too small for the network.
        """
        self._check(reconstructions, images)
        self._follow(images.device)
        with torch.autocast(images.device.type, enabled=False):
            distances: Tensor = self.network(reconstructions.float(), images.detach().float())
        return distances.flatten()

    def __deepcopy__(self, memo: dict[int, Any]) -> "PerceptualDistance":
        """Return itself: copies of a model share the frozen network."""
        return self

    def _check(self, reconstructions: Tensor, images: Tensor) -> None:
        if reconstructions.shape != images.shape:
            raise ValueError(f"reconstructions {tuple(reconstructions.shape)} and images {tuple(images.shape)} differ")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"LPIPS takes images of three channels, (B, 3, H, W), got {tuple(images.shape)}")
        if not (images.is_floating_point() and reconstructions.is_floating_point()):
            raise ValueError(f"LPIPS takes floats in [−1, 1], got {reconstructions.dtype} and {images.dtype}")
        if min(images.shape[2:]) < self.smallest_side:
            raise ValueError(
                f"this LPIPS needs images of at least {self.smallest_side} pixels a side, got {tuple(images.shape[2:])}"
            )

    def _follow(self, device: torch.device) -> None:
        if self.device != device:
            # Weights that were moved in inference mode could not pass a gradient later.
            with torch.inference_mode(False):
                self.network.to(device)
            self.device = device


def _trunk_weights(trunk: Path, net: str, slices: nn.Module) -> dict[str, Tensor]:
    """Read the features of torchvision's file under the names of lpips, `features.N.*` as `slice<k>.N.*`."""
    try:
        content = torch.load(trunk, map_location="cpu", weights_only=True)
        features = {name: value.float() for name, value in content.items() if name.startswith("features.")}
    except Exception as error:
        raise ValueError(f"{trunk} cannot be read: it is truncated, damaged or no file of weights") from error
    expected = {"features." + name.split(".", 1)[1]: (name, value.shape) for name, value in slices.state_dict().items()}
    wrong = [f"{name} is missing" for name in expected if name not in features]
    wrong += [f"{name} is unexpected" for name in features if name not in expected]
    wrong += [
        f"{name} has shape {tuple(value.shape)} in place of {tuple(expected[name][1])}"
        for name, value in features.items()
        if name in expected and value.shape != expected[name][1]
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{trunk} is not the trunk of LPIPS {net}: {'; '.join(wrong[:3])}{more}")
    return {expected[name][0]: value for name, value in features.items()}
