"""Files of pretrained weights: which there are, where they lie, how they get there."""

import hashlib
import os
import sys
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch

from nsvq.distributed import barrier, everywhere, rank

CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class PretrainedFile:
    """A published file of weights."""

    name: str
    """File name."""
    url: str
    """Where it is published."""
    sha256_prefix: str
    """First hexadecimal digits of its sha256."""
    purpose: str
    """What needs it, in a few words."""


_TORCHVISION = "https://download.pytorch.org/models"
_TORCH_FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"

PRETRAINED: dict[str, PretrainedFile] = {
    "vgg": PretrainedFile(
        "vgg16-397923af.pth", f"{_TORCHVISION}/vgg16-397923af.pth", "397923af", "VGG-16, the trunk of LPIPS vgg"
    ),
    "alex": PretrainedFile(
        "alexnet-owt-7be5be79.pth",
        f"{_TORCHVISION}/alexnet-owt-7be5be79.pth",
        "7be5be79",
        "AlexNet, the trunk of LPIPS alex",
    ),
    "inception": PretrainedFile(
        "weights-inception-2015-12-05-6726825d.pth",
        f"{_TORCH_FIDELITY}/weights-inception-2015-12-05-6726825d.pth",
        "6726825d",
        "Inception-v3, the features of FID",
    ),
}


def places(key: str) -> list[Path]:
    """Return where a file is looked for, in this order: `$NSVQ_WEIGHTS_DIR` if set, torch's hub cache.

    Args:
        key: A key of `PRETRAINED`.

    Raises:
        ValueError: If there is no such key.
    """
    name = _file(key).name
    own = os.environ.get("NSVQ_WEIGHTS_DIR")
    folders = [Path(own).expanduser()] if own else []
    return [folder / name for folder in (*folders, Path(torch.hub.get_dir()) / "checkpoints")]


def locate(key: str) -> Path | None:
    """Return the first place where a file lies, sound or not; None if there is none."""
    return next((place for place in places(key) if place.is_file()), None)


def is_sound(key: str, path: Path) -> bool:
    """Return whether a file's sha256 begins as it should."""
    return _sha256(path).startswith(_file(key).sha256_prefix)


def find(key: str, path: str | Path | None = None, option: str = "", switch_off: str = "") -> Path:
    """Return a file of weights that lies on this machine, checked by its sha256.

    Args:
        key: A key of `PRETRAINED`.
        path: Where it lies; None looks at `places(key)`.
        option: Name of the caller's option that takes the path, for the message.
        switch_off: How the caller does without the weights, for the message, such as `set perceptual_weight to 0`.

    Returns:
        Its path.

    Raises:
        FileNotFoundError: If it lies nowhere; the message names the places and the remedies.
        ValueError: If there is no such key, or the file found is damaged or another one.
    """
    file = _file(key)
    candidates = places(key) if path is None else [Path(path).expanduser()]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        remedies = [
            f"`nsvq weights fetch {key}` on a machine with network",
            "copy the file there",
            f"give its path as {option}" if option else "",
            switch_off,
            "set allow_download to true" if path is None else "",
        ]
        raise FileNotFoundError(
            f"{file.name} ({file.purpose}; sha256 {file.sha256_prefix}…) is not at "
            f"{' nor at '.join(map(str, candidates))}. Remedies: {'; or '.join(filter(None, remedies))}"
        )
    digest = _sha256(found)
    if not digest.startswith(file.sha256_prefix):
        raise ValueError(
            f"{found} is damaged or another file: its sha256 should begin with {file.sha256_prefix} and is "
            f"{digest[:16]}…; delete it or put the right one there, `nsvq weights fetch {key}` downloads it"
        )
    return found


def fetch(key: str, folder: str | Path | None = None) -> Path:
    """Download a file of weights, unless it is there already.

    A damaged file is replaced, and a damaged download never stays under the file's name.

    Args:
        key: A key of `PRETRAINED`.
        folder: Where it goes; None takes `$NSVQ_WEIGHTS_DIR` if set, else torch's hub cache.

    Returns:
        Its path.

    Raises:
        OSError: If it cannot be downloaded or written.
        ValueError: If there is no such key, or what was downloaded is not the published file.
    """
    file = _file(key)
    candidates = places(key) if folder is None else [Path(folder).expanduser() / file.name]
    target = candidates[0]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is not None and is_sound(key, found):
        return found
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(file.url, str(target), file.sha256_prefix, progress=sys.stderr.isatty())
    except (OSError, HTTPException) as error:
        raise OSError(
            f"cannot download {file.url} to {target} ({error}): on a machine with network "
            f"`nsvq weights fetch {key} --folder DIR`, then copy {file.name} to {target.parent}"
        ) from error
    except RuntimeError as error:
        raise ValueError(f"{file.url} gave a damaged or another file, which was not kept: {error}") from error
    return target


def obtain(
    key: str, path: str | Path | None = None, allow_download: bool = False, option: str = "", switch_off: str = ""
) -> Path:
    """Return a file of weights, downloaded first if that is allowed and needed.

    Under a process group only the first process of each node downloads and the others wait, so call it on every rank
    with equal arguments, once the group runs (in Lightning: in `setup`, not in `__init__`).

    Args:
        key: A key of `PRETRAINED`.
        path: Where it lies, see `find`; a file that is missing there is not downloaded.
        allow_download: Whether a missing file may be downloaded.
        option: Name of the caller's option that takes the path, for the message.
        switch_off: How the caller does without the weights, for the message.

    Returns:
        Its path.

    Raises:
        FileNotFoundError: If it lies nowhere and was not downloaded; on every rank, if that is so on any.
        ValueError: If there is no such key, or the file found is damaged or another one; other ranks, where it is
            sound, raise a FileNotFoundError.
    """
    failure = None
    if allow_download:
        if path is None and _first_on_node():
            try:
                if locate(key) is None:
                    fetch(key)
            except (OSError, ValueError) as error:
                failure = error
        barrier()
    found, refusal = None, None
    try:
        found = find(key, path, option, switch_off)
    except (FileNotFoundError, ValueError) as error:
        refusal = error
    sound = everywhere(found is not None)
    if refusal is not None:
        raise type(refusal)(f"{failure}. {refusal}" if failure else str(refusal)) from failure
    if found is None or not sound:
        raise FileNotFoundError(f"another process found no sound {PRETRAINED[key].name}")
    return found


def _file(key: str) -> PretrainedFile:
    if key not in PRETRAINED:
        raise ValueError(f"unknown weights {key!r}; known: {', '.join(PRETRAINED)}")
    return PRETRAINED[key]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _first_on_node() -> bool:
    return int(os.environ.get("LOCAL_RANK", rank())) == 0
