"""LPIPS as a meter."""

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from nsvq.pretrained import PerceptualDistance


class LPIPSMetric(Metric):
    """The mean LPIPS distance (arXiv 1801.03924) of images to their reconstructions.

    Its network is no part of its modules or its state and follows the images' device.

    Args:
        network: A perceptual network, such as `nsvq.pretrained.lpips_network` returns. It is frozen. Name the trunk
            with the result: `alex` and `vgg` give different numbers.
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = False
    distance_sum: Tensor
    images: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.distance = PerceptualDistance(network)
        self.add_state("distance_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, reconstructions: Tensor, images: Tensor) -> None:
        """Accumulate the distances of a batch.

        Args:
            reconstructions: Images in [−1, 1], shape (B, 3, H, W), any float type.
            images: The originals, like them.

        Raises:
            ValueError: If the images are not such as the network takes.
        """
        self.distance_sum += self.distance(reconstructions, images).double().sum()
        self.images += len(images)

    def compute(self) -> Tensor:
        """Return the mean over images, scalar; nan without images."""
        return self.distance_sum / self.images
