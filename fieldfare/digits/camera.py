"""What may go wrong with a camera, as operations on raw images: uint8, shape (n, height, width, 1), levels 0 to 16."""

import numpy as np
from scipy import ndimage

LEVELS = 16


def contrast(images: np.ndarray, gain: float, haze: float) -> np.ndarray:
    """Fainter strokes on a veiled ground: `gain` times the level, plus `haze` levels."""
    return _levels(images * gain + haze)


def blur(images: np.ndarray, sigma: float) -> np.ndarray:
    """Out of focus: a Gaussian of `sigma` pixels."""
    return _levels(ndimage.gaussian_filter(images.astype(np.float64), (0, sigma, sigma, 0)))


def rotate(images: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """A mount that gave way: each image turned by its own angle, shape (n,), counter-clockwise; the ground fills in."""
    turned = [
        ndimage.rotate(image, angle, axes=(0, 1), reshape=False, order=1, cval=float(image.min()))
        for image, angle in zip(images.astype(np.float64), degrees, strict=True)
    ]
    return _levels(np.stack(turned))


def drift(images: np.ndarray, seed: int) -> np.ndarray:
    """The demonstration's drift: the mount turned, the lens lost focus, dirt took contrast.

    The strengths are such that the first model falls clearly and the strokes stay readable.

    Args:
        seed: of the small differences from shot to shot.
    """
    degrees = np.random.default_rng(seed).normal(TURN_DEGREES, TURN_SPREAD_DEGREES, len(images))
    return contrast(blur(rotate(images, degrees), BLUR_SIGMA), GAIN, HAZE)


TURN_DEGREES, TURN_SPREAD_DEGREES = 22.0, 4.0
BLUR_SIGMA = 0.5  # pixels
GAIN, HAZE = 0.6, 2.0


def _levels(images: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(images), 0, LEVELS).astype(np.uint8)
