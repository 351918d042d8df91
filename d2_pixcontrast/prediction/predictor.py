"""A trained network and all that stands between it and an image."""

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from torch import Tensor

from ..compat import CfgNode
from ..config import inference_config
from ..data import SemSegMapper
from ..data.datasets.colors import distinct_colors
from ..engine import SemSegCheckpointer, Trainer
from ..engine.inference import on_this_machine
from ..evaluation import class_map
from ..modeling.inference import with_sliding_window, with_test_time_augmentation
from ..visualization.colors import class_colors


@dataclass(frozen=True)
class Prediction:
    """What a network says about an image.

    Attributes:
        scores: (C, H, W) logits, or probabilities where ``are_probabilities``, on the network's
            device.
    """

    scores: Tensor
    are_probabilities: bool

    @property
    def classes(self) -> np.ndarray:
        """(H, W) class ids: uint8, or uint16 with more than 255 classes.

        Raises:
            ValueError: scores are NaN.
        """
        ids = class_map(self.scores).cpu().numpy()
        if unknown := int((ids == len(self.scores)).sum()):
            raise ValueError(
                f"the network's scores are NaN in {unknown} of {ids.size} pixels; has its training "
                "diverged? An earlier checkpoint may be sound"
            )
        return ids.astype(np.uint8 if len(self.scores) <= 255 else np.uint16)

    @property
    def probabilities(self) -> Tensor:
        """(C, H, W) float32."""
        return self.scores if self.are_probabilities else self.scores.float().softmax(dim=0)


class Predictor:
    """Segments images as ``train_net.py --eval-only`` does, to the bit.

    The mapper's resize, TEST.SLIDING and TEST.AUG (the evaluation's "sem_seg_TTA") are those of
    the config. The network has no training-only part. Where torch sees no GPU it runs on the CPU,
    whatever MODEL.DEVICE is.

    Attributes:
        metadata: of the config's first data set.
        class_names: C names: this data set's, or else "0", "1", ...
        ignore_value: of labels.
        colors: (C, 3) uint8 RGB: this data set's, or else a palette.
    """

    def __init__(self, cfg: CfgNode, weights: str = ""):
        """
        Args:
            cfg: of the training or for inference; its data sets need not be on this machine.
            weights: a checkpoint; default: MODEL.WEIGHTS.

        Raises:
            ValueError: no weights are named, or they do not fill the network.
        """
        cfg = on_this_machine(inference_config(cfg))
        weights = weights or cfg.MODEL.WEIGHTS
        if not weights:
            raise ValueError("a prediction needs weights: give a checkpoint's path")
        model = Trainer.build_model(cfg).eval()
        SemSegCheckpointer(model, strict=True).load(weights)

        dataset = next(iter((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)), "__unused")
        self.metadata = MetadataCatalog.get(dataset)
        self.class_names, self.colors = _names_and_colors(
            self.metadata, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        )
        self.ignore_value = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        self._model = with_sliding_window(cfg, model)
        self._augmented = cfg.TEST.AUG.ENABLED
        if self._augmented:
            self._model = with_test_time_augmentation(cfg, self._model, dataset)
        self._mapper = SemSegMapper(cfg, is_train=False)

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Prediction:
        """
        Args:
            image: (H, W, 3) uint8 RGB.
        """
        if self._mapper.image_format == "BGR":
            image = image[:, :, ::-1]
        outputs = self._model([self._mapper.test_image(image)])
        return Prediction(outputs[0]["sem_seg"], are_probabilities=self._augmented)


def _names_and_colors(metadata, num_classes: int) -> tuple[list[str], np.ndarray]:
    names = metadata.get("stuff_classes")
    if not names:
        colors = np.array(distinct_colors(num_classes), dtype=np.uint8)
        return [str(index) for index in range(num_classes)], colors
    if len(names) != num_classes:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}, but {metadata.name} has "
            f"{len(names)} classes"
        )
    return list(names), class_colors(metadata)
