"""`nsvq weights`: which pretrained weights are on this machine, and their download."""

from pathlib import Path

from nsvq.cli.messages import OneLineParser
from nsvq.pretrained.weights import PRETRAINED, fetch, is_sound, locate, places


def weights(words: list[str]) -> None:
    """List or download the files of pretrained weights.

    Args:
        words: The command line behind `nsvq weights`; nothing means `list`.

    Raises:
        OSError: If a file cannot be downloaded or written.
        ValueError: If a key is unknown or a download is not the published file.
    """
    parser = OneLineParser(prog="nsvq weights", description="Pretrained weights of LPIPS and FID.")
    actions = parser.add_subparsers(dest="action")
    actions.add_parser("list", help="which weights are on this machine; the default")
    fetching = actions.add_parser("fetch", help="download weights that are missing or damaged")
    fetching.add_argument("keys", nargs="*", metavar="KEY", help=f"{', '.join(PRETRAINED)}; default: all")
    fetching.add_argument("--folder", type=Path, help="where they go; default: $NSVQ_WEIGHTS_DIR, else torch's cache")
    options = parser.parse_args(words)
    if options.action == "fetch":
        # An unknown key is refused before anything is downloaded.
        for key in options.keys:
            places(key)
        for key in options.keys or PRETRAINED:
            print(f"{key}: {fetch(key, options.folder)}")
    else:
        _print_list()


def _print_list() -> None:
    rows = [("key", "file", "purpose", "where")]
    for key, file in PRETRAINED.items():
        path = locate(key)
        state = "not found" if path is None else str(path) if is_sound(key, path) else f"damaged: {path}"
        rows.append((key, file.name, file.purpose, state))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())
    print(f"looked in {', then '.join(str(place.parent) for place in places(key))}")
