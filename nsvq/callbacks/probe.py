"""Probe images: a fixed, representative part of the validation set."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import IterableDataset

from nsvq.callbacks.protocols import evaluating, images_of, tokenizer
from nsvq.metrics import ProbeState


def probe_images(trainer: Trainer, count: int) -> Tensor:
    """Return images that are evenly spread over the validation set, the same on all ranks and at each call.

    Data sets are often sorted by class or place, so that their first images are alike. Only of a data set without a
    length are the first images taken.

    Args:
        trainer: The trainer that is about to fit or validate; of several validation loaders the first counts.
        count: Number of images; fewer if the data set has fewer.

    Returns:
        Images, shape (count, C, H, W), on the loader's device.

    Raises:
        ValueError: If there are no validation images.
    """
    # The loader as the user gave it: the trainer's own copy holds another share of the images on each rank.
    loop = trainer.fit_loop.epoch_loop.val_loop if trainer.state.fn == "fit" else trainer.validate_loop
    source = loop._data_source
    loaders = source.dataloader() if source.is_defined() else []
    loader, *_ = loaders if isinstance(loaders, (list, tuple)) and loaders else [loaders]
    dataset = getattr(loader, "dataset", None)
    # Reading may draw a random number, and training must not depend on being watched.
    with torch.random.fork_rng(devices=[]):
        if dataset is None or isinstance(dataset, IterableDataset):
            images = _first(loader, count)
        else:
            places = torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().int().tolist()
            images = [images_of(loader.collate_fn([dataset[place] for place in places]))] if places else []
    if not images:
        raise ValueError("no validation images to take a probe set from")
    return torch.cat(images)[:count]


def probe_state(trainer: Trainer, pl_module: LightningModule, probe: Tensor) -> ProbeState:
    """Encode the probe set as in evaluation.

    Args:
        trainer: The trainer.
        pl_module: A module with `.quantizer` and `.encode`.
        probe: The images.

    Returns:
        Latents, codes and assignments, copies that training does not change.
    """
    module = tokenizer(pl_module)
    with evaluating(trainer, pl_module):
        images = trainer.precision_plugin.convert_input(probe.to(pl_module.device))
        latents = module.encode(images)
        indices = module.quantizer(latents).indices.flatten()
        searched, codes = module.quantizer.search_space(latents)
        return ProbeState(searched.clone(), codes.clone(), indices)


def _first(loader: object, count: int) -> list[Tensor]:
    batches: list[Tensor] = []
    for batch in loader:  # type: ignore[attr-defined]
        batches.append(images_of(batch))
        if sum(map(len, batches)) >= count:
            break
    return batches
