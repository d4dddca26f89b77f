"""ImageNet-1k in its usual folders."""

from pathlib import Path
from typing import Literal

from torchvision import datasets

from nsvq.data.base import ImageDataModule, Splits
from nsvq.data.damage import OnDamagedImage
from nsvq.data.files import require_decodable
from nsvq.data.folder_reader import FolderReader
from nsvq.data.transforms import Crop


class ImageNet(ImageDataModule):
    """ImageNet-1k, or any data laid out like it, without its labels.

    Images are resized by the shorter side and cropped, at random in training and in the centre in evaluation. The
    validation split also serves for testing and prediction.

    Args:
        root: The folder that holds `train/<class>/` and `val/<class>/`, in the layout of torchvision's `ImageFolder`.
        size: Side of the square crop the model sees, in pixels.
        resize: Length given to the shorter side before cropping; "size" makes it `size`, None leaves images as they
            are.
        train_crop: Where training crops are taken; evaluation takes the centre.
        horizontal_flip: Mirror training images half of the time.
        on_damaged_image: "raise" stops at a training image that cannot be decoded, "skip" replaces it by the next
            sound one. Evaluation always stops.
        max_damaged: How many distinct damaged files "skip" puts up with in each process.
        batch_size: Images per batch and process.
        num_workers: Loader processes.
        seed: Added to the run's seed, which decides order and augmentation in training.
    """

    def __init__(
        self,
        root: str | Path,
        size: int = 256,
        resize: int | Literal["size"] | None = "size",
        train_crop: Crop = "random",
        horizontal_flip: bool = False,
        on_damaged_image: OnDamagedImage = "raise",
        max_damaged: int = 10,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.reader = FolderReader(root, size, resize, train_crop, horizontal_flip, on_damaged_image, max_damaged)

    def make_splits(self) -> Splits:
        """Find the images of both folders."""
        train = self.reader.train(self._find("train"))
        val = self.reader.evaluation(self._find("val"))
        return Splits(train, val, val)

    def _find(self, part: str) -> list[str]:
        folder = self.reader.root / part
        if not folder.is_dir():
            raise FileNotFoundError(f"image folder {folder} doesn't exist")
        try:
            samples = datasets.ImageFolder(folder).samples
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{folder} must hold {part}/<class>/<images>, one folder a class: {error}"
            ) from error
        names = sorted(Path(path).relative_to(self.reader.root).as_posix() for path, _ in samples)
        require_decodable(self.reader.root, names)
        return names
