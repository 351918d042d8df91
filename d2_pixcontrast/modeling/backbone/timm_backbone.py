"""Any timm model with ``features_only`` as a detectron2 backbone."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from timm.layers import LayerNorm2d
from torch import nn

from .features import EncoderFeatures
from .hrnet_fusion import fuse_branches
from .timm_features import (
    create_features,
    feature_names,
    image_side,
    is_channels_last,
    pads_itself,
    patch_size,
)
from .variants import change


class TimmBackbone(Backbone):
    """A timm feature extractor whose features carry detectron2's names.

    A feature is called "res" + log2 of its stride in the undilated network: "res1" (stride 2) to
    "res5" (stride 32), as in detectron2's ResNets. HRNet gives its four branches as "res2"
    (stride 4) to "res5", and so do Swin's four stages. A plain vision transformer, all of whose
    features have the stride of its patches, gives "block0" to "block11" or more: what leaves
    timm's ``blocks.0`` and so on, the numbers that segmentation code calls out_indices.

    Detectron2's meta-architectures pad images to a multiple of :attr:`size_divisibility` and crop
    the result. The weights keep timm's names below ``body.``.
    """

    def __init__(
        self,
        name: str,
        *,
        output_stride: int = 32,
        out_features: list[str] | None = None,
        image_size: int = 0,
        drop_path_rate: float = 0.0,
        out_norm: str = "",
        size_divisibility: int = 0,
        hrnet_fusion: str = "nearest",
        variants: list[str] = (),
    ):
        """
        Args:
            name: a timm model name, with or without a weights tag ("mobilenetv2_100.ra_in1k").
            output_stride: 8, 16 or 32; the network's strides beyond it become dilations.
            out_features: names to compute; empty or None for all. Parameters of deeper stages,
                where timm builds them nevertheless, are frozen.
            image_size: side in pixels of the images that a transformer's position embeddings are
                stored for, pretrained ones being resampled; 0 for that of the pretraining. Other
                sizes work too and resample them in each forward.
            drop_path_rate: of stochastic depth, in the deepest block.
            out_norm: "LN" for a new layer norm on each feature, as the published Swin and ViT
                segmentation networks have it; "" for none.
            size_divisibility: what image sides are padded to a multiple of; 0 for the largest
                stride. With 1 images are taken as they are, and a feature of stride s has
                ceil(height / s) rows.
            hrnet_fusion: one of :data:`~.hrnet_fusion.FUSIONS`; "nearest" for other networks.
            variants: names of :data:`~.variants.VARIANTS`, details that differ from timm's.

        Raises:
            ValueError: timm knows no such model, it cannot give features or this stride, it takes
                no such image size or rate, or it has no feature of a name in ``out_features``.
        """
        super().__init__()
        self.name = name
        self.options = {"image_size": image_size, "drop_path_rate": drop_path_rate}
        if size_divisibility and pads_itself(name):
            self.options["dynamic_img_pad"] = True
        with torch.device("meta"):
            names = feature_names(create_features(name))
        wanted = list(out_features or names)
        unknown = [f for f in wanted if f not in names]
        if unknown:
            raise ValueError(
                f"MODEL.TIMM.OUT_FEATURES: {name} has no feature {unknown}; it has {names}"
            )
        if out_norm not in ("", "LN"):
            raise ValueError(f"MODEL.TIMM.OUT_NORM is {out_norm!r}; known are '' and 'LN'")
        self.out_indices = tuple(names.index(f) for f in names if f in wanted)
        self.body = create_features(name, output_stride, self.out_indices, **self.options)
        self._size_divisibility = size_divisibility
        patch = patch_size(name)
        if size_divisibility % patch:
            raise ValueError(
                f"MODEL.TIMM.SIZE_DIVISIBILITY is {size_divisibility}; {name} needs a multiple of "
                f"its patches of {patch} pixels"
            )
        self._channels_last = is_channels_last(self.body)
        self._out_features = [names[i] for i in self.out_indices]
        if names[-1] not in wanted:
            self._freeze_unused(output_stride)
        fuse_branches(self.body, hrnet_fusion)
        change(self.body, list(variants), name)
        channels = self.body.feature_info.channels()
        strides = self.body.feature_info.reduction()
        self._shapes = {
            f: ShapeSpec(channels=c, stride=s)
            for f, c, s in zip(self._out_features, channels, strides, strict=True)
        }
        self.out_norms = nn.ModuleDict(
            {f: LayerNorm2d(s.channels) for f, s in self._shapes.items()} if out_norm else {}
        )

    def _freeze_unused(self, output_stride: int) -> None:
        """Freeze what no output depends on: DDP would wait for its gradients."""
        with torch.enable_grad(), torch.device("meta"):
            probe = create_features(self.name, output_stride, self.out_indices, **self.options)
            # Two images: ResNeSt normalises over pooled maps, one number per image and channel.
            side = self.options["image_size"] or image_side(self.name)
            total = sum(feature.sum() for feature in probe(torch.zeros(2, 3, side, side)))
        parameters = dict(probe.named_parameters())
        gradients = torch.autograd.grad(total, parameters.values(), allow_unused=True)
        for key, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                self.body.get_parameter(key).requires_grad_(False)

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility or max(shape.stride for shape in self._shapes.values())

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self._shapes)

    def forward(self, x: torch.Tensor) -> EncoderFeatures:
        """(B, 3, H, W) normalised images to {name: (B, C, H / stride, W / stride)}."""
        maps = self.body(x)
        if self._channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        features = dict(zip(self._out_features, maps, strict=True))
        if self.out_norms:
            features = {f: self.out_norms[f](m) for f, m in features.items()}
        return EncoderFeatures(features, image_size=(x.shape[-2], x.shape[-1]))


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg, input_shape: ShapeSpec) -> TimmBackbone:
    """MODEL.BACKBONE.NAME "build_timm_backbone": the timm model of MODEL.TIMM."""
    node = cfg.MODEL.TIMM
    return TimmBackbone(
        node.NAME,
        output_stride=node.OUTPUT_STRIDE,
        out_features=node.OUT_FEATURES,
        image_size=node.IMAGE_SIZE,
        drop_path_rate=node.DROP_PATH_RATE,
        out_norm=node.OUT_NORM,
        size_divisibility=node.SIZE_DIVISIBILITY,
        hrnet_fusion=node.HRNET_FUSION,
        variants=node.VARIANTS,
    )
