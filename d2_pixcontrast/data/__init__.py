"""Datasets, mapper, augmentations and loaders for semantic segmentation."""

from d2_pixcontrast import compat  # noqa: F401  first: a missing detectron2 gets one clear message

from . import datasets  # noqa: F401  registers them
from .augmentation import ColorJitter, PadToSize, RandomScaleCrop, build_augmentations
from .build import TrainLoader, build_test_loader, build_train_loader
from .check import check_datasets
from .datasets import register_folders_of, register_sem_seg_folder
from .labels import DataError, read_image, read_label
from .mapper import SemSegMapper

__all__ = [
    "ColorJitter",
    "DataError",
    "PadToSize",
    "RandomScaleCrop",
    "SemSegMapper",
    "TrainLoader",
    "build_augmentations",
    "build_test_loader",
    "build_train_loader",
    "check_datasets",
    "read_image",
    "read_label",
    "register_folders_of",
    "register_sem_seg_folder",
]
