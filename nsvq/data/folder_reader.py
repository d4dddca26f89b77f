"""How the image files of one folder are read, in training and in evaluation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from nsvq.data.base import require_at_least, require_choice
from nsvq.data.damage import OnDamagedImage
from nsvq.data.files import find_images, require_decodable
from nsvq.data.folder_images import FolderImages
from nsvq.data.transforms import Crop, ImageTransform


class FolderReader:
    """Makes datasets of a folder's images; the data modules over files share it.

    Args:
        root: The folder.
        size: Side of the square crop in pixels.
        resize: Length given to the shorter side before cropping; "size" makes it `size`, None leaves images as they
            are.
        train_crop: Where training crops are taken; evaluation takes the centre.
        horizontal_flip: Mirror training images half of the time.
        on_damaged_image: What training does with a file that cannot be decoded; evaluation always raises.
        max_damaged: How many distinct damaged files "skip" puts up with.
    """

    def __init__(
        self,
        root: str | Path,
        size: int,
        resize: int | Literal["size"] | None,
        train_crop: Crop,
        horizontal_flip: bool,
        on_damaged_image: OnDamagedImage,
        max_damaged: int,
    ) -> None:
        require_at_least("size", size, 1)
        require_at_least("max_damaged", max_damaged, 0)
        require_choice("train_crop", train_crop, get_args(Crop))
        require_choice("on_damaged_image", on_damaged_image, get_args(OnDamagedImage))
        shorter_side = size if resize == "size" else resize
        self.root = Path(root).expanduser()
        self._train_transform = ImageTransform(size, shorter_side, train_crop, horizontal_flip)
        self._eval_transform = ImageTransform(size, shorter_side)
        self._max_damaged = max_damaged if on_damaged_image == "skip" else None

    def find(self) -> list[str]:
        """List the folder's images, of which at least one must decode.

        Returns:
            Sorted paths relative to the root.
        """
        names = find_images(self.root)
        require_decodable(self.root, names)
        return names

    def train(self, names: Sequence[str]) -> FolderImages:
        """Make a training dataset of the named files."""
        return FolderImages(self.root, names, self._train_transform, self._max_damaged)

    def evaluation(self, names: Sequence[str]) -> FolderImages:
        """Make an evaluation dataset of the named files."""
        return FolderImages(self.root, names, self._eval_transform)
