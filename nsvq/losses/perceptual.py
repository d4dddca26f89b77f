"""The perceptual loss."""

from torch import Tensor, nn

from nsvq.pretrained import PerceptualDistance


class PerceptualLoss:
    """The mean LPIPS distance of reconstructions to their images (arXiv 1801.03924; in VQGAN, arXiv 2012.09841).

    Deliberately no nn.Module, see `PerceptualDistance`: assigned to a LightningModule it adds no parameters and no
    state.

    Args:
        network: A perceptual network, such as `nsvq.pretrained.lpips_network` returns. It is frozen.
    """

    def __init__(self, network: nn.Module) -> None:
        self.distance = PerceptualDistance(network)

    def __call__(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """Return the loss.

        Args:
            reconstructions: Images in [−1, 1], shape (B, 3, H, W); the gradient flows here.
            images: The originals, like them.

        Returns:
            Scalar, float32.

        Raises:
            ValueError: If the images are not such as the network takes.
        """
        return self.distance(reconstructions, images).mean()
