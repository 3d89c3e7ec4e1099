"""One process at a time on what is written: a lock that the system releases when its process ends, however it dies."""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path


def beside(out: Path) -> Path:
    """Where the lock of a file or directory is that appears when it is complete."""
    out = out.absolute()
    return out.with_name(f".{out.name}.lock")


@contextlib.contextmanager
def held(file: Path, what: Path) -> Iterator[None]:
    """Holds the lock `file` in this context. What it had to make, `file` and folders that stay empty, it removes again.

    Args:
      what: is locked by it, for messages.

    Raises:
      OSError: another process holds it, which the message names; or it cannot be written.
    """
    missing = [folder for folder in file.absolute().parents if not folder.exists()]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = _locked(file, what)
    except OSError as error:
        if error.strerror is None:  # ours
            raise
        raise OSError(f"cannot write {what}: {error.strerror}; give a place that may be written.") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()  # while it is held: whoever opened it before sees that it is gone, and begins again
            for folder in missing:
                folder.rmdir()
        os.close(handle)


def _locked(file: Path, what: Path) -> int:
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise OSError(f"{what} is in use by {holder}; wait for its end, stop it, or give another --out.") from None
        except OSError as error:
            logging.getLogger(__name__).warning(
                "%s cannot be locked here (%s): see to it that no other process writes there.", what, error.strerror
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(file)):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                return handle
        os.close(handle)  # its holder removed it in between
