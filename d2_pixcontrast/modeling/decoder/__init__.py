"""Decoders: encoder features in, the feature map that the classifier reads out."""

from .base import DECODER_REGISTRY, DecoderOutput, build_decoder
from .deeplab import DeepLabV3Decoder, DeepLabV3PlusDecoder
from .fcn import FCNDecoder
from .ocr import OCRDecoder
from .psp import PSPDecoder
from .uper import UPerDecoder

__all__ = [
    "DECODER_REGISTRY",
    "DecoderOutput",
    "DeepLabV3Decoder",
    "DeepLabV3PlusDecoder",
    "FCNDecoder",
    "OCRDecoder",
    "PSPDecoder",
    "UPerDecoder",
    "build_decoder",
]
