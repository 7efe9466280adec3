"""The released RDT-1B ManiSkill weights as a vla-eval model server, by RDT's own code.

Run it from the root of a clone of RDT's repository (thu-ml/RoboticsDiffusionTransformer), in RDT's environment with
vla-eval installed; it needs a GPU, T5-XXL and SigLIP, and RDT's code unpickles the weights:

    hf download robotics-diffusion-transformer/maniskill-model rdt/mp_rank_00_model_states.pt --local-dir .
    PYTHONPATH=. python PATH/TO/rdt_server.py --args.weights rdt/mp_rank_00_model_states.pt --address 127.0.0.1:8000

It follows RDT's `eval_sim/eval_rdt_maniskill.py`: the render camera now and one control step ago, seven joints and one
finger, every fourth of 64 actions. The weights were not available here: this file has only been run with a stand-in for
RDT's model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from vla_eval.model_servers.base import SessionContext
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import run_server
from vla_eval.specs import IMAGE_RGB, LANGUAGE, DimSpec

OTHER_CAMERAS = [None, None]
"""RDT takes images of three cameras; ManiSkill's render camera is the first, the others are missing."""


class RDTModelServer(PredictModelServer):
    """RDT-1B, fine-tuned on ManiSkill.

    Args:
        weights: file of RDT's weights.
        config: file of RDT's configuration.
        camera: name of the camera whose images are used.
        text_encoder: name or folder of T5-XXL.
        vision_encoder: name or folder of SigLIP.
        every: executes every N-th predicted action.
    """

    def __init__(
        self,
        weights: str,
        config: str = "configs/base.yaml",
        camera: str = "render_camera",
        text_encoder: str = "google/t5-v1_1-xxl",
        vision_encoder: str = "google/siglip-so400m-patch14-384",
        every: int = 4,
    ) -> None:
        import torch
        import yaml
        from scripts.maniskill_model import create_model

        with open(config) as file:
            settings = yaml.safe_load(file)
        super().__init__(chunk_size=-(-settings["common"]["action_chunk_size"] // every))
        self._camera, self._every, self._torch = camera, every, torch
        self._model = create_model(
            args=settings,
            pretrained=weights,
            dtype=torch.bfloat16,
            pretrained_text_encoder_name_or_path=text_encoder,
            pretrained_vision_encoder_name_or_path=vision_encoder,
        )
        self._texts: dict[str, Any] = {}
        self._images: dict[str, list[Any]] = {}
        self._seeds: dict[str, int] = {}

    async def on_observation(self, obs: dict[str, Any], ctx: SessionContext) -> None:
        """Stores the last two images, also while actions come from the current chunk."""
        self._images[ctx.session_id] = [*self._images[ctx.session_id][-1:], obs["images"][self._camera]]
        await super().on_observation(obs, ctx)

    def predict(self, obs: dict[str, Any], ctx: SessionContext) -> dict[str, Any]:
        """A chunk of actions (n, 8)."""
        from PIL import Image

        instruction = obs["task_description"]
        if instruction not in self._texts:
            self._texts[instruction] = self._model.encode_instruction(instruction)
        images = []
        for image in self._images[ctx.session_id]:
            images += [None if image is None else Image.fromarray(image), *OTHER_CAMERAS]
        if ctx.session_id in self._seeds:  # of this chunk alone, whatever other sessions draw meanwhile
            self._torch.manual_seed(self._seeds[ctx.session_id] + ctx.step)
        state = self._torch.from_numpy(np.asarray(obs["state"], np.float32)[None, :-1])
        actions = self._model.step(state, images, self._texts[instruction])
        return {"actions": actions[0, :: self._every].cpu().numpy()}

    async def on_episode_start(self, config: dict[str, Any], ctx: SessionContext) -> None:
        """Forgets the images, and notes the seed of the noise."""
        await super().on_episode_start(config, ctx)
        self._images[ctx.session_id] = [None]
        self._seeds.pop(ctx.session_id, None)
        task = config.get("task", {})
        if "seeds" in task:
            self._seeds[ctx.session_id] = task["seeds"][task.get("episode_idx", 0)]

    async def on_episode_end(self, result: dict[str, Any], ctx: SessionContext) -> None:
        """Forgets the session's images."""
        await super().on_episode_end(result, ctx)
        self._images.pop(ctx.session_id, None)

    def get_action_spec(self) -> dict[str, DimSpec]:
        """Joint targets."""
        return {"actions": DimSpec("actions", 8, "pd_joint_pos")}

    def get_observation_spec(self) -> dict[str, DimSpec]:
        """What is read."""
        return {"image": IMAGE_RGB, "state": DimSpec("state", 9, "joint_positions"), "language": LANGUAGE}


if __name__ == "__main__":
    run_server(RDTModelServer)
