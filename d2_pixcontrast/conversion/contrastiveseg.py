"""ContrastiveSeg, and openseg.pytorch that it is built on: HRNet-W48 with FCN and OCR heads, and
DeepLabV3 on ResNet-101.

Everything is interpolated with aligned corners, and images are BGR. Convolutions have a bias before
batch norm in HRNet's heads and in the projector.
"""

import torch

from .rules import Rule, conv_norm_rules, norm_rules
from .source import IMAGENET_STATISTICS, Source, State

_BODY = "backbone.body."
_HEAD = "sem_seg_head."
_DECODER = _HEAD + "decoder."
_PREDICTOR = _HEAD + "predictor."


def _rules(cfg) -> list[Rule]:
    decoder = {"FCNDecoder": _fcn, "OCRDecoder": _ocr, "DeepLabV3Decoder": _deeplab}
    head = decoder.get(cfg.MODEL.SEM_SEG_HEAD.DECODER, list)()
    return [*_memory(), *_backbone(), *head, *_projector()]


def _memory() -> list[Rule]:
    why = (
        "a memory that does not tell which of its entries were ever written, never holds class 0, "
        "and whose pixels are not of the classes they stand for; ours fills itself anew"
    )
    return [Rule(r"(segment|pixel)_queue(_ptr)?", None, why)]


def _backbone() -> list[Rule]:
    body = r"(?:encoder_q\.)?backbone\."
    stem = body + r"resinit\."
    return [
        Rule(stem + r"conv1\.weight", _BODY + "conv1.0.weight"),
        Rule(stem + r"conv2\.weight", _BODY + "conv1.3.weight"),
        Rule(stem + r"conv3\.weight", _BODY + "conv1.6.weight"),
        *norm_rules(stem + "bn1", _BODY + "conv1.1"),
        *norm_rules(stem + "bn2", _BODY + "conv1.4"),
        *norm_rules(stem + "bn3", _BODY + "bn1"),
        Rule(body + r"(.+)", _BODY + r"\1"),
    ]


def _biased(conv: str, norm: str, ours: str) -> list[Rule]:
    """A convolution with a bias, and its norm: weight, norm and the bias off the running mean."""
    return [
        *conv_norm_rules(conv, norm, ours),
        Rule(rf"{conv}\.bias", f"{ours}.norm.running_mean", shift=True),
    ]


def _fcn() -> list[Rule]:
    head = r"(?:encoder_q\.)?cls_head\."
    return [
        *_biased(head + "0", head + r"1\.0", _DECODER + "conv"),
        Rule(head + r"3\.weight", _PREDICTOR + "weight"),
    ]


def _ocr() -> list[Rule]:
    block, attention = r"ocr_distri_head\.object_context_block\.", _DECODER + "attention."
    return [
        *_biased(r"aux_head\.0", r"aux_head\.1\.0", _DECODER + "region_head.0"),
        Rule(r"aux_head\.2\.(weight|bias)", _DECODER + r"region_head.1.\1"),
        *_biased(r"conv3x3\.0", r"conv3x3\.1\.0", _DECODER + "pixels"),
        *_biased(block + r"f_pixel\.0", block + r"f_pixel\.1\.0", attention + "query.0"),
        *_biased(block + r"f_pixel\.2", block + r"f_pixel\.3\.0", attention + "query.1"),
        *_biased(block + r"f_object\.0", block + r"f_object\.1\.0", attention + "key.0"),
        *_biased(block + r"f_object\.2", block + r"f_object\.3\.0", attention + "key.1"),
        *_biased(block + r"f_down\.0", block + r"f_down\.1\.0", attention + "value"),
        *_biased(block + r"f_up\.0", block + r"f_up\.1\.0", attention + "out"),
        *_biased(
            r"ocr_distri_head\.conv_bn_dropout\.0",
            r"ocr_distri_head\.conv_bn_dropout\.1\.0",
            _DECODER + "fuse",
        ),
        Rule(r"cls_head\.(weight|bias)", _PREDICTOR + r"\1"),
    ]


def _deeplab() -> list[Rule]:
    aspp, dsn = r"decoder\.layer_aspp\.", r"decoder\.layer_dsn\."
    ours, aux = _DECODER + "aspp.", _HEAD + "aux_heads.res4."
    return [
        *conv_norm_rules(aspp + r"b([0-3])\.0", aspp + r"b([0-3])\.1\.0", ours + r"convs.\1"),
        *conv_norm_rules(aspp + r"b4\.1", aspp + r"b4\.2\.0", ours + "convs.4.1"),
        *conv_norm_rules(aspp + r"project\.0", aspp + r"project\.1\.0", ours + "project"),
        *conv_norm_rules(r"decoder\.refine\.0", r"decoder\.refine\.1", _DECODER + "refine"),
        Rule(r"decoder\.refine\.2\.(weight|bias)", _PREDICTOR + r"\1"),
        *_biased(dsn + "0", dsn + r"1\.0", aux + "0"),
        Rule(dsn + r"2\.(weight|bias)", aux + r"2.\1"),
    ]


def _projector() -> list[Rule]:
    theirs = r"(?:encoder_q\.)?proj_head\.proj\."
    ours = _HEAD + "terms.PixelContrast.projector."
    return [
        Rule(theirs + r"0\.weight", ours + "hidden.0.weight"),
        *norm_rules(theirs + r"1\.0", ours + "hidden.1"),
        Rule(theirs + r"0\.bias", ours + "hidden.1.running_mean", shift=True),
        Rule(theirs + r"2\.(weight|bias)", ours + r"out.\1"),
    ]


def _settings(cfg) -> dict[str, object]:
    settings = {
        "INPUT.FORMAT": "BGR",
        "MODEL.SEM_SEG_HEAD.ALIGN_CORNERS": True,
        "MODEL.SEM_SEG_HEAD.ACTIVATION": "relu",
        "MODEL.TIMM.SIZE_DIVISIBILITY": 1,
    }
    if cfg.MODEL.TIMM.NAME.startswith("hrnet"):
        # Statistics in the order of RGB, on images in the order of BGR.
        return settings | {
            "MODEL.TIMM.HRNET_FUSION": "bilinear_aligned",
            "MODEL.TIMM.VARIANTS": [],
            **IMAGENET_STATISTICS,
        }
    return settings | {
        "MODEL.TIMM.VARIANTS": ["ceil_pool"],
        "MODEL.PIXEL_MEAN": [102.9801, 115.9465, 122.7717],
        "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    }


def _complete(state: State) -> State:
    """The FCN head's classifier has no bias."""
    weight = state.get(_PREDICTOR + "weight")
    if weight is None or _PREDICTOR + "bias" in state:
        return {}
    return {_PREDICTOR + "bias": torch.zeros(len(weight))}


CONTRASTIVESEG = Source("contrastiveseg", _rules, _settings, _complete)
