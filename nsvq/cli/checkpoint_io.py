"""Writing checkpoint files so that an interruption cannot damage one."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, waits until the disk has it, and then puts it there in one step.

    Whenever the process or the machine dies, the file at its place is the former checkpoint or the new one, whole.
    Lightning's own way writes to the system's temporary folder and, from another file system, copies into place.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: What `torch.save` takes.
            path: The file, on a local disk.
            storage_options: Not used.

        Raises:
            OSError: If it cannot be written; what was there before is untouched.
        """
        path = Path(path)
        part = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        # torch.save wraps what the file raised into a RuntimeError.
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            reason = next((link.strerror for link in (error, error.__context__) if isinstance(link, OSError)), None)
            raise OSError(
                f"checkpoint {path} could not be written: {reason or error}; an earlier one is untouched"
            ) from error
