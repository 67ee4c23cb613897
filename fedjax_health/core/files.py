"""Files that are replaced as a whole or not at all."""

import os
import tempfile
from pathlib import Path

TEMPORARY = ".tmp"


def write_bytes(path: str | os.PathLike[str], data: bytes):
    """Replaces a file atomically: temporary file, fsync, rename, fsync of the folder.

    Args:
      path: the file; its folder exists.
      data: its new content.

    Raises:
      OSError: if it cannot be written; the old file then stands as it was.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY
    )
    try:
        with open(handle, "wb") as file:
            # mkstemp gives 0600; these files are as readable as any other.
            os.fchmod(handle, 0o644)
            file.write(data)
            file.flush()
            os.fsync(handle)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: str | os.PathLike[str]):
    """Makes renames inside a folder durable.

    Args:
      folder: an existing folder.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
