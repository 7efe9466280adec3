"""Sizes and options of every part of the model, as frozen, validated dataclasses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from par_agent.errors import UserError
from par_agent.utils.checked import MANY, Checked, Count, MayBeEmpty, Positive, Range, Share, Size, Sizes, SmallCount
from par_agent.utils.files import naming, read_json
from par_agent.utils.json_fields import build

CONFIG_VERSION = 2


@dataclass(frozen=True)
class EncoderConfig(Checked):
    """A stack of transformer blocks."""

    depth: Annotated[int, Range(0, 1024)]
    """Number of blocks; 0, a temporal encoder that does nothing, is the ablation PAR-NoAR."""
    width: Size
    """Token width ``D``."""
    heads: Size
    """Attention heads; must divide the width."""
    mlp_ratio: Size = 4
    """Hidden width of the MLP over the token width."""
    branch_start: Positive = 1.0
    """Weight that the norm behind every branch starts training with: below 1, tokens start out close to themselves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_heads(self.width, self.heads)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


@dataclass(frozen=True)
class DiffusionConfig(Checked):
    """Noise process of a de-tokenizer (Li et al. 2024, "diffusion loss"); the schedulers are diffusers' own."""

    kind: Literal["flow", "ddpm"] = "flow"
    """``flow``: flow matching, velocity target. ``ddpm``: cosine betas, noise target (NOVA's released video model)."""
    train_steps: Size = 1000
    """Length of the training noise table."""
    shift: Positive = 1.0
    """Flow matching only: shift of the noise levels towards noise."""
    steps_offset: Annotated[int, Range(0, 1)] = 1
    """DDPM only: what is added to every sampling time, 1 in NOVA's released video model."""
    preconditioned: bool = False
    """Flow matching only: the network predicts what the noised sample leaves open, scaled to unit variance, and all
    noise levels weigh the same (Karras et al. 2022). The noise itself need not pass through the network."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preconditioned and self.kind != "flow":
            raise UserError("preconditioned goes with kind 'flow' only")


@dataclass(frozen=True)
class GenerationConfig(Checked):
    """How frames are drawn. The defaults are NOVA's."""

    mask_steps: Size = 64
    """Sets that a frame's patches are drawn in, at most."""
    diffusion_steps: Size = 25
    """Denoising steps per set."""
    guidance: float = 5.0
    """Classifier-free guidance; 1 or less: none, and half the work."""
    temperature: Share = 1.0
    """Scale of the noise that frames are drawn from; below 1 they come closer to the likeliest one (Li et al. 2024)."""

    @property
    def guided(self) -> bool:
        """Whether every sample is also drawn without its prompt."""
        return self.guidance > 1


@dataclass(frozen=True)
class NOVAConfig(Checked):
    """The autoregressive video model (Deng et al. 2024) that PAR grows out of: transformer and frame de-tokenizer."""

    latent_channels: Size
    """Channels of the frame VAE's latents."""
    latent_size: tuple[Size, Size]
    """Height and width of one latent frame, in which several cameras stand side by side."""
    video_patch: Size
    """Latent pixels a side of one frame token in the temporal encoder."""
    image_patch: Size
    """Latent pixels a side of one token in the spatial encoder and the frame de-tokenizer."""
    video_encoder: EncoderConfig
    """Temporal encoder: the causal transformer."""
    image_encoder: EncoderConfig
    """Spatial encoder of the masked set-by-set frame generation."""
    decoder_depth: SmallCount
    """Blocks of the diffusion MLP."""
    decoder_width: Size
    """Width of the diffusion MLP."""
    text_dim: Size
    """Width of the frozen text encoder's features."""
    text_length: Size
    """Text tokens that every instruction is padded to."""
    video_base_size: tuple[Size, Size, Size]
    """Frames, rows and columns that absolute positions refer to."""
    image_base_size: tuple[Size, Size]
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
    mixer_rank: Annotated[int, Range(-MANY, 2**20)] | None = None
    """Rank of the scaling-and-shift layer on frame conditions; negative: full rank; None: no such layer."""
    stem_widths: Sizes = ()
    """Widths of a convolutional stem before the patch embedding, all but the first halving the resolution."""
    reads_last_frame: bool = False
    """The spatial encoder also reads the frame before the one that is drawn, and tells where the two differ. The
    condition tokens then need not carry what stays the same."""
    cameras: Size = 1
    """Cameras side by side in a frame, each of the same width. Patches of all have the positions of their own camera;
    a learned embedding tells the cameras apart."""
    diffusion: DiffusionConfig = DiffusionConfig("ddpm")
    """Noise process of the frame de-tokenizer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        height, width = self.latent_size
        if width % self.cameras:
            raise UserError(f"cameras is {self.cameras}; it must divide the latent width {width}")
        for name in ("video_patch", "image_patch"):
            patch = getattr(self, name)
            if height % patch or width // self.cameras % patch:
                of = "" if self.cameras == 1 else f" of each of {self.cameras} cameras side by side"
                raise UserError(f"{name} is {patch}; it must divide the latent size {self.latent_size}{of}")
        if self.stem_widths and self.video_patch % 2 ** (len(self.stem_widths) - 1):
            raise UserError(
                f"stem_widths has {len(self.stem_widths)} entries, too many for a video_patch of {self.video_patch}"
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
class ActionConfig(Checked):
    """Action tokenizer and Action-DiT (paper sections 4.2.1 and 4.2.3)."""

    action_size: Size = 8
    """Numbers per action (``A``)."""
    proprioception_size: Annotated[int, Range(0, 2**20)] = 9
    """Numbers of joint positions that join each frame as one token; 0: none."""
    chunk_length: Size = 8
    """Actions per chunk (``L``)."""
    foresight: Sizes = ()
    """Control steps past the chunk, counted from its start, whose actions are predicted with it and never executed.

    They teach the model where a demonstration leads, which the next ``L`` actions hardly show.
    """
    tokenizer_widths: Sizes = (576,)
    """Hidden widths of the action tokenizer's MLP."""
    width: Size = 512
    """Width of the Action-DiT."""
    depth: SmallCount = 3
    """Blocks of the Action-DiT."""
    heads: Size = 8
    """Attention heads of the Action-DiT."""
    conditions: Literal["actions", "token"] = "actions"
    """Outputs of the causal transformer that the Action-DiT attends to: at the chunk's actions, as in the paper, or at
    all of the physical token, its frame included."""
    rotary_base: Positive = 100.0
    """Base of the rotary frequencies for the position inside a chunk."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """Noise process of the action de-tokenizer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_heads(self.width, self.heads)
        if any(later <= earlier for earlier, later in pairwise((self.chunk_length - 1, *self.foresight))):
            raise UserError(
                f"foresight is {self.foresight}; it must be rising numbers from the chunk length "
                f"{self.chunk_length} on: a chunk has the actions before that"
            )

    @property
    def targets(self) -> int:
        """Actions that the de-tokenizer predicts together: the chunk's ``L``, then those of :attr:`foresight`."""
        return self.chunk_length + len(self.foresight)


@dataclass(frozen=True)
class PARConfig(Checked):
    """Everything that decides the shapes of a :class:`~par_agent.modeling.par.PARModel`."""

    name: Annotated[str, MayBeEmpty]
    """Name of the preset or of the checkpoint."""
    nova: NOVAConfig
    """Causal transformer and frame path."""
    action: ActionConfig
    """Action path."""
    max_context: Size = 16
    """Physical tokens that training showed at once, and so the most that a policy may remember. Past it the oldest
    leave and the text stays."""
    noise_samples: Size = 4
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
        super().__post_init__()
        if not self.autoregressive and (self.imagination or self.detokenizers == "regression"):
            raise UserError(
                "a temporal encoder of depth 0 gives the action de-tokenizer raw text and frame tokens; it goes with "
                "imagination=False and detokenizers='diffusion' only"
            )
        if self.detokenizers == "regression" and self.action.conditions != "actions":
            raise UserError(
                "regression gives an action for each of the chunk's conditions: set action.conditions to 'actions'"
            )

    @property
    def autoregressive(self) -> bool:
        """False for the ablation PAR-NoAR (paper section 5.3.1)."""
        return self.nova.video_encoder.depth > 0

    def with_cameras(self, cameras: int) -> PARConfig:
        """The same with frames of so many cameras side by side, each of the present one's height and width."""
        height, width = self.nova.latent_size
        size = height, width // self.nova.cameras * cameras
        return dataclasses.replace(self, nova=dataclasses.replace(self.nova, latent_size=size, cameras=cameras))

    def with_action(self, **changes: Any) -> PARConfig:
        """The same with other values of :class:`ActionConfig`."""
        return dataclasses.replace(self, action=dataclasses.replace(self.action, **changes))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, folder: Path) -> PARConfig:
        """That of a checkpoint's ``config.json``; see :meth:`from_json`."""
        path = folder / "config.json"
        content = read_json(path)
        with naming(path):
            return cls.from_json(content)

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
        return build(cls, content, added=("reads_last_frame", "preconditioned", "cameras"))


@dataclass(frozen=True)
class InferenceConfig(Checked):
    """How a policy acts."""

    context: Count = 1
    """Physical tokens remembered, the present one included."""
    past_actions: bool = False
    """Whether executed chunks enter the context; otherwise begin-of-action takes their place."""
    n_action_steps: Count | None = None
    """Actions of a chunk that are executed before the next frame is read; None: all."""
    denoising_steps: Count = 10
    """Steps of the Action-DiT's sampler."""
    denoising_shift: Positive | None = None
    """Flow matching only: how far the sampler's noise levels are shifted towards noise, where steps are worth most; 1:
    equal steps. None: diffusers' levels, the last of which is hardly above 0."""
    random_start: bool = False
    """Whether denoising starts from random noise; otherwise from zero, which makes the policy deterministic."""


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise UserError(f"heads is {heads}; it must divide the width {width}")
