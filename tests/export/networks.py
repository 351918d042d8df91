"""A small network for each decoder, with weights that make its logits differ."""

import torch
from conftest import INSTANT_TEST
from detectron2.modeling import build_model

from d2_pixcontrast import inference_config
from d2_pixcontrast.engine import load_cfg

RESNET = {"MODEL.TIMM.NAME": "test_resnet", "MODEL.TIMM.OUTPUT_STRIDE": 16}
HRNET = ["res2", "res3", "res4", "res5"]

NETWORKS = {
    "DeepLabV3PlusDecoder": {"MODEL.TIMM.NAME": "test_efficientnet"},
    "DeepLabV3Decoder": {
        **RESNET,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res5"],
        "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": [],
    },
    "FCNDecoder": {
        "MODEL.TIMM.NAME": "hrnet_w18_small",
        "MODEL.TIMM.OUTPUT_STRIDE": 32,
        "MODEL.TIMM.OUT_FEATURES": HRNET,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": HRNET,
        "MODEL.SEM_SEG_HEAD.FCN.CHANNELS": 16,
    },
    "OCRDecoder": {
        **RESNET,
        "MODEL.TIMM.OUT_FEATURES": ["res4", "res5"],
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res4", "res5"],
        "MODEL.SEM_SEG_HEAD.OCR.CHANNELS": 16,
        "MODEL.SEM_SEG_HEAD.OCR.KEY_CHANNELS": 8,
        "MODEL.SEM_SEG_HEAD.OCR.REGION_FEATURE": "res4",
    },
    "PSPDecoder": {
        **RESNET,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res5"],
        "MODEL.SEM_SEG_HEAD.PSP.CHANNELS": 16,
    },
    "UPerDecoder": {
        **RESNET,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res5"],
        "MODEL.SEM_SEG_HEAD.UPER.CHANNELS": 16,
    },
    # A data-set memory between decoder and classifier.
    "DatasetMemory": {
        **RESNET,
        "MODEL.SEM_SEG_HEAD.DECODER": "DeepLabV3Decoder",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res5"],
        "MODEL.DATASET_MEMORY.ENABLED": True,
        "MODEL.DATASET_MEMORY.CHANNELS": 16,
        "MODEL.DATASET_MEMORY.KEY_CHANNELS": 8,
    },
}


def network_cfg(decoder, **options):
    options = {"MODEL.SEM_SEG_HEAD.DECODER": decoder, **NETWORKS[decoder], **options}
    return load_cfg(str(INSTANT_TEST), [part for pair in options.items() for part in pair])


def network(cfg):
    """The inference model of a config in evaluation mode; its logits have a spread of 3."""
    torch.manual_seed(0)
    model = build_model(inference_config(cfg)).eval()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if "running_mean" in name or name.endswith("memory.entries"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    spread = eager(model, random_image((65, 97))).std(dim=(1, 2)).mean()
    with torch.no_grad():
        model.sem_seg_head.predictor.weight *= 3 / spread
    return model


def eager(model, image):
    """Detectron2's own output for a (3, H, W) RGB image: (C, H, W)."""
    height, width = image.shape[-2:]
    with torch.no_grad():
        return model([{"image": image, "height": height, "width": width}])[0]["sem_seg"]


def random_image(size, seed=0):
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(seed)) * 255
