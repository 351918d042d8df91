"""What a backbone gives: features by name, and the size of the images that they belong to."""

import torch


class EncoderFeatures(dict):
    """{name: (B, C, h, w)}, a dict like that of every detectron2 backbone.

    Attributes:
        image_size: (height, width) of the batch. Where images are not padded, a feature of stride s
            has ceil(height / s) rows, and the height cannot be told from it.
    """

    def __init__(self, features: dict[str, torch.Tensor], image_size: tuple[int, int]):
        """
        Args:
            features: by name.
            image_size: (height, width).
        """
        super().__init__(features)
        self.image_size = image_size
