"""sssegmentation, the code of MCIBI: DeepLabV3 with a class memory on ResNet, ResNeSt, HRNet and
ViT-L."""

from .rules import Rule, backbone_rules, conv_norm_rules
from .source import IMAGENET_STATISTICS, Source

_BODY = "backbone.body."
_HEAD = "sem_seg_head."
_READ = _HEAD + "aggregation."


def _rules(cfg) -> list[Rule]:
    vit = cfg.MODEL.TIMM.NAME.startswith("vit")
    backbone = _vit(list(cfg.MODEL.TIMM.OUT_FEATURES)) if vit else _convolutional()
    return [*backbone, *_context(), *_aggregation(), *_auxiliary_head(vit)]


def _convolutional() -> list[Rule]:
    return [
        *backbone_rules("backbone_net.", _BODY),
        *_pair(r"downsample_backbone", _HEAD + "joined.conv"),
    ]


def _vit(features: list[str]) -> list[Rule]:
    model = _BODY + "model."
    patches = r"backbone_net\.patch_embed\.projection\."
    layer, block = r"backbone_net\.layers\.(\d+)\.", model + r"blocks.\1."
    return [
        Rule(layer + r"ln([12])\.(weight|bias)", block + r"norm\2.\3"),
        Rule(layer + r"attn\.attn\.in_proj_(weight|bias)", block + r"attn.qkv.\2"),
        Rule(layer + r"attn\.attn\.out_proj\.(weight|bias)", block + r"attn.proj.\2"),
        Rule(layer + r"ffn\.layers\.0\.0\.(weight|bias)", block + r"mlp.fc1.\2"),
        Rule(layer + r"ffn\.layers\.1\.(weight|bias)", block + r"mlp.fc2.\2"),
        Rule(patches + "(weight|bias)", model + r"patch_embed.proj.\1"),
        Rule(r"backbone_net\.(cls_token|pos_embed)", model + r"\1"),
        *(
            Rule(rf"norm_layers\.{i}\.(weight|bias)", rf"backbone.out_norms.{name}.\1")
            for i, name in enumerate(features)
        ),
    ]


def _pair(theirs: str, ours: str) -> list[Rule]:
    """A convolution and its norm, the first two of a sequence there."""
    return conv_norm_rules(theirs + r"\.0", theirs + r"\.1", ours)


def _context() -> list[Rule]:
    theirs, ours = r"context_within_image_module\.", _HEAD + "decoder.aspp."
    return [
        *_pair(theirs + r"parallel_branches\.([0-3])", ours + r"convs.\1"),
        *conv_norm_rules(
            theirs + r"global_branch\.1", theirs + r"global_branch\.2", ours + "convs.4.1"
        ),
        *_pair(theirs + "bottleneck", ours + "project"),
    ]


def _aggregation() -> list[Rule]:
    memory = r"memory_module\."
    return [
        *_pair("bottleneck", _READ + "pixels.conv"),
        *_pair("decoder_stage1", _READ + "stage1.0"),
        Rule(r"decoder_stage1\.4\.(weight|bias)", _READ + r"stage1.2.\1"),
        Rule(memory + "memory", _READ + "memory.entries"),
        *_attention(memory + r"self_attention\.", _READ + "memory_attentions.0."),
        *_attention(memory + r"self_attention_ms\.", _READ + "context_attention."),
        *_pair(memory + "bottleneck", _READ + "fuse"),
        *_pair(memory + "bottleneck_ms", _READ + "context_fuse"),
        *_pair("decoder_stage2", _READ + "hidden"),
        Rule(r"decoder_stage2\.4\.(weight|bias)", _HEAD + r"predictor.\1"),
    ]


def _attention(theirs: str, ours: str) -> list[Rule]:
    return [
        *_pair(theirs + r"query_project\.([01])", ours + r"query.\1"),
        *_pair(theirs + r"key_project\.([01])", ours + r"key.\1"),
        *_pair(theirs + "value_project", ours + "value"),
        *_pair(theirs + "out_project", ours + "out"),
    ]


def _auxiliary_head(vit: bool) -> list[Rule]:
    theirs, aux = "auxiliary_decoder", _HEAD + "aux_heads.res4."
    if vit:
        why = "an auxiliary head of two convolutions, for training alone; ours has one"
        return [Rule(theirs + r"\.\d+\..+", None, why)]
    return [*_pair(theirs, aux + "0"), Rule(theirs + r"\.4\.(weight|bias)", aux + r"2.\1")]


def _settings(cfg) -> dict[str, object]:
    name, data = cfg.MODEL.TIMM.NAME, str(tuple(cfg.DATASETS.TEST))
    leaky = "lip_" in data and name.startswith("resnet")
    settings = {
        "INPUT.FORMAT": "RGB",
        **IMAGENET_STATISTICS,
        "MODEL.SEM_SEG_HEAD.ALIGN_CORNERS": False,
        "MODEL.SEM_SEG_HEAD.UPSAMPLE_LOGITS": False,
        "MODEL.DATASET_MEMORY.READ": "soft",
        "MODEL.SEM_SEG_HEAD.ACTIVATION": "leaky_relu" if leaky else "relu",
        "MODEL.TIMM.SIZE_DIVISIBILITY": 1,
    }
    if name.startswith("hrnet"):
        # Whether its stem has a ReLU in the middle ("first_relu_off") depends on the file.
        return settings | {"MODEL.TIMM.HRNET_FUSION": "bilinear"}
    if name.startswith("vit"):
        # Nothing in the file tells its dilations. COCO-Stuff's first edition, of 473x473, has those
        # of ADE20K.
        small = "ade20k" in data or cfg.MODEL.TIMM.IMAGE_SIZE == 473
        settings["MODEL.SEM_SEG_HEAD.ASPP_DILATIONS"] = [6, 12, 18] if small else [12, 24, 36]
    variants = {"resnest": "plain_dilated_shortcuts", "vit": "bilinear_positions"}
    wanted = [variant for kind, variant in variants.items() if name.startswith(kind)]
    return settings | {"MODEL.TIMM.VARIANTS": wanted}


SSSEGMENTATION = Source("sssegmentation", _rules, _settings)
