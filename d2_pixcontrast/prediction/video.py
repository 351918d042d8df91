"""Frames of a video, and a video of frames; through OpenCV, which is imported when needed."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..data import DataError

DEFAULT_RATE = 25.0  # frames per second where the file does not say


class VideoReader:
    """The frames of a video file.

    Attributes:
        rate: frames per second.
        length: number of frames as the file's header claims; 0 = it does not say.
    """

    def __init__(self, path: str):
        """
        Raises:
            DataError: OpenCV cannot open the file.
        """
        import cv2

        self._path = path
        self._capture = cv2.VideoCapture(path)
        if not self._capture.isOpened():
            raise DataError(f"video {path} cannot be read (missing, damaged, or an unknown codec)")
        self.rate = self._capture.get(cv2.CAP_PROP_FPS) or DEFAULT_RATE
        self.length = max(int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)

    def __iter__(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 RGB, in their order.

        Raises:
            DataError: there is none.
        """
        import cv2

        number = 0
        while True:
            there, frame = self._capture.read()
            if not there:
                break
            number += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        self._capture.release()
        if not number:
            raise DataError(f"video {self._path} has no frame that can be read")


class VideoWriter:
    """Writes pictures into an MP4 file, or an AVI file where OpenCV has no encoder for MP4.

    Attributes:
        path: of the file, known after the first frame.
    """

    _CODECS = {".mp4": "mp4v", ".avi": "MJPG"}

    def __init__(self, path_without_suffix: Path, rate: float):
        self.path = None
        self._base = path_without_suffix
        self._rate = rate
        self._writer = None

    def write(self, picture: np.ndarray) -> None:
        """
        Args:
            picture: (H, W, 3) uint8 RGB, all of one size. An odd last row or column, which encoders
                do not take, is left out.

        Raises:
            DataError: OpenCV can write neither format.
        """
        import cv2

        height, width = (side - side % 2 for side in picture.shape[:2])
        if self._writer is None:
            self._open((width, height))
        frame = np.ascontiguousarray(picture[:height, :width])
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.release()

    def _open(self, size: tuple[int, int]) -> None:
        import cv2

        self._base.parent.mkdir(parents=True, exist_ok=True)
        for suffix, codec in self._CODECS.items():
            self.path = self._base.with_name(self._base.name + suffix)
            code = cv2.VideoWriter.fourcc(*codec)
            self._writer = cv2.VideoWriter(str(self.path), code, self._rate, size)
            if self._writer.isOpened():
                return
        raise DataError(f"OpenCV can write neither MP4 nor AVI to {self._base.parent}")
