"""An image file -> the pixels that a model was trained on: size, crop and colours as torchvision has them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.errors import RequestError

PIXELS = 50_000_000  # an image that claims more is refused unread


def opened(request: Any) -> Any:
    """The image in the bytes of a file; raises RequestError."""
    from PIL import Image, UnidentifiedImageError

    if not isinstance(request, bytes | bytearray | memoryview) or not len(request):
        raise RequestError("image: there is none; send the bytes of a PNG, JPEG or WebP file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(request))
            if image.width * image.height > PIXELS:
                raise RequestError(
                    f"image: {image.width} x {image.height} pixels are too many; send at most {PIXELS:,}"
                )
            image.load()
            return image
    except RequestError:
        raise
    except Exception as problem:  # its decoders raise whatever a broken file leads them to
        reason = "not a known image format" if isinstance(problem, UnidentifiedImageError) else "it is damaged"
        raise RequestError(f"image: it cannot be read ({reason}); send a PNG, JPEG or WebP file") from None


def pixels(image: Any, options: Mapping[str, Any]) -> np.ndarray:
    """uint8 [height, width, channels], as the options of an image's preprocessing say (serving/process.py)."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image, np.uint16) // 257).astype(np.uint8))
    how = Image.Resampling[str(options.get("interpolation", "bilinear")).upper()]
    image = image.convert(str(options.get("mode", "RGB")))
    size, resize, fit = options.get("size"), options.get("resize"), options.get("fit", "crop")
    if fit == "squash" and size is not None:
        image = image.resize((int(size[1]), int(size[0])), how)
    elif fit == "crop":
        image = image if resize is None else image.resize(_target(image.size, resize), how)
        image = image if size is None else _centre(image, int(size[0]), int(size[1]))
    elif size is not None and image.size != (size[1], size[0]):
        raise RequestError(f"image: it has {image.width} x {image.height} pixels; send {size[1]} x {size[0]}")
    made = np.asarray(image)
    return made[..., None] if made.ndim == 2 else made


def _target(size: tuple[int, int], resize: Any) -> tuple[int, int]:
    """(width, height) to resize to: both given, or the shorter side, as torchvision's Resize rounds."""
    if not isinstance(resize, int | float):
        height, width = resize
        return int(width), int(height)
    shorter = min(size)
    return (max(1, int(resize * size[0] / shorter)), max(1, int(resize * size[1] / shorter)))


def _centre(image: Any, height: int, width: int) -> Any:
    """The centre, padded with black where the image is smaller: torchvision's CenterCrop."""
    if image.width < width or image.height < height:
        from PIL import ImageOps

        across, down = max(0, width - image.width), max(0, height - image.height)
        image = ImageOps.expand(image, (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2))
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
