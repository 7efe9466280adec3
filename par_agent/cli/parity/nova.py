"""Every output of NOVA that reference files hold, recomputed stage by stage (for `par-agent check-nova`).

Inputs come by reference name without the prefix ``in.``; results carry the names of the outputs without ``out.``.
Each stage starts from the model's own results, never from reference outputs. Sizes follow from the inputs and the
model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from par_agent.cli.parity import Stages, recorded
from par_agent.modeling.adaln import timestep_frequencies
from par_agent.modeling.attention_mask import block_causal_mask
from par_agent.modeling.config import GenerationConfig
from par_agent.modeling.diffusion import NoiseProcess, Sampler
from par_agent.modeling.embeddings import space_embedding
from par_agent.modeling.frame_loss import frame_errors
from par_agent.modeling.nova.generation import denoise, generate_clip, mask_schedule
from par_agent.modeling.nova.model import DEFAULT_FPS, NOVA
from par_agent.modeling.spatial_encoder import scatter_tokens

STAGES = (
    "text", "motion", "prefix", "video", "video_kv", "image", "decoder", "denoise", "denoise_ddpm", "denoise_cfg",
    "loss_fm", "loss_ddpm", "loss_fm_nomixer", "loss_t1", "gen", "gen_nocfg", "gen_ddpm", "gen_i2v",
)  # fmt: skip
"""Methods of the reference computation, each of which gives the outputs whose names start with its own."""


def nova_stages(nova: NOVA, inputs: Mapping[str, Tensor], description: Mapping[str, Any]) -> Stages:
    """Stages by name; ``description`` lies beside the reference file: step counts, guidance and schedulers."""
    reference = _Reference(nova, inputs, description)
    return {stage: getattr(reference, stage) for stage in STAGES}


class ReplayedNoise:
    """Noise of a reference run.

    Args:
        start: (sets, B, C, h, w), one block per set of patches that was drawn.
        step: (sets * steps, B, C, h, w), the blocks of each set in the order of its denoising steps; None: no such
            noise.
        order: (B, M) int64, the order in which patches were drawn.
    """

    def __init__(self, start: Tensor, step: Tensor | None = None, order: Tensor | None = None) -> None:
        steps: Sequence[Sequence[Tensor]] = [()] * len(start)
        if step is not None:
            steps = [blocks.unbind(0) for blocks in step.chunk(len(start))]
        self._sets = iter(zip(start, steps, strict=True))
        self._steps: Iterator[Tensor] = iter(())
        self._order = order

    def start(self, shape: tuple[int, ...]) -> Tensor:
        start, steps = next(self._sets)
        self._steps = iter(steps)
        return start.reshape(shape)

    def step(self, shape: tuple[int, ...]) -> Tensor:
        return next(self._steps).reshape(shape)

    def order(self, batch: int, patches: int) -> Tensor:
        assert self._order is not None and self._order.shape == (batch, patches)
        return self._order


class _Reference:
    """The reference computation, one method per group of outputs; shared results are computed once."""

    def __init__(self, nova: NOVA, inputs: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
        self.nova, self.inputs, self.description = nova, inputs, description
        self.motion_inputs = inputs.get("motion.flow"), inputs.get("motion.fps")

    # --- shared results ---

    @cached_property
    def latents(self) -> Tensor:
        """(B, C, N, h, w)."""
        return self.inputs["latents"].to(self.nova.dtype)

    @cached_property
    def frames(self) -> Tensor:
        """(B N, C, h, w), sample-major."""
        return self.latents.transpose(1, 2).flatten(0, 1)

    @cached_property
    def features(self) -> list[Tensor]:
        return [self.inputs[f"text.features_{i}"] for i in range(len(self.latents))]

    @cached_property
    def null_features(self) -> list[Tensor]:
        return [feature[:0] for feature in self.features]

    @cached_property
    def prefix_tokens(self) -> Tensor:
        return self.nova.prefix(self.features, *self.motion_inputs)

    @cached_property
    def slot_outputs(self) -> Tensor:
        return self.nova.encode_video(self.latents, self.prefix_tokens)

    @cached_property
    def condition(self) -> Tensor:
        return self.nova.mix(self.slot_outputs).flatten(0, 1)

    @cached_property
    def known_ids(self) -> Tensor:
        return self.inputs["image.prev_ids"][..., 0]

    @cached_property
    def pred_ids(self) -> Tensor:
        return self.inputs["image.pred_ids"][..., 0]

    @cached_property
    def image_outputs(self) -> Tensor:
        return self.nova.encode_frame(self.frames, self.condition, self.known_ids)

    @cached_property
    def flow_process(self) -> NoiseProcess:
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        return NoiseProcess(FlowMatchEulerDiscreteScheduler(**self.description["fm"]))

    @cached_property
    def ddpm_process(self) -> NoiseProcess:
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        return NoiseProcess(DDPMScheduler(**self.description["ddpm"]))

    # --- stages ---

    def text(self) -> dict[str, Tensor]:
        embed = self.nova.text_embed
        padded, null = embed.pad(self.features), embed.pad(self.null_features)
        return {"padded": padded, "tokens": embed(padded), "null_padded": null, "null_tokens": embed(null)}

    def motion(self) -> dict[str, Tensor]:
        text = self.nova.config.text_length
        default = self.nova.prefix(self.features, None, torch.full_like(self.inputs["motion.fps"], DEFAULT_FPS))
        return {"tokens": self.prefix_tokens[:, text:], "tokens_default": default[:, text:]}

    def prefix(self) -> dict[str, Tensor]:
        return {"": self.prefix_tokens}

    def video(self) -> dict[str, Tensor]:
        nova, (batch, _, total) = self.nova, self.latents.shape[:3]
        encoder, (rows, columns) = nova.video_encoder, nova.config.video_grid
        patches = encoder.patch_embed(self.latents[:, :, :-1].transpose(1, 2).flatten(0, 1))
        slots = nova.slot_tokens(self.latents[:, :, :-1], batch, 0, total)
        with recorded({f"block{i}": block for i, block in enumerate(encoder.blocks)}) as blocks:
            outputs = nova.encode_video(self.latents, self.prefix_tokens)
        results = {
            "patch": patches.unflatten(0, (batch, total - 1)),
            "in": slots,
            "attn_allowed": block_causal_mask(self.prefix_tokens.shape[1], total, rows * columns).to(torch.uint8),
            "out": outputs,
            "mixed": nova.mix(outputs),
            **blocks,
        }
        if nova.config.absolute_space:
            results["space_embed"] = space_embedding(rows, columns, slots.shape[-1])
        if nova.video_pos_embed is not None:
            results["time_embed"] = nova.time_embedding(0, total, total)[:, None]
        return results

    def video_kv(self) -> dict[str, Tensor]:
        first, stream = self.nova.start(self.prefix_tokens, self.latents.shape[2])
        outputs = [first, *(self.nova.advance(frame, stream)[1] for frame in self.latents.unbind(2)[:-1])]
        length = stream.cache.prefix + int(stream.cache.filled[0].sum()) * stream.cache.block
        return {"out": torch.stack(outputs, 1), "cache_len": torch.tensor([length])}

    def image(self) -> dict[str, Tensor]:
        nova, encoder = self.nova, self.nova.image_encoder
        known = nova.known_mask(self.known_ids)
        with recorded({f"block{i}": block for i, block in enumerate(encoder.blocks)}) as blocks:
            outputs = nova.encode_frame(self.frames, self.condition, self.known_ids)
        results = {
            "cond": self.condition,
            "patch": encoder.patch_embed(self.frames),
            "patchified": nova.patchify(self.frames),
            "mask": (~known)[..., None].to(self.frames.dtype),
            "masked": nova.mask_patches(self.frames, known),
            "out": outputs,
            "out_first": nova.encode_frame(self.frames, self.condition, self.known_ids[:, :0]),
            **blocks,
        }
        if nova.config.absolute_space:
            results["space_embed"] = space_embedding(*nova.config.image_grid, outputs.shape[-1])
        return results

    def decoder(self) -> dict[str, Tensor]:
        decoder, z, time = self.nova.image_decoder, self.image_outputs, self.inputs["decoder.t"]
        x, ids = self.nova.patchify(self.inputs["decoder.x_t"]), self.pred_ids
        output = decoder(x, time, z)
        kept = scatter_tokens(x, ids, output.gather(1, ids[..., None].expand(-1, -1, x.shape[-1])))
        return {
            "time_freq": timestep_frequencies(time),
            "time_cond": decoder.time_cond_embed(time, z),
            "out": output,
            "out_tok": decoder(x, self.inputs["decoder.t_tok"], z),
            "out_pred_ids": kept,
            "out_pred_ids_latent": self.nova.unpatchify(kept),
        }

    def denoise(self) -> dict[str, Tensor]:
        x, sampler = self._denoise(self.flow_process, None)
        return {"out": x, "sigmas": torch.tensor(sampler.sigmas), "timesteps": torch.tensor(sampler.times)}

    def denoise_ddpm(self) -> dict[str, Tensor]:
        x, sampler = self._denoise(self.ddpm_process, self.inputs["denoise_ddpm.step_noise"])
        timesteps = torch.tensor(sampler.times).long()
        return {"out": x, "timesteps": timesteps, "alphas_cumprod": self.ddpm_process.table}

    def denoise_cfg(self) -> dict[str, Tensor]:
        batch, _, total = self.latents.shape[:3]
        null = self.nova.prefix(self.null_features, *self.motion_inputs)
        condition = self.nova.start(torch.cat([self.prefix_tokens, null]), total)[0]
        first = self.latents[:, :, 0].repeat(2, 1, 1, 1)
        known, ids = self.known_ids[::total], self.pred_ids[::total]
        z = self.nova.encode_frame(first, condition, known.repeat(2, 1))
        noise = ReplayedNoise(self.inputs["denoise_cfg.noise"][None])
        x = denoise(
            self.nova, z, self.flow_process, self.description["steps"], noise, ids, self.description["cfg_scale"]
        )
        return {"cond": condition, "z": z, "out": x[:batch]}

    def loss_fm(self) -> dict[str, Tensor]:
        return self._loss(self.flow_process, self.latents, self.condition, self.known_ids)

    def loss_ddpm(self) -> dict[str, Tensor]:
        return self._loss(self.ddpm_process, self.latents, self.condition, self.known_ids)

    def loss_fm_nomixer(self) -> dict[str, Tensor]:
        return self._loss(self.flow_process, self.latents, self.slot_outputs.flatten(0, 1), self.known_ids)

    def loss_t1(self) -> dict[str, Tensor]:
        total, first = self.latents.shape[2], self.latents[:, :, :1]
        condition = self.nova.encode_video(first, self.prefix_tokens).flatten(0, 1)
        return self._loss(self.flow_process, first, condition, self.known_ids[::total], "loss_t1")

    def gen(self) -> dict[str, Tensor]:
        latents = self._generate(self.flow_process, self.description["gen_cfg_scale"])
        return {"prefix": self._generation_prefix(guided=True), "latents": latents}

    def gen_nocfg(self) -> dict[str, Tensor]:
        return {"latents": self._generate(self.flow_process, 1.0)}

    def gen_ddpm(self) -> dict[str, Tensor]:
        step, guidance = self.inputs["gen_ddpm.step_noise"], self.description["gen_cfg_scale"]
        return {"latents": self._generate(self.ddpm_process, guidance, step)}

    def gen_i2v(self) -> dict[str, Tensor]:
        first, guidance = self.latents[:, :, 0], self.description["gen_cfg_scale"]
        return {"latents": self._generate(self.flow_process, guidance, first_frame=first)}

    # --- helpers ---

    def _denoise(self, process: NoiseProcess, step: Tensor | None) -> tuple[Tensor, Sampler]:
        steps = self.description["steps"]
        noise = ReplayedNoise(self.inputs["denoise.noise"][None], step)
        return denoise(self.nova, self.image_outputs, process, steps, noise, self.pred_ids), process.sampler(steps)

    def _loss(
        self, process: NoiseProcess, latents: Tensor, condition: Tensor, known_ids: Tensor, source: str = "loss"
    ) -> dict[str, Tensor]:
        """NOVA's loss of clips, whose first frame (text to image) weighs as much as the later ones (image to image)."""
        total, frames = latents.shape[2], latents.transpose(1, 2).flatten(0, 1)
        noise, index = self.inputs[f"{source}.noise"], self.inputs[f"{source}.t_index"]
        z = self.nova.encode_frame(frames, condition, known_ids)
        errors, noised, prediction = frame_errors(self.nova, frames, z, known_ids, process, noise, index)
        results = {"x_t": self.nova.unpatchify(noised.x), "timestep": noised.time, "pred": prediction}
        if total == 1:
            return {**results, "loss": errors.sum()[None], "total": errors.sum()[None]}
        by_frame = errors.unflatten(0, (-1, total)).sum((0, 2))
        first, later = by_frame[:1] * total, by_frame[1:].sum(0, keepdim=True) * (total / (total - 1))
        return {**results, "loss_t2i": first, "loss_i2i": later, "total": first + later}

    def _generation_prefix(self, guided: bool) -> Tensor:
        flow = self.inputs.get("motion.flow")
        prompts = [self.features, self.null_features] if guided else [self.features]
        return torch.cat([self.nova.prefix(features, flow) for features in prompts])

    def _generate(
        self, process: NoiseProcess, guidance: float, step: Tensor | None = None, first_frame: Tensor | None = None
    ) -> Tensor:
        start = self.inputs["gen.noise"]
        config = GenerationConfig(self.description["K"], self.description["steps"], guidance)
        prefix = self._generation_prefix(config.guided)
        sets = len(mask_schedule(self.nova.config.image_tokens, config.mask_steps))
        noise = ReplayedNoise(start[:, :sets].flatten(0, 1), step, self.inputs["gen.pred_ids"][..., 0])
        clip = generate_clip(self.nova, prefix, len(start), noise, config, process, first_frame)
        return torch.stack(list(clip), 2)
