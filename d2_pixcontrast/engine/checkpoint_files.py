"""Files of a run's folder: written whole or not at all, found again, and tidied up."""

import os
import re
import zipfile
from pathlib import Path

_NUMBERED = re.compile(r"model_(\d{7,})\.pth")


def write_atomically(path: Path, write) -> None:
    """Write beside ``path``, flush to the disk, and rename: no half file ever has the name.

    Args:
        path: where the file goes; one that is there is replaced.
        write: gets the open binary file.

    Raises:
        OSError: the file cannot be written, on a full disk for example; what was there is there.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save's zip writer raises RuntimeError
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise OSError(f"{path} could not be written ({reason}); it is as it was before") from error
    finally:
        partial.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_whole(path: Path) -> bool:
    """Whether a file of ``torch.save`` is complete: it is read once, and its checksums compared."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError):
        return False


def numbered_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints ``model_<iteration>.pth`` of a folder, newest first."""
    found = [(int(match[1]), p) for p in folder.iterdir() if (match := _NUMBERED.fullmatch(p.name))]
    return [path for _, path in sorted(found, reverse=True)]


def keep_newest(folder: Path, number: int) -> None:
    """Remove all but the newest ``number`` of :func:`numbered_checkpoints`."""
    for path in numbered_checkpoints(folder)[number:]:
        path.unlink(missing_ok=True)
