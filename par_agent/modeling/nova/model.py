"""NOVA, the autoregressive video model that PAR grows out of (Deng et al. 2024), under its published key names.

Frame ``n`` is drawn in three stages: the causal transformer turns the text and the frames before it into condition
tokens; the spatial encoder completes the frame's known patches under that condition; the de-tokenizer draws the next
set of patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from par_agent.modeling.attention_mask import block_causal_mask
from par_agent.modeling.config import NOVAConfig
from par_agent.modeling.embeddings import (
    MaskEmbedding,
    MotionEmbedding,
    TextEmbedding,
    TimeEmbedding,
    patchify,
    space_embedding,
    unpatchify,
)
from par_agent.modeling.frame_detokenizer import FrameDetokenizer
from par_agent.modeling.kv_cache import KVCache
from par_agent.modeling.nova.config import read_nova_config
from par_agent.modeling.rope import Rotation, frame_rotation
from par_agent.modeling.spatial_encoder import SpatialEncoder
from par_agent.modeling.transformer import CausalTransformer
from par_agent.modeling.weights import find_weights, load_weights, read_tensors

DEFAULT_FLOW = 5.0
"""Strength of motion (optical flow) where none is given."""
DEFAULT_FPS = 12.0
"""Frames a second where none are given."""
CHANGE = 0.25
"""Difference between a patch's latents in two frames, in their standard deviations, from which it has changed."""


@dataclass
class VideoStream:
    """The causal transformer's past while frames are generated one by one."""

    cache: KVCache
    """Keys and values of the prefix, slot 0 and the frames so far."""
    first: Tensor
    """Output (B, F, D) of slot 0, which the mixer builds every later condition from."""
    slot: int
    """Next slot: the number of frames that are known."""
    total: int
    """Frames planned."""


class NOVA(nn.Module):
    """Text-to-video model over VAE latents. A clip's N frames are what physical steps are in PAR."""

    image_encoder: SpatialEncoder
    image_decoder: FrameDetokenizer

    def __init__(self, config: NOVAConfig, *, image_encoder: bool = True, image_decoder: bool = True) -> None:
        super().__init__()
        self.config = config
        width = config.video_encoder.width
        self.video_encoder = CausalTransformer(
            config.video_encoder,
            config.latent_channels,
            config.video_patch,
            config.mixer_rank,
            config.stem_widths,
            config.cameras,
        )
        if image_encoder:
            self.image_encoder = SpatialEncoder(
                config.image_encoder, config.latent_channels, config.image_patch, config.reads_last_frame
            )
        if image_decoder:
            self.image_decoder = FrameDetokenizer(
                config.latent_channels, config.image_patch, width, config.decoder_width, config.decoder_depth
            )
        self.mask_embed = MaskEmbedding(width)
        self.camera_embed = nn.Parameter(torch.zeros(config.cameras, width)) if config.cameras > 1 else None
        self.text_embed = TextEmbedding(config.text_dim, width, config.text_length)
        self.video_pos_embed = TimeEmbedding(width) if config.absolute_time else None
        self.motion_embed = MotionEmbedding(width) if config.motion else None

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> NOVA:
        """Loads published weights, in evaluation mode.

        Args:
            folder: a released NOVA folder, or the ``transformer`` folder inside it.
            device: where the model goes.
            dtype: type of the weights; published ones are float16 and computed with in float32 unless told.

        Raises:
            UserError: a file is missing, truncated or pickled; configuration fields are unknown or out of range;
                tensors are missing, left over, of another shape or not finite. Every one is named.
        """
        folder = Path(folder)
        folder = folder / "transformer" if (folder / "transformer").is_dir() else folder
        path = find_weights(folder)
        tensors = read_tensors(path)
        with torch.device("meta"):
            model = cls(read_nova_config(folder, tensors))
        load_weights(model, tensors, path, dtype)
        return model.eval().to(device)

    # --- text and motion ---------------------------------------------------------------------------------------------

    def prefix(self, features: list[Tensor], flow: Tensor | None = None, fps: Tensor | None = None) -> Tensor:
        """Prefix tokens (B, S, D): text, then flow and fps where the model has them and one of them is given.

        Args:
            features: per sample (length_i, text_dim) text features; a (0, text_dim) tensor is the null prompt.
            flow: (B,) strength of motion; None with ``fps`` given: 5.
            fps: (B,) frames a second; None with ``flow`` given: 12.
        """
        text = self.text_embed(self.text_embed.pad(features))
        if self.motion_embed is None or (flow is None and fps is None):
            return text
        flow = text.new_full((len(text),), DEFAULT_FLOW) if flow is None else flow
        fps = text.new_full((len(text),), DEFAULT_FPS) if fps is None else fps
        return torch.cat([text, self.motion_embed(flow, fps)], 1)

    # --- causal transformer ------------------------------------------------------------------------------------------

    def embed_frames(self, latents: Tensor) -> Tensor:
        """Tokens (B, N, patches, D) of frames (B, N, C, h, w), with absolute positions in space but not in time."""
        x = self.video_encoder.patch_embed(self.check_latents(latents.flatten(0, 1))).unflatten(0, latents.shape[:2])
        return self.placed(x, self.config.video_grid)

    def placed(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (..., rows * columns, D) of a grid, with absolute positions in space where the model has them, and
        with their cameras' embeddings where there are several."""
        (rows, columns), cameras = grid, self.config.cameras
        if self.config.absolute_space:
            x = x + space_embedding(rows, columns, x.shape[-1], x.device, cameras).to(x)
        if self.camera_embed is not None:
            x = x + self.camera_embed.repeat_interleave(columns // cameras, 0).repeat(rows, 1).to(x)
        return x

    def slot_tokens(self, latents: Tensor | None, batch: int, first: int, total: int) -> Tensor:
        """Tokens (B, n, F, D) of consecutive frame slots, with absolute positions.

        Slot ``t`` holds frame ``t - 1`` and conditions frame ``t``; slot 0 holds the begin-of-video token.

        Args:
            latents: (B, C, n', h, w) frames; with ``first`` 0 there is one slot more than frames. None: slot 0 alone.
            batch: B.
            first: number of the first slot.
            total: frames of the clip, known and planned, which absolute time is measured in.
        """
        rows, columns = self.config.video_grid
        slots = []
        if first == 0:
            slots.append(self.mask_embed.bos_token.expand(batch, 1, rows * columns, -1))
        if latents is not None and latents.shape[2]:
            patches = self.video_encoder.patch_embed(self.check_latents(latents).transpose(1, 2).flatten(0, 1))
            slots.append(patches.unflatten(0, (batch, -1)))
        x = torch.cat(slots, 1)
        if self.video_pos_embed is not None:
            x = x + self.time_embedding(first, x.shape[1], total)[:, None].to(x)
        return self.placed(x, self.config.video_grid)

    def time_embedding(self, first: int, slots: int, total: int) -> Tensor:
        """Absolute time embeddings (slots, D) of consecutive slots of a clip of ``total`` frames."""
        assert self.video_pos_embed is not None
        scale = self.config.video_base_size[0] / total
        return self.video_pos_embed(torch.arange(first, first + slots, device=self.device) * scale)

    def slot_rotation(self, prefix: int, first: int, slots: int, device: torch.device) -> Rotation | None:
        """Rotation of ``prefix`` unrotated tokens followed by the tokens of ``slots`` slots; None without rotary
        positions."""
        if not self.config.rotary:
            return None
        rows, columns = self.config.video_grid
        axes = (torch.arange(first, first + slots), torch.arange(rows), self.columns_of(columns))
        positions = torch.cartesian_prod(*axes).to(device)
        positions = torch.cat([positions.new_zeros(prefix, 3), positions])
        return frame_rotation(positions, self.config.video_encoder.head_dim)

    def columns_of(self, columns: int) -> Tensor:
        """The place (columns,) int64 of each of a frame's columns in its own camera."""
        return torch.arange(columns) % (columns // self.config.cameras)

    def encode_video(self, latents: Tensor, prefix: Tensor) -> Tensor:
        """Outputs (B, N, F, D) of all slots at once (teacher forcing); slot ``t`` sees the frames before ``t``.

        Args:
            latents: (B, C, N, h, w) scaled latents; the last frame is only predicted.
            prefix: (B, S, D) from :meth:`prefix`.
        """
        batch, total, length = len(latents), latents.shape[2], prefix.shape[1]
        slots = self.slot_tokens(latents[:, :, :-1], batch, 0, total)
        sequence = torch.cat([prefix, slots.flatten(1, 2)], 1)
        mask = block_causal_mask(length, total, slots.shape[2], sequence.device) if total > 1 else None
        rotation = self.slot_rotation(length, 0, total, sequence.device)
        return self.video_encoder(sequence, mask, rotation)[:, length:].unflatten(1, (total, -1))

    def mix(self, outputs: Tensor) -> Tensor:
        """Conditions (B, N, F, D) of all frames from the slots' outputs: the mixer's where the model has one."""
        if self.video_encoder.mixer is None or outputs.shape[1] == 1:
            return outputs
        first, later = outputs[:, :1], outputs[:, 1:]
        return torch.cat([first, self.video_encoder.mixer(first, later)], 1)

    def start(self, prefix: Tensor, total: int) -> tuple[Tensor, VideoStream]:
        """Reads the prefix and slot 0: the condition (B, F, D) of frame 0, and the stream to go on with."""
        batch, length, _ = prefix.shape
        slot = self.slot_tokens(None, batch, 0, total).flatten(1, 2)  # (B, F, D)
        rotation = self.slot_rotation(length, 0, 1, prefix.device)
        sequence = torch.cat([prefix, slot], 1)
        outputs, cache = self.video_encoder.prefill(sequence, rotation, max(total - 1, 1), slot.shape[1])
        first = outputs[:, length:]
        return first, VideoStream(cache, first, 1, total)

    def advance(self, latent: Tensor, stream: VideoStream) -> tuple[Tensor, Tensor]:
        """Reads one more frame (B, C, h, w): the next frame's condition (B, F, D), and the slot's output before the
        mixer."""
        slot = self.slot_tokens(latent[:, :, None], len(latent), stream.slot, stream.total)[:, 0]
        inside = torch.ones(slot.shape[1], slot.shape[1], dtype=torch.bool, device=slot.device)
        rotation = self.slot_rotation(0, stream.slot, 1, slot.device)
        output = self.video_encoder.step(slot, inside, rotation, stream.cache)
        stream.slot += 1
        mixer = self.video_encoder.mixer
        return output if mixer is None else mixer(stream.first, output), output

    # --- one frame ---------------------------------------------------------------------------------------------------

    def encode_frame(self, latents: Tensor, condition: Tensor, known_ids: Tensor, last: Tensor | None = None) -> Tensor:
        """Spatial encoder's outputs (B, M, D), which condition the de-tokenizer.

        Args:
            latents: (B, C, h, w) frames; what is not known is not looked at.
            condition: (B, F, D) condition tokens.
            known_ids: (B, k) int64 numbers of the known patches.
            last: (B, C, h, w) the frames before; a model that does not read them ignores them.

        Raises:
            ValueError: the model reads the frame before, and it was not given.
        """
        if self.config.reads_last_frame:
            if last is None:
                raise ValueError("this model reads the frame before the one that it draws: give `last`")
            last = self.check_latents(last)
        x = self.mask_patches(latents, self.known_mask(known_ids))
        rows, columns = self.config.image_grid
        rotation, x = None, self.placed(x, self.config.image_grid)
        if self.config.rotary:
            axes = (torch.zeros(1, dtype=torch.long), torch.arange(rows), self.columns_of(columns))
            positions = torch.cartesian_prod(*axes).to(x.device)
            rotation = frame_rotation(positions, self.config.image_encoder.head_dim)
        return self.image_encoder(x, condition, known_ids, rotation, last)

    def changed(self, last: Tensor, latents: Tensor) -> Tensor:
        """(B, M) bool, True for patches that differ between two frames (B, C, h, w): by :data:`CHANGE`, root mean
        square."""
        return (self.patchify(latents) - self.patchify(last)).float().square().mean(-1) > CHANGE**2

    def known_mask(self, known_ids: Tensor) -> Tensor:
        """(B, M) bool, True where a patch is among ``known_ids`` (B, k)."""
        mask = torch.zeros(len(known_ids), self.config.image_tokens, dtype=torch.bool, device=known_ids.device)
        return mask.scatter(1, known_ids, True)

    def mask_patches(self, latents: Tensor, known: Tensor) -> Tensor:
        """Patch embeddings (B, M, D) of latents (B, C, h, w), the mask token where ``known`` (B, M) is False."""
        x = self.image_encoder.patch_embed(self.check_latents(latents))
        return torch.where(known[..., None], x, self.mask_embed.mask_token.to(x))

    def patchify(self, latents: Tensor) -> Tensor:
        """Patch vectors (B, M, p p C) of latents (B, C, h, w)."""
        return patchify(latents, self.config.image_patch)

    def unpatchify(self, vectors: Tensor) -> Tensor:
        """Inverse of :meth:`patchify`."""
        return unpatchify(vectors, self.config.image_patch, self.config.image_grid)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mask_embed.mask_token.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.mask_embed.mask_token.dtype

    @property
    def patch_size(self) -> int:
        """Numbers per patch vector."""
        return self.config.image_patch**2 * self.config.latent_channels

    def check_latents(self, latents: Tensor) -> Tensor:
        """Latents (B, C, [N,] h, w) in the weights' type.

        Raises:
            ValueError: other channels or sizes than the model's.
        """
        expected = (self.config.latent_channels, *self.config.latent_size)
        if (latents.shape[1], *latents.shape[-2:]) != expected:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}; this model reads {expected[0]} channels of "
                f"{expected[1]}x{expected[2]}"
            )
        return latents.to(self.dtype)
