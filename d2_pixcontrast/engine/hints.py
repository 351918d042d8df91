"""What a config says that training does otherwise than one might think."""

from ..compat import CfgNode, get_cfg
from ..config import add_pixcontrast_config, flat_items
from ..modeling import term_classes

# Blocks of keys, and the term that reads them; "": they have a key ENABLED.
_BLOCKS = {
    "MODEL.PIXEL_CONTRAST": "PixelContrast",
    "MODEL.CONTEXTRAST": "Contextrast",
    "MODEL.MULTI_SCALE_CONTRAST": "MultiScaleContrast",
    "MODEL.DATASET_MEMORY": "",
    "MODEL.PIXEL_CONTRAST.MEMORY": "",
}
# Keys of detectron2 that nothing here reads, and what is done instead.
_UNUSED = {
    "INPUT.MIN_SIZE_TRAIN": (
        "images are scaled by a factor of SCALE_RANGE {cfg.INPUT.SCALE_RANGE} from their own size, "
        "or from BASE_SHORT_EDGE"
    ),
    "DATALOADER.SAMPLER_TRAIN": "every image is drawn once in each pass",
    "SOLVER.BIAS_LR_FACTOR": "biases learn at the rate of their layer",
    "TEST.AUG.MIN_SIZES": "images are tested at TEST.AUG.SCALES {cfg.TEST.AUG.SCALES}",
    "TEST.AUG.MAX_SIZE": "images are tested at TEST.AUG.SCALES {cfg.TEST.AUG.SCALES}",
}


def training_hints(cfg: CfgNode, processes: int) -> list[str]:
    """One line for each thing.

    Args:
        cfg: of the training.
        processes: of all machines together.

    Raises:
        ValueError: an unknown term, or one named twice.
    """
    terms = term_classes(cfg)
    alone = [name for name, term in terms.items() if term.within_process(cfg)]
    hints = []
    if alone and (cfg.SOLVER.REFERENCE_WORLD_SIZE or processes) == cfg.SOLVER.IMS_PER_BATCH:
        hints.append(
            f"Each process trains on one image, and {' and '.join(alone)} on those of a process: "
            "nothing is contrasted across images. SOLVER.IMS_PER_BATCH, PIXEL_CONTRAST.MEMORY "
            "and CONTEXTRAST.ANCHORS.ALL_RANKS change that"
        )
    defaults = get_cfg()
    add_pixcontrast_config(defaults, keep_defaults=cfg.DETECTRON2_DEFAULTS)
    now, default = dict(flat_items(cfg)), dict(flat_items(defaults))
    changed = [key for key in default if now.get(key, default[key]) != default[key]]
    for key in changed:
        if key in _UNUSED:
            hints.append(_unused(key, now[key], _UNUSED[key].format(cfg=cfg)))
    if "SOLVER.STEPS" in changed and cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupPolyLR":
        hints.append(
            _unused("SOLVER.STEPS", now["SOLVER.STEPS"], "LR_SCHEDULER_NAME is WarmupPolyLR")
        )
    timm = cfg.MODEL.BACKBONE.NAME == "build_timm_backbone"
    if "MODEL.BACKBONE.FREEZE_AT" in changed and timm and cfg.MODEL.BACKBONE.FREEZE_AT:
        value = cfg.MODEL.BACKBONE.FREEZE_AT
        hints.append(
            _unused("MODEL.BACKBONE.FREEZE_AT", value, "all layers of a timm backbone learn")
        )
    for block, term in _BLOCKS.items():
        if term:
            unread, reason = term not in terms, f"MODEL.SEM_SEG_HEAD.TERMS does not name {term}"
        else:
            unread, reason = not now[f"{block}.ENABLED"], f"{block}.ENABLED is False"
        keys = [key for key in changed if key.startswith(f"{block}.")]
        if unread and keys and (block.count(".") == 1 or "PixelContrast" in terms):
            hints.append(f"{', '.join(keys)}: not used, since {reason}")
    return hints


def _unused(key: str, value: object, instead: str) -> str:
    return f"{key} {value} is not used: {instead}"
