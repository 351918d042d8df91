"""Training augmentations for semantic segmentation, as detectron2 augmentations.

Like detectron2's own they draw from numpy's global generator, which the train loader seeds for
every sample (:func:`d2_pixcontrast.data.seeding.seeded`), and they compose with any other.
"""

import math

import numpy as np
from detectron2.data import transforms as T

from .color import ColorJitter
from .flip_pairs import RandomMirror, common_flip_pairs
from .resample import PadTransform, RegionTransform

__all__ = ["ColorJitter", "PadToSize", "RandomScaleCrop", "build_augmentations"]


def build_augmentations(cfg) -> list[T.Augmentation]:
    """The training augmentations that ``cfg.INPUT`` asks for.

    Raises:
        ValueError: INPUT.CROP.TYPE or INPUT.RANDOM_FLIP has a value that is not supported, or the
            training sets do not agree on what a mirrored class is.
    """
    crop = cfg.INPUT.CROP
    ignore_value = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    if crop.ENABLED and crop.TYPE != "absolute":
        raise ValueError(f'INPUT.CROP.TYPE is "{crop.TYPE}"; only "absolute" is supported')
    if cfg.INPUT.RANDOM_FLIP not in ("horizontal", "none"):
        raise ValueError(
            f'INPUT.RANDOM_FLIP is "{cfg.INPUT.RANDOM_FLIP}"; it can be "horizontal" or "none"'
        )
    augmentations = [
        RandomScaleCrop(
            crop_size=tuple(crop.SIZE) if crop.ENABLED else None,
            scale_range=tuple(cfg.INPUT.SCALE_RANGE),
            aspect_range=tuple(cfg.INPUT.ASPECT_RANGE),
            base_short_edge=cfg.INPUT.BASE_SHORT_EDGE,
            max_category_area=crop.SINGLE_CATEGORY_MAX_AREA,
            ignore_value=ignore_value,
        )
    ]
    if cfg.INPUT.RANDOM_FLIP == "horizontal":
        pairs = common_flip_pairs(cfg.DATASETS.TRAIN, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
        augmentations.append(RandomMirror(pairs))
    jitter = cfg.INPUT.COLOR_JITTER
    augmentations.append(
        ColorJitter(
            brightness=jitter.BRIGHTNESS,
            contrast=tuple(jitter.CONTRAST),
            saturation=tuple(jitter.SATURATION),
            hue=jitter.HUE,
            prob=jitter.PROB,
            image_format=cfg.INPUT.FORMAT,
        )
    )
    if crop.ENABLED:  # last, so that the padding keeps the mean colour
        augmentations.append(PadToSize(tuple(crop.SIZE), cfg.MODEL.PIXEL_MEAN, ignore_value))
    return augmentations


class RandomScaleCrop(T.Augmentation):
    """Scale by a random factor, then crop at random; only the pixels of the crop are resampled.

    A scaled image that is smaller than the crop in one direction is kept whole in this direction
    (see :class:`PadToSize`).
    """

    TRIES = 10  # crops drawn until one fulfils max_category_area; else the last one is taken

    def __init__(
        self,
        crop_size: tuple[int, int] | None,
        scale_range: tuple[float, float] = (1.0, 1.0),
        aspect_range: tuple[float, float] = (1.0, 1.0),
        base_short_edge: int = 0,
        max_category_area: float = 1.0,
        ignore_value: int = 255,
    ):
        """
        Args:
            crop_size: (height, width) in pixels of the scaled image; None = no crop.
            scale_range: of the factor, which is drawn uniformly.
            aspect_range: of a factor on width / height, which is drawn uniformly.
            base_short_edge: length in pixels that the short edge has at factor 1; 0 = its own.
            max_category_area: largest share of the crop's labelled pixels that one class may take.
            ignore_value: label of the pixels that are not labelled.
        """
        super().__init__()
        self._init(locals())

    @property
    def looks_at_labels(self) -> bool:
        """Whether the crop depends on more than the image's size."""
        return self.max_category_area < 1

    def draw(self, height: int, width: int, sem_seg: np.ndarray | None = None) -> RegionTransform:
        """A crop of an image of this size, and of these labels (height, width) if it matters."""
        scale = self._rand_range(*self.scale_range)
        if self.base_short_edge > 0:
            scale *= self.base_short_edge / min(height, width)
        scales = self._random_aspect(scale)
        for _ in range(self.TRIES):
            transform = self._random_region(height, width, scales)
            if not self.looks_at_labels or sem_seg is None:
                break
            if self._is_varied(transform.apply_segmentation(sem_seg)):
                break
        return transform

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray | None) -> RegionTransform:
        return self.draw(*image.shape[:2], sem_seg)

    def _random_aspect(self, scale: float) -> tuple[float, float]:
        """Factors of height and width."""
        lowest, highest = self.aspect_range
        if lowest == highest == 1:  # draws no number
            return scale, scale
        root = math.sqrt(self._rand_range(lowest, highest))
        return scale / root, scale * root

    def _random_region(
        self, height: int, width: int, scales: tuple[float, float]
    ) -> RegionTransform:
        crop_height, crop_width = self.crop_size or (None, None)
        y, source_height, out_height = self._random_span(height, scales[0], crop_height)
        x, source_width, out_width = self._random_span(width, scales[1], crop_width)
        return RegionTransform(y, x, source_height, source_width, out_height, out_width)

    def _random_span(self, size: int, scale: float, crop: int | None) -> tuple[int, int, int]:
        """(start, length) in source pixels and the length after scaling, along one side."""
        scaled = max(round(size * scale), 1)
        if crop is None or scaled <= crop:
            return 0, size, scaled
        # Whole source pixels: the factor moves by less than half a pixel over the crop, and image
        # and label share the grid exactly.
        length = min(max(round(crop / scale), 1), size)
        return int(np.random.randint(size - length + 1)), length, crop

    def _is_varied(self, sem_seg: np.ndarray) -> bool:
        counts = np.bincount(sem_seg[sem_seg != self.ignore_value].ravel())
        labelled = counts.sum()
        return labelled > 0 and counts.max() <= self.max_category_area * labelled


class PadToSize(T.Augmentation):
    """Pad up to a fixed size, with the content at a random place."""

    def __init__(self, size: tuple[int, int], image_value: list[float], ignore_value: int = 255):
        """
        Args:
            size: (height, width); larger inputs are left as they are.
            image_value: colour of the padding, one number per channel.
            ignore_value: label of the padding.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        pad_height = max(self.size[0] - image.shape[0], 0)
        pad_width = max(self.size[1] - image.shape[1], 0)
        if not pad_height and not pad_width:
            return T.NoOpTransform()
        top, left = np.random.randint(pad_height + 1), np.random.randint(pad_width + 1)
        return PadTransform(
            *(int(top), pad_height - int(top), int(left), pad_width - int(left)),
            image_value=self.image_value,
            label_value=self.ignore_value,
        )
