"""Hands each device what its camera saw: files of raw samples in the folder that its agent watches."""

from pathlib import Path

import numpy as np

from contract import tensors

Samples = tuple[np.ndarray, np.ndarray]


class Camera:
    """Writes captures for one device, each whole or not at all."""

    def __init__(self, source: Path, samples: Samples) -> None:
        """See `samples` (raw images and their classes) into the folder `source`."""
        self._source = source
        self._images, self._classes = samples
        self._count = 0
        source.mkdir(parents=True, exist_ok=True)

    @property
    def size(self) -> int:
        """Images in one capture."""
        return len(self._images)

    @property
    def images(self) -> np.ndarray:
        """What the camera sees when nothing is wrong: uint8, shape (n, height, width, channels)."""
        return self._images

    def capture(self, images: np.ndarray | None = None) -> None:
        """Write one capture: `images` in place of the clean ones, the labels stay."""
        self._count += 1
        seen = self._images if images is None else images
        data = tensors.dump({"x": seen, "y": self._classes})
        part = self._source / f".{self._count:04d}.part"
        part.write_bytes(data)
        part.rename(self._source / f"{self._count:04d}.safetensors")
