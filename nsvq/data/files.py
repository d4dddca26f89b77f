"""Finding image files, and list files that name them."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from nsvq.data.decoding import DamagedImageError, read_rgb

EXTENSIONS = ("jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff")
MAX_SHOWN = 100
_ENDINGS = tuple(f".{extension}" for extension in EXTENSIONS)


def find_images(root: Path) -> list[str]:
    """List the image files of a folder and its sub-folders.

    Hidden files and folders are passed over; links are followed.

    Args:
        root: The folder.

    Returns:
        Paths relative to the folder, with forward slashes, sorted.
    """
    if not root.exists():
        raise FileNotFoundError(f"image folder {root} doesn't exist")
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder of images")
    names = sorted(_walk(root))
    if not names:
        raise FileNotFoundError(f"no image file in {root} (looked for the extensions {', '.join(EXTENSIONS)})")
    return names


def require_decodable(root: Path, names: Sequence[str]) -> None:
    """Raise a ValueError if not one of the files decodes; stops at the first that does."""
    for name in names:
        try:
            read_rgb(root / name)
        except DamagedImageError:
            continue
        return
    raise ValueError(f"none of the {len(names)} image files in {root} can be decoded")


def read_list(path: Path, names: Iterable[str], root: Path) -> list[str]:
    """Read a list file, one image a line, and find its entries among a folder's images.

    An entry is taken by its exact path, else by its path without the extension, else by its file name without the
    extension, provided that one image alone has it: public lists name the .npy files or JPEGs their authors had.

    Args:
        path: The list file; blank lines are ignored.
        names: The folder's images, relative to it.
        root: The folder, for messages.

    Returns:
        The images in the list's order.
    """
    if not path.is_file():
        raise FileNotFoundError(f"list file {path} doesn't exist")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"list file {path} is not UTF-8 text") from error
    # Not splitlines: a name may hold what only Unicode takes for the end of a line.
    entries = [line.strip() for line in text.split("\n") if line.strip()]
    if not entries:
        raise ValueError(f"list file {path} is empty")
    known = {name: [name] for name in names}
    by_path: defaultdict[str, list[str]] = defaultdict(list)
    by_stem: defaultdict[str, list[str]] = defaultdict(list)
    for name in known:
        pure = PurePosixPath(name)
        by_path[str(pure.parent / pure.stem)].append(name)
        by_stem[pure.stem].append(name)
    found: list[str] = []
    absent: list[str] = []
    for entry in entries:
        pure = PurePosixPath(entry)
        matches = known.get(str(pure)) or by_path.get(str(pure.parent / pure.stem)) or by_stem.get(pure.stem, [])
        if len(matches) == 1:
            found.append(matches[0])
        else:
            absent.append(entry)
    if absent:
        raise FileNotFoundError(
            f"list file {path} names {len(absent)} files that {root} doesn't hold or holds more than once: "
            + ", ".join(_short(entry) for entry in absent[:3])
            + (", …" if len(absent) > 3 else "")
        )
    return found


def _short(entry: str) -> str:
    return entry if len(entry) <= MAX_SHOWN else f"{entry[:MAX_SHOWN]}…"


def _walk(root: Path) -> Iterator[str]:
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        prefix = Path(folder).relative_to(root).as_posix()
        for file in files:
            if not file.startswith(".") and file.lower().endswith(_ENDINGS):
                yield file if prefix == "." else f"{prefix}/{file}"
