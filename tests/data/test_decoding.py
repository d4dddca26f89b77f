from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nsvq.data.decoding import DamagedImageError, read_rgb

RED, WHITE = (255, 0, 0), (255, 255, 255)


def pixels(path: Path) -> np.ndarray:
    image = read_rgb(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_rgb_is_left_alone(tmp_path, write_image):
    write_image(tmp_path / "a.png", size=(7, 5))
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), np.asarray(Image.open(tmp_path / "a.png")))


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (16, 8), "blue")
    image.paste("red", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the picture is on the file's left side
    image.save(tmp_path / "a.jpg", exif=exif, quality=100)
    turned = pixels(tmp_path / "a.jpg")
    assert turned.shape == (16, 8, 3)
    assert turned[2, 4, 0] > 240
    assert turned[13, 4, 2] > 240


def test_gray_is_spread_over_the_channels(tmp_path):
    levels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    Image.fromarray(levels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), np.repeat(levels[..., None], 3, axis=2))


def test_one_bit_images_become_black_and_white(tmp_path):
    Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1").save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0].tolist() == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_sixteen_bit_gray_is_scaled(tmp_path, extension):
    levels = np.array([[0, 257, 128 * 257 + 100, 128 * 257 + 200, 65_535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / f"a.{extension}")
    assert pixels(tmp_path / f"a.{extension}")[0, :, 1].tolist() == [0, 1, 128, 129, 255]


def test_thirty_two_bit_integers_are_read_as_sixteen_bit_levels(tmp_path):
    Image.fromarray(np.array([[0, 65_535, 70_000]], dtype=np.int32)).save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 255, 255]


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DamagedImageError, match=r"a.tif: floating-point"):
        read_rgb(tmp_path / "a.tif")


@pytest.mark.parametrize("extension", ["png", "webp"])
def test_alpha_is_laid_over_white(tmp_path, extension):
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128)])
    image.save(tmp_path / f"a.{extension}", **({"lossless": True, "exact": True} if extension == "webp" else {}))
    assert pixels(tmp_path / f"a.{extension}")[0].tolist() == [[*RED], [*WHITE], [127] * 3]


def test_gray_with_alpha_is_laid_over_white(tmp_path):
    image = Image.new("LA", (2, 1))
    image.putdata([(50, 255), (50, 0)])
    image.save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0].tolist() == [[50] * 3, [*WHITE]]


def palette_image() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, 0, 0, 255])
    image.putdata([0, 1])
    return image


def test_palette_colours_are_looked_up(tmp_path):
    palette_image().save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0].tolist() == [[*RED], [0, 0, 255]]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_transparent_palette_entries_become_white(tmp_path, transparency):
    palette_image().save(tmp_path / "a.png", transparency=transparency)
    assert pixels(tmp_path / "a.png")[0].tolist() == [[*RED], [*WHITE]]


def test_a_transparent_colour_becomes_white(tmp_path):
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), (0, 0, 255))
    image.save(tmp_path / "a.png", transparency=(0, 0, 255))
    assert pixels(tmp_path / "a.png")[0].tolist() == [[*RED], [*WHITE]]


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red = pixels(tmp_path / "a.jpg")[4, 4]
    assert red[0] > 250
    assert red[1:].max() < 5


def truncated_jpeg(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-900])


def truncated_png(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "png")
    content = bytearray(path.read_bytes())
    content[200:300] = bytes(100)
    path.write_bytes(content)


DAMAGE = {
    "truncated.jpg": truncated_jpeg,
    "overwritten.png": truncated_png,
    "empty.png": lambda path: path.write_bytes(b""),
    "text.png": lambda path: path.write_text("not a picture"),
    "absent.png": lambda path: None,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_are_named(tmp_path, name):
    DAMAGE[name](tmp_path / name)
    with pytest.raises(DamagedImageError, match=f"cannot decode image .*{name}") as caught:
        read_rgb(tmp_path / name)
    assert "\n" not in str(caught.value)
