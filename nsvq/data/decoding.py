"""From an image file of any common kind to 8-bit RGB."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Pillow looks at the content, not at the name, and would hand PostScript to Ghostscript.
FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")


class DamagedImageError(ValueError):
    """An image file that cannot be decoded; the message names it."""


def read_rgb(path: Path) -> Image.Image:
    """Decode an image file as RGB.

    The format is told from the content, whatever the extension. The EXIF orientation is applied, 16-bit grey levels are
    scaled to 8 bits, and transparent pixels (alpha channel or transparent palette entry) are laid over white.

    Args:
        path: The image file.

    Returns:
        The image in mode RGB.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return _to_rgb(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise almost anything on damaged input
        raise DamagedImageError(f"cannot decode image {path}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        levels = np.asarray(image).clip(0, 65_535)
        return Image.fromarray(np.rint(levels / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")
    return image.convert("RGB")
