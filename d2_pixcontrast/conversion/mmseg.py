"""mmsegmentation: FCN on HRNet, DeepLabV3 on ResNetV1c, and its project "pixel contrast cross
entropy loss"."""

from .rules import Rule, backbone_rules, conv_norm_rules, norm_rules, pool_first_to_last
from .source import IMAGENET_STATISTICS, Source

_BODY = "backbone.body."
_HEAD = "sem_seg_head."


def _rules(cfg) -> list[Rule]:
    return [*backbone_rules("backbone.", _BODY), *_decoder(cfg), *_auxiliary_head(), *_projector()]


def _decoder(cfg) -> list[Rule]:
    head = r"decode_head\.(?:seghead\.)?"  # of the contrast project's head
    aspp = _HEAD + "decoder.aspp."
    return [
        Rule(head + r"conv_seg\.(weight|bias)", _HEAD + r"predictor.\1"),
        *conv_norm_rules(head + r"convs\.0\.conv", head + r"convs\.0\.bn", _HEAD + "decoder.conv"),
        *conv_norm_rules(
            r"decode_head\.image_pool\.1\.conv",
            r"decode_head\.image_pool\.1\.bn",
            aspp + "convs.4.1",
        ),
        *conv_norm_rules(
            r"decode_head\.aspp_modules\.([0-3])\.conv",
            r"decode_head\.aspp_modules\.([0-3])\.bn",
            aspp + r"convs.\1",
        ),
        Rule(
            r"decode_head\.bottleneck\.conv\.weight",
            aspp + "project.weight",
            change=pool_first_to_last(branches=5),
        ),
        *norm_rules(r"decode_head\.bottleneck\.bn", aspp + "project.norm"),
    ]


def _auxiliary_head() -> list[Rule]:
    aux = _HEAD + "aux_heads.res4."
    return [
        *conv_norm_rules(
            r"auxiliary_head\.convs\.0\.conv", r"auxiliary_head\.convs\.0\.bn", aux + "0"
        ),
        Rule(r"auxiliary_head\.conv_seg\.(weight|bias)", aux + r"2.\1"),
    ]


def _projector() -> list[Rule]:
    theirs, ours = r"decode_head\.projhead\.proj\.", _HEAD + "terms.PixelContrast.projector."
    return [
        Rule(theirs + r"0\.conv\.(weight|bias)", ours + r"hidden.0.\1"),
        Rule(theirs + r"1\.(weight|bias)", ours + r"out.\1"),
    ]


def _settings(cfg) -> dict[str, object]:
    settings = {
        "INPUT.FORMAT": "RGB",
        **IMAGENET_STATISTICS,
        "MODEL.SEM_SEG_HEAD.ALIGN_CORNERS": False,
        "MODEL.SEM_SEG_HEAD.ACTIVATION": "relu",
        "MODEL.SEM_SEG_HEAD.UPSAMPLE_LOGITS": True,
        "MODEL.TIMM.SIZE_DIVISIBILITY": 1,
        "MODEL.TIMM.VARIANTS": [],
    }
    if cfg.MODEL.TIMM.NAME.startswith("hrnet"):
        settings["MODEL.TIMM.HRNET_FUSION"] = "bilinear"
    return settings


MMSEG = Source("mmseg", _rules, _settings)
