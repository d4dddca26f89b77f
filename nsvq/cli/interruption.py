"""Asking a run to stop: SIGTERM and SIGUSR1."""

import os
import signal
import threading
from typing import Any

import torch

from nsvq.distributed import all_reduce_sum

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_CODE = os.EX_TEMPFAIL


class Interrupted(SystemExit):
    """The end of a run that was asked to stop and saved its state; exit code 75 (EX_TEMPFAIL: try again later).

    Attributes:
        message: What happened and how to go on.
    """

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_CODE)
        self.message = message


class StopRequest:
    """Remembers whether a signal asked this process to stop; the signal does nothing else."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._former: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Take the signals, also from whoever took them meanwhile."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            former = signal.signal(number, self._remember)
            self._former.setdefault(number, former)

    def stop_listening(self) -> None:
        """Give the signals back."""
        for number, former in self._former.items():
            signal.signal(number, former)
        self._former.clear()

    def anywhere(self, device: torch.device) -> bool:
        """Return whether any process was asked; all of them call this at the same points."""
        return bool(all_reduce_sum(torch.tensor(int(self.received is not None), device=device)))

    def _remember(self, number: int, *_: Any) -> None:
        self.received = signal.Signals(number)
