"""Every output of the VAE that reference files hold, recomputed stage by stage (for `par-agent check-nova`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from par_agent.modeling.vae.opensora_vae import AutoencoderKLOpenSora


@contextmanager
def recorded(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Yields a dictionary that collects the output of each named module while the block runs."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen[name] = output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def vae_outputs(
    vae: AutoencoderKLOpenSora, inputs: Mapping[str, Tensor], names: Collection[str]
) -> dict[str, Tensor | Exception]:
    """Outputs by reference name (``enc.image.mean``, ``dec.latent_clip.sample``, ...), without the prefix ``out.``.

    Inputs whose name starts with ``latent`` are decoded, all others encoded, images also as clips of one frame, where
    ``names`` wants it. One that fails has its exception in place of its outputs.
    """
    results: dict[str, Tensor | Exception] = {}
    dtype = vae.encoder.conv_in.weight.dtype
    for source, value in inputs.items():
        cases = [(source, value.to(dtype))]
        if value.ndim == 4 and not source.startswith("latent"):
            cases.append((f"{source}_as_clip", value[:, :, None].to(dtype)))
        for name, x in cases:
            kind, run = ("dec", _decode) if source.startswith("latent") else ("enc", _encode)
            prefix = f"{kind}.{name}."
            wanted = [output for output in names if output.startswith(prefix)]
            if not wanted:
                continue
            try:
                results |= {prefix + key: output for key, output in run(vae, x).items()}
            except (RuntimeError, ValueError) as error:
                results |= dict.fromkeys(wanted, error)
    return results


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
