"""Colour jitter of 8-bit images: one table and one 3x3 matrix, whatever is jittered."""

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform

__all__ = ["ColorJitter", "ColorTransform", "chroma_matrix"]

_LUMA = np.array([0.299, 0.587, 0.114])  # of R, G, B (BT.601)
# Columns: grey and two chroma axes of YIQ; a hue shift turns the latter two.
_FROM_YIQ = np.array([[1, 0.956, 0.619], [1, -0.272, -0.647], [1, -1.106, 1.703]])


class ColorJitter(T.Augmentation):
    """Random brightness (added), contrast (a factor), saturation (a factor) and hue (a shift).

    Each is applied with probability ``prob`` and drawn uniformly from its range, in this order.
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: tuple[float, float] = (1.0, 1.0),
        saturation: tuple[float, float] = (1.0, 1.0),
        hue: float = 0.0,
        prob: float = 1.0,
        image_format: str = "RGB",
    ):
        """
        Args:
            brightness: largest change, of 255.
            contrast: range of the factor on all channels.
            saturation: range of the factor on a pixel's distance from its own grey.
            hue: largest shift, in degrees.
            prob: of each of the four.
            image_format: order of the image's channels, "RGB" or "BGR".
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        offset = self._draw(-self.brightness, self.brightness, neutral=0.0)
        factor = self._draw(*self.contrast, neutral=1.0)
        saturation = self._draw(*self.saturation, neutral=1.0)
        hue = self._draw(-self.hue, self.hue, neutral=0.0)
        if (offset, factor, saturation, hue) == (0.0, 1.0, 1.0, 0.0):
            return T.NoOpTransform()
        matrix = None
        if (saturation, hue) != (1.0, 0.0):
            matrix = chroma_matrix(saturation, hue, self.image_format)
        return ColorTransform(offset, factor, matrix)

    def _draw(self, low: float, high: float, neutral: float) -> float:
        if low == high == neutral or self._rand_range() >= self.prob:
            return neutral
        return float(self._rand_range(low, high))


class ColorTransform(Transform):
    """``matrix @ clip(factor * clip(pixel + offset))`` on images; labels and points stay."""

    def __init__(self, offset: float, factor: float, matrix: np.ndarray | None):
        """
        Args:
            offset, factor: of all channels, of 255 and without unit.
            matrix: (3, 3), or None for the identity.
        """
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) to uint8 (H, W, 3)."""
        import cv2

        # An image that was mirrored is a view from right to left, which cv2 copies ten times as
        # quickly as numpy does.
        img = cv2.flip(img[:, ::-1], 1) if img.strides[1] < 0 else np.ascontiguousarray(img)
        if (self.offset, self.factor) != (0.0, 1.0):
            table = np.clip(np.arange(256) + self.offset, 0, 255) * self.factor
            img = cv2.LUT(img, np.clip(table.round(), 0, 255).astype(np.uint8))
        if self.matrix is not None:
            img = cv2.transform(img, self.matrix)
        return img

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords


def chroma_matrix(saturation: float, hue: float, image_format: str = "RGB") -> np.ndarray:
    """Scale and turn the colour of a pixel around its grey; luma (BT.601) is kept.

    Args:
        saturation: factor on the distance from grey.
        hue: angle in degrees in the chroma plane of YIQ.
        image_format: "RGB" or "BGR".

    Returns:
        float32 matrix (3, 3) that acts on column vectors of channels.
    """
    cos, sin = saturation * np.cos(np.radians(hue)), saturation * np.sin(np.radians(hue))
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    to_yiq = np.linalg.inv(_FROM_YIQ)
    to_yiq[0] = _LUMA  # the rounded axes above would give it only to three digits
    from_yiq = np.linalg.inv(to_yiq)
    matrix = from_yiq @ turn @ to_yiq
    return (matrix[::-1, ::-1] if image_format == "BGR" else matrix).astype(np.float32)
