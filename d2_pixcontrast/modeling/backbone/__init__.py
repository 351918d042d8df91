from .padded_resnet import PaddedResNet, pad_resnet
from .timm_backbone import TimmBackbone, build_timm_backbone

__all__ = ["PaddedResNet", "TimmBackbone", "build_timm_backbone", "pad_resnet"]
