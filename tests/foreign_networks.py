"""Small networks of ours for the published configs, and their tensors under the authors' names.

Each table says by hand, from our name to theirs, where a tensor stands in the authors' files; the
package's rules have no part in it.
"""

from dataclasses import dataclass, field

import torch
from conftest import CONFIGS, INSTANT_TEST
from detectron2.modeling import build_model

from d2_pixcontrast.conversion import SOURCES
from d2_pixcontrast.engine import load_cfg

_HRNET = {"TIMM.NAME": "hrnet_w18_small"}
_TINY = {
    **{f"SEM_SEG_HEAD.{part}.CHANNELS": 10 for part in ("FCN", "OCR", "AUX")},
    "SEM_SEG_HEAD.OCR.KEY_CHANNELS": 6,
    "SEM_SEG_HEAD.ASPP_CHANNELS": 8,
    "PIXEL_CONTRAST.PROJECTOR.DIM": 7,
    "PIXEL_CONTRAST.MEMORY.REGION_SIZE": 2,
    "PIXEL_CONTRAST.MEMORY.PIXEL_SIZE": 2,
    "DATASET_MEMORY.CHANNELS": 12,
    "DATASET_MEMORY.KEY_CHANNELS": 6,
}
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def norm(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in _NORM}


def conv_norm(ours: str, conv: str, bn: str) -> dict[str, str]:
    return {f"{ours}.weight": f"{conv}.weight", **norm(f"{ours}.norm", bn)}


def affine(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}


@dataclass(frozen=True)
class Case:
    """A published network.

    Attributes:
        source: whose it is.
        config: below configs/published/<source>.
        options: below MODEL, that make it small.
        table: our name to theirs, of all but the backbone.
        backbone: our name below ``backbone.`` to theirs.
        biases: the norms of ours (without ``.running_mean``) before which theirs have a
            convolution's bias, to its name there.
        pool_first: names of ours whose input channels begin with the pooling branch there.
        dropped: tensors there that have no place here.
        prefix: of all names there.
        fresh: beginnings of names of ours that the file does not fill.
    """

    source: str
    config: str
    options: dict
    table: dict[str, str]
    backbone: object
    biases: dict[str, str] = field(default_factory=dict)
    pool_first: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    prefix: str = ""
    fresh: tuple[str, ...] = ()

    def cfg(self, **more):
        path = CONFIGS / "published" / self.source / f"{self.config}.yaml"
        options = {"DEVICE": "cpu", **_TINY, **self.options, **more}
        return load_cfg(str(path), [p for k, v in options.items() for p in (f"MODEL.{k}", v)])

    def checkpoint(self, seed=0):
        """(their state dict, what ours has to become, tensors by our names)."""
        cfg = self.cfg(DEVICE="meta")
        own = {k: v for k, v in build_model(cfg).state_dict().items() if not self._is_fresh(k)}
        table = dict(self.table)
        body = "backbone."
        table |= {k: self.backbone(k.removeprefix(body)) for k in own if k.startswith(body)}
        assert set(table) == set(own)  # the table is of this network
        assert len(set(table.values())) == len(table)
        generator = torch.Generator().manual_seed(seed)
        wanted = {name: _random(value, generator) for name, value in own.items()}
        theirs = {self.prefix + table[name]: value.clone() for name, value in wanted.items()}
        for name in self.pool_first:
            branches = wanted[name].chunk(5, dim=1)
            theirs[self.prefix + table[name]] = torch.cat([branches[4], *branches[:4]], dim=1)
        for layer, bias in self.biases.items():
            mean = self.prefix + table[f"{layer}.running_mean"]
            theirs[self.prefix + bias] = torch.randn(theirs[mean].shape, generator=generator)
            theirs[mean] += theirs[self.prefix + bias]
        theirs |= {self.prefix + name: torch.zeros(3) for name in self.dropped}
        return theirs, wanted

    def _is_fresh(self, name):
        return name.startswith(self.fresh) if self.fresh else False


def _random(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if like.is_floating_point():
        return torch.randn(like.shape, generator=generator)
    return torch.randint(1, 1000, like.shape, generator=generator)


# ---------------------------------------------------------------- what the heads have in common

_DECODER, _PREDICTOR = "sem_seg_head.decoder", "sem_seg_head.predictor"
_AUX, _READ = "sem_seg_head.aux_heads.res4", "sem_seg_head.aggregation"
_PROJECTOR = "sem_seg_head.terms.PixelContrast.projector"


def unchanged(prefix: str):
    """Names of the network itself, below another word."""
    return lambda name: prefix + name.removeprefix("body")


_STEM_OF_THREE = {  # timm's deep stem to a sequence of all layers
    **{f"conv1.{i}": str(i) for i in (0, 1, 3, 4, 6)},
    "bn1": "7",
}


def resnet_c(prefix: str):
    """The stem in one sequence of eight."""

    def theirs(name: str) -> str:
        layer, part = name.removeprefix("body.").rsplit(".", 1)
        layer = f"stem.{_STEM_OF_THREE[layer]}" if layer in _STEM_OF_THREE else layer
        return f"{prefix}.{layer}.{part}"

    return theirs


def resnet_of_openseg(name: str) -> str:
    stem = {
        "conv1.0": "resinit.conv1",
        "conv1.1": "resinit.bn1",
        "conv1.3": "resinit.conv2",
        "conv1.4": "resinit.bn2",
        "conv1.6": "resinit.conv3",
        "bn1": "resinit.bn3",
    }
    layer, part = name.removeprefix("body.").rsplit(".", 1)
    return f"backbone.{stem.get(layer, layer)}.{part}"


# ---------------------------------------------------------------- ContrastiveSeg


def _fcn_of_contrastiveseg(prefix=""):
    return {
        **conv_norm(f"{_DECODER}.conv", f"{prefix}cls_head.0", f"{prefix}cls_head.1.0"),
        f"{_PREDICTOR}.weight": f"{prefix}cls_head.3.weight",
    }


def _projector_of_contrastiveseg(prefix=""):
    return {
        f"{_PROJECTOR}.hidden.0.weight": f"{prefix}proj_head.proj.0.weight",
        **norm(f"{_PROJECTOR}.hidden.1", f"{prefix}proj_head.proj.1.0"),
        **affine(f"{_PROJECTOR}.out", f"{prefix}proj_head.proj.2"),
    }


_BLOCK = "ocr_distri_head.object_context_block"
_OCR_LAYERS = {
    f"{_DECODER}.region_head.0": ("aux_head.0", "aux_head.1.0"),
    f"{_DECODER}.pixels": ("conv3x3.0", "conv3x3.1.0"),
    f"{_DECODER}.attention.query.0": (f"{_BLOCK}.f_pixel.0", f"{_BLOCK}.f_pixel.1.0"),
    f"{_DECODER}.attention.query.1": (f"{_BLOCK}.f_pixel.2", f"{_BLOCK}.f_pixel.3.0"),
    f"{_DECODER}.attention.key.0": (f"{_BLOCK}.f_object.0", f"{_BLOCK}.f_object.1.0"),
    f"{_DECODER}.attention.key.1": (f"{_BLOCK}.f_object.2", f"{_BLOCK}.f_object.3.0"),
    f"{_DECODER}.attention.value": (f"{_BLOCK}.f_down.0", f"{_BLOCK}.f_down.1.0"),
    f"{_DECODER}.attention.out": (f"{_BLOCK}.f_up.0", f"{_BLOCK}.f_up.1.0"),
    f"{_DECODER}.fuse": (
        "ocr_distri_head.conv_bn_dropout.0",
        "ocr_distri_head.conv_bn_dropout.1.0",
    ),
}


def _ocr_of_contrastiveseg():
    table = {
        **affine(f"{_DECODER}.region_head.1", "aux_head.2"),
        **affine(_PREDICTOR, "cls_head"),
    }
    for ours, (conv, bn) in _OCR_LAYERS.items():
        table |= conv_norm(ours, conv, bn)
    return table


def _deeplab_of_contrastiveseg():
    aspp = "decoder.layer_aspp"
    table = {
        **conv_norm(f"{_DECODER}.aspp.convs.4.1", f"{aspp}.b4.1", f"{aspp}.b4.2.0"),
        **conv_norm(f"{_DECODER}.aspp.project", f"{aspp}.project.0", f"{aspp}.project.1.0"),
        **conv_norm(f"{_DECODER}.refine", "decoder.refine.0", "decoder.refine.1"),
        **affine(_PREDICTOR, "decoder.refine.2"),
        **conv_norm(f"{_AUX}.0", "decoder.layer_dsn.0", "decoder.layer_dsn.1.0"),
        **affine(f"{_AUX}.2", "decoder.layer_dsn.2"),
    }
    for i in range(4):
        table |= conv_norm(f"{_DECODER}.aspp.convs.{i}", f"{aspp}.b{i}.0", f"{aspp}.b{i}.1.0")
    return table


_QUEUES = ("segment_queue", "segment_queue_ptr", "pixel_queue", "pixel_queue_ptr")
_CONTRASTIVESEG = {
    "fcn": Case(
        "contrastiveseg",
        "cityscapes_fcn_hrnet_w48_ce",
        _HRNET,
        table=_fcn_of_contrastiveseg(),
        backbone=unchanged("backbone"),
        biases={f"{_DECODER}.conv.norm": "cls_head.0.bias"},
        prefix="module.",
        fresh=(f"{_PREDICTOR}.bias",),
    ),
    "fcn, memory": Case(
        "contrastiveseg",
        "cityscapes_fcn_hrnet_w48_pixcontrast_mem",
        _HRNET,
        table={
            **_fcn_of_contrastiveseg("encoder_q."),
            **_projector_of_contrastiveseg("encoder_q."),
        },
        backbone=unchanged("encoder_q.backbone"),
        biases={
            f"{_DECODER}.conv.norm": "encoder_q.cls_head.0.bias",
            f"{_PROJECTOR}.hidden.1": "encoder_q.proj_head.proj.0.bias",
        },
        dropped=_QUEUES,
        prefix="module.",
        fresh=(f"{_PREDICTOR}.bias", "sem_seg_head.terms.PixelContrast.bank."),
    ),
    "ocr": Case(
        "contrastiveseg",
        "cityscapes_ocr_hrnet_w48_pixcontrast",
        _HRNET,
        table={**_ocr_of_contrastiveseg(), **_projector_of_contrastiveseg()},
        backbone=unchanged("backbone"),
        biases={
            **{f"{ours}.norm": f"{conv}.bias" for ours, (conv, _) in _OCR_LAYERS.items()},
            f"{_PROJECTOR}.hidden.1": "proj_head.proj.0.bias",
        },
        prefix="module.",
    ),
    "deeplab": Case(
        "contrastiveseg",
        "cityscapes_deeplabv3_r101_pixcontrast",
        {"TIMM.NAME": "resnet18d"},
        table={**_deeplab_of_contrastiveseg(), **_projector_of_contrastiveseg()},
        backbone=resnet_of_openseg,
        biases={
            f"{_AUX}.0.norm": "decoder.layer_dsn.0.bias",
            f"{_PROJECTOR}.hidden.1": "proj_head.proj.0.bias",
        },
        prefix="module.",
    ),
}

# ---------------------------------------------------------------- mmsegmentation


def _deeplab_of_mmseg():
    head, aux = "decode_head", "auxiliary_head.convs.0"
    pool, bottleneck = f"{head}.image_pool.1", f"{head}.bottleneck"
    table = {
        **conv_norm(f"{_DECODER}.aspp.convs.4.1", f"{pool}.conv", f"{pool}.bn"),
        **conv_norm(f"{_DECODER}.aspp.project", f"{bottleneck}.conv", f"{bottleneck}.bn"),
        **affine(_PREDICTOR, f"{head}.conv_seg"),
        **conv_norm(f"{_AUX}.0", f"{aux}.conv", f"{aux}.bn"),
        **affine(f"{_AUX}.2", "auxiliary_head.conv_seg"),
    }
    for i in range(4):
        module = f"{head}.aspp_modules.{i}"
        table |= conv_norm(f"{_DECODER}.aspp.convs.{i}", f"{module}.conv", f"{module}.bn")
    return table


def _fcn_of_mmseg(head):
    return {
        **conv_norm(f"{_DECODER}.conv", f"{head}.convs.0.conv", f"{head}.convs.0.bn"),
        **affine(_PREDICTOR, f"{head}.conv_seg"),
    }


_MMSEG = {
    "fcn": Case(
        "mmseg",
        "cityscapes_fcn_hrnet_w18",
        _HRNET,
        table=_fcn_of_mmseg("decode_head"),
        backbone=unchanged("backbone"),
    ),
    "fcn, contrast": Case(
        "mmseg",
        "cityscapes_fcn_hrnet_w18_pixcontrast",
        _HRNET,
        table={
            **_fcn_of_mmseg("decode_head.seghead"),
            **affine(f"{_PROJECTOR}.hidden.0", "decode_head.projhead.proj.0.conv"),
            **affine(f"{_PROJECTOR}.out", "decode_head.projhead.proj.1"),
        },
        backbone=unchanged("backbone"),
    ),
    "deeplab": Case(
        "mmseg",
        "cityscapes_deeplabv3_r50",
        {"TIMM.NAME": "resnet18d"},
        table=_deeplab_of_mmseg(),
        backbone=resnet_c("backbone"),
        pool_first=(f"{_DECODER}.aspp.project.weight",),
    ),
}

# ---------------------------------------------------------------- sssegmentation


def _attention(ours, theirs):
    table = {
        **conv_norm(f"{ours}.value", f"{theirs}.value_project.0", f"{theirs}.value_project.1"),
        **conv_norm(f"{ours}.out", f"{theirs}.out_project.0", f"{theirs}.out_project.1"),
    }
    for part in ("query", "key"):
        for i in (0, 1):
            layer = f"{theirs}.{part}_project.{i}"
            table |= conv_norm(f"{ours}.{part}.{i}", f"{layer}.0", f"{layer}.1")
    return table


def _mcibi():
    context, memory = "context_within_image_module", "memory_module"
    pool, bottleneck = f"{context}.global_branch", f"{context}.bottleneck"
    table = {
        **conv_norm(f"{_DECODER}.aspp.convs.4.1", f"{pool}.1", f"{pool}.2"),
        **conv_norm(f"{_DECODER}.aspp.project", f"{bottleneck}.0", f"{bottleneck}.1"),
        **conv_norm(f"{_READ}.pixels.conv", "bottleneck.0", "bottleneck.1"),
        **conv_norm(f"{_READ}.stage1.0", "decoder_stage1.0", "decoder_stage1.1"),
        **affine(f"{_READ}.stage1.2", "decoder_stage1.4"),
        f"{_READ}.memory.entries": f"{memory}.memory",
        **_attention(f"{_READ}.memory_attentions.0", f"{memory}.self_attention"),
        **_attention(f"{_READ}.context_attention", f"{memory}.self_attention_ms"),
        **conv_norm(f"{_READ}.fuse", f"{memory}.bottleneck.0", f"{memory}.bottleneck.1"),
        **conv_norm(
            f"{_READ}.context_fuse", f"{memory}.bottleneck_ms.0", f"{memory}.bottleneck_ms.1"
        ),
        **conv_norm(f"{_READ}.hidden", "decoder_stage2.0", "decoder_stage2.1"),
        **affine(_PREDICTOR, "decoder_stage2.4"),
    }
    for i in range(4):
        branch = f"{context}.parallel_branches.{i}"
        table |= conv_norm(f"{_DECODER}.aspp.convs.{i}", f"{branch}.0", f"{branch}.1")
    return table


_AUX_OF_MCIBI = {
    **conv_norm(f"{_AUX}.0", "auxiliary_decoder.0", "auxiliary_decoder.1"),
    **affine(f"{_AUX}.2", "auxiliary_decoder.4"),
}
_VIT_FEATURES = ["block1", "block3", "block4", "block11"]
_VIT_LAYERS = {
    "norm1": "ln1",
    "attn.proj": "attn.attn.out_proj",
    "norm2": "ln2",
    "mlp.fc1": "ffn.layers.0.0",
    "mlp.fc2": "ffn.layers.1",
}


def _vit(name: str) -> str:
    layer, _, part = name.rpartition(".")
    if layer.startswith("out_norms."):
        index = _VIT_FEATURES.index(layer.removeprefix("out_norms."))
        return f"norm_layers.{index}.{part}"
    if layer == "body.model":
        return f"backbone_net.{part}"
    if layer == "body.model.patch_embed.proj":
        return f"backbone_net.patch_embed.projection.{part}"
    _, _, _, number, place = layer.split(".", 4)
    if place == "attn.qkv":
        return f"backbone_net.layers.{number}.attn.attn.in_proj_{part}"
    return f"backbone_net.layers.{number}.{_VIT_LAYERS[place]}.{part}"


_SSSEGMENTATION = {
    "hrnet": Case(
        "sssegmentation",
        "lip_deeplabv3_hrnet_w48_mcibi",
        _HRNET,
        table={
            **_mcibi(),
            **conv_norm(
                "sem_seg_head.joined.conv", "downsample_backbone.0", "downsample_backbone.1"
            ),
        },
        backbone=unchanged("backbone_net"),
    ),
    "resnet": Case(
        "sssegmentation",
        "lip_deeplabv3_r50_mcibi",
        {"TIMM.NAME": "resnet18d"},
        table={**_mcibi(), **_AUX_OF_MCIBI},
        backbone=resnet_c("backbone_net"),
    ),
    "resnest": Case(
        "sssegmentation",
        "ade20k_deeplabv3_s101_mcibi",
        {"TIMM.NAME": "resnest14d"},
        table={**_mcibi(), **_AUX_OF_MCIBI},
        backbone=resnet_c("backbone_net"),
    ),
    "vit": Case(
        "sssegmentation",
        "ade20k_deeplabv3_vit_l_mcibi",
        {
            "TIMM.NAME": "vit_tiny_patch16_224",
            "TIMM.IMAGE_SIZE": 64,
            "TIMM.OUT_FEATURES": _VIT_FEATURES,
            "SEM_SEG_HEAD.IN_FEATURES": ["block11"],
            "SEM_SEG_HEAD.AUX.IN_FEATURES": _VIT_FEATURES[:3],
        },
        table=_mcibi(),
        backbone=_vit,
        dropped=tuple(
            f"auxiliary_decoder.{i}.{layer}"
            for i in range(3)
            for layer in ("0.weight", "1.running_mean", "4.weight", "8.bias")
        ),
        fresh=("sem_seg_head.aux_heads.",),
    ),
}

CASES = {
    f"{source}: {name}": case
    for source, cases in (
        ("contrastiveseg", _CONTRASTIVESEG),
        ("mmseg", _MMSEG),
        ("sssegmentation", _SSSEGMENTATION),
    )
    for name, case in cases.items()
}
assert {case.source for case in CASES.values()} == set(SOURCES)


# ---------------------------------------------------------------- the smallest of all

# Options for the instant test's config: mmsegmentation's FCN head on a network of some kilobytes.
TINY_FCN = {
    "MODEL.TIMM.NAME": "test_resnet",
    "MODEL.TIMM.SIZE_DIVISIBILITY": 1,
    "MODEL.TIMM.OUT_FEATURES": "['res4', 'res5']",
    "MODEL.SEM_SEG_HEAD.DECODER": "FCNDecoder",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": "['res5']",
    "MODEL.SEM_SEG_HEAD.FCN.CHANNELS": 8,
    "MODEL.SEM_SEG_HEAD.AUX.IN_FEATURES": "['res4']",
    "MODEL.SEM_SEG_HEAD.AUX.CHANNELS": 6,
    "MODEL.SEM_SEG_HEAD.TERMS": "[]",
}


def tiny_options(**more) -> list:
    """KEY VALUE pairs; a name of ``more`` has ``__`` for each dot."""
    more = {key.replace("__", "."): value for key, value in more.items()}
    return [str(part) for pair in {**TINY_FCN, **more}.items() for part in pair]


def tiny_cfg(**more):
    return load_cfg(str(INSTANT_TEST), tiny_options(**more))


def tiny_checkpoint(seed=0) -> tuple[dict, dict]:
    """(mmsegmentation's state dict, tensors by our names) of :func:`tiny_cfg`."""
    own = build_model(tiny_cfg(MODEL__DEVICE="meta")).state_dict()
    aux = "auxiliary_head.convs.0"
    table = {
        **_fcn_of_mmseg("decode_head"),
        **conv_norm(f"{_AUX}.0", f"{aux}.conv", f"{aux}.bn"),
        **affine(f"{_AUX}.2", "auxiliary_head.conv_seg"),
        **{k: k.replace("backbone.body.", "backbone.") for k in own if k.startswith("backbone")},
    }
    generator = torch.Generator().manual_seed(seed)
    wanted = {name: _random(value, generator) for name, value in own.items()}
    wanted |= {k: v.abs() for k, v in wanted.items() if k.endswith("running_var")}
    return {table[name]: value for name, value in wanted.items()}, wanted
