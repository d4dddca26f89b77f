"""The quantizer interface and the steps that all methods share."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsvq.distributed import GlobalRows, all_reduce_sum
from nsvq.ops import common_dtype, straight_through
from nsvq.quantizers.codebook_loss import CodebookLoss
from nsvq.quantizers.kmeans import kmeans


class QuantizerOutput(NamedTuple):
    """What a quantizer returns for latents of shape (B, dim, *spatial)."""

    quantized: Tensor
    """Code vectors with the gradient estimator applied; shape and type of the latents."""
    indices: Tensor
    """Code indices, int64, shape (B, *spatial)."""
    loss: Tensor
    """Weighted loss, scalar, at least float32."""
    losses: dict[str, Tensor]
    """The weighted parts that sum to `loss`, by name, for logging."""


class Quantizer(nn.Module):
    """Base of all quantizers: flatten, compare, look up, estimate the gradient.

    A method supplies `codebook`, and where its search runs in another space than the latents' also `codes()`,
    `project()` and `unproject()`. All arithmetic is done in at least float32 with autocast off. Evaluation mode changes
    no state.

    Args:
        dim: Channels of the latents.
        codebook_size: Number of codes K.
        commitment_weight: Factor β of the commitment loss mean (z − sg e_q)².
        codebook_weight: Factor of the codebook loss.
        codebook_loss: How the code vectors learn; None: the nearest code only.
        initial_scale: None leaves the published initialisation. A number rescales the code vectors once, at the first
            training batch, to that multiple of the latents' scale s = sqrt(mean ‖u − mean u‖²) (all processes'
            latents together), both measured in the search space.

    Raises:
        ValueError: If a number is out of its range.
    """

    codebook: Tensor
    """Effective code vectors, shape (codebook_size, dim): a parameter or buffer, or a property where it is computed."""
    scale_is_set: Tensor
    """Whether the codes were given their places: rescaled by `initial_scale` or set by `initialize_codes`."""
    spherical: bool = False
    """Whether latents and codes are unit vectors where they are compared."""

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        codebook_loss: CodebookLoss | None = None,
        initial_scale: float | None = None,
    ) -> None:
        super().__init__()
        if type(self) is Quantizer:
            raise TypeError("Quantizer is the base of all quantizers and quantizes nothing itself: choose a subclass")
        check_at_least("dim", dim, 1)
        check_at_least("codebook_size", codebook_size, 1)
        check_at_least("commitment_weight", commitment_weight, 0)
        check_at_least("codebook_weight", codebook_weight, 0)
        if initial_scale is not None and not 0 < initial_scale < math.inf:
            raise ValueError(f"initial_scale must be null or a finite number above 0, got {initial_scale}")
        self.dim = dim
        self.codebook_size = codebook_size
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        self.codebook_loss = codebook_loss or CodebookLoss()
        self.initial_scale = initial_scale
        self.register_buffer("scale_is_set", torch.tensor(False))
        # Looking at the buffer waits for the device and breaks a compiled graph, so a step looks once.
        self._scale_is_known = initial_scale is None

    def codes(self) -> Tensor:
        """Return the code vectors as they are searched, shape (K, d)."""
        return self.codebook

    def project(self, latents: Tensor) -> Tensor:
        """Map latents (N, dim) into the search space (N, d)."""
        return latents

    def unproject(self, vectors: Tensor) -> Tensor:
        """Map vectors of the search space (N, d) back to (N, dim)."""
        return vectors

    @property
    def free_codes(self) -> Tensor | None:
        """The tensor (K, d) whose rows are code vectors that can be set one by one; None if a transform makes them."""
        return None

    def search_space(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents and codes as they are compared.

        Args:
            z: Latents, shape (B, dim, *spatial).

        Returns:
            Latents (N, d), N = B·Π spatial, and codes (K, d), in their common type of at least float32.

        Raises:
            ValueError: If the shape or type of z is wrong.
        """
        self._check(z)
        with torch.autocast(z.device.type, enabled=False):
            rows = z.movedim(1, -1).reshape(-1, self.dim)
            latents, codes = self.project(rows), self.codes()
            dtype = common_dtype(latents, codes)
            return latents.to(dtype), codes.to(dtype)

    def forward(self, z: Tensor) -> QuantizerOutput:
        """Quantize latents.

        Args:
            z: Latents, shape (B, dim, *spatial), any floating type.

        Returns:
            Quantized latents, indices and losses.

        Raises:
            ValueError: If the shape or type of z is wrong, it is empty or a value is not finite.
        """
        if z.numel() == 0:
            raise ValueError(f"{type(self).__name__} got no latents: the shape is {tuple(z.shape)}")
        if self.training and not self._scale_is_known:
            self._set_initial_scale(z)
        latents, codes = self.search_space(z)
        with torch.autocast(z.device.type, enabled=False):
            indices, losses = self.learn(latents, codes)
            chosen = F.embedding(indices, codes)
            losses["commitment"] = self.commitment_weight * F.mse_loss(latents, chosen.detach())
            estimate = straight_through(latents, chosen, self.codebook_gradient_share(latents))
            quantized = self._unflatten(self.unproject(estimate), z)
            if self.training:
                self.update(latents.detach(), indices)
        indices = indices.view(len(z), *z.shape[2:])
        return QuantizerOutput(quantized.to(z.dtype), indices, torch.stack(list(losses.values())).sum(), losses)

    def lookup(self, indices: Tensor) -> Tensor:
        """Return code vectors.

        Args:
            indices: Code indices in [0, codebook_size), integer, shape (B, *spatial).

        Returns:
            Code vectors, shape (B, dim, *spatial).
        """
        return F.embedding(indices, self.codebook).movedim(-1, 1)

    def learn(self, latents: Tensor, codes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Find each latent's code and compute the losses that move the codes.

        Args:
            latents: Latents in the search space, shape (N, d).
            codes: Codes in the search space, shape (K, d).

        Returns:
            Indices (N,) and weighted losses by name.
        """
        output = self.codebook_loss(latents, codes)
        return output.indices, {"codebook": self.codebook_weight * output.loss}

    def update(self, latents: Tensor, indices: Tensor) -> None:
        """Change code vectors without a gradient after a training lookup.

        Args:
            latents: Latents in the search space, shape (N, d).
            indices: Their codes, shape (N,).
        """

    def codebook_gradient_share(self, latents: Tensor) -> float:
        """Return the share of the task's gradient that the chosen codes receive, see `straight_through`."""
        return 0.0

    def replace_codes(self, indices: Tensor, vectors: Tensor) -> None:
        """Set single code vectors and reset whatever is kept for them.

        Args:
            indices: Codes to replace, int64, shape (M,).
            vectors: Their new places in the search space, shape (M, d).

        Raises:
            TypeError: If the method has no free code vectors.
        """
        codes = self._codes_to_set()
        with torch.no_grad():
            codes[indices] = vectors.to(codes.dtype)

    def initialize_codes(self, vectors: Tensor) -> None:
        """Set all code vectors in place of a random start and reset what is kept for them; no rescaling follows.

        Args:
            vectors: Their places in the search space, shape (K, d).

        Raises:
            TypeError: If the method has no free code vectors.
            ValueError: If the shape is wrong.
        """
        shape = tuple(self._codes_to_set().shape)
        if vectors.shape != shape:
            raise ValueError(f"{type(self).__name__} expects code vectors of shape {shape}, got {tuple(vectors.shape)}")
        self.replace_codes(torch.arange(self.codebook_size, device=vectors.device), vectors)
        self.scale_is_set.fill_(True)

    @torch.no_grad()
    def fit_codes(self, z: Tensor, iterations: int = 20, seed: int = 0) -> None:
        """Set all code vectors from latents of all processes: random latents, moved by iterations of k-means.

        All processes call it together and get equal codes, those of one process with all latents up to rounding.

        Args:
            z: This process's latents, shape (B, dim, *spatial).
            iterations: Most iterations of k-means; 0 leaves the random latents.
            seed: Seed of the choice.

        Raises:
            TypeError: If the method has no free code vectors.
            ValueError: If z has a wrong shape or type, a value of any process is not finite, or there are fewer
                latents than codes.
        """
        self._codes_to_set()
        latents, _ = self.search_space(z)
        # Counted are those of all processes, so that all of them stop.
        if all_reduce_sum((~latents.isfinite()).sum()):
            raise ValueError(f"{type(self).__name__} got latents with non-finite values")
        rows = GlobalRows(latents.reshape(len(z), math.prod(z.shape[2:]), latents.shape[1]))
        self.initialize_codes(kmeans(rows, self.codebook_size, iterations, seed, self.spherical))

    def scale_codes(self, factor: Tensor) -> None:
        """Multiply all code vectors by a factor, in place.

        Args:
            factor: Scalar.

        Raises:
            TypeError: If the method's code vectors have no scale.
        """
        if self.free_codes is None:
            raise TypeError(f"{type(self).__name__} does not scale its code vectors")
        self.free_codes.mul_(factor)

    def on_epoch_end(self) -> None:
        """Tell that a training epoch is over; advances bandwidths that are scheduled per epoch."""
        self.codebook_loss.on_epoch_end()

    def extra_repr(self) -> str:
        """Return dim and codebook_size for `print`."""
        return f"dim={self.dim}, codebook_size={self.codebook_size}"

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._scale_is_known = self.initial_scale is None
        super()._load_from_state_dict(*args, **kwargs)

    @torch.no_grad()
    def _set_initial_scale(self, z: Tensor) -> None:
        if self.scale_is_set or self.initial_scale is None:
            self._scale_is_known = True
            return
        latents, codes = (side.double() for side in self.search_space(z))
        sums = all_reduce_sum(
            torch.cat([latents.sum(dim=0), latents.square().sum()[None], latents.new_tensor([len(latents)])])
        )
        # The sums are of all processes, so that all of them stop.
        if not sums.isfinite().all():
            raise ValueError(f"{type(self).__name__} got latents with non-finite values")
        count = sums[-1]
        latent_variance = sums[-2] / count - (sums[:-2] / count).square().sum()
        code_variance = codes.var(dim=0, correction=0).sum()
        if latent_variance > 0 and code_variance > 0:
            factor = self.initial_scale * (latent_variance / code_variance).sqrt()
            self.scale_codes(factor.float())
        self.scale_is_set.fill_(True)
        self._scale_is_known = True

    def _codes_to_set(self) -> Tensor:
        if self.free_codes is None:
            raise TypeError(f"{type(self).__name__} has no free code vectors: a transform makes them all at once")
        return self.free_codes

    def _unflatten(self, rows: Tensor, like: Tensor) -> Tensor:
        return rows.view(len(like), *like.shape[2:], self.dim).movedim(-1, 1)

    def _check(self, z: Tensor) -> None:
        name = type(self).__name__
        if z.ndim < 2 or z.shape[1] != self.dim:
            raise ValueError(f"{name} expects latents of shape (B, {self.dim}, *spatial), got {tuple(z.shape)}")
        if not z.is_floating_point():
            raise ValueError(f"{name} expects floating point latents, got {z.dtype}")


def check_at_least(name: str, value: float, minimum: float) -> None:
    """Refuse an option's value below its least.

    Args:
        name: The option.
        value: Its value.
        minimum: The least value.

    Raises:
        ValueError: If the value is below the minimum or not finite.
    """
    if not minimum <= value < math.inf:
        raise ValueError(f"{name} must be at least {minimum} and finite, got {value}")
