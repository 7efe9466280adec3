"""Sizes and options of every part of the model, as frozen, validated dataclasses."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from par_agent.errors import UserError
from par_agent.utils.json_fields import MOST, MOST_BLOCKS, build, check_sizes

CONFIG_VERSION = 2


@dataclass(frozen=True)
class EncoderConfig:
    """A stack of transformer blocks."""

    depth: int
    """Number of blocks; 0, a temporal encoder that does nothing, is the ablation PAR-NoAR."""
    width: int
    """Token width ``D``."""
    heads: int
    """Attention heads; must divide the width."""
    mlp_ratio: int = 4
    """Hidden width of the MLP over the token width."""
    branch_start: float = 1.0
    """Weight that the norm behind every branch starts training with: below 1, tokens start out close to themselves."""

    def __post_init__(self) -> None:
        check_sizes(self, "width", "heads", "mlp_ratio")
        if not 0 <= self.depth <= MOST_BLOCKS:
            raise ValueError(f"EncoderConfig.depth is {self.depth}; it must be 0 or more, and at most {MOST_BLOCKS}")
        if self.branch_start <= 0:
            raise ValueError(f"EncoderConfig.branch_start is {self.branch_start}; it must be above 0")
        if self.width % self.heads:
            raise ValueError(f"EncoderConfig.heads is {self.heads}; it must divide the width {self.width}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


@dataclass(frozen=True)
class DiffusionConfig:
    """Noise process of a de-tokenizer (Li et al. 2024, "diffusion loss"); the schedulers are diffusers' own."""

    kind: Literal["flow", "ddpm"] = "flow"
    """``flow``: flow matching, velocity target. ``ddpm``: cosine betas, noise target (NOVA's released video model)."""
    train_steps: int = 1000
    """Length of the training noise table."""
    shift: float = 1.0
    """Flow matching only: shift of the noise levels towards noise."""
    steps_offset: int = 1
    """DDPM only: what is added to every sampling time, 1 in NOVA's released video model."""
    preconditioned: bool = False
    """Flow matching only: the network predicts what the noised sample leaves open, scaled to unit variance, and all
    noise levels weigh the same (Karras et al. 2022). The noise itself need not pass through the network."""

    def __post_init__(self) -> None:
        check_sizes(self, "train_steps")
        if self.kind not in ("flow", "ddpm"):
            raise ValueError(f"DiffusionConfig.kind is {self.kind!r}; allowed: 'flow', 'ddpm'")
        if not 0 <= self.steps_offset <= 1:
            raise ValueError(f"DiffusionConfig.steps_offset is {self.steps_offset}; allowed: 0, 1")
        if self.shift <= 0:
            raise ValueError(f"DiffusionConfig.shift is {self.shift}; it must be above 0")
        if self.preconditioned and self.kind != "flow":
            raise ValueError("DiffusionConfig.preconditioned goes with kind 'flow' only")


@dataclass(frozen=True)
class GenerationConfig:
    """How frames are drawn. The defaults are NOVA's."""

    mask_steps: int = 64
    """Sets that a frame's patches are drawn in, at most."""
    diffusion_steps: int = 25
    """Denoising steps per set."""
    guidance: float = 5.0
    """Classifier-free guidance; 1 or less: none, and half the work."""
    temperature: float = 1.0
    """Scale of the noise that frames are drawn from; below 1 they come closer to the likeliest one (Li et al. 2024)."""

    def __post_init__(self) -> None:
        check_sizes(self, "mask_steps", "diffusion_steps")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance is {self.guidance}; it must be a finite number")
        if not 0 <= self.temperature <= 1:
            raise ValueError(f"temperature is {self.temperature}; it must be from 0 to 1")

    @property
    def guided(self) -> bool:
        """Whether every sample is also drawn without its prompt."""
        return self.guidance > 1


@dataclass(frozen=True)
class NOVAConfig:
    """The autoregressive video model (Deng et al. 2024) that PAR grows out of: transformer and frame de-tokenizer."""

    latent_channels: int
    """Channels of the frame VAE's latents."""
    latent_size: tuple[int, int]
    """Height and width of one latent frame."""
    video_patch: int
    """Latent pixels a side of one frame token in the temporal encoder."""
    image_patch: int
    """Latent pixels a side of one token in the spatial encoder and the frame de-tokenizer."""
    video_encoder: EncoderConfig
    """Temporal encoder: the causal transformer."""
    image_encoder: EncoderConfig
    """Spatial encoder of the masked set-by-set frame generation."""
    decoder_depth: int
    """Blocks of the diffusion MLP."""
    decoder_width: int
    """Width of the diffusion MLP."""
    text_dim: int
    """Width of the frozen text encoder's features."""
    text_length: int
    """Text tokens that every instruction is padded to."""
    video_base_size: tuple[int, int, int]
    """Frames, rows and columns that absolute positions refer to."""
    image_base_size: tuple[int, int]
    """Rows and columns of the spatial encoder's token grid."""
    absolute_space: bool = True
    """Adds sine/cosine row and column embeddings to frame tokens."""
    absolute_time: bool = True
    """Adds a projected sine/cosine time embedding to frame tokens."""
    rotary: bool = False
    """Rotates queries and keys of frame tokens by (time, row, column)."""
    motion: bool = True
    """Has the two motion tokens (optical flow, frames a second) of NOVA's prefix."""
    bos_slot: bool = True
    """Starts the sequence with NOVA's begin-of-video frame slot."""
    mixer_rank: int | None = None
    """Rank of the scaling-and-shift layer on frame conditions; negative: full rank; None: no such layer."""
    stem_widths: tuple[int, ...] = ()
    """Widths of a convolutional stem before the patch embedding, all but the first halving the resolution."""
    reads_last_frame: bool = False
    """The spatial encoder also reads the frame before the one that is drawn, and tells where the two differ. The
    condition tokens then need not carry what stays the same."""
    diffusion: DiffusionConfig = DiffusionConfig("ddpm")
    """Noise process of the frame de-tokenizer."""

    def __post_init__(self) -> None:
        check_sizes(
            self, "latent_channels", "video_patch", "image_patch", "decoder_width", "text_dim",
            "text_length", "latent_size", "video_base_size", "image_base_size", "stem_widths",
        )  # fmt: skip
        check_sizes(self, "decoder_depth", most=MOST_BLOCKS)
        if self.mixer_rank is not None and self.mixer_rank > 0:
            check_sizes(self, "mixer_rank")
        for name in ("video_patch", "image_patch"):
            patch = getattr(self, name)
            if any(size % patch for size in self.latent_size):
                raise ValueError(f"NOVAConfig.{name} is {patch}; it must divide the latent size {self.latent_size}")
        if self.stem_widths and self.video_patch % 2 ** (len(self.stem_widths) - 1):
            raise ValueError(
                f"a stem of {len(self.stem_widths)} widths does not fit a video patch of {self.video_patch}"
            )

    @property
    def video_grid(self) -> tuple[int, int]:
        """Rows and columns of frame tokens in the temporal encoder."""
        return self.latent_size[0] // self.video_patch, self.latent_size[1] // self.video_patch

    @property
    def image_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens in the spatial encoder."""
        return self.latent_size[0] // self.image_patch, self.latent_size[1] // self.image_patch

    @property
    def video_tokens(self) -> int:
        """Frame tokens of one step."""
        return self.video_grid[0] * self.video_grid[1]

    @property
    def image_tokens(self) -> int:
        """Tokens of one frame in the spatial encoder."""
        return self.image_grid[0] * self.image_grid[1]


@dataclass(frozen=True)
class ActionConfig:
    """Action tokenizer and Action-DiT (paper sections 4.2.1 and 4.2.3)."""

    action_size: int = 8
    """Numbers per action (``A``)."""
    proprioception_size: int = 9
    """Numbers of joint positions that join each frame as one token; 0: none."""
    chunk_length: int = 8
    """Actions per chunk (``L``)."""
    foresight: tuple[int, ...] = ()
    """Control steps past the chunk, counted from its start, whose actions are predicted with it and never executed.

    They teach the model where a demonstration leads, which the next ``L`` actions hardly show.
    """
    tokenizer_widths: tuple[int, ...] = (576,)
    """Hidden widths of the action tokenizer's MLP."""
    width: int = 512
    """Width of the Action-DiT."""
    depth: int = 3
    """Blocks of the Action-DiT."""
    heads: int = 8
    """Attention heads of the Action-DiT."""
    conditions: Literal["actions", "token"] = "actions"
    """Outputs of the causal transformer that the Action-DiT attends to: at the chunk's actions, as in the paper, or at
    all of the physical token, its frame included."""
    rotary_base: float = 100.0
    """Base of the rotary frequencies for the position inside a chunk."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """Noise process of the action de-tokenizer."""

    def __post_init__(self) -> None:
        check_sizes(self, "action_size", "chunk_length", "width", "heads", "tokenizer_widths")
        check_sizes(self, "depth", most=MOST_BLOCKS)
        if not 0 <= self.proprioception_size <= MOST:
            raise ValueError(f"ActionConfig.proprioception_size is {self.proprioception_size}; it must be 0 or more")
        if self.width % self.heads:
            raise ValueError(f"ActionConfig.heads is {self.heads}; it must divide the width {self.width}")
        if self.conditions not in ("actions", "token"):
            raise ValueError(f"ActionConfig.conditions is {self.conditions!r}; allowed: 'actions', 'token'")
        if any(later <= earlier for earlier, later in pairwise((self.chunk_length - 1, *self.foresight))):
            raise ValueError(
                f"ActionConfig.foresight is {self.foresight}; it must be rising numbers from the chunk length "
                f"{self.chunk_length} on: a chunk has the actions before that"
            )

    @property
    def targets(self) -> int:
        """Actions that the de-tokenizer predicts together: the chunk's ``L``, then those of :attr:`foresight`."""
        return self.chunk_length + len(self.foresight)


@dataclass(frozen=True)
class PARConfig:
    """Everything that decides the shapes of a :class:`~par_agent.modeling.par.PARModel`."""

    name: str
    """Name of the preset or of the checkpoint."""
    nova: NOVAConfig
    """Causal transformer and frame path."""
    action: ActionConfig
    """Action path."""
    max_context: int = 16
    """Physical tokens that training showed at once, and so the most that a policy may remember. Past it the oldest
    leave and the text stays."""
    noise_samples: int = 4
    """Times that noise and time are drawn per token and condition (Li et al. 2024; paper section 4.3)."""
    detokenizers: Literal["diffusion", "regression"] = "diffusion"
    """``regression``: MLPs with the squared error in place of both de-tokenizers (ablation PAR-Discrete)."""
    imagination: bool = True
    """Whether the model has the frame path: spatial encoder, frame de-tokenizer and their loss."""
    generation: GenerationConfig = GenerationConfig(4, 10, guidance=1.0, temperature=0.15)
    """How frames are drawn unless told otherwise: in few steps, close to the likeliest one."""
    version: int = CONFIG_VERSION
    """Format version of this configuration."""

    def __post_init__(self) -> None:
        check_sizes(self, "max_context", "noise_samples")
        if self.detokenizers not in ("diffusion", "regression"):
            raise ValueError(f"PARConfig.detokenizers is {self.detokenizers!r}; allowed: 'diffusion', 'regression'")
        if not self.autoregressive and (self.imagination or self.detokenizers == "regression"):
            raise ValueError(
                "a temporal encoder of depth 0 gives the action de-tokenizer raw text and frame tokens; it goes with "
                "imagination=False and detokenizers='diffusion' only"
            )
        if self.detokenizers == "regression" and self.action.conditions != "actions":
            raise ValueError(
                "regression gives an action for each of the chunk's conditions: set action.conditions to 'actions'"
            )

    @property
    def autoregressive(self) -> bool:
        """False for the ablation PAR-NoAR (paper section 5.3.1)."""
        return self.nova.video_encoder.depth > 0

    def with_action(self, **changes: Any) -> PARConfig:
        """The same with other values of :class:`ActionConfig`."""
        return dataclasses.replace(self, action=dataclasses.replace(self.action, **changes))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> PARConfig:
        """Inverse of :meth:`to_json`.

        Raises:
            UserError: a field is unknown, missing or out of range, or the format is that of another version.
        """
        version = content.get("version") if isinstance(content, dict) else None
        if isinstance(version, int) and version != CONFIG_VERSION:
            advice = "update par_agent" if version > CONFIG_VERSION else "train or import the model again"
            raise UserError(
                f"this configuration has format version {version}; this package reads {CONFIG_VERSION}: {advice}"
            )
        return build(cls, content, added=("reads_last_frame", "preconditioned"))
