"""From a dataset dict to what the model and the evaluator take."""

import copy

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import transforms as T
from detectron2.data.detection_utils import check_image_size

from .augmentation import RandomScaleCrop, build_augmentations
from .labels import check_label, check_same_size, read_image, read_label
from .resample import RegionTransform, resize_shortest_edge

__all__ = ["SemSegMapper"]


class SemSegMapper:
    """Read, check, augment and pack one sample of a semantic segmentation dataset.

    Unlike :class:`detectron2.data.DatasetMapper` it reads ids as they are stored, refuses labels
    out of range, and pads labels with the ignore value. Any detectron2 augmentation can be added.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        num_classes: int,
        ignore_value: int,
        min_size_test: int = 0,
        max_size_test: int = 0,
        fixed_size_test: tuple[int, int] | None = None,
        keep_original: bool = False,
    ):
        """
        Args:
            is_train: whether to augment, and to hand the label to the model.
            augmentations: in their order; for training only.
            image_format: order of the channels, "RGB" or "BGR".
            num_classes: labels are 0..num_classes-1
            ignore_value: or this.
            min_size_test: short edge in pixels of test images; 0 = as they are.
            max_size_test: limit of their long edge; 0 = none.
            fixed_size_test: (height, width) of test images instead, whatever their own is.
            keep_original: hand out test images before they are resized, too (for the other scales
                of :class:`~d2_pixcontrast.modeling.inference.MultiScaleFlip`).

        Raises:
            ValueError: ``image_format`` is neither "RGB" nor "BGR".
        """
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f'INPUT.FORMAT is "{image_format}"; it can be "RGB" or "BGR"')
        self.is_train = is_train
        self.augmentations = list(augmentations)
        self.image_format = image_format
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.min_size_test = min_size_test
        self.max_size_test = max_size_test
        self.fixed_size_test = fixed_size_test
        self.keep_original = keep_original

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg) if is_train else [],
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "min_size_test": cfg.INPUT.MIN_SIZE_TEST,
            "max_size_test": cfg.INPUT.MAX_SIZE_TEST,
            "fixed_size_test": tuple(cfg.INPUT.FIXED_SIZE_TEST) or None,
            "keep_original": cfg.TEST.AUG.ENABLED,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Map one dataset dict with "file_name" and "sem_seg_file_name" (optional for testing).

        Returns:
            a copy of the dict, with "height" and "width" of the image file and

            * "image": uint8 tensor (3, H', W') in ``image_format``;
            * for training "sem_seg": int64 tensor (H', W');
            * for testing "original_image" where :meth:`test_image` gives it;
            * for testing, where there is a label file, "label": int64 tensor (height, width). The
              evaluator reads it; under another name the model would move it to its device.

        Raises:
            DataError: a file cannot be read, a label is out of range or not of the image's size.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        label = self._read_label(dataset_dict)
        region = self._draw_region(label) if self.is_train else None
        rows = None if region is None else region.y + region.height
        image = read_image(dataset_dict["file_name"], self.image_format, rows)
        if label is not None:
            names = dataset_dict["file_name"], dataset_dict["sem_seg_file_name"]
            check_same_size(image, label, *names)
        check_image_size(dataset_dict, image)  # fills in height and width
        if self.is_train:
            inputs = T.AugInput(image, sem_seg=self._compact(label))
            self._augment(inputs, region)
            dataset_dict["image"] = _chw(inputs.image)
            dataset_dict["sem_seg"] = _int64(inputs.sem_seg)
            return dataset_dict
        dataset_dict.update(self.test_image(image))
        if label is not None:
            dataset_dict["label"] = _int64(label)
        return dataset_dict

    def test_image(self, image: np.ndarray) -> dict:
        """What a model takes for testing, of an image that need not come from a file.

        Args:
            image: uint8 (H, W, 3) in ``image_format``.

        Returns:
            "height" and "width" of ``image``, "image": uint8 tensor (3, H', W') of the test size,
            and with ``keep_original``, where this is another size, "original_image": (3, H, W).
        """
        height, width = image.shape[:2]
        if self.fixed_size_test:
            resize = RegionTransform(0, 0, height, width, *self.fixed_size_test)
        else:
            resize = resize_shortest_edge(height, width, self.min_size_test, self.max_size_test)
        inputs = {"height": height, "width": width, "image": _chw(resize.apply_image(image))}
        if self.keep_original and inputs["image"].shape[1:] != (height, width):
            inputs["original_image"] = _chw(image)
        return inputs

    def _draw_region(self, label: np.ndarray) -> RegionTransform | None:
        """What will be cropped, before the image is read; None where that is not known before."""
        first = self.augmentations[0] if self.augmentations else None
        if isinstance(first, RandomScaleCrop) and not first.looks_at_labels:
            return first.draw(*label.shape)
        return None

    def _augment(self, inputs: T.AugInput, region: RegionTransform | None) -> None:
        if region is None:
            T.AugmentationList(self.augmentations)(inputs)
            return
        inputs.transform(region)
        T.AugmentationList(self.augmentations[1:])(inputs)

    def _read_label(self, dataset_dict: dict) -> np.ndarray | None:
        if not self.is_train and "sem_seg_file_name" not in dataset_dict:
            return None
        path = dataset_dict["sem_seg_file_name"]
        label = read_label(path, compact=True)
        check_label(label, self.num_classes, self.ignore_value, path)
        return label

    def _compact(self, label: np.ndarray) -> np.ndarray:
        """8-bit where ids and ignore value fit: detectron2's augmentations expect that. Elsewhere
        the padding's value has to fit, whatever the file has."""
        narrow = self.num_classes <= 256 and 0 <= self.ignore_value <= 255
        return label.astype(np.uint8 if narrow else np.int32, copy=False)


def _chw(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))


def _int64(label: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(label.astype(np.int64, order="C"))
