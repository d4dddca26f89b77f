"""Autoencoders published by taming-transformers and latent diffusion."""

import warnings
import zipfile
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from nsvq.quantizers import Quantizer

PARTS = {"encoder": "encoder", "decoder": "decoder", "to_latents": "quant_conv", "from_latents": "post_quant_conv"}
CODEBOOK = "quantize.embedding.weight"
FIRST_STAGE = "first_stage_model."


class Autoencoder(Protocol):
    """A model whose parts have a counterpart in the published checkpoints."""

    @property
    def encoder(self) -> nn.Module:
        """An `LDMEncoder`."""

    @property
    def decoder(self) -> nn.Module:
        """An `LDMDecoder`."""

    @property
    def to_latents(self) -> nn.Module:
        """The 1×1 convolution from the encoder's width to the quantizer's dim."""

    @property
    def from_latents(self) -> nn.Module:
        """The 1×1 convolution from the quantizer's dim to the decoder's width."""

    @property
    def quantizer(self) -> Quantizer:
        """Any quantizer."""


def load_published_autoencoder(model: Autoencoder, path: str | Path) -> None:
    """Load the weights of a VQGAN that taming-transformers or latent diffusion published.

    Sources: arXiv 2012.09841 and 2112.10752, released checkpoints; also a whole latent diffusion model, whose first
    stage is taken. Discriminators, running averages and anything else beside the autoencoder are ignored. Classes that
    the file names are not imported, and none of its code runs.

    A quantizer whose free codes are its codebook takes the published one and is not rescaled by `initial_scale` any
    more. Others keep their own code vectors, with a warning.

    Args:
        model: The model that takes the weights; unchanged if an error is raised.
        path: The checkpoint: a state dict, or a dict with one under `state_dict`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read safely, holds no state dict, or belongs to another model.
    """
    path = Path(path)
    theirs = _autoencoder_weights(path)
    quantizer = model.quantizer
    takes_codebook = quantizer.free_codes is not None and quantizer.free_codes is quantizer.codebook
    ours = {
        f"{prefix}.{name}": value
        for part, prefix in PARTS.items()
        for name, value in getattr(model, part).state_dict().items()
    }
    if takes_codebook:
        ours[CODEBOOK] = quantizer.codebook
    _check_same(path, theirs, ours)
    for part, prefix in PARTS.items():
        getattr(model, part).load_state_dict(_without_prefix(theirs, f"{prefix}."))
    if takes_codebook:
        quantizer.initialize_codes(theirs[CODEBOOK].to(quantizer.codebook.device))
    else:
        warnings.warn(
            f"the codebook of {path} is left out: {type(quantizer).__name__} keeps its own code vectors", stacklevel=2
        )


class _Inert:
    """Stands for any class or function that a checkpoint names: takes all arguments and does nothing."""

    def __new__(cls, *_: Any) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _inert(name: str) -> type[_Inert]:
    """Return a class of that full name which does nothing; torch knows what is allowed by its name."""
    module, _, last = name.rpartition(".")
    return type(last, (_Inert,), {"__module__": module})


def _autoencoder_weights(path: Path) -> dict[str, Tensor]:
    """Return the first stage's tensors by their published names."""
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    # Files from before torch 1.6 are no archives: they can neither be listed nor mapped into memory.
    is_archive = zipfile.is_zipfile(path)
    try:
        names = get_unsafe_globals_in_checkpoint(path) if is_archive else []
        with safe_globals([_inert(name) for name in names]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except Exception as error:
        raise ValueError(
            f"checkpoint {path} cannot be read: it is truncated, damaged, not a checkpoint or not safe to load"
        ) from error
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    entries = state.items() if isinstance(state, dict) else ()
    weights = {name: value for name, value in entries if isinstance(name, str) and isinstance(value, Tensor)}
    if not weights:
        raise ValueError(f"checkpoint {path} holds no state_dict")
    return _without_prefix(weights, FIRST_STAGE) or weights


def _without_prefix(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries whose name begins with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _check_same(path: Path, theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    """Refuse weights that differ from the model's in names or shapes."""
    prefixes = tuple(f"{prefix}." for prefix in PARTS.values())
    differences = [f"{name} is missing" for name in ours if name not in theirs]
    differences += [f"{name} is not in the model" for name in theirs if name.startswith(prefixes) and name not in ours]
    differences += [
        f"{name} has shape {tuple(theirs[name].shape)} where the model has {tuple(value.shape)}"
        for name, value in ours.items()
        if name in theirs and theirs[name].shape != value.shape
    ]
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(f"checkpoint {path} belongs to another model: {'; '.join(differences[:3])}{more}")
