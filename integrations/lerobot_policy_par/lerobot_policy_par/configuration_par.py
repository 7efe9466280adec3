"""The options of a PAR policy in LeRobot."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig

from par_agent.modeling.config import PARConfig
from par_agent.utils.checkpoint_folders import checkpoint_folder


@PreTrainedConfig.register_subclass("par")
@dataclass
class ParConfig(PreTrainedConfig):
    """Which checkpoint of par_agent acts or is trained on, and how.

    PAR normalises joint positions, actions and images as its checkpoint says, hence LeRobot leaves them as they are.
    """

    checkpoint: str = "par-mini"
    """Bundled checkpoint of par_agent, folder, or name on the Hub."""
    instruction: str | None = None
    """What to do where an observation has no ``task``."""
    n_action_steps: int | None = None
    """Actions of a chunk that are executed before the next image is read; None: as the checkpoint says."""
    window: int = 2
    """Physical tokens of a training window."""
    seed: int = 0
    """Fixes the noise of training and of acting."""
    optimizer_lr: float = 1e-4
    optimizer_weight_decay: float = 0.05
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ACTION", "ENV"), NormalizationMode.IDENTITY)
    )

    def _chunk(self) -> tuple[int, int]:
        """Actions of a chunk, and control steps from a chunk's start that training reads actions of."""
        action = PARConfig.read(checkpoint_folder(self.checkpoint)).action
        return action.chunk_length, max(action.chunk_length, *(step + 1 for step in action.foresight), 0)

    @property
    def observation_delta_indices(self) -> list[int]:
        """Control steps at which the chunks of a training window begin, and the end of the last one."""
        return [self._chunk()[0] * number for number in range(self.window + 1)]

    @property
    def action_delta_indices(self) -> list[int]:
        """Control steps of a training window, foresight included."""
        length, reach = self._chunk()
        return list(range((self.window - 1) * length + reach))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards are read."""
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW at a constant rate."""
        return AdamWConfig(lr=self.optimizer_lr, weight_decay=self.optimizer_weight_decay)

    def get_scheduler_preset(self) -> None:
        """No schedule."""
        return None

    def validate_features(self) -> None:
        """The policy compares features with its checkpoint when it is made."""
