"""Options of `par-agent train-baseline`."""

from __future__ import annotations

from dataclasses import dataclass

from par_agent.baselines.common import MethodConfig
from par_agent.baselines.methods import METHODS
from par_agent.errors import UserError
from par_agent.training.config import TrainingConfig
from par_agent.utils.checked import Strength
from par_agent.utils.json_fields import build, parse_options


@dataclass(frozen=True, kw_only=True)
class BaselineConfig(TrainingConfig):
    """Trains a baseline on rendered demonstrations; run the same command again to resume."""

    settings_file = "train_baseline.json"

    method: str = "act"
    """What to train: act, bc-t, dp, icrt, rdt, or a method of your own (`benchmarks/baselines/README.md`)."""
    model: tuple[str, ...] = ()
    """Sizes of the model that differ from the method's defaults, as key=value: width=128 horizon=16."""
    proprioception_noise: Strength = 0.0
    """Noise on joint positions, in standard deviations of the data."""
    recovery_noise: Strength = 0.25
    """Noise on the joint positions that a chunk starts from; see `par-agent finetune`."""
    compile: bool = False
    """Compiles the transformer's blocks with torch.compile, which needs a C++ compiler. RDT trains nearly twice as fast
    with it on a CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise UserError(f"method is {self.method!r}; it must be one of {', '.join(METHODS)}")

    def sizes(self, **data: object) -> MethodConfig:
        """The method's sizes, with those that follow from the ``data``."""
        asked = parse_options(self.model)
        if settled := sorted(asked.keys() & data.keys()):
            raise UserError(
                f"--model {settled[0]}=... is not to be given: it follows from the data and the frame encoder"
            )
        return build(METHODS[self.method].Config, {**data, **asked})
