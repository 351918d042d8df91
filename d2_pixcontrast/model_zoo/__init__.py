"""Configs that come with the package, and models trained with them: detectron2's four functions.

from d2_pixcontrast import model_zoo

cfg = model_zoo.get_config("CamVid-SemanticSegmentation/deeplabv3plus_mobilenetv2_ce_cpu.yaml")
model = model_zoo.get("CamVid-SemanticSegmentation/....yaml", trained=True)  # with a table
"""

from .. import compat  # noqa: F401  first: a missing detectron2 gets one clear message
from .model_zoo import get, get_checkpoint_url, get_config, get_config_file
from .table import TABLE_VARIABLE, Checkpoint, read_table

__all__ = [
    "TABLE_VARIABLE",
    "Checkpoint",
    "get",
    "get_checkpoint_url",
    "get_config",
    "get_config_file",
    "read_table",
]
