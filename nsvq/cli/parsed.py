"""Command lines that are parsed and checked, but not run."""

import io
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsvq.cli.messages import plain_message
from nsvq.cli.program import CLI


@dataclass(frozen=True)
class ParsedRun:
    """What a command line of `nsvq fit` would do.

    Attributes:
        config: The resolved configuration, as plain values.
        experiment_folder: The folder that the run folder would lie in.
    """

    config: dict[str, Any]
    experiment_folder: Path


def parse_run(words: Sequence[str]) -> ParsedRun:
    """Parse a command line as `nsvq` does, without building anything.

    Args:
        words: The words behind the program's name.

    Returns:
        What it would do.

    Raises:
        ValueError: With the program's own message, if it would be refused.
    """
    output = io.StringIO()
    try:
        with redirect_stderr(output), redirect_stdout(io.StringIO()):
            cli = _ParsedOnly(list(words))
    except SystemExit as error:
        lines = output.getvalue().strip().splitlines() or ["it asks for help, not for a run"]
        raise ValueError(lines[-1].removeprefix("nsvq: error: ")) from error
    except Exception as error:
        message = plain_message(error)
        if message is None:
            raise
        raise ValueError(message) from error
    if cli.subcommand != "fit":
        raise ValueError(f"expected the subcommand fit, got {cli.subcommand}")
    return ParsedRun(cli.plain_config(), cli.experiment_folder())


class _ParsedOnly(CLI):
    """The program up to the point where it would find a run folder and build a model."""

    def _set_seed(self) -> None:
        return

    def before_instantiate_classes(self) -> None:
        self.check_config()

    def instantiate_classes(self) -> None:
        return

    def _run_subcommand(self, subcommand: str) -> None:
        return
