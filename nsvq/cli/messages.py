"""Error messages of one line."""

import difflib
import re
import traceback
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
REFUSALS = (ValueError, TypeError, OSError)


def plain_message(error: BaseException) -> str | None:
    """Return the one-line message of an error that tells of bad input.

    These are the refusals that this package raises itself, also in a data loader's worker process or while a class is
    instantiated from a configuration, and those in which Lightning refuses its arguments. Anything else is a bug,
    whose traceback must be seen.

    Args:
        error: The error.

    Returns:
        One line, or None for a bug.
    """
    if type(error).__name__ == "MisconfigurationException":
        return _one_line(str(error))
    if not isinstance(error, REFUSALS):
        return None
    text = str(error)
    worker = re.match(r"Caught \w+ in DataLoader worker process", text)
    if worker:
        frames = re.findall(r'File "([^"]+)", line', text)
        ours = bool(frames) and Path(frames[-1]).is_relative_to(PACKAGE)
        return _one_line(text.strip().splitlines()[-1].split(": ", 1)[-1]) if ours else None
    frames_of_error = traceback.extract_tb(error.__traceback__)
    if frames_of_error and Path(frames_of_error[-1].filename).is_relative_to(PACKAGE):
        return _one_line(text)
    return None


def parser_message(message: str) -> str:
    """Reduce a parser's message to one line.

    Args:
        message: A message of jsonargparse, often nested over many lines.

    Returns:
        One line.
    """
    return _one_line(message)


def _one_line(text: str) -> str:
    return " ".join(text.split())
