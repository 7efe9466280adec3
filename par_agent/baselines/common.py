"""What all baselines share: the stem that reads observations, transformer blocks, and the interface of a method.

A method turns the observations of an episode into conditions, one set for each step, and draws a chunk of actions from
each. Letters of shapes: see :mod:`par_agent.modeling`. Where each step is taken by itself, B counts the steps of all
windows; L + K actions are predicted together.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from par_agent.errors import UserError
from par_agent.modeling.blocks import MLP, Attention, CrossAttention, KeysAndValues
from par_agent.modeling.embeddings import PatchEmbedding, TextEmbedding, space_embedding
from par_agent.modeling.par import PhysicalTokens, Targets
from par_agent.utils.checked import Checked, ShareBelow1, Size, Sizes


@dataclass(frozen=True)
class MethodConfig(Checked):
    """Sizes that every method has; the defaults of data and stem are those of the preset ``mini``."""

    horizon: Size = 8
    """Actions predicted together, ``L + K``; the first ``L`` of them are the chunk that is executed."""
    width: Size = 256
    """Width ``D`` of the transformer."""
    heads: Size = 8
    """Attention heads; must divide the width."""
    dropout: ShareBelow1 = 0.1
    """Dropout behind every branch of a block."""
    latent_channels: Size = 8
    """Channels of the frame encoder's latents."""
    latent_size: tuple[Size, Size] = (40, 40)
    """Height and width of one latent frame."""
    patch: Size = 8
    """Latent pixels a side of one frame token."""
    stem_widths: Sizes = (48, 64, 128)
    """Widths of the convolutional stem."""
    text_dim: Size = 64
    """Width of the text encoder's features."""
    text_length: Size = 24
    """Text tokens, ``S``."""
    chunk_length: Size = 8
    """Actions between two frames, ``L``."""
    action_size: Size = 8
    """Numbers per action, ``A``."""
    proprioception_size: Size = 9
    """Joint positions, ``P``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.horizon < self.chunk_length:
            raise UserError(
                f"horizon is {self.horizon}; a chunk of {self.chunk_length} actions is executed: give at least that"
            )
        if self.width % (2 * self.heads):
            raise UserError(f"heads is {self.heads}; twice that must divide the width {self.width}")
        if any(size % self.patch for size in self.latent_size):
            raise UserError(f"patch is {self.patch}; it must divide the latent size {self.latent_size}")

    @property
    def foresight(self) -> tuple[int, ...]:
        """The actions past the chunk, in the words of :class:`par_agent.data.index.EpisodeIndex`."""
        return tuple(range(self.chunk_length, self.horizon))

    @property
    def frame_tokens(self) -> int:
        """Tokens of one observation, ``F``."""
        return (self.latent_size[0] // self.patch) * (self.latent_size[1] // self.patch) + 1


@dataclass(frozen=True)
class History:
    """What a method knows at each step of a batch of windows."""

    tokens: Tensor
    """(B, N, F, D) observations from the stem; the last token is that of the joint positions."""
    past_actions: Tensor
    """(B, N, L, A) normalised chunk executed before each observation."""
    past_actions_known: Tensor
    """(B, N) bool; False at an episode's start."""
    context_length: Tensor
    """(B, N) int64 steps of the same episode so far, the step itself included; 0: there is no such step."""
    text: Tensor
    """(B, S, D) text tokens."""

    @property
    def summary(self) -> Tensor:
        """(B, N, D) mean of the text tokens, at each step."""
        return self.text.mean(1)[:, None].expand(-1, self.tokens.shape[1], -1)


class Stem(nn.Module):
    """Latents to frame tokens as in the preset ``mini``, joint positions to one more, words to text tokens."""

    def __init__(self, config: MethodConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(config.latent_channels, config.patch, config.width, config.stem_widths)
        self.proprioception = nn.Linear(config.proprioception_size, config.width)
        rows, columns = (size // config.patch for size in config.latent_size)
        places = space_embedding(rows, columns, config.width)
        self.positions = nn.Parameter(torch.cat([places, torch.zeros(1, config.width)]))
        self.norm = nn.LayerNorm(config.width)
        self.words = TextEmbedding(config.text_dim, config.width, config.text_length, config.text_length)

    def forward(self, latents: Tensor, proprioception: Tensor) -> Tensor:
        """Tokens (..., F, D) of latents (..., C, h, w) and normalised joint positions (..., P)."""
        lead = latents.shape[:-3]
        patches = self.patch_embed(latents.flatten(0, -4)).unflatten(0, lead)
        tokens = torch.cat([patches, self.proprioception(proprioception)[..., None, :]], -2)
        return self.norm(tokens) + self.positions

    def text(self, features: list[Tensor]) -> Tensor:
        """Text tokens (B, S, D) of features (length, text_dim) each."""
        return self.words(self.words.pad(features))


class Block(nn.Module):
    """Self-attention, perhaps cross-attention, and an MLP, each behind a layer norm of its own."""

    def __init__(self, config: MethodConfig, cross: bool = False) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, config.heads)
        self.norm2 = nn.LayerNorm(width) if cross else None
        self.cross = CrossAttention(width, config.heads) if cross else None
        self.norm3 = nn.LayerNorm(width)
        self.mlp = MLP(width, 4 * width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, n, D) to tokens; ``mask`` broadcasts to (B, heads, n, n), True: may attend.

        ``memory``: what :meth:`CrossAttention.keys_and_values` of :attr:`cross` gives for what is attended to.
        """
        x = x + self.dropout(self.attn(self.norm1(x), mask))
        if self.cross is not None and self.norm2 is not None and memory is not None:
            x = x + self.dropout(self.cross(self.norm2(x), *memory))
        return x + self.dropout(self.mlp(self.norm3(x)))


class FrameToken(nn.Module):
    """All tokens of an observation (..., F, D) as one (..., D): each gives ``size`` numbers, projected together."""

    def __init__(self, config: MethodConfig, size: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(config.width, size)
        self.fuse = nn.Linear(config.frame_tokens * size, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fuse(F.gelu(self.reduce(tokens)).flatten(-2))


class Method(nn.Module, abc.ABC):
    """A baseline. Losses draw from torch's own generator, which the training loop seeds for every batch."""

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    """Its sizes."""
    prompted: ClassVar[bool] = False
    """Whether a demonstration of the task comes first, in training and when it acts."""

    def __init__(self, config: MethodConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Stem(config)

    @property
    def context(self) -> int:
        """Observations remembered when it acts unless told otherwise."""
        return 1

    @property
    def max_context(self) -> int | None:
        """Steps that it reads at most, a prompt's included; None: any number."""
        return None

    @property
    def sequence(self) -> int | None:
        """Steps of a training window if the method decides them; None: the run's option decides."""
        return None

    @abc.abstractmethod
    def conditions(self, history: History) -> Tensor:
        """(B, N, S, D) condition tokens of every step, from that step and those before it."""

    @abc.abstractmethod
    def chunk_loss(self, z: Tensor, actions: Tensor, weights: Tensor) -> Tensor:
        """Loss (scalar) of normalised actions (B, L + K, A) under conditions (B, S, D); weights (B, L + K) float."""

    @abc.abstractmethod
    def draw(self, z: Tensor, noise: Tensor | None) -> Tensor:
        """Normalised actions (B, L + K, A) float32 of conditions (B, S, D).

        ``noise`` (B, L + K, A) is N(0, 1), and all randomness comes from it; None: the deterministic answer.
        """

    def compile_for_training(self) -> None:
        """Compiles the transformer blocks with ``torch.compile``; they compute the same."""
        for blocks in self.children():
            if isinstance(blocks, nn.ModuleList):
                for block in blocks:
                    block.compile()

    def counted(self, context_length: Tensor) -> Tensor:
        """(B, N) bool, the steps that enter the loss, of ``context_length`` (B, N)."""
        return context_length > 0

    def history(self, inputs: PhysicalTokens, features: list[Tensor], context_length: Tensor) -> History:
        """Reads a batch of windows; arguments as :func:`par_agent.training.objective.tensors` gives them."""
        tokens = self.stem(inputs.latents, inputs.proprioception)
        return History(tokens, inputs.actions, inputs.actions_known, context_length, self.stem.text(features))

    def loss(self, inputs: PhysicalTokens, targets: Targets, features: list[Tensor], context_length: Tensor) -> Tensor:
        """Loss (scalar) of a batch of windows; ``context_length`` (B, N) as in :class:`History`."""
        assert targets.actions is not None
        z = self.conditions(self.history(inputs, features, context_length)).flatten(0, 1)
        actions = targets.actions.flatten(0, 1)
        weights = (targets.action_weights * self.counted(context_length)[..., None]).flatten(0, 1)
        return self.chunk_loss(z, actions, weights)


def recent(tokens: Tensor, context_length: Tensor, frames: int) -> Tensor:
    """The observations (B, N, F, D) of each step and of ``frames - 1`` steps before it: (B, N, frames * F, D).

    Oldest first; where an episode has not as many yet, its first one is repeated.
    """
    steps = torch.arange(tokens.shape[1], device=tokens.device)
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    reach = (context_length - 1).clamp(min=0)
    parts = [tokens[rows, steps - reach.clamp(max=back)] for back in range(frames - 1, -1, -1)]
    return torch.cat(parts, 2)


def past_mask(context_length: Tensor) -> Tensor:
    """(B, 1, N, N) bool, True where a step (row) may attend to another one of its episode that is not later.

    Steps of padding attend to themselves, so that no row is empty.
    """
    steps = torch.arange(context_length.shape[1], device=context_length.device)
    distance = steps[:, None] - steps
    return ((distance >= 0) & (distance < context_length.clamp(min=1)[..., None]))[:, None]


def keys_and_values(blocks: nn.ModuleList, memory: Tensor) -> KeysAndValues:
    """Keys and values of tokens (B, n, D) for the cross-attention of each :class:`Block`."""
    return [block.cross.keys_and_values(memory) for block in blocks]  # type: ignore[union-attr, operator]


def repeated(observed: KeysAndValues, count: int) -> KeysAndValues:
    """Keys and values (B, ...) of every block, for ``count`` draws of noise."""
    return [(k.repeat(count, 1, 1, 1), v.repeat(count, 1, 1, 1)) for k, v in observed]


def weighted_mean(errors: Tensor, weights: Tensor) -> Tensor:
    """Mean of errors (B, L + K, A) over the actions that count; weights (B, L + K)."""
    return (errors.float().mean(-1) * weights).sum() / weights.sum().clamp(min=1.0)
