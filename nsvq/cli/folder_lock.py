"""One process for one folder."""

import fcntl
import os
from pathlib import Path


class FolderLock:
    """Holds a folder until it is released or this process ends, in whatever way.

    Processes forked from this one, such as loader workers, do not hold it.

    Args:
        folder: An existing folder.

    Attributes:
        held: False where the file system has no locks.

    Raises:
        BlockingIOError: If another lock holds the folder.
        OSError: If the folder cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held = False
        self._descriptor: int | None = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.held = True
        except BlockingIOError:
            self.release()
            raise
        except OSError:
            self.release()
        os.register_at_fork(after_in_child=self.release)

    def release(self) -> None:
        """Let the folder go."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self.held = False

    def is_in_place(self) -> bool:
        """Return whether the folder's path still leads to the folder that was opened."""
        try:
            return self._descriptor is None or os.path.samestat(os.fstat(self._descriptor), self.folder.stat())
        except FileNotFoundError:
            return False
