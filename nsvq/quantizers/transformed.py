"""Codebooks that a trained transform makes from a frozen one."""

from typing import Any

import torch
from torch import Tensor, nn

from nsvq.ops import call_raised
from nsvq.quantizers.base import Quantizer


class TransformedVQ(Quantizer):
    """Base of quantizers whose code vectors are `transform(frozen_codebook)`: one selected code moves all codes.

    A training forward transforms the codebook once. In evaluation, without gradients, the result is kept for the next
    calls; `train()`, `eval()`, loading a state, a call with gradients and any change of weights that torch counts drop
    it. Who changes weights behind torch's back in evaluation, by `.data`, calls `eval()` again.
    """

    frozen_codebook: Tensor
    transform: nn.Module
    _kept: tuple[tuple[Any, ...], Tensor] | None = None

    @property
    def codebook(self) -> Tensor:  # type: ignore[override]
        """Effective code vectors, shape (K, dim)."""
        if torch.compiler.is_compiling():
            return call_raised(self.transform, self.frozen_codebook)
        if self.training or torch.is_grad_enabled():
            self._kept = None
            return call_raised(self.transform, self.frozen_codebook)
        sources = (self.frozen_codebook, *self.transform.parameters())
        if any(tensor.is_inference() for tensor in sources):
            return call_raised(self.transform, self.frozen_codebook)
        # Whoever swaps weights in place between eval() and the next call must not meet the former codebook.
        state = tuple((tensor.data_ptr(), tensor.dtype, tensor._version) for tensor in sources)
        if self._kept is None or self._kept[0] != state:
            self._kept = state, call_raised(self.transform, self.frozen_codebook)
        return self._kept[1]

    def train(self, mode: bool = True) -> "TransformedVQ":
        """Set training or evaluation mode and forget the transformed codebook."""
        self._kept = None
        super().train(mode)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave the transformed codebook out of copies and pickles."""
        return self.__dict__ | {"_kept": None}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(*args, **kwargs)
