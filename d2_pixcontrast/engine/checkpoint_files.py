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
        reason = _system_error(error) or str(error).splitlines()[0]
        raise OSError(f"{path} could not be written ({reason}); it is as it was before") from error
    finally:
        partial.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _system_error(error: BaseException | None) -> str | None:
    """What the system said; the zip writer's own error comes while the system's is handled."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror
        error = error.__cause__ or error.__context__
    return None


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


def iteration_of(name: str) -> int | None:
    """The number in ``model_<iteration>.pth``; None for any other name."""
    match = _NUMBERED.fullmatch(name)
    return int(match[1]) if match else None


def numbered_checkpoints(folder: Path, last: int | None = None) -> list[Path]:
    """The checkpoints ``model_<iteration>.pth`` of a folder, newest first.

    Args:
        folder: of a run.
        last: none after this iteration, which would be of another run in the same folder.
    """
    found = ((iteration_of(p.name), p) for p in folder.iterdir())
    numbered = [(i, p) for i, p in found if i is not None and (last is None or i <= last)]
    return [path for _, path in sorted(numbered, reverse=True)]


def keep_newest(folder: Path, number: int, last: int | None = None) -> None:
    """Remove all but the newest ``number`` of :func:`numbered_checkpoints`."""
    for path in numbered_checkpoints(folder, last)[number:]:
        path.unlink(missing_ok=True)
