"""Every output of the VAE that reference files hold, recomputed stage by stage (for `par-agent check-nova`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn

from par_agent.cli.parity import Stages, recorded
from par_agent.modeling.vae.opensora_vae import AutoencoderKLOpenSora


def vae_stages(vae: AutoencoderKLOpenSora, inputs: Mapping[str, Tensor]) -> Stages:
    """Stages by name (``enc.image``, ``dec.latent_clip``, ...) of inputs by theirs, without the prefix ``in.``.

    Inputs whose name starts with ``latent`` are decoded, all others encoded, images also as clips of one frame.
    """
    stages: Stages = {}
    dtype = vae.encoder.conv_in.weight.dtype
    for name, value in inputs.items():
        if name.startswith("latent"):
            stages[f"dec.{name}"] = partial(_decode, vae, value.to(dtype))
            continue
        stages[f"enc.{name}"] = partial(_encode, vae, value.to(dtype))
        if value.ndim == 4:
            stages[f"enc.{name}_as_clip"] = partial(_encode, vae, value[:, :, None].to(dtype))
    return stages


def _encode(vae: AutoencoderKLOpenSora, pixels: Tensor) -> dict[str, Tensor]:
    stages: dict[str, nn.Module] = {f"stage_down{i}": block for i, block in enumerate(vae.encoder.down_blocks)}
    with recorded({**stages, "stage_mid": vae.encoder.mid_block}) as seen:
        latents = vae.encode(pixels)
    return {"mean": latents.mean, "logvar": latents.logvar, "scaled_mean": vae.scale(latents.mean), **seen}


def _decode(vae: AutoencoderKLOpenSora, latents: Tensor) -> dict[str, Tensor]:
    stages: dict[str, nn.Module] = {f"stage_up{i}": block for i, block in enumerate(vae.decoder.up_blocks)}
    with recorded({**stages, "stage_mid": vae.decoder.mid_block}) as seen:
        sample = vae.decode(latents)
    return {"sample": sample, "unscaled": vae.unscale(latents), **seen}
