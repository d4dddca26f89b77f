"""Error messages of one line."""

import argparse
import difflib
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

PACKAGE = Path(__file__).resolve().parent.parent
MAX_LISTED = 30
REFUSALS = (ValueError, TypeError, OSError, FloatingPointError)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that refuses in one line."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and leave with exit code 2."""
        self.exit(2, f"nsvq: error: {message}\n")


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
    for link in _chain(error):
        if not isinstance(link, REFUSALS):
            continue
        text = str(link)
        if re.match(r"Caught \w+ in DataLoader worker process", text):
            steps = re.findall(r'File "([^"]+)", line \d+, in .*\n\s*(.*)', text)
            if steps and _refuses(*steps[-1]):
                return _one_line(text.strip().splitlines()[-1].split(": ", 1)[-1])
        frames = traceback.extract_tb(link.__traceback__)
        if frames and _refuses(frames[-1].filename, frames[-1].line or ""):
            return _one_line(text)
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
    if match := re.search(r"Literal\[([^\]]+)\].*?Got value: (\S+)", message, re.DOTALL):
        return _unknown(option, match[2], [choice.strip().strip("'\"") for choice in match[1].split(",")])
    if match := re.search(r"Expected an? <class '(\w+)'>\. Got value: (.*)", message):
        return f"{key}: expected {match[1]}, got {match[2].strip()}"
    if "Errors:" in message and (match := re.search(r"Given value: (\S+)\s*$", message)):
        expected = re.findall(r"Expected an? <class '(\w+)'>", message)
        expected += [word for words in re.findall(r"Literal\[([^\]]+)\]", message) for word in words.split(", ")]
        kinds = ", ".join(dict.fromkeys(word.strip("'") for word in expected if word != "NoneType"))
        if kinds and not _refusal_in_union(message):
            return f"{key}: expected one of {kinds}; got {match[1]}"
    if "Expected a path but" in message:
        return f"{key}: {_one_line(message.rsplit('- ', 1)[-1])}"
    return _refusal_in_union(message) or _one_line(re.split(r"\n\s*Given value type", message)[0])


def _refuses(file: str, line: str) -> bool:
    """Whether a line refuses the user's input: a raise of ours, or of Lightning's about how it is used."""
    path = Path(file)
    ours = path.is_relative_to(PACKAGE) or "lightning/pytorch/" in path.as_posix()
    return ours and line.startswith("raise ")


def _refusal_in_union(message: str) -> str | None:
    """Find the reason of our own in jsonargparse's list of why no member of a union took a value."""
    reasons = re.findall(r"^\s*- (.+)$", message, re.MULTILINE) if "Errors:" in message else []
    reasons = [reason for reason in reasons if not re.match(r"Expected an? |Does not validate|Not a valid", reason)]
    return _one_line(reasons[0]) if reasons else None


def _unknown(what: str, given: str, known: Sequence[str]) -> str:
    by_lower_case = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), by_lower_case, 1, 0.4)
    parts = [f"unknown {what} {given!r}"]
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


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _one_line(text: str) -> str:
    return " ".join(text.split())
