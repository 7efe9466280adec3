"""What the training of a frame VAE leaves: the frozen VAE, its held-out error and a picture of reconstructions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from par_agent.data.patches import FrameSampler
from par_agent.modeling.vae.frame_encoder import save_frame_encoder
from par_agent.modeling.vae.frame_vae import FrameVAE
from par_agent.utils.files import atomic_path
from par_agent.utils.image_quality import psnr


def freeze(vae: FrameVAE, train: FrameSampler, held_out: FrameSampler, out: Path, steps: int) -> dict[str, Any]:
    """Measures and sets the latents' scale, measures the held-out error, saves the frozen VAE and a picture.

    Returns:
        ``psnr_db``, ``steps`` of training and ``held_out_episodes``.
    """
    vae.eval()
    device = vae.latent_mean.device
    frames = train.patches(0, 256, None).to(device)
    latents = torch.cat([vae.encode(part) for part in frames.split(32)])
    vae.set_scale(latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    frames = held_out.patches(0, 64, None).to(device)
    shown = torch.cat([vae.decode(vae.encode(part)) for part in frames.split(32)])
    quality = psnr(shown.cpu(), frames.cpu())
    metrics = {"psnr_db": round(quality, 2), "steps": steps, "held_out_episodes": len(held_out.paths)}
    picture(frames[:4].cpu().numpy(), shown[:4].cpu().numpy(), out / "reconstructions.png")
    save_frame_encoder(vae, out / "vae", metrics)
    return metrics


def picture(frames: np.ndarray, shown: np.ndarray, path: Path) -> None:
    """Writes a PNG: given frames above, reconstructions below."""
    import imageio.v3 as iio

    rows = np.concatenate([np.concatenate(list(images), axis=1) for images in (frames, shown)], axis=0)
    with atomic_path(path) as temporary:
        iio.imwrite(temporary, rows, extension=".png")
