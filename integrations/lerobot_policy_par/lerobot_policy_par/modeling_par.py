"""A PAR policy behind LeRobot's interface.

Letters: B batch, N physical tokens of a training window, L actions of a chunk, A action size, P proprioception.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor, nn

from lerobot_policy_par.configuration_par import ParConfig
from par_agent import PARPolicy
from par_agent.data.windows import Windows
from par_agent.errors import UserError
from par_agent.policy.observations import proprioception, read_frames
from par_agent.training.config import LossConfig
from par_agent.training.objective import Objective
from par_agent.utils.checkpoint_folders import checkpoint_folder

STATE, ACTION, IMAGES, EXTRA = "observation.state", "action", "observation.images.", "observation.extra."
FOLDER = "par"
"""Where a saved policy has its checkpoint, in par_agent's own layout."""


@dataclass(frozen=True)
class _Learning:
    """What training's objective reads of par_agent's own options."""

    seed: int
    window: int
    loss: LossConfig = field(default_factory=LossConfig)


class ParPolicy(PreTrainedPolicy):
    """Acts as :class:`par_agent.PARPolicy` does, and learns by the same loss.

    A batch has each of the checkpoint's cameras as ``observation.images.CAMERA`` (B, 3, H, W), float in [0, 1] or
    uint8, joint positions as ``observation.state`` (B, P), and instructions as ``task``. Extra observations are
    ``observation.extra.NAME``. In training there is one more dimension, time.
    """

    config_class = ParConfig
    name = "par"

    def __init__(self, config: ParConfig, **_: Any) -> None:
        super().__init__(config)
        options = {} if config.n_action_steps is None else {"n_action_steps": config.n_action_steps}
        if options and options["n_action_steps"] < config.observation_delta_indices[1]:
            options["past_actions"] = False
        self.agent = PARPolicy.from_pretrained(
            config.checkpoint, config.instruction, device=config.device, seed=config.seed, **options
        )
        checkpoint, self.transforms = self.agent.checkpoint, self.agent.transforms
        self.model, self.encoder = checkpoint.model, checkpoint.encoder
        self.encoder.requires_grad_(False)
        learning = _Learning(config.seed, config.window)
        self._objective = [Objective(self.model, self.transforms, checkpoint.text_encoder, learning)]
        self._batches = 0
        self._check_features()

    def _check_features(self) -> None:
        """Compares the dataset's or environment's features with the checkpoint's."""
        images = [IMAGES + camera for camera in self.transforms.cameras]
        wanted = {STATE: self.transforms.joint_count, ACTION: self.transforms.action_size}
        features = {**(self.config.input_features or {}), **(self.config.output_features or {})}
        for name, size in wanted.items():
            if name in features and tuple(features[name].shape) != (size,):
                raise UserError(f"{self.config.checkpoint} has {size} numbers in {name}, not {features[name].shape}")
        if self.config.input_features and not set(images) <= set(features):
            raise UserError(f"{self.config.checkpoint} reads {', '.join(images)}; there are {', '.join(features)}")

    # --- acting ---------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forgets all episodes."""
        self.agent.reset()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The next actions (B, A) in the controller's units; a chunk is planned when the last one is used up."""
        self._follow(batch)
        return self.agent.act(self._observation(batch))

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The chunks (B, L, A) that would be planned now; what :meth:`select_action` does stays the same."""
        self._follow(batch)
        return self.agent.plan(self._observation(batch)).actions

    def _follow(self, batch: dict[str, Any]) -> None:
        """Takes other instructions over, which begins new episodes."""
        if (task := batch.get("task")) is None:
            return
        texts = (task,) if isinstance(task, str) else tuple(task)
        given = texts[0] if len(set(texts)) == 1 else texts
        if given != self.agent.instruction:
            self.agent.instruction = given

    def _observation(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch as ManiSkill has it, with images (..., H, W, 3) uint8."""
        images = {}
        for camera in self.transforms.cameras:
            image = batch[IMAGES + camera]
            if image.is_floating_point():
                image = (image * 255).round().to(torch.uint8)
            images[camera] = {"rgb": image.movedim(-3, -1)}
        extra = {name: batch[EXTRA + name] for name, _ in self.transforms.extra if EXTRA + name in batch}
        return {"agent": {"qpos": batch[STATE]}, "extra": extra, "sensor_data": images}

    # --- learning -------------------------------------------------------------------------------------------------

    def get_optim_params(self) -> Iterable[nn.Parameter]:
        """All weights but the frame encoder's."""
        return self.model.parameters()

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """Loss of the next actions and frames of a batch of windows."""
        losses = self._objective[0](self._windows(batch), self._batches, self.agent.device)
        self._batches += 1
        return losses.total, {"action_loss": losses.action.item(), "frame_loss": losses.frame.item()}

    @torch.no_grad()
    def _windows(self, batch: dict[str, Any]) -> Windows:
        """A batch of control steps as windows of N physical tokens; frames are those at the chunks' boundaries."""
        action, count = self.model.config.action, self.config.window
        length, size = action.chunk_length, len(batch[STATE])
        flat = {
            name: value.flatten(0, 1)
            for name, value in batch.items()
            if name == STATE or (name.startswith((IMAGES, EXTRA)) and not name.endswith("_is_pad"))
        }
        observation = self._observation(flat)
        frames = read_frames(observation, self.transforms, size * (count + 1))
        latents = self.encoder.encode(frames).float().unflatten(0, (size, count + 1))
        positions = proprioception(observation, self.transforms).unflatten(0, (size, count + 1))
        actions, missing = batch[ACTION].float(), batch[f"{ACTION}_is_pad"]
        numbers = torch.tensor([*range(length), *action.foresight], device=actions.device)
        read = torch.arange(count, device=actions.device)[:, None] * length + numbers  # (N, L + K)
        weights = (~missing[:, read]).float()
        weights[..., length:] = weights[..., :1]
        before = actions[:, : (count - 1) * length].unflatten(1, (count - 1, length))
        steps = torch.arange(count, device=actions.device).expand(size, count)
        return Windows(
            latents=latents[:, :-1],
            next_latents=latents[:, 1:],
            proprioception=positions[:, :-1],
            past_actions=torch.cat([torch.zeros_like(actions[:, :length])[:, None], before], 1),
            past_proprioception=torch.cat([positions[:, :1], positions[:, : count - 1]], 1),
            past_actions_known=steps > 0,
            target_actions=actions[:, read],
            action_weights=weights,
            steps=steps,
            context_length=steps + 1,
            instructions=tuple(batch["task"]),
            episodes=("LeRobot",) * size,
        )

    # --- files ----------------------------------------------------------------------------------------------------

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        if state_dict is not None:  # gathered from the shards of several processes
            self.load_state_dict(state_dict)
        self.config._save_pretrained(save_directory)
        self.agent.save_pretrained(save_directory / FOLDER)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> ParPolicy:
        """A policy that was saved by LeRobot: a folder, or a name on the Hub."""
        folder = checkpoint_folder(pretrained_name_or_path, revision)
        config = PreTrainedConfig.from_pretrained(folder) if config is None else config
        config.checkpoint = str(folder / FOLDER)
        return cls(config).eval()
