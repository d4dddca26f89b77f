"""The data module for a user's own folder of images."""

from pathlib import Path
from typing import Literal

from nsvq.data.base import ImageDataModule, Splits, require_choice
from nsvq.data.damage import OnDamagedImage
from nsvq.data.folder_reader import FolderReader
from nsvq.data.splitting import Share, SplitNames, split_by_lists, split_by_share
from nsvq.data.transforms import Crop


class ImageFolder(ImageDataModule):
    """A folder of images, flat or in sub-folders, sorted by relative path.

    Splits come from list files where `val_list` is given, else from shares of the sorted names: a number above 1 is a
    count, one in [0, 1] a fraction, None the rest. A missing test split is the validation split.

    Args:
        root: The folder; files ending in jpg, jpeg, png, bmp, webp, tif or tiff in it are read.
        size: Side of the square crop the model sees, in pixels.
        resize: Length given to the shorter side before cropping; "size" makes it `size`, None leaves images as they
            are.
        train_crop: Where training crops are taken; evaluation takes the centre.
        horizontal_flip: Mirror training images half of the time.
        split: "random" permutes the names by `seed` before dividing them, "sorted" takes consecutive runs in the order
            training, validation, test.
        train_fraction: Share of training.
        val_fraction: Share of validation.
        test_fraction: Share of testing.
        train_list: File with one relative path a line; None trains on all that the other lists leave.
        val_list: The same for validation; when given, lists make the splits and the shares are not used.
        test_list: The same for testing.
        on_damaged_image: "raise" stops at a training image that cannot be decoded, "skip" replaces it by the next
            sound one. Evaluation always stops.
        max_damaged: How many distinct damaged files "skip" puts up with in each process.
        batch_size: Images per batch and process.
        num_workers: Loader processes.
        seed: Seed of the random split; added to the run's seed, which decides order and augmentation in training.
    """

    def __init__(
        self,
        root: str | Path,
        size: int = 64,
        resize: int | Literal["size"] | None = "size",
        train_crop: Crop = "center",
        horizontal_flip: bool = False,
        split: Literal["random", "sorted"] = "random",
        train_fraction: Share = None,
        val_fraction: Share = 0.1,
        test_fraction: Share = 0,
        train_list: str | Path | None = None,
        val_list: str | Path | None = None,
        test_list: str | Path | None = None,
        on_damaged_image: OnDamagedImage = "raise",
        max_damaged: int = 10,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        require_choice("split", split, ("random", "sorted"))
        if val_list is None and (train_list is not None or test_list is not None):
            raise ValueError("train_list and test_list need a val_list beside them")
        self.reader = FolderReader(root, size, resize, train_crop, horizontal_flip, on_damaged_image, max_damaged)
        self.split = split
        self.shares = (train_fraction, val_fraction, test_fraction)
        self.lists = (_path(train_list), _path(val_list), _path(test_list))

    def make_splits(self) -> Splits:
        """Find the images and divide them."""
        names = self._divide(self.reader.find())
        train, val = self.reader.train(names.train), self.reader.evaluation(names.val)
        return Splits(train, val, self.reader.evaluation(names.test) if names.test else val)

    def _divide(self, names: list[str]) -> SplitNames:
        train_list, val_list, test_list = self.lists
        if val_list is not None:
            return split_by_lists(names, self.reader.root, train_list, val_list, test_list)
        return split_by_share(names, self.split, *self.shares, self.seed)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).expanduser()
