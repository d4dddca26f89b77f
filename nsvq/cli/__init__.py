"""The command line: `nsvq` and `lightning` are this program."""

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from nsvq.cli.messages import plain_message

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
OWN_COMMANDS = ("compare", "report", "sweep", "toy", "weights")


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: The command line behind the program's name; None takes the process's own.

    Returns:
        Exit code 0.

    Raises:
        SystemExit: With code 2 and one line on stderr, if the input is wrong.
    """
    words = list(sys.argv[1:] if args is None else args)
    if args is None and _belongs_to_lightning_sdk(words):
        from lightning_sdk.cli.entrypoint import main_cli

        return int(main_cli() or 0)
    try:
        if words and words[0] in OWN_COMMANDS:
            # Each has a module and a function of its name; torch takes seconds, and not all need it.
            getattr(import_module(f"nsvq.cli.{words[0]}"), words[0])(words[1:])
        else:
            from nsvq.cli.program import CLI
            from nsvq.cli.trust import weights_only

            with weights_only():
                CLI(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output, `head` say, has had enough; Python's own flush at its end must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(128 + signal.SIGPIPE) from None
    except Exception as error:
        message = plain_message(error)
        if message is None or os.environ.get("NSVQ_TRACEBACK"):
            raise
        sys.stderr.write(f"nsvq: error: {message}\n")
        raise SystemExit(2) from error
    return 0


def _belongs_to_lightning_sdk(words: list[str]) -> bool:
    """Whether this is a call of the `lightning` script that lightning-sdk, if installed, would have answered."""
    called = Path(sys.argv[0]).stem == "lightning"
    ours = not words or words[0].startswith("-") or words[0] in (*TRAINER_COMMANDS, *OWN_COMMANDS)
    return called and not ours and find_spec("lightning_sdk") is not None
