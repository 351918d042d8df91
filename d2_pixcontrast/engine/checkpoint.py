"""Checkpoints: what is written, and what fits."""

import os
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from fvcore.common.checkpoint import _IncompatibleKeys
from torch.nn.parallel import DistributedDataParallel

from .checkpoint_files import (
    is_whole,
    iteration_of,
    keep_newest,
    numbered_checkpoints,
    write_atomically,
)
from .weights import TIMM_PREFIX, load_timm_file, load_timm_weights
from .weights_file import check_hash_in_name, check_state, read_weights_file, weight_names

# Parts of a training checkpoint that a model for inference does not have.
TRAINING_ONLY = ("sem_seg_head.terms.", "sem_seg_head.aux_heads.")
# What ContrastWrapperHead puts before the names of the head that it wraps.
_HEAD, _WRAPPED_HEAD = "sem_seg_head.", "sem_seg_head.wrapped."
# Ways out where an optimiser's state does not fit.
_OTHER_GROUPS = (
    "its optimiser groups the parameters by other learning rates or weight decays than this "
    "config; resume with the values of the run; in runs from before norms and biases decayed like "
    "the rest, these are SOLVER.WEIGHT_DECAY_NORM 0.0 SOLVER.WEIGHT_DECAY_BIAS 0.0"
)
_FROM_ITS_WEIGHTS = (
    "start from its weights: append MODEL.WEIGHTS with this file and another OUTPUT_DIR, without "
    "--resume"
)
_OTHER_PARAMETERS = (
    "its optimiser has other parameters than this config's model, or groups them otherwise; resume "
    "with the run's TERMS, DECODER, AUX and SOLVER.WEIGHT_DECAY_*, or " + _FROM_ITS_WEIGHTS
)
# By what torch says of it; the second text is part of the first.
_OPTIMISER_MISFITS = {
    "different number of parameter groups": _OTHER_GROUPS,
    "parameter group": _OTHER_PARAMETERS,
}


def plain_state_dict(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights of the network that inference runs, under the names that it has without wrapper.

    They load with ``strict=True`` into the model of :func:`~d2_pixcontrast.inference_config`, which
    is detectron2's own where the head is wrapped.

    Args:
        model: a model in training or for inference, with a data-parallel wrapper or without.
    """
    if isinstance(model, (DistributedDataParallel, torch.nn.DataParallel)):
        model = model.module
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith(TRAINING_ONLY)}
    return {_without_wrapper(k): v for k, v in kept.items()}


class SemSegCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, with timm backbones, whole files only, and an opinion on misfits.

    ``load`` takes a checkpoint, a file with a timm model's weights (they go into the backbone), any
    path or URL of detectron2's path manager, or ``timm://NAME``.
    """

    def __init__(
        self,
        model,
        save_dir="",
        *,
        strict: bool = False,
        checkpoints_to_keep: int = 0,
        **checkpointables,
    ):
        """
        Args:
            model, save_dir, checkpointables: as for detectron2's checkpointer.
            strict: refuse a file that does not fill the model, as evaluation needs it.
            checkpoints_to_keep: how many of ``model_<iteration>.pth`` stay; 0 = all.

        Raises:
            ValueError: a negative number.
        """
        super().__init__(model, save_dir, **checkpointables)
        if checkpoints_to_keep < 0:
            raise ValueError(f"SOLVER.CHECKPOINTS_TO_KEEP is {checkpoints_to_keep}; 0 = all")
        self.strict = strict
        self.checkpoints_to_keep = checkpoints_to_keep
        self._resuming = False

    def save(self, name: str, tag: bool = True, **kwargs) -> None:
        """Write ``<name>.pth`` beside its place and rename it: no half file ever has the name.

        Args:
            name: without the ending.
            tag: make it the checkpoint that ``--resume`` takes.
            kwargs: further plain values to store; "iteration" is that of the checkpoint.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info(f"Saving checkpoint to {path}")
        write_atomically(path, lambda file: torch.save(data, file))
        if tag:
            self.tag_last_checkpoint(path.name)
            if self.checkpoints_to_keep:
                last = kwargs.get("iteration", iteration_of(path.name))
                keep_newest(path.parent, self.checkpoints_to_keep, last)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        name = last_filename_basename.encode()
        write_atomically(Path(self.save_dir) / "last_checkpoint", lambda file: file.write(name))

    def has_checkpoint(self) -> bool:
        """Whether there is something to resume from, with a ``last_checkpoint`` or without."""
        return bool(self._candidates())

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """Load the newest whole checkpoint of the run with all its states if ``resume`` and there
        is one, else the weights of ``path``. With ``resume`` all processes call it together.

        Raises:
            ValueError: there are checkpoints to resume from, but none of them is whole, or other
                processes find another one, in the folder of another machine.
        """
        newest = self._agreed_checkpoint() if resume else None
        if newest is None:
            return self.load(path, checkpointables=[])
        return self.load(str(newest))

    def _agreed_checkpoint(self) -> Path | None:
        """:meth:`_newest_whole_checkpoint`, which has to be the same everywhere: processes that
        start from different iterations would train different models without a word."""
        newest, error = None, None
        try:
            newest = self._newest_whole_checkpoint()
        except ValueError as caught:  # raised below, once nobody waits for this process
            error = caught
        found = comm.all_gather("damaged ones" if error else newest and newest.name)
        if error:
            raise error
        for rank, name in enumerate(found):
            if name != found[0]:
                raise ValueError(
                    f"--resume: process 0 finds {found[0] or 'no checkpoint'} in {self.save_dir}, "
                    f"process {rank} {name or 'none'}; OUTPUT_DIR has to be a folder that all "
                    "machines share, or to be copied to all of them"
                )
        return newest

    def _candidates(self) -> list[Path]:
        """What may be resumed: the tagged checkpoint, if there is a tag, and the ones before it,
        newest first."""
        folder = Path(self.save_dir)
        if not folder.is_dir():
            return []
        tag = folder / "last_checkpoint"
        # After a power cut a file may be there with zeros for content.
        name = tag.read_text(errors="replace").strip("\0\n ") if tag.is_file() else ""
        if not name or "\0" in name:
            return numbered_checkpoints(folder)
        tagged = folder / name
        before = numbered_checkpoints(folder, last=iteration_of(name))
        return [tagged, *(p for p in before if p != tagged)]

    def _newest_whole_checkpoint(self) -> Path | None:
        candidates = self._candidates()
        for candidate in candidates:
            if is_whole(candidate):
                return candidate
            self.logger.warning(f"{candidate} is missing or damaged, trying the one before it")
        if candidates:
            raise ValueError(
                f"--resume: all {len(candidates)} checkpoints of {self.save_dir} are damaged; "
                "start without --resume"
            )
        return None

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """
        Raises:
            ValueError: the file is missing, unreadable, not the one that its name says, would run
                code, or does not fit; the message names it.
        """
        if path.startswith(TIMM_PREFIX):
            load_timm_weights(self.model, path.removeprefix(TIMM_PREFIX))
            self._refuse_backbone_alone(path)
            return {}
        if not path:
            return super().load(path, checkpointables)
        local = self._local_path(path)
        check_hash_in_name(local)
        if not local.endswith(".pkl"):
            own = self.model.state_dict()
            if not any(key.removeprefix("module.") in own for key in weight_names(local)):
                load_timm_file(self.model, local)
                self._refuse_backbone_alone(path)
                return {}
        self._path_in_errors = path
        self._resuming = checkpointables is None and bool(self.checkpointables)
        try:
            return super().load(path, checkpointables)
        except ValueError as error:
            for text, way_out in _OPTIMISER_MISFITS.items():
                if text in str(error):
                    raise ValueError(f"{path}: {way_out} ({error})") from error
            if path in str(error):
                raise
            raise ValueError(f"{path}: {error}") from error

    def _local_path(self, path: str) -> str:
        try:
            local = self.path_manager.get_local_path(path)
        except OSError as error:  # a download that failed does not say what it was
            raise ValueError(f"MODEL.WEIGHTS: cannot get {path}: {error}") from error
        if not os.path.isfile(local):
            raise ValueError(f"MODEL.WEIGHTS: there is no file {path}")
        return local

    def _load_file(self, filename: str) -> dict:
        """The checkpoint of a file, in the form that detectron2's ``_load_model`` wants.

        Detectron2's own reader unpickles what it is given.
        """
        data = read_weights_file(filename)
        if filename.endswith(".pkl") and not {"model", "__author__"} <= data.keys():
            # Caffe2's and Detectron1's zoo; only whole detectors are below "blobs".
            data = {"model": data.get("blobs", data), "__author__": "Caffe2"}
            data["matching_heuristics"] = True
        if "model" not in data:
            data = {"model": data}
        check_state(data["model"], filename)
        return data

    def _load_model(self, checkpoint) -> _IncompatibleKeys:
        _drop_training_only(checkpoint["model"], self.model, self.logger)
        checkpoint["model"] = _fit_wrapper(checkpoint["model"], self.model, self.logger)
        incompatible = super()._load_model(checkpoint)
        shapes = {key for key, *_ in incompatible.incorrect_shapes}
        # Fvcore names those of another shape among the missing ones, too.
        missing = [key for key in incompatible.missing_keys if key not in shapes]
        if self.strict and (missing or shapes):
            self._misfit(missing, incompatible.incorrect_shapes)
        if self._resuming:
            # Memories may change their size within a run: they fill again. Parameters would begin
            # anew with the optimiser's state of others.
            trained = {name.removeprefix("module.") for name, _ in self.model.named_parameters()}
            missing = [key for key in missing if key.removeprefix("module.") in trained]
            others = [
                s for s in incompatible.incorrect_shapes if s[0].removeprefix("module.") in trained
            ]
            if missing or others:
                self._misfit(missing, others)
        if len(missing) + len(shapes) == len(self.model.state_dict()):
            self._misfit(missing, incompatible.incorrect_shapes)
        return incompatible

    def _misfit(self, missing, incorrect_shapes):
        parts = []
        if incorrect_shapes:
            key, found, expected = incorrect_shapes[0]
            parts.append(
                f"{len(incorrect_shapes)} tensors of another shape (first: {key} is "
                f"{tuple(found)}, the model's {tuple(expected)})"
            )
        if missing:
            parts.append(f"{len(missing)} missing tensors (first: {missing[0]})")
        text = f"{self._path_in_errors} does not fit this model: {', '.join(parts)}"
        config = os.path.join(os.path.dirname(self._path_in_errors), "config.yaml")
        if os.path.isfile(config):
            text += f"; it was probably trained with {config}"
        if self._resuming:
            text += f". Resume with the run's config, or {_FROM_ITS_WEIGHTS}"
        raise ValueError(text)

    def _refuse_backbone_alone(self, path: str) -> None:
        if self.strict:
            raise ValueError(
                f"MODEL.WEIGHTS {path} fills the backbone alone; "
                "evaluation needs a trained checkpoint"
            )


def _drop_training_only(state: dict, model: torch.nn.Module, logger) -> None:
    """Remove terms and auxiliary head from ``state`` where the model has none."""
    own = model.state_dict()
    names = {key: key.removeprefix("module.") for key in state}
    extra = [k for k, n in names.items() if n.startswith(TRAINING_ONLY) and n not in own]
    for key in extra:
        del state[key]
    if extra:
        logger.info(f"Dropped {len(extra)} tensors that only training needs ({extra[0]}, ...)")


def _fit_wrapper(state: dict, model: torch.nn.Module, logger) -> dict:
    """``state`` with the wrapper's prefix dropped or added, where only one of the two wraps."""
    own = model.state_dict()
    renamed = {}
    for key in state:
        prefix = "module." if key.startswith("module.") else ""
        name = key.removeprefix(prefix)
        for other in (_without_wrapper(name), name.replace(_HEAD, _WRAPPED_HEAD, 1)):
            if name not in own and other in own:
                renamed[key] = prefix + other
    if renamed:
        key, other = next(iter(renamed.items()))
        logger.info(f"Renamed {len(renamed)} tensors of the wrapped head ({key} to {other}, ...)")
    return {renamed.get(key, key): value for key, value in state.items()}


def _without_wrapper(name: str) -> str:
    if name.startswith(_WRAPPED_HEAD):
        return _HEAD + name.removeprefix(_WRAPPED_HEAD)
    return name
