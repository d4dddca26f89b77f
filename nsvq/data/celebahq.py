"""CelebA-HQ faces."""

from pathlib import Path
from typing import Any, Literal

from nsvq.data.base import require_choice
from nsvq.data.image_folder import ImageFolder
from nsvq.data.splitting import Share


class CelebAHQ(ImageFolder):
    """A folder of CelebA-HQ faces; there is no official download.

    The field uses several splits of the same 30,000 images that can't be compared with one another. "paper" is that of
    the NSVQ authors' code: of the sorted names the first 75 % train, the next 10 % validate, the rest test. Others
    come as list files, e.g. the 25,000/5,000 lists of the VQGAN authors.

    Args:
        root: The folder of images.
        size: Side of the images the model sees; the shorter side is resized to it unless `resize` says otherwise.
        split: "paper", or `ImageFolder`'s "random" or "sorted" with the shares below.
        train_fraction: Share of training, unused by "paper".
        val_fraction: Share of validation, unused by "paper".
        test_fraction: Share of testing, unused by "paper".
        kwargs: Further arguments of `ImageFolder`; list files replace the split.
    """

    def __init__(
        self,
        root: str | Path,
        size: int = 128,
        split: Literal["paper", "random", "sorted"] = "paper",
        train_fraction: Share = None,
        val_fraction: Share = 0.1,
        test_fraction: Share = 0,
        **kwargs: Any,
    ) -> None:
        require_choice("split", split, ("paper", "random", "sorted"))
        if split == "paper":
            train_fraction, val_fraction, test_fraction = 0.75, 0.1, None
        super().__init__(
            root,
            size=size,
            split="sorted" if split == "paper" else split,
            train_fraction=train_fraction,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            **kwargs,
        )
