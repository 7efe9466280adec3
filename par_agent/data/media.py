"""Images and videos of somebody else, decoded from their own bytes alone."""

from __future__ import annotations

import io
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from par_agent.errors import UserError
from par_agent.files import check_file

CONTAINERS = {b"ftyp": (4, "mov"), b"\x1aE\xdf\xa3": (0, "matroska")}
"""What a video file has near its beginning -> where, and what ffmpeg calls the format."""
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")


def decode_image(content: bytes, origin: str) -> np.ndarray:
    """Decodes an image: (H, W) or (H, W, channels).

    Args:
        content: a file's bytes.
        origin: where they are from, for messages.

    Raises:
        UserError: they are damaged, or no PNG, JPEG or WebP.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            return np.asarray(image.convert("RGB") if image.mode == "P" else image)
    except (OSError, ValueError, LookupError, SyntaxError, ArithmeticError, Image.DecompressionBombError) as error:
        raise UserError(f"{origin} is damaged ({error}); expected {', '.join(IMAGE_FORMATS)}") from None


def video_frames(path: Path) -> Generator[np.ndarray, None, None]:
    """Frames (H, W, 3) uint8 RGB of a video, from its beginning; close the generator to end the decoder.

    The format is looked up here and not left to ffmpeg, to which a text that lists other files, or addresses in the
    network, is a video too.

    Raises:
        UserError: the file is missing, damaged, or neither MP4 nor Matroska.
    """
    import imageio.v2 as imageio

    check_file(path)
    advice = "copy or download the dataset again"
    reader: Any = None
    try:
        options = ["-f", _container(path), "-protocol_whitelist", "file"]
        # An absolute path: ffmpeg takes one like "http:/..." for an address.
        reader = imageio.get_reader(path.absolute(), format="ffmpeg", input_params=options)
        for frame in reader:
            yield np.asarray(frame)
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError) as error:
        words = " ".join(str(error).split())[-200:]
        raise UserError(f"{path} is damaged ({words}); {advice}") from None
    finally:
        if reader is not None:
            reader.close()


def _container(path: Path) -> str:
    with path.open("rb") as file:
        beginning = file.read(8)
    for magic, (place, name) in CONTAINERS.items():
        if beginning[place : place + len(magic)] == magic:
            return name
    raise UserError(f"{path} is no video: it begins with {beginning!r}; expected MP4 or Matroska")
