"""Decodes images and videos from untrusted files."""

from __future__ import annotations

import io
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from par_agent.data.tables import ADVICE
from par_agent.errors import UserError
from par_agent.utils.files import check_file

CONTAINERS = {b"ftyp": (4, "mov"), b"\x1aE\xdf\xa3": (0, "matroska")}
"""Magic bytes of a video file -> their place, and ffmpeg's name of the format."""
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
HIGH_BIT_DEPTH = re.compile(r"I|F|I;16.*|gray(9|1\d|f).*")
"""Pillow's and ffmpeg's names of pixels of more than 8 bits, such as depth, which they would cut to 8."""


def decode_image(content: bytes, origin: str) -> np.ndarray:
    """Decodes the bytes of a PNG, JPEG or WebP, at most 8 bits a channel, into (H, W, 3) uint8 RGB.

    Gray is repeated, transparency dropped. ``origin`` says in messages where the bytes are from.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            if not HIGH_BIT_DEPTH.fullmatch(image.mode):
                return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, LookupError, SyntaxError, ArithmeticError, Image.DecompressionBombError) as error:
        raise UserError(f"{origin} is damaged ({error}); expected {', '.join(IMAGE_FORMATS)}") from None
    raise UserError(f"{origin} has more than 8 bits a channel, as depth has; leave that camera out")


def video_frames(path: Path, fps: float | None = None) -> Generator[np.ndarray, None, None]:
    """Frames (H, W, 3) uint8 RGB of a video, from its beginning; close the generator to end the decoder.

    The format is found here: ffmpeg itself would also open texts that list other files or network addresses. Every
    frame comes once, whatever time stamps the file gives it. Files that are neither MP4 nor Matroska, have more than
    8 bits a channel, or other frames a second than ``fps``, are refused.
    """
    import imageio.v2 as imageio

    check_file(path)
    reader: Any = None
    try:
        options = ["-f", _container(path), "-protocol_whitelist", "file"]
        # An absolute path: ffmpeg takes one like "http:/..." for an address.
        reader = imageio.get_reader(
            path.absolute(), format="ffmpeg", input_params=options, output_params=["-fps_mode", "passthrough"]
        )
        found = reader.get_meta_data()
        if HIGH_BIT_DEPTH.fullmatch(str(found.get("pix_fmt"))):
            raise UserError(f"{path} has more than 8 bits a channel, as depth has; leave that camera out")
        if fps is not None and abs(found["fps"] - fps) > 0.01 * fps:
            raise UserError(f"{path} has {found['fps']:g} frames a second; expected {fps:g}, one each row")
        for frame in reader:
            yield np.asarray(frame)
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError) as error:
        words = " ".join(str(error).split())[-200:]
        raise UserError(f"{path} is damaged ({words}); {ADVICE}") from None
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
