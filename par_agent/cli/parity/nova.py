"""Every output of NOVA that reference files hold, recomputed stage by stage (for `par-agent check-nova`).

Inputs come by reference name without the prefix ``in.``; results carry the names of the outputs without ``out.``.
Each stage starts from the model's own results, never from reference outputs. Sizes follow from the inputs and the
model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from par_agent.cli.parity.vae import recorded
from par_agent.modeling.adaln import timestep_frequencies
from par_agent.modeling.attention_mask import block_causal_mask
from par_agent.modeling.config import GenerationConfig
from par_agent.modeling.diffusion import NoiseProcess, Sampler
from par_agent.modeling.embeddings import space_embedding
from par_agent.modeling.frame_loss import FrameNoise, frame_loss
from par_agent.modeling.nova.generation import denoise, generate_clip, mask_schedule
from par_agent.modeling.nova.model import DEFAULT_FPS, NOVA
from par_agent.modeling.spatial_encoder import scatter_tokens


@torch.inference_mode()
def transformer_outputs(
    nova: NOVA, inputs: Mapping[str, Tensor], description: Mapping[str, Any], names: Collection[str]
) -> dict[str, Tensor | Exception]:
    """Outputs by reference name; a stage that fails has its exception in place of its outputs.

    Args:
        nova: the model.
        inputs: input tensors.
        description: the description that lies beside the reference file (step counts, guidance, schedulers).
        names: outputs that are wanted; stages that give none of them are not run.
    """
    stages = Stages(nova, inputs, description)
    results: dict[str, Tensor | Exception] = {}
    for stage, method in STAGES.items():
        wanted = [name for name in names if name.split(".")[0] == stage]
        if not wanted:
            continue
        try:
            results |= method(stages)
        except (RuntimeError, ValueError, TypeError, LookupError, AssertionError, StopIteration) as error:
            results |= dict.fromkeys(wanted, error)
    return results


class ReplayedNoise:
    """Noise of a reference run.

    Args:
        start: (S, B, C, h, w), one block per set of patches that was drawn.
        step: (S * blocks, B, C, h, w), the blocks of each set in the order of its denoising steps; None: no such noise.
        order: (B, F) int64, the order in which patches were drawn.
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


class Stages:
    """The reference computation, one method per group of outputs; shared results are computed once."""

    def __init__(self, nova: NOVA, inputs: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
        self.nova, self.inputs, self.description = nova, inputs, description

    # --- shared results ---

    @cached_property
    def latents(self) -> Tensor:
        """(B, C, T, h, w)."""
        return self.inputs["latents"].to(self.nova.dtype)

    @cached_property
    def frames(self) -> Tensor:
        """(B T, C, h, w), sample-major."""
        return self.latents.transpose(1, 2).flatten(0, 1)

    @cached_property
    def features(self) -> list[Tensor]:
        return [self.inputs[f"text.features_{i}"] for i in range(len(self.latents))]

    @cached_property
    def null_features(self) -> list[Tensor]:
        return [feature[:0] for feature in self.features]

    @cached_property
    def motion_inputs(self) -> tuple[Tensor | None, Tensor | None]:
        return self.inputs.get("motion.flow"), self.inputs.get("motion.fps")

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
        return {
            "text.padded": padded,
            "text.tokens": embed(padded),
            "text.null_padded": null,
            "text.null_tokens": embed(null),
        }

    def motion(self) -> dict[str, Tensor]:
        text = self.nova.config.text_length
        default = self.nova.prefix(self.features, None, torch.full_like(self.inputs["motion.fps"], DEFAULT_FPS))
        return {"motion.tokens": self.prefix_tokens[:, text:], "motion.tokens_default": default[:, text:]}

    def prefix(self) -> dict[str, Tensor]:
        return {"prefix": self.prefix_tokens}

    def video(self) -> dict[str, Tensor]:
        nova, (batch, _, total) = self.nova, self.latents.shape[:3]
        encoder, (rows, columns) = nova.video_encoder, nova.config.video_grid
        patches = encoder.patch_embed(self.latents[:, :, :-1].transpose(1, 2).flatten(0, 1))
        slots = nova.slot_tokens(self.latents[:, :, :-1], batch, 0, total)
        length = self.prefix_tokens.shape[1]
        with recorded({f"video.block{i}": block for i, block in enumerate(encoder.blocks)}) as blocks:
            outputs = nova.encode_video(self.latents, self.prefix_tokens)
        results = {
            "video.patch": patches.unflatten(0, (batch, total - 1)),
            "video.in": slots,
            "video.attn_allowed": block_causal_mask(length, total, rows * columns).to(torch.uint8),
            "video.out": outputs,
            "video.mixed": nova.mix(outputs),
            **blocks,
        }
        if nova.config.absolute_space:
            results["video.space_embed"] = space_embedding(rows, columns, slots.shape[-1])
        if nova.video_pos_embed is not None:
            results["video.time_embed"] = nova.time_embedding(0, total, total)[:, None]
        return results

    def video_kv(self) -> dict[str, Tensor]:
        first, stream = self.nova.start(self.prefix_tokens, self.latents.shape[2])
        outputs = [first, *(self.nova.advance(frame, stream)[1] for frame in self.latents.unbind(2)[:-1])]
        length = stream.cache.prefix + int(stream.cache.filled[0].sum()) * stream.cache.block
        return {"video_kv.out": torch.stack(outputs, 1), "video_kv.cache_len": torch.tensor([length])}

    def image(self) -> dict[str, Tensor]:
        nova, encoder = self.nova, self.nova.image_encoder
        rows, columns = nova.config.image_grid
        known = nova.known_mask(self.known_ids)
        with recorded({f"image.block{i}": block for i, block in enumerate(encoder.blocks)}) as blocks:
            outputs = nova.encode_frame(self.frames, self.condition, self.known_ids)
        results = {
            "image.cond": self.condition,
            "image.patch": encoder.patch_embed(self.frames),
            "image.patchified": nova.patchify(self.frames),
            "image.mask": (~known)[..., None].to(self.frames.dtype),
            "image.masked": nova.mask_patches(self.frames, known),
            "image.out": outputs,
            "image.out_first": nova.encode_frame(self.frames, self.condition, self.known_ids[:, :0]),
            **dict(blocks),
        }
        if nova.config.absolute_space:
            results["image.space_embed"] = space_embedding(rows, columns, outputs.shape[-1])
        return results

    def decoder(self) -> dict[str, Tensor]:
        decoder, z, time = self.nova.image_decoder, self.image_outputs, self.inputs["decoder.t"]
        x = self.nova.patchify(self.inputs["decoder.x_t"])
        output = decoder(x, time, z)
        ids = self.pred_ids
        kept = scatter_tokens(x, ids, output.gather(1, ids[..., None].expand(-1, -1, x.shape[-1])))
        return {
            "decoder.time_freq": timestep_frequencies(time),
            "decoder.time_cond": decoder.time_cond_embed(time, z),
            "decoder.out": output,
            "decoder.out_tok": decoder(x, self.inputs["decoder.t_tok"], z),
            "decoder.out_pred_ids": kept,
            "decoder.out_pred_ids_latent": self.nova.unpatchify(kept),
        }

    def denoise(self) -> dict[str, Tensor]:
        x, sampler = self._denoise(self.flow_process, None)
        return {
            "denoise.out": x,
            "denoise.sigmas": torch.tensor(sampler.sigmas),
            "denoise.timesteps": torch.tensor(sampler.times),
        }

    def denoise_ddpm(self) -> dict[str, Tensor]:
        x, sampler = self._denoise(self.ddpm_process, self.inputs["denoise_ddpm.step_noise"])
        return {
            "denoise_ddpm.out": x,
            "denoise_ddpm.timesteps": torch.tensor(sampler.times).long(),
            "denoise_ddpm.alphas_cumprod": self.ddpm_process.table,
        }

    def denoise_cfg(self) -> dict[str, Tensor]:
        batch, _, total = self.latents.shape[:3]
        null = self.nova.prefix(self.null_features, *self.motion_inputs)
        condition = self.nova.start(torch.cat([self.prefix_tokens, null]), total)[0]
        first = self.latents[:, :, 0].repeat(2, 1, 1, 1)
        known, ids = self.known_ids[::total], self.pred_ids[::total]
        z = self.nova.encode_frame(first, condition, known.repeat(2, 1))
        sampler = self.flow_process.sampler(self.description["steps"])
        noise = ReplayedNoise(self.inputs["denoise_cfg.noise"][None])
        x = denoise(self.nova, z, sampler, noise, ids, self.description["cfg_scale"])
        return {"denoise_cfg.cond": condition, "denoise_cfg.z": z, "denoise_cfg.out": x[:batch]}

    def loss_fm(self) -> dict[str, Tensor]:
        return self._loss("loss_fm", self.flow_process, self.latents, self.condition, self.known_ids, "loss")

    def loss_ddpm(self) -> dict[str, Tensor]:
        return self._loss("loss_ddpm", self.ddpm_process, self.latents, self.condition, self.known_ids, "loss")

    def loss_fm_nomixer(self) -> dict[str, Tensor]:
        condition = self.slot_outputs.flatten(0, 1)
        return self._loss("loss_fm_nomixer", self.flow_process, self.latents, condition, self.known_ids, "loss")

    def loss_t1(self) -> dict[str, Tensor]:
        total = self.latents.shape[2]
        latents = self.latents[:, :, :1]
        condition = self.nova.encode_video(latents, self.prefix_tokens).flatten(0, 1)
        return self._loss("loss_t1", self.flow_process, latents, condition, self.known_ids[::total], "loss_t1")

    def gen(self) -> dict[str, Tensor]:
        guidance = self.description["gen_cfg_scale"]
        latents = self._generate(self.flow_process, guidance, self.inputs["gen.noise"])
        return {"gen.prefix": self._generation_prefix(guided=True), "gen.latents": latents}

    def gen_nocfg(self) -> dict[str, Tensor]:
        return {"gen_nocfg.latents": self._generate(self.flow_process, 1.0, self.inputs["gen.noise"])}

    def gen_ddpm(self) -> dict[str, Tensor]:
        step, guidance = self.inputs["gen_ddpm.step_noise"], self.description["gen_cfg_scale"]
        return {"gen_ddpm.latents": self._generate(self.ddpm_process, guidance, self.inputs["gen.noise"], step)}

    def gen_i2v(self) -> dict[str, Tensor]:
        first, guidance = self.latents[:, :, 0], self.description["gen_cfg_scale"]
        return {
            "gen_i2v.latents": self._generate(self.flow_process, guidance, self.inputs["gen.noise"], first_frame=first)
        }

    # --- helpers ---

    def _denoise(self, process: NoiseProcess, step: Tensor | None) -> tuple[Tensor, Sampler]:
        sampler = process.sampler(self.description["steps"])
        noise = ReplayedNoise(self.inputs["denoise.noise"][None], step)
        return denoise(self.nova, self.image_outputs, sampler, noise, self.pred_ids), sampler

    def _loss(
        self, name: str, process: NoiseProcess, latents: Tensor, condition: Tensor, known_ids: Tensor, source: str
    ) -> dict[str, Tensor]:
        noise = FrameNoise(self.inputs[f"{source}.noise"], self.inputs[f"{source}.t_index"])
        result = frame_loss(self.nova, latents, condition, known_ids, process, noise, self.description["repeat"])
        tensors = {
            "total": result.total,
            "x_t": self.nova.unpatchify(result.noised.x),
            "timestep": result.noised.time,
            "pred": result.prediction,
        }
        if result.first is None or result.later is None:
            tensors["loss"] = result.total
        else:
            tensors |= {"loss_t2i": result.first, "loss_i2i": result.later}
        return {f"{name}.{key}": value[None] if value.ndim == 0 else value for key, value in tensors.items()}

    def _generation_prefix(self, guided: bool) -> Tensor:
        flow = self.inputs.get("motion.flow")
        prefixes = [self.nova.prefix(self.features, flow)]
        prefixes += [self.nova.prefix(self.null_features, flow)] if guided else []
        return torch.cat(prefixes)

    def _generate(
        self,
        process: NoiseProcess,
        guidance: float,
        start: Tensor,
        step: Tensor | None = None,
        first_frame: Tensor | None = None,
    ) -> Tensor:
        config = GenerationConfig(self.description["K"], self.description["steps"], guidance)
        prefix = self._generation_prefix(config.guided)
        sets = len(mask_schedule(self.nova.config.image_tokens, config.mask_steps))
        noise = ReplayedNoise(start[:, :sets].flatten(0, 1), step, self.inputs["gen.pred_ids"][..., 0])
        clip = generate_clip(self.nova, prefix, len(start), noise, config, process, first_frame)
        return torch.stack(list(clip), 2)


STAGES = {
    method.__name__: method
    for method in (
        Stages.text,
        Stages.motion,
        Stages.prefix,
        Stages.video,
        Stages.video_kv,
        Stages.image,
        Stages.decoder,
        Stages.denoise,
        Stages.denoise_ddpm,
        Stages.denoise_cfg,
        Stages.loss_fm,
        Stages.loss_ddpm,
        Stages.loss_fm_nomixer,
        Stages.loss_t1,
        Stages.gen,
        Stages.gen_nocfg,
        Stages.gen_ddpm,
        Stages.gen_i2v,
    )
}
"""Which method gives the outputs whose names start so."""
