"""From a checkpoint of another code base to one of ours."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.data import MetadataCatalog

from ..compat import CfgNode
from ..config_numbers import look_up
from ..engine.checkpoint import TRAINING_ONLY
from ..engine.checkpoint_files import write_atomically
from ..modeling import build_model
from .class_names import spelled_otherwise
from .foreign_file import ForeignCheckpoint, read_foreign_checkpoint
from .rules import Mapping, apply_rules
from .source import Source

_SHOWN = 5  # names in a message


class Conversion(NamedTuple):
    """What became of a checkpoint.

    Attributes:
        state: the tensors of our model.
        mapped: how many of the file's tensors went into it.
        dropped: reason to the number of tensors that were left out for it.
        notes: a line for each decision.
    """

    state: dict[str, torch.Tensor]
    mapped: int
    dropped: dict[str, int]
    notes: list[str]

    def lines(self) -> list[str]:
        """A report: every tensor of the file is counted in it."""
        dropped = [f"dropped {count} tensors: {why}" for why, count in self.dropped.items()]
        total = self.mapped + sum(self.dropped.values())
        return [*self.notes, *dropped, f"mapped {self.mapped} of {total} tensors, left 0"]


def convert(cfg: CfgNode, source: Source, path: str, copy: str = "") -> Conversion:
    """Bring a checkpoint into the model of a config.

    Args:
        cfg: of our model; it has to describe the network of the file.
        source: whose file it is.
        path: the file.
        copy: see :func:`~.foreign_file.read_foreign_checkpoint`.

    Raises:
        ValueError: the file cannot be read, a tensor of it has no place in the model or another
            shape, one of the model's is not in it, its classes are others, or the config computes
            something else than the network that was trained.
    """
    _check_settings(cfg, source)
    checkpoint = read_foreign_checkpoint(path, copy)
    try:
        mapping = apply_rules(source.rules(cfg), checkpoint.state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    own = build_model(cfg).state_dict()
    notes = [*checkpoint.notes, *_check_classes(cfg, checkpoint, path)]
    _drop_unused_training_parts(mapping, own)
    mapping.state.update(source.complete(mapping.state))
    _check_names(path, source, mapping, own)
    _check_values(path, cfg, mapping, own)
    return Conversion(
        state=mapping.state,
        mapped=len(checkpoint.state) - len(mapping.dropped),
        dropped=dict(Counter(mapping.dropped.values())),
        notes=[*notes, *_untold(cfg), *_complete(mapping.state, own)],
    )


def write(conversion: Conversion, path: Path) -> None:
    """Write the checkpoint, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    write_atomically(path, lambda file: torch.save({"model": conversion.state}, file))


def _check_settings(cfg: CfgNode, source: Source) -> None:
    for key, value in source.settings(cfg).items():
        found = look_up(cfg, key)
        found = list(found) if isinstance(found, (list, tuple)) else found
        if found != value:
            raise ValueError(
                f"{key} is {found!r} in this config, but networks of {source.name} were trained "
                f"with {value!r}: their scores would change. Take a config of configs/published, "
                f"or append {key} {value!r}"
            )


def _untold(cfg: CfgNode) -> list[str]:
    """What neither a shape nor a name in the file tells, where it is not as published.

    It is no error: networks that somebody has trained with these code bases may well have it.
    """
    name, published = cfg.MODEL.TIMM.NAME, {}
    if name.startswith(("resnet", "resnest")):
        published["MODEL.TIMM.OUTPUT_STRIDE"] = 8
    if cfg.MODEL.SEM_SEG_HEAD.DECODER == "DeepLabV3Decoder" and not name.startswith("vit"):
        published["MODEL.SEM_SEG_HEAD.ASPP_DILATIONS"] = [12, 24, 36]
    return [
        f"nothing in the file tells {key}, {found!r} in this config; the published networks have "
        f"{value!r}"
        for key, value in published.items()
        if (found := look_up(cfg, key)) != value
    ]


def _check_classes(cfg: CfgNode, checkpoint: ForeignCheckpoint, path: str) -> list[str]:
    theirs = checkpoint.classes
    datasets = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
    ours = next(
        (list(n) for d in datasets if (n := MetadataCatalog.get(d).get("stuff_classes"))), []
    )
    if theirs is None or not ours:
        return ["the file does not name its classes; their order is taken to be the config's"]
    try:
        renamed = spelled_otherwise(theirs, ours)
    except ValueError as error:
        raise ValueError(
            f"{path} was trained on other classes than {datasets[0]}: {error}"
        ) from error
    notes = [f"its {len(theirs)} classes are those of {datasets[0]}"]
    if renamed:
        pairs = ", ".join(f"{a!r} for {b!r}" for a, b in renamed)
        notes.append(f"taken for names of the same class: {pairs}")
    return notes


def _drop_unused_training_parts(mapping: Mapping, own: dict) -> None:
    """A config for evaluation alone needs no projector, auxiliary head and so on."""
    for name in [n for n in mapping.state if n.startswith(TRAINING_ONLY) and n not in own]:
        del mapping.state[name]
        part = ".".join(name.split(".")[1:3])
        mapping.dropped[mapping.origin.pop(name)] = (
            f"for training alone, and this config has no {part}"
        )


def _check_names(path: str, source: Source, mapping: Mapping, own: dict) -> None:
    unknown = [mapping.origin.get(name, name) for name in mapping.state if name not in own]
    left = [*mapping.left, *unknown]
    missing = [n for n in own if n not in mapping.state and not _may_be_missing(n)]
    if not left and not missing:
        return
    parts = []
    if left:
        parts.append(f"{len(left)} of its tensors have no place in the model ({_some(left)})")
    if missing:
        parts.append(f"{len(missing)} tensors of the model are not in it ({_some(missing)})")
    raise ValueError(
        f"{path} is no checkpoint of {source.name} for this config: {'; '.join(parts)}"
    )


def _check_values(path: str, cfg: CfgNode, mapping: Mapping, own: dict) -> None:
    wrong = [n for n, value in mapping.state.items() if value.shape != own[n].shape]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{path}: {len(wrong)} tensors have another shape than the model's, first "
            f"{mapping.origin.get(name, name)}, {tuple(mapping.state[name].shape)} there and "
            f"{tuple(own[name].shape)} here (MODEL.SEM_SEG_HEAD.NUM_CLASSES is "
            f"{cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES})"
        )
    spoilt = [n for n, value in mapping.state.items() if not value.isfinite().all()]
    if spoilt:
        raise ValueError(f"{path}: {len(spoilt)} tensors hold NaN or infinity ({_some(spoilt)})")


def _may_be_missing(name: str) -> bool:
    return name.startswith(TRAINING_ONLY) or name.endswith("num_batches_tracked")


def _complete(state: dict, own: dict) -> list[str]:
    """Add what old files lack and no inference needs; says what only training would miss."""
    counters = [n for n in own if n not in state and n.endswith("num_batches_tracked")]
    state.update({n: own[n] for n in counters if not n.startswith(TRAINING_ONLY)})
    training = [n for n in own if n not in state and n.startswith(TRAINING_ONLY)]
    if not training:
        return []
    return [f"{len(training)} tensors for training alone start afresh ({_some(training)})"]


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
