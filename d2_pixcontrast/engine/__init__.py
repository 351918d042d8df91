"""Training and evaluation loops: detectron2's, with the parts that its versions leave out."""

from .. import compat as _compat  # noqa: F401  (first: one clear message without detectron2)
from .checkpoint import SemSegCheckpointer, plain_state_dict
from .checkpoint_hooks import PREEMPTED, BestCheckpointHook, CheckpointHook, forward_sigterm
from .hooks import TrainingProgressHook
from .inference import load_inference_model
from .processes import launch
from .setup import (
    default_argument_parser,
    evaluate,
    load_cfg,
    make_output_dir,
    one_line_errors,
    prepare,
    setup_cfg,
)
from .trainer import Trainer

__all__ = [
    "PREEMPTED",
    "BestCheckpointHook",
    "CheckpointHook",
    "SemSegCheckpointer",
    "Trainer",
    "TrainingProgressHook",
    "default_argument_parser",
    "evaluate",
    "forward_sigterm",
    "launch",
    "load_cfg",
    "load_inference_model",
    "make_output_dir",
    "one_line_errors",
    "plain_state_dict",
    "prepare",
    "setup_cfg",
]
