"""Whatever an image file holds, the data module ends in the image or in one error that names the file."""

import io
import os
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nsvq.cli import main
from nsvq.data import ImageFolder
from nsvq.data.decoding import DamagedImageError, read_rgb

from .conftest import examples

FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF", "bmp": "BMP"}
MODES = {"JPEG": ["RGB", "L", "CMYK"], "WEBP": ["RGB", "RGBA"]}
OTHER_MODES = ["RGB", "L", "1", "P", "RGBA", "LA", "I;16"]
SIDE = 4


def sound(kind, mode, width, height):
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(levels[..., 0].astype(np.uint16) * 257)
    elif mode in ("RGBA", "CMYK"):
        image = Image.fromarray(levels, mode)
    else:
        image = Image.fromarray(levels[..., :3]).convert(mode)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@st.composite
def files(draw):
    extension = draw(st.sampled_from(sorted(FORMATS)))
    kind = FORMATS[extension]
    mode = draw(st.sampled_from(MODES.get(kind, [mode for mode in OTHER_MODES if (kind, mode) != ("BMP", "LA")])))
    if kind == "BMP" and mode == "I;16":
        mode = "RGB"
    content = bytearray(sound(kind, mode, *draw(st.sampled_from([(8, 8), (5, 9), (1, 1), (1, 300), (33, 4)]))))
    damage = draw(st.sampled_from(["none", "cut", "flip", "flip", "flip", "zeros", "prefix", "extension", "bytes"]))
    if damage == "cut":
        del content[draw(st.integers(0, len(content) - 1)) :]
    elif damage == "flip":
        for _ in range(draw(st.integers(1, 4))):
            # The first bytes tell what the file is, how large the image is and how it is packed.
            place = draw(st.one_of(st.integers(0, min(60, len(content) - 1)), st.integers(0, len(content) - 1)))
            content[place] = draw(st.integers(0, 255))
    elif damage == "zeros":
        start = draw(st.integers(0, len(content) - 1))
        content[start : start + 40] = bytes(len(content[start : start + 40]))
    elif damage == "prefix":
        content[:0] = draw(st.binary(min_size=1, max_size=8))
    elif damage == "extension":
        extension = draw(st.sampled_from(sorted(FORMATS)))
    elif damage == "bytes":
        content = bytearray(draw(st.binary(max_size=80)))
    return f"fuzzed.{extension}", bytes(content)


def ends_in_the_image_or_names_it(folder, name, content, **options):
    for earlier in folder.glob("fuzzed.*"):
        earlier.unlink()
    (folder / "sound.png").write_bytes(sound("PNG", "RGB", 8, 8))
    (folder / name).write_bytes(content)
    data = ImageFolder(folder, size=SIDE, split="sorted", val_fraction=0.5, batch_size=1, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about damaged metadata
        refusal = None
        try:
            data.setup("fit")
            (batch,) = data.train_dataloader()
        except ValueError as error:
            refusal = error
    if refusal is not None:
        assert type(refusal) in (ValueError, DamagedImageError)
        assert str(folder / name) in str(refusal)
        assert "\n" not in str(refusal)
        return
    assert batch.shape == (1, 3, SIDE, SIDE)
    assert batch.dtype == torch.float32
    assert batch.abs().max() <= 1


@examples(80)
@given(files())
def test_a_file_of_any_bytes_gives_an_image_or_its_name(tmp_path, file):
    ends_in_the_image_or_names_it(tmp_path, *file)


@pytest.mark.slow
@examples(1200)
@given(files())
def test_many_files_of_any_bytes_give_an_image_or_their_name(tmp_path, file):
    ends_in_the_image_or_names_it(tmp_path, *file)


def png_of_claimed_size(width, height):
    """A PNG file whose header claims a size that its data don't have."""
    content = bytearray(sound("PNG", "RGB", 8, 8))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (png_of_claimed_size(60_000, 60_000), "decompression bomb"),
        (png_of_claimed_size(2**31 - 1, 2**31 - 1), ""),
        (png_of_claimed_size(0, 8), ""),
        (b"", ""),
        (sound("PNG", "L", 1, 20_000), "1×20000 pixels are too elongated"),
    ],
    ids=["a bomb", "the largest size", "no width", "no byte", "a line"],
)
def test_sizes_that_cannot_be_are_refused_by_the_name_of_the_file(tmp_path, content, part):
    (tmp_path / "sound.png").write_bytes(sound("PNG", "RGB", 8, 8))
    (tmp_path / "fuzzed.png").write_bytes(content)
    data = ImageFolder(tmp_path, size=SIDE, split="sorted", val_fraction=0.5, batch_size=1)
    data.setup("fit")
    with pytest.raises(ValueError, match=rf"fuzzed\.png: .*{part}"):
        next(iter(data.train_dataloader()))


def test_no_other_program_is_called_for_what_is_no_image(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'called'}\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    postscript = tmp_path / "a.png"
    postscript.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(DamagedImageError, match=r"a\.png: cannot identify image file"):
        read_rgb(postscript)
    assert not (tmp_path / "called").exists()
    with suppress(OSError), Image.open(postscript) as image:
        image.load()
    assert (tmp_path / "called").exists()


def test_images_whose_names_are_no_text_are_trained_on_and_predicted(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    names = ["\udce9.png", "a\nb.png", "c\u2028d.png", "e.png"]
    for name in names:
        (folder / name).write_bytes(sound("PNG", "RGB", 8, 8))
    quickstart = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"
    words = ["--config", str(quickstart), "--data=ImageFolder", "--data.root=pictures", "--data.val_fraction=2"]
    words += ["--data.size=8", "--data.batch_size=2", "--data.split=sorted", "--trainer.enable_progress_bar=false"]
    assert main(["fit", *words, "--version=a", "--trainer.max_steps=1", "--encoder_drift=null"]) == 0
    last = "runs/quickstart/a/checkpoints/last.ckpt"
    assert main(["predict", *words, "--ckpt_path", last, "--data.val_fraction=4", "--data.train_fraction=0"]) == 0
    written = (tmp_path / "runs" / "quickstart" / "version_0" / "predictions" / "names.txt").read_bytes()
    assert b"\t\xe9.png\n" in written
