"""One run a folder: a lock that the operating system drops when its process ends, however it ends."""

import errno
import os
import warnings
import weakref
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class FolderLock:
    """An exclusive lock on a file in a folder; released by `release`, when this object is gone, or when the process ends."""

    def __init__(self, path: Path):
        """Take it. Raises ValueError if another process, or another unfinished run of this one, has it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(descriptor)
        except OSError as error:
            owner = os.read(descriptor, 20).decode(errors="replace").strip() if fcntl else ""
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
                raise ValueError(
                    f"{str(path.parent)!r} is in use by another run (process {owner or 'unknown'}). Wait for it, stop it "
                    "(close its generator), or choose another folder."
                ) from None
            warnings.warn(
                f"{str(path.parent)!r} cannot be locked ({error.strerror}); see to it that only one run uses it.", stacklevel=4
            )
            self.release = lambda: None
            return
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0) if fcntl else None
        self.release = weakref.finalize(self, os.close, descriptor)


def _take(descriptor: int) -> None:
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
