"""The peer: vector-quantize-pytorch, at settings that match this project's quantizers.

No k-means start, no replacement of dead codes, straight-through gradient instead of the rotation trick.
"""

import importlib
from types import ModuleType

import torch
from torch import Tensor, nn

from nsvq.bench.workload import make_codes

MISSING = "vector-quantize-pytorch is not installed, so its rows are absent: pip install 'nsvq-lab[bench]'"


def peer_module() -> ModuleType | None:
    """Import vector-quantize-pytorch; None if it is not installed."""
    try:
        return importlib.import_module("vector_quantize_pytorch")
    except ImportError:
        return None


class OneSequence(nn.Module):
    """Hands latents (N, dim) to a quantizer of sequences as one sequence (1, N, dim).

    Args:
        quantizer: The quantizer of sequences.
    """

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize; return quantized latents (1, N, dim), indices and loss."""
        quantized, indices, loss = self.quantizer(z[None])
        return quantized, indices, loss


def peer_vq(commitment_weight: float, dim: int, codes: int) -> nn.Module:
    """Build its VectorQuantize with a codebook that learns by gradient, beside `VanillaVQ`."""
    return _vector_quantize(commitment_weight, dim, codes, learnable_codebook=True, ema_update=False)


def peer_ema_vq(commitment_weight: float, dim: int, codes: int) -> nn.Module:
    """Build its VectorQuantize with running means, beside `EMAVQ`."""
    return _vector_quantize(commitment_weight, dim, codes, decay=0.99, eps=1e-5)


def peer_simvq(commitment_weight: float, dim: int, codes: int) -> nn.Module:
    """Build its SimVQ, beside `SimVQ`."""
    torch.manual_seed(0)
    return OneSequence(
        _installed().SimVQ(
            dim=dim,
            codebook_size=codes,
            rotation_trick=False,
            input_to_quantize_commit_loss_weight=commitment_weight,
        )
    )


def _vector_quantize(commitment_weight: float, dim: int, codes: int, **options: bool | float) -> nn.Module:
    quantizer: nn.Module = _installed().VectorQuantize(
        dim=dim,
        codebook_size=codes,
        commitment_weight=commitment_weight,
        kmeans_init=False,
        threshold_ema_dead_code=0,
        rotation_trick=False,
        **options,
    )
    start = make_codes(codes, dim)
    for name, value in quantizer.state_dict().items():
        if name.endswith(("embed", "embed_avg")):
            value.copy_(start)
    return OneSequence(quantizer)


def _installed() -> ModuleType:
    module = peer_module()
    if module is None:
        raise ModuleNotFoundError(MISSING)
    return module
