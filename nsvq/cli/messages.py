"""Error messages of one line."""

import argparse
import difflib
import errno
import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

PACKAGE = Path(__file__).resolve().parent.parent
MAX_LISTED = 30
MAX_SHOWN = 100
# What jsonargparse says where the shape of a value throws it off its feet.
MISUNDERSTOOD = r"unhashable type|object has no attribute|is not iterable|must be a mapping"
# What it lists beside the reason why a value fits no member of a union.
NO_REASON = r"Expected an? |Does not validate|Not a valid|a class path \(str\)|a dict with"
REFUSALS = (ValueError, TypeError, OSError, FloatingPointError)
# Where others refuse how they are used, with errors of any of these kinds.
OTHERS = ("lightning/pytorch/", "lightning/fabric/", "torch/optim/")
OTHERS_REFUSALS = (*REFUSALS, RuntimeError, ImportError, AttributeError)
FULL_OR_BROKEN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that refuses in one line."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and leave with exit code 2."""
        self.exit(2, f"nsvq: error: {message}\n")


def plain_message(error: BaseException) -> str | None:
    """Return the one-line message of an error that tells of bad input.

    These are the refusals that this package raises itself, also in a data loader's worker process or while a class is
    instantiated from a configuration, those in which Lightning refuses its arguments, and faults of the machine: a disk
    that is full or broken, a loader worker that was killed. Anything else is a bug, whose traceback must be seen.

    Args:
        error: The error.

    Returns:
        One line, or None for a bug.
    """
    if type(error).__name__ == "MisconfigurationException":
        return _one_line(str(error))
    if any(kind.__name__ == "OmegaConfBaseException" for kind in type(error).__mro__):
        what, key = str(error).splitlines()[0], re.search(r"full_key: \w+\.(\S+)", str(error))
        return f"{key[1]}: {what}" if key else what
    for link in _chain(error):
        text = str(link)
        if isinstance(link, RuntimeError) and re.match(r"DataLoader worker \(pid", text):
            return f"{_one_line(text)}: see the system's log (out of memory?), or lower --data.num_workers"
        if match := re.search(r"tried to allocate ([\d.]+ \w+)", text, re.IGNORECASE):
            return f"not enough memory for {match[1]}: lower the batch, the images, the networks or the codebook"
        if isinstance(link, UnicodeDecodeError) and (file := _file_read(link)):
            return f"{file} is not UTF-8 text"
        if not isinstance(link, OTHERS_REFUSALS):
            continue
        if re.match(r"Caught \w+ in DataLoader worker process", text):
            steps = re.findall(r'File "([^"]+)", line \d+, in .*\n\s*(.*)', text)
            if steps and _refuses(link, *steps[-1]):
                return _one_line(text.strip().splitlines()[-1].split(": ", 1)[-1])
        frames = traceback.extract_tb(link.__traceback__)
        if frames and _refuses(link, frames[-1].filename, frames[-1].line or ""):
            return _one_line(text)
        if isinstance(link, OSError) and link.errno in FULL_OR_BROKEN_DISK:
            return _one_line(text)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{_short(os.fsdecode(error.filename))}: {error.strerror}"
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return "the name of a file or folder holds a null character"
    return _refusal_in_union(str(error)) if isinstance(error, REFUSALS) else None


def parser_message(
    message: str, error: BaseException | None, choices: Mapping[str, Sequence[str]], options: Sequence[str]
) -> str:
    """Reduce a parser's message to one line that names the thing, what was expected and the nearest choice.

    Args:
        message: A message of jsonargparse, often nested over many lines.
        error: The exception behind it.
        choices: Class names by the option that takes one of them.
        options: All options of the program.

    Returns:
        One line.
    """
    key = match[1] if (match := re.search(r'Parser key "([^"]+)"', message)) else ""
    option = key.rsplit(".", 1)[-1]
    if match := re.search(r"Option '([^']+)' is not accepted", message):
        return _unknown("option", match[1], _options_beside(error))
    if match := re.search(r"unrecognized arguments: --([^\s=]+)", message, re.IGNORECASE):
        return _unknown("option", match[1], options)
    if match := re.search(r"does not accept option '([^']+)'", message):
        return _unknown("option", match[1], options)
    if match := re.search(r"(?:Expected a dot import path string|Unexpected import path format): (\S+)", message):
        given = match[1]
        if "/" in given or given.endswith((".yaml", ".yml")):
            return f"{option}: file {given} does not exist"
        return _unknown(option or "class", given, choices.get(option, []))
    if match := re.search(r"Literal\[([^\]]+)\].*?Got value: (.+)", message, re.DOTALL):
        return _unknown(option, match[2], [choice.strip().strip("'\"") for choice in match[1].split(",")])
    if match := re.search(r"Expected an? <class '(\w+)'>\. Got value: (.*)", message):
        return f"{key}: expected {match[1]}, got {_short(match[2])}"
    if re.search(MISUNDERSTOOD, message) or ("Not a valid subclass of" in message and not _refusal_in_union(message)):
        given = re.search(r"(?:Got|Given) value: (.*)", message)
        what = f", got {_short(given[1])}" if given else ""
        return f"{key}: expected a class (class_path) and its options by their names (init_args){what}"
    if "Errors:" in message and (match := re.search(r"Given value: (.*)\s*$", message, re.DOTALL)):
        expected = re.findall(r"Expected an? <class '(\w+)'>", message)
        expected += [word for words in re.findall(r"Literal\[([^\]]+)\]", message) for word in words.split(", ")]
        kinds = ", ".join(dict.fromkeys(word.strip("'") for word in expected if word != "NoneType"))
        if kinds and not _refusal_in_union(message):
            return f"{key}: expected one of {kinds}; got {_short(match[1])}"
    if match := re.search(r"Invalid content in sub-config file .*?(?=\n\s*- |\n\s*Given value|\Z)", message, re.DOTALL):
        return f"{key}: {_one_line(match[0])}"
    if "Expected a path but" in message:
        return f"{key}: {_refusal_in_union(message) or _one_line(message.rsplit('- ', 1)[-1])}"
    line = _one_line(re.split(r"\n\s*Given value type", message)[0])
    return _refusal_in_union(message) or re.sub(r'^Parser key "([^"]+)":', r"\1:", line)


def _refuses(error: BaseException, file: str, line: str) -> bool:
    """Whether a line refuses the user's input: a raise of ours, or of Lightning's or an optimizer's about their use."""
    path = Path(file)
    ours = path.is_relative_to(PACKAGE) and isinstance(error, REFUSALS)
    return line.startswith("raise ") and (ours or any(other in path.as_posix() for other in OTHERS))


def _refusal_in_union(message: str) -> str | None:
    """Find the reason of our own in jsonargparse's list of why no member of a union took a value."""
    end = r"(?=\n\s*- |\n\s*Given value|\Z)"
    reasons = re.findall(rf"^\s*- (.+?){end}", message, re.MULTILINE | re.DOTALL) if "Errors:" in message else []
    reasons = [reason for reason in reasons if not re.match(NO_REASON, reason)]
    return _one_line(reasons[0]) if reasons else None


def _short(value: str) -> str:
    value = _one_line(value)
    return value if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]}…"


def _unknown(what: str, given: str, known: Sequence[str]) -> str:
    by_lower_case = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), by_lower_case, 1, 0.4)
    parts = [f"unknown {what} {_short(given)!r}"]
    if near:
        parts.append(f"did you mean {by_lower_case[near[0]]}?")
    if 0 < len(known) <= MAX_LISTED:
        parts.append(f"known: {', '.join(known)}")
    return "; ".join(parts)


def _options_beside(error: BaseException | None) -> list[str]:
    """List what the parser that met an unknown option would have taken; the parser stands in the error's frames."""
    step = error.__traceback__ if error is not None else None
    names: list[str] = []
    while step is not None:
        actions = getattr(step.tb_frame.f_locals.get("self"), "_actions", None)
        if actions:
            names = [action.dest for action in actions if action.dest not in ("help", "config", "print_config")]
        step = step.tb_next
    return [name for name in names if not name.startswith("_") and ".help" not in name]


def _file_read(error: BaseException) -> str | None:
    """Find the file that jsonargparse was reading; it stands in the error's frames."""
    step = error.__traceback__
    while step is not None:
        reader = step.tb_frame.f_locals.get("self")
        if step.tb_frame.f_code.co_name == "read_text" and isinstance(reader, os.PathLike):
            return str(os.fspath(reader))
        step = step.tb_next
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _one_line(text: str) -> str:
    return " ".join(text.split())
