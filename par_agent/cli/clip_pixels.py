"""Between pixels and a video VAE's scaled latents: the picture that a clip starts from, and a clip's frames."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch
from torch import Tensor

from par_agent.errors import UserError
from par_agent.modeling.nova.model import NOVA
from par_agent.modeling.vae.frame_vae import to_frames, to_pixels
from par_agent.modeling.vae.opensora_vae import AutoencoderKLOpenSora
from par_agent.policy.transforms import crop_and_resize


def encode_first_frame(path: Path, nova: NOVA, vae: AutoencoderKLOpenSora, generator: torch.Generator) -> Tensor:
    """Scaled latents (1, C, h, w) of a picture, sampled from the VAE's posterior as the published pipeline does."""
    try:
        image = imageio.imread(path, mode="RGB")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a picture: {error}") from None
    height, width = (size * vae.config.spatial_factor for size in nova.config.latent_size)
    scale = min(image.shape[0] / height, image.shape[1] / width)
    crop_height, crop_width = max(1, int(height * scale)), max(1, int(width * scale))
    top, left = (image.shape[0] - crop_height) // 2, (image.shape[1] - crop_width) // 2
    image = crop_and_resize(image, (top, left, crop_height, crop_width), (height, width))
    pixels = to_pixels(torch.from_numpy(image)[None]).to(nova.mask_embed.mask_token)
    return vae.scale(vae.encode(pixels).sample(generator))


def decode_clip(vae: AutoencoderKLOpenSora, latents: Tensor, dtype: torch.dtype) -> np.ndarray:
    """Frames (N, H, W, 3) uint8 of a clip's scaled latents (1, C, n, h, w), decoded in ``dtype``."""
    pixels = vae.decode(vae.unscale(latents).to(dtype))[0]
    return to_frames(pixels.transpose(0, 1).float()).cpu().numpy()
