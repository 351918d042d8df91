"""Checkpoints of other code bases: into ours, tensor by tensor."""

from .convert import Conversion, convert, write
from .foreign_file import ForeignCheckpoint, read_foreign_checkpoint
from .mmseg import MMSEG
from .source import Source

SOURCES: dict[str, Source] = {source.name: source for source in (MMSEG,)}

__all__ = [
    "SOURCES",
    "Conversion",
    "ForeignCheckpoint",
    "Source",
    "convert",
    "read_foreign_checkpoint",
    "write",
]
