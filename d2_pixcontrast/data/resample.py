"""Geometric transforms: resample a region, pad."""

import numpy as np
from fvcore.transforms.transform import Transform

__all__ = ["PadTransform", "RegionTransform", "resize_shortest_edge"]


class RegionTransform(Transform):
    """Cut a rectangle of whole pixels out and resize it: a crop of the scaled image.

    Works on the pixels of the rectangle only, so that a small crop of a large image is cheap.
    """

    def __init__(self, y: int, x: int, height: int, width: int, out_height: int, out_width: int):
        """
        Args:
            y, x, height, width: the rectangle, in pixels of the input.
            out_height, out_width: its size afterwards.
        """
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp=None) -> np.ndarray:
        """Resample ``img`` (H, W) or (H, W, C) bilinearly, or as the cv2 flag ``interp`` says.

        Below half the size bilinear interpolation would skip pixels: there pixels are averaged.
        """
        import cv2

        if interp is None:
            shrinks = min(self.out_height / self.height, self.out_width / self.width)
            interp = cv2.INTER_AREA if shrinks < 0.5 else cv2.INTER_LINEAR
        region = img[self.y : self.y + self.height, self.x : self.x + self.width]
        if region.shape[:2] == (self.out_height, self.out_width):
            return region
        out = cv2.resize(region, (self.out_width, self.out_height), interpolation=interp)
        return out[..., None] if out.ndim < img.ndim else out  # cv2 drops a single channel

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resample labels (H, W): the nearest pixel's, on the same grid as the image."""
        import cv2

        out = self.apply_image(segmentation, cv2.INTER_NEAREST_EXACT)
        return out.astype(segmentation.dtype, copy=False)  # cv2 turns int64 into int32

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Map (x, y) points (N, 2); pixel i covers [i, i + 1)."""
        factor = np.array([self.out_width / self.width, self.out_height / self.height])
        return (coords - np.array([self.x, self.y])) * factor


class PadTransform(Transform):
    """Pad with one colour in the image and one id in the label."""

    def __init__(self, top, bottom, left, right, *, image_value, label_value):
        """
        Args:
            top, bottom, left, right: pixels to add.
            image_value: one number per channel.
            label_value: id of the padding.
        """
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        value = np.asarray(self.image_value)
        if np.issubdtype(img.dtype, np.integer):
            value = value.round()
        return self._pad(img, value if img.ndim == 3 else value.mean())

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self._pad(segmentation, self.label_value)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords + np.array([self.left, self.top])

    def _pad(self, array: np.ndarray, value) -> np.ndarray:
        height, width = array.shape[:2]
        shape = (height + self.top + self.bottom, width + self.left + self.right, *array.shape[2:])
        out = np.empty(shape, array.dtype)
        out[...] = value
        out[self.top : self.top + height, self.left : self.left + width] = array
        return out


def resize_shortest_edge(height: int, width: int, size: int, max_size: int) -> RegionTransform:
    """Resize so that the short edge is ``size`` pixels and the long one at most ``max_size``.

    0 means: the size as it is, and no limit, as in detectron2.
    """
    scale = size / min(height, width) if size > 0 else 1.0
    if size > 0 and max_size > 0:
        scale = min(scale, max_size / max(height, width))
    out_height, out_width = (max(int(edge * scale + 0.5), 1) for edge in (height, width))
    return RegionTransform(0, 0, height, width, out_height, out_width)
