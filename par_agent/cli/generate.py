"""`par-agent generate`: draws a clip from a prompt with a NOVA folder (transformer, vae, scheduler, text encoder)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from par_agent.errors import UserError, user_errors
from par_agent.utils.checked import Checked, Length, MayBeEmpty, Range, Seed, Share, Strength


@dataclass(frozen=True)
class GenerateConfig(Checked):
    """Generates a video clip from a text prompt, and from a first image if given."""

    out_is_file: ClassVar[bool] = True

    model: Path
    """NOVA folder in the diffusers layout: transformer, vae, scheduler, text_encoder, tokenizer."""
    prompt: str
    """What the clip shows."""
    out: Path
    """File to write: .mp4, .gif, or .png for one frame."""
    frames: Annotated[int, Range(1, 10_001)] = 9
    """Frames to generate: 1 + 4 k, because each of the VAE's latent frames after the first stands for four frames."""
    image: Path | None = None
    """First image; it is cropped at its centre and resized to the model's size."""
    negative_prompt: Annotated[str, MayBeEmpty] = ""
    """Prompt that guidance leads away from; empty: NOVA's null prompt."""
    guidance: Strength = 5.0
    """Strength of classifier-free guidance; 1: no guidance, half the computation."""
    mask_steps: Length = 64
    """Largest number of sets in which the patches of a frame are drawn."""
    diffusion_steps: Length = 25
    """Denoising steps per set."""
    temperature: Share = 1.0
    """Scale of the start noise, 0 to 1; a lower value gives frames closer to the likeliest one."""
    flow: Strength = 5.0
    """Strength of motion."""
    fps: Annotated[float, Range(0, 1000, above=True)] = 12.0
    """Frames per second of the file, and the value that the model gets."""
    text_cache: Path | None = None
    """Folder of cached text features; prompts in it need no text encoder."""
    seed: Seed = 0
    """Seed of all random numbers."""
    device: str = "cpu"
    """Torch device, for example cuda."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type to compute in."""


def main(config: GenerateConfig) -> int:
    """Generates, decodes and writes one clip."""
    import torch
    from tqdm import tqdm

    from par_agent.cli.clip_pixels import decode_clip, encode_first_frame
    from par_agent.cli.nova_folder import folder_text_encoder, require_parts
    from par_agent.modeling.config import GenerationConfig
    from par_agent.modeling.diffusion import noise_process
    from par_agent.modeling.nova.generation import RandomNoise, generate_clip
    from par_agent.modeling.nova.model import NOVA
    from par_agent.modeling.random_numbers import seeded_generator
    from par_agent.modeling.vae.opensora_vae import AutoencoderKLOpenSora
    from par_agent.utils.videos import check_video_path, write_video

    check_video_path(config.out, config.frames)
    with user_errors():
        steps = GenerationConfig(config.mask_steps, config.diffusion_steps, config.guidance, config.temperature)
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    require_parts(config.model, config.text_cache)
    vae = AutoencoderKLOpenSora.from_pretrained(config.model / "vae", device=device, dtype=dtype)
    latent_frames = _latent_frames(config.frames, vae.config.time_factor)
    nova = NOVA.from_pretrained(config.model, device=device, dtype=dtype)
    with user_errors():
        noise_process(nova.config.diffusion).sampler(steps.diffusion_steps)
    text = folder_text_encoder(config.model, config.text_cache, nova.config, device)
    prompts = [config.prompt] + ([config.negative_prompt] if steps.guided else [])
    features = [text.encode(prompt).to(device) for prompt in prompts]
    generator = seeded_generator(config.seed)
    with torch.inference_mode():
        motion = [torch.full((len(prompts),), value, device=device) for value in (config.flow, config.fps)]
        prefix = nova.prefix(features, *motion)
        first = None if config.image is None else encode_first_frame(config.image, nova, vae, generator)
        clip = generate_clip(nova, prefix, latent_frames, RandomNoise(generator, device), steps, first_frame=first)
        latents = torch.stack(list(tqdm(clip, total=latent_frames, desc="latent frames")), 2)
        frames = decode_clip(vae, latents, dtype)
    write_video(config.out, frames, config.fps)
    print(f"wrote {len(frames)} frames of {frames.shape[1]}x{frames.shape[2]} to {config.out}")
    return 0


def _latent_frames(frames: int, factor: int) -> int:
    if frames < 1 or (frames - 1) % factor:
        raise UserError(f"--frames is {frames}; allowed: 1, {1 + factor}, {1 + 2 * factor}, ... (1 + {factor} k)")
    return 1 + (frames - 1) // factor
