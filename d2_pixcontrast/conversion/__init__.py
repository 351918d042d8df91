"""Checkpoints of other code bases: into ours, tensor by tensor."""

from .contrastiveseg import CONTRASTIVESEG
from .convert import Conversion, convert, write
from .foreign_file import ForeignCheckpoint, read_foreign_checkpoint
from .mmseg import MMSEG
from .source import Source
from .sssegmentation import SSSEGMENTATION

SOURCES: dict[str, Source] = {
    source.name: source for source in (CONTRASTIVESEG, MMSEG, SSSEGMENTATION)
}

__all__ = [
    "SOURCES",
    "Conversion",
    "ForeignCheckpoint",
    "Source",
    "convert",
    "read_foreign_checkpoint",
    "write",
]
