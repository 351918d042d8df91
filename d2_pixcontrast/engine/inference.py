"""A trained network, ready for inference."""

import torch

from ..compat import CfgNode
from ..config import inference_config
from ..modeling import build_model
from .checkpoint import SemSegCheckpointer


def on_this_machine(cfg: CfgNode) -> CfgNode:
    """``cfg``, changed to the CPU where it wants a GPU and there is none."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def load_inference_model(cfg: CfgNode, weights: str) -> torch.nn.Module:
    """The network of ``cfg`` without its training-only parts, filled and in evaluation mode.

    Args:
        cfg: config of the training, or of a published model. Where MODEL.DEVICE is a GPU and there
            is none, the network is on the CPU.
        weights: what ``SemSegCheckpointer.load`` takes.

    Raises:
        ValueError: the weights cannot be read, or do not fill the network.
    """
    model = build_model(on_this_machine(inference_config(cfg)))
    SemSegCheckpointer(model, strict=True).load(weights)
    return model.eval()
