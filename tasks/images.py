"""An image file -> pixels as a model takes them, the same while searching and while serving. Pillow and NumPy only."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".webp", ".gif", ".tif", ".tiff")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
# Of ImageNet's training pixels in [0, 1]: what most published networks were trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageError(ValueError):
    """A file that holds no readable image; the message is the reason."""


@dataclass(frozen=True)
class ImageOptions:
    """`size`: height and width that the model takes. `resize`: the shorter side before the crop; None: none.

    `fit`: `crop` takes the centre of the resized image, `squash` resizes to `size` whatever the shape, `none` takes
    images that have the size. `mode`: RGB or L (grey). `mean`, `std`: per channel, of pixels in [0, 1].
    """

    size: tuple[int, int] = (224, 224)
    resize: int | None = 256
    fit: Literal["crop", "squash", "none"] = "crop"
    mode: Literal["RGB", "L"] = "RGB"
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them: the `options` of a Serving of kind image."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ImageOptions:
        """What `to_dict` gave -> ImageOptions."""
        lists: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}
        return ImageOptions(**lists)

    def decoding(self) -> dict[str, Any]:
        """What decides the decoded pixels: all but mean and standard deviation."""
        return {name: value for name, value in self.to_dict().items() if name not in ("mean", "std")}

    def exact(self) -> ImageOptions:
        """For images that have the model's size already."""
        return ImageOptions(self.size, None, "none", self.mode, self.interpolation, self.mean, self.std)


def decode(source: Path | bytes, options: ImageOptions) -> np.ndarray:
    """uint8 [channels, height, width] of an image file or its bytes; raises ImageError.

    Transparency is dropped, grey is repeated to three channels, 16 bits become 8; of an animation the first picture is
    taken. Resizing and cropping are torchvision's `Resize(resize)` and `CenterCrop(size)`, to the pixel.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata and very large pictures
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                image.load()
                return to_pixels(image, options)
    except ImageError:
        raise
    except Exception as error:  # Pillow's plug-ins raise OSError, SyntaxError, ValueError, struct.error and more
        text = " ".join(str(error).split()).replace(str(source) if isinstance(source, Path) else "\0", "the file")
        raise ImageError(text or type(error).__name__) from None


def to_pixels(image: Any, options: ImageOptions) -> np.ndarray:
    """A PIL image -> uint8 [channels, height, width]; see `decode`."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image, np.uint16) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ImageError(f"pixels of kind {image.mode!r} (32 bits) have no known range; convert them to 8 bits")
    image = image.convert(options.mode)
    height, width = options.size
    method = getattr(Image.Resampling, options.interpolation.upper())
    if options.fit == "squash":
        image = image.resize((width, height), method)
    elif options.fit == "crop":
        image = _cropped(_shorter(image, options.resize, method), height, width)
    elif image.size != (width, height):
        raise ImageError(f"is {image.size[0]} x {image.size[1]} pixels, not {width} x {height} as all others")
    pixels = np.asarray(image, np.uint8)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _shorter(image: Any, side: int | None, method: Any) -> Any:
    """Resized so that the shorter side is `side`."""
    width, height = image.size
    if side is None or min(width, height) == side:
        return image
    if width < height:
        return image.resize((side, int(side * height / width)), method)
    return image.resize((int(side * width / height), side), method)


def _cropped(image: Any, height: int, width: int) -> Any:
    """The centre, padded with black where the image is smaller."""
    if image.size[0] < width or image.size[1] < height:
        from PIL import ImageOps

        across, down = max(0, width - image.size[0]), max(0, height - image.size[1])
        border = (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2)
        image = ImageOps.expand(image, border)
    left, top = round((image.size[0] - width) / 2), round((image.size[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))


def is_picture(array: np.ndarray) -> bool:
    """Whether an array holds raw pixels: uint8 [H, W] or [H, W, 1 | 3 | 4]."""
    return array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3, 4)))


def of_array(array: np.ndarray, options: ImageOptions) -> np.ndarray:
    """uint8 [H, W] or [H, W, 1 | 3 | 4] -> uint8 [channels, height, width]; see `decode`."""
    from PIL import Image

    return to_pixels(Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array), options)


def normalized(pixels: np.ndarray, options: ImageOptions) -> np.ndarray:
    """uint8 [B, channels, H, W] -> float32, (pixels / 255 - mean) / std."""
    channels = (1, -1, 1, 1)
    mean, std = np.asarray(options.mean, np.float32), np.asarray(options.std, np.float32)
    scaled = pixels.astype(np.float32)
    scaled *= (np.float32(1 / 255) / std).reshape(channels)
    scaled -= (mean / std).reshape(channels)
    return scaled
