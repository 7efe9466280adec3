"""PAR: a causal transformer over physical tokens ``[O_n; A_n]`` predicts the next frame and the chunk leading to it.

The sequence is ``prefix, O_0, BOA, O_1, A_1, …`` (paper sections 3 and 4). Outputs at the positions of ``[O_n; A_n]``
are the conditions ``Z_{n+1}``: the frame path of :class:`~par_agent.modeling.nova.model.NOVA` draws ``O_{n+1}`` from
one, the Action-DiT draws ``A_{n+1}``, the chunk executed between the two frames, from the other half or from both.

Letters of shapes: see :mod:`par_agent.modeling`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from par_agent.modeling.action_detokenizer import ActionDetokenizer, action_loss, sample_actions
from par_agent.modeling.action_tokenizer import ActionTokenizer
from par_agent.modeling.attention_mask import limit_context, physical_token_mask
from par_agent.modeling.config import ActionConfig, GenerationConfig, PARConfig
from par_agent.modeling.frame_loss import change_loss, draw_frames, draw_known_patches, frame_loss
from par_agent.modeling.kv_cache import KVCache
from par_agent.modeling.nova.generation import NoiseSource, generate_frame
from par_agent.modeling.nova.model import NOVA
from par_agent.modeling.pretrained import Pretrained
from par_agent.modeling.regression import RegressionHead, regression_loss
from par_agent.modeling.rope import Rotation, physical_token_rotation


@dataclass(frozen=True)
class PhysicalTokens:
    """Steps of a batch of rollouts, as the model reads them."""

    latents: Tensor
    """(B, N, C, h, w) scaled latents of the frames ``O_n``, in which several cameras stand side by side."""
    proprioception: Tensor
    """(B, N, P) normalised joint positions, measured with the frames."""
    actions: Tensor
    """(B, N, L, A) normalised chunk executed before each frame."""
    actions_known: Tensor
    """(B, N) bool; False: the begin-of-action chunk takes the place of the actions."""


@dataclass(frozen=True)
class Targets:
    """What teacher forcing compares the predictions with."""

    actions: Tensor | None
    """(B, N, L + K, A) normalised actions after each frame: the chunk's, then the foresight's; None: no action loss."""
    action_weights: Tensor
    """(B, N, L + K) float; 0 for padding."""
    latents: Tensor | None
    """(B, N, C, h, w) next frames; None: no frame loss."""
    frame_weights: Tensor | None
    """(B, N) bool; False: there is no next frame. Keep it on the CPU, where counting it waits for nothing."""


@dataclass(frozen=True)
class PARLoss:
    """Scalars of one training step."""

    total: Tensor
    """Frame loss plus action loss, equal weights (paper section 4.3)."""
    action: Tensor
    """Diffusion loss of the chunks; 0 without actions."""
    frame: Tensor
    """Diffusion loss of the next frames' masked patches, and of where they change; 0 without frames."""


@dataclass
class PARStream:
    """The past of a batch of rollouts."""

    cache: KVCache
    """Keys and values of the prefix and of the physical tokens so far."""
    prefix: Tensor
    """(B, S, D) outputs at the prefix. The mixer reads those of slot 0, the ablation NoAR those of the text."""


class PARModel(Pretrained):
    """The Physical Autoregressive Model: NOVA plus the action tokenizer and the Action-DiT."""

    config: PARConfig
    config_class = PARConfig

    def __init__(self, config: PARConfig) -> None:
        super().__init__()
        if not isinstance(config, PARConfig):
            raise TypeError(f"PARModel takes a PARConfig, got {config!r}; PARModel.from_pretrained loads a checkpoint")
        self.config = config
        width = config.nova.video_encoder.width
        nova, action, diffusion = config.nova, config.action, config.detokenizers == "diffusion"
        self.nova = NOVA(nova, image_encoder=config.imagination, image_decoder=config.imagination and diffusion)
        self.action_tokenizer = ActionTokenizer(action, width)
        self.action_detokenizer: ActionDetokenizer | RegressionHead
        self.frame_regression: RegressionHead | None = None
        if diffusion:
            self.action_detokenizer = ActionDetokenizer(action, width)
        else:
            self.action_detokenizer = RegressionHead(width, action.width, action.depth, action.action_size)
            if config.imagination:
                size = self.nova.patch_size
                self.frame_regression = RegressionHead(width, nova.decoder_width, nova.decoder_depth, size)

    def extra_repr(self) -> str:
        return f"{self.config.name}, {sum(parameter.numel() for parameter in self.parameters()):,} parameters"

    @classmethod
    def from_weights(cls, config: PARConfig, weights: Mapping[str, Tensor]) -> PARModel:
        """A model with those weights that fit it by name and shape, copied; the others are freshly initialised."""
        model = cls(config)
        own = model.state_dict()
        fitting = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
        model.load_state_dict(fitting, strict=False)
        return model

    @classmethod
    def from_nova(cls, nova: NOVA, chunk_length: int) -> PARModel:
        """A model on NOVA's video weights, copied, whose action parts are freshly initialised."""
        config = PARConfig("par-nova", nova.config, ActionConfig(chunk_length=chunk_length))
        return cls.from_weights(config, {f"nova.{name}": value for name, value in nova.state_dict().items()})

    @property
    def frame_tokens(self) -> int:
        """Frame tokens of one step, ``F``: patches, and one token of joint positions where the model has it."""
        return self.config.nova.video_tokens + (self.config.action.proprioception_size > 0)

    @property
    def block(self) -> int:
        """Tokens of one physical token, ``F + L``."""
        return self.frame_tokens + self.config.action.chunk_length

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Whether training recomputes the blocks' activations in the backward pass: less memory, a third more work."""
        self.nova.video_encoder.recompute = enabled
        if self.config.imagination:
            self.nova.image_encoder.recompute = enabled

    def compile_for_training(self) -> None:
        """From now on runs causal transformer and Action-DiT by ``torch.compile``; what they compute stays the same."""
        self.nova.video_encoder.compile()
        self.action_detokenizer.compile()

    # --- tokens ---------------------------------------------------------------------------------------------------

    def prefix(self, features: list[Tensor]) -> Tensor:
        """Prefix tokens (B, S, D) of each row's text features (length, text_dim); NOVA's slot 0 included."""
        prefix = self.nova.prefix(features)
        if not self.config.nova.bos_slot:
            return prefix
        slot = self.nova.slot_tokens(None, len(prefix), 0, self.config.nova.video_base_size[0])
        return torch.cat([prefix, slot.flatten(1, 2)], 1)

    def tokens(self, inputs: PhysicalTokens, steps: Tensor) -> Tensor:
        """Tokens (B, N, F + L, D) of physical tokens at steps (B, N)."""
        nova = self.nova
        frames = nova.embed_frames(inputs.latents)  # (B, N, patches, D)
        actions = self.action_tokenizer(inputs.actions.to(nova.dtype), inputs.actions_known)  # (B, N, L, D)
        parts = [frames]
        if self.action_tokenizer.proprioception is not None:
            parts.append(self.action_tokenizer.proprioception(inputs.proprioception.to(nova.dtype))[:, :, None])
        x = torch.cat([*parts, actions], 2)  # (B, N, F + L, D)
        if nova.video_pos_embed is not None:
            # One slot is one frame of the clip that absolute time was trained on; slot 0 is NOVA's begin-of-video.
            x = x + nova.video_pos_embed(steps + int(self.config.nova.bos_slot))[:, :, None]
        return x

    def rotation(self, steps: Tensor) -> Rotation | None:
        """Rotation (B, N (F + L), head_dim / 2) of physical tokens at steps (B, N); None without rotary positions."""
        nova, action = self.config.nova, self.config.action
        if not nova.rotary:
            return None
        return physical_token_rotation(
            steps + int(nova.bos_slot),
            nova.video_grid,
            action.proprioception_size > 0,
            action.chunk_length,
            nova.video_encoder.head_dim,
            action.rotary_base,
            nova.cameras,
        )

    # --- whole sequences ------------------------------------------------------------------------------------------

    def forward(
        self, features: list[Tensor], inputs: PhysicalTokens, steps: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Conditions ``(Z^O, Z^A)`` of the next steps under teacher forcing: (B, N, F, D) and (B, N, L, D).

        ``Z^A`` is (B, N, F + L, D) where the Action-DiT attends to whole physical tokens, and (B, N, text length + F,
        D), the raw text and frame tokens, in the ablation NoAR.

        Args:
            features: per row (length, text_dim) text features.
            inputs: the steps read.
            steps: (B, N) int64 number of each step in its rollout, consecutive.
            context: (B, N) int64 physical tokens that each step sees, itself included; None: all.
        """
        prefix = self.prefix(features)
        batch, count = steps.shape
        x = torch.cat([prefix, self.tokens(inputs, steps).flatten(1, 2)], 1)  # (B, S + N (F + L), D)
        length, device = prefix.shape[1], x.device
        mask = physical_token_mask(length, count, self.frame_tokens, self.config.action.chunk_length, device)
        if context is not None:
            mask = limit_context(mask, context, length, self.block)
        outputs = self.nova.video_encoder(x, mask, self._with_prefix(self.rotation(steps), batch, length))
        return self._conditions(outputs[:, length:].unflatten(1, (count, self.block)), outputs[:, :length])

    def _with_prefix(self, rotation: Rotation | None, batch: int, length: int) -> Rotation | None:
        """Adds the prefix: text stands still, slot 0 is turned as in NOVA."""
        if rotation is None:
            return None
        cos, sin = rotation
        ones, zeros = cos.new_ones(batch, length, cos.shape[-1]), sin.new_zeros(batch, length, sin.shape[-1])
        if (slot := self._prefix_rotation(length, cos.device)) is not None:
            ones, zeros = slot[0].expand_as(ones), slot[1].expand_as(zeros)
        return torch.cat([ones, cos], 1), torch.cat([zeros, sin], 1)

    def _prefix_rotation(self, length: int, device: torch.device) -> Rotation | None:
        """Rotation (S, head_dim / 2) of a prefix of ``length`` tokens; None: nothing in it is turned."""
        nova = self.config.nova
        return self.nova.slot_rotation(length - nova.video_tokens, 0, 1, device) if nova.bos_slot else None

    def _conditions(self, outputs: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Splits block outputs (B, N, F + L, D) and applies NOVA's mixer to the patches' part."""
        frames, actions = outputs.split([self.frame_tokens, self.config.action.chunk_length], 2)
        if not self.config.autoregressive:
            text = prefix[:, None, : self.config.nova.text_length].expand(-1, frames.shape[1], -1, -1)
            return frames, torch.cat([text, frames], 2)
        if self.config.action.conditions == "token":
            actions = outputs
        mixer = self.nova.video_encoder.mixer
        if mixer is not None and self.config.nova.bos_slot:
            patches = self.config.nova.video_tokens
            bos = prefix[:, None, -patches:]
            frames = torch.cat([mixer(bos, frames[:, :, :patches]), frames[:, :, patches:]], 2)
        return frames, actions

    # --- training -------------------------------------------------------------------------------------------------

    def loss(
        self,
        features: list[Tensor],
        inputs: PhysicalTokens,
        steps: Tensor,
        targets: Targets,
        *,
        context: Tensor | None = None,
        frame_fraction: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> PARLoss:
        """Teacher-forcing loss; see :meth:`forward` for the arguments.

        ``frame_fraction`` of the steps, at least one, enter the frame loss: its expectation is that of all steps.
        """
        z_frame, z_action = self(features, inputs, steps, context)
        action = self._action_loss(z_action, targets, generator)
        frame = self._frame_loss(z_frame, inputs, targets, frame_fraction, generator)
        return PARLoss(action + frame, action, frame)

    def _action_loss(self, z_action: Tensor, targets: Targets, generator: torch.Generator | None) -> Tensor:
        if targets.actions is None:
            return z_action.new_zeros(())
        if isinstance(self.action_detokenizer, RegressionHead):
            prediction = self.action_detokenizer(z_action, len(self.config.action.foresight))
            return regression_loss(prediction, targets.actions, targets.action_weights)
        return action_loss(
            self.action_detokenizer,
            z_action.flatten(0, 1),
            targets.actions.flatten(0, 1).float(),
            targets.action_weights.flatten(0, 1),
            self.action_detokenizer.process,
            self.config.noise_samples,
            generator,
        )

    def _frame_loss(
        self,
        z_frame: Tensor,
        inputs: PhysicalTokens,
        targets: Targets,
        fraction: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        if targets.latents is None or targets.frame_weights is None or not self.config.imagination:
            return z_frame.new_zeros(())
        chosen = draw_frames(targets.frame_weights, fraction, z_frame.device, generator)
        if len(chosen) == 0:
            return z_frame.new_zeros(())
        latents = targets.latents.flatten(0, 1)[chosen].to(self.nova.dtype)
        known = draw_known_patches(len(chosen), self.config.nova.image_tokens, generator, chosen.device)
        condition, last = z_frame.flatten(0, 1)[chosen], inputs.latents.flatten(0, 1)[chosen]
        if self.frame_regression is not None:
            z = self.nova.encode_frame(latents, condition, known, last)
            masked = (~self.nova.known_mask(known)).float()
            loss = regression_loss(self.frame_regression(z), self.nova.patchify(latents), masked)
            return loss + change_loss(self.nova, z, latents, known, last)
        repeat = self.config.noise_samples
        return frame_loss(self.nova, latents, condition, known, repeat, generator, last)

    # --- inference ------------------------------------------------------------------------------------------------

    def start(self, features: list[Tensor], slots: int) -> PARStream:
        """Reads the prefix of each row; the stream remembers up to ``slots`` physical tokens."""
        prefix = self.prefix(features)
        rotation = self._prefix_rotation(prefix.shape[1], prefix.device)
        outputs, cache = self.nova.video_encoder.prefill(prefix, rotation, slots, self.block)
        return PARStream(cache, outputs)

    def step(self, stream: PARStream, inputs: PhysicalTokens, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reads one more physical token (N = 1): conditions of the next step, as :meth:`forward` gives them, without N.

        Args:
            stream: the past; it is extended.
            inputs: the physical token of every row, or of ``rows``.
            rows: (k,) int64 rows that go on, in ascending order; None: all.
        """
        if rows is not None and len(rows) < len(stream.cache.age):
            part = PARStream(stream.cache.take(rows), stream.prefix[rows])
            conditions = self.step(part, inputs)
            stream.cache.put(rows, part.cache)
            return conditions
        steps = stream.cache.age[:, None]
        x = self.tokens(inputs, steps)[:, 0]
        inside = physical_token_mask(0, 1, self.frame_tokens, self.config.action.chunk_length, x.device)
        outputs = self.nova.video_encoder.step(x, inside, self.rotation(steps), stream.cache)
        z_frame, z_action = self._conditions(outputs[:, None], stream.prefix)
        return z_frame[:, 0], z_action[:, 0]

    def sample_actions(
        self,
        z_action: Tensor,
        start: Tensor,
        steps: int,
        generator: torch.Generator | None = None,
        shift: float | None = None,
    ) -> Tensor:
        """Draws normalised chunks (B, L, A) float32 from :meth:`step`'s conditions and starting noise (B, L + K, A).

        Args:
            z_action: from :meth:`forward` or :meth:`step`.
            start: N(0, 1) noise, or zeros for the deterministic policy.
            steps: denoising steps.
            generator: source of the noise that a stochastic (DDPM) step adds; None: no such noise.
            shift: of the noise levels, see :meth:`NoiseProcess.sampler`.

        A model with regression de-tokenizers has one answer, whatever the noise.
        """
        if isinstance(self.action_detokenizer, RegressionHead):
            return self.action_detokenizer(z_action).float()
        process = self.action_detokenizer.process
        targets = sample_actions(self.action_detokenizer, z_action, process, steps, start, generator, shift)
        return targets[:, : self.config.action.chunk_length]

    def sample_frame(
        self, z_frame: Tensor, last: Tensor, noise: NoiseSource, config: GenerationConfig | None = None
    ) -> Tensor:
        """Draws scaled latents (B, C, h, w) of the next frames from conditions (B, F, D).

        Args:
            z_frame: from :meth:`forward` or :meth:`step`.
            last: (B, C, h, w) scaled latents of the frames before, which were read last.
            noise: random numbers.
            config: numbers of steps, without guidance; None: the model's own. Not used by a model with regression
                de-tokenizers.

        Raises:
            ValueError: the model has no frame path, or guidance was asked for.
        """
        if not self.config.imagination:
            raise ValueError(
                f"{self.config.name} predicts no frames: it was built without its frame path (imagination)"
            )
        if self.frame_regression is not None:
            nothing = torch.zeros(len(z_frame), 0, dtype=torch.long, device=z_frame.device)
            blank = z_frame.new_zeros(len(z_frame), self.config.nova.latent_channels, *self.config.nova.latent_size)
            return self.nova.unpatchify(self.frame_regression(self.nova.encode_frame(blank, z_frame, nothing, last)))
        config = config or self.config.generation
        if config.guided:
            raise ValueError(f"guidance is {config.guidance}; frames of a rollout are drawn without: set it to 1")
        order = noise.order(len(z_frame), self.config.nova.image_tokens)
        return generate_frame(self.nova, z_frame, noise, order, config, last=last)

    def change_probability(self, z_frame: Tensor, last: Tensor) -> Tensor | None:
        """Probabilities (B, rows, columns) float32 that patches of the next frame differ from the last one's.

        See :meth:`sample_frame` for the arguments. None: the model's spatial encoder does not read the last frame.
        """
        if not self.config.imagination or self.nova.image_encoder.change_head is None:
            return None
        nothing = torch.zeros(len(z_frame), 0, dtype=torch.long, device=z_frame.device)
        logits = self.nova.image_encoder.change_head(self.nova.encode_frame(last, z_frame, nothing, last))
        return logits[..., 0].float().sigmoid().unflatten(1, self.config.nova.image_grid)
