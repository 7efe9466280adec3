"""Options of `par-agent finetune`, in the groups that its --help shows."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from par_agent.errors import UserError
from par_agent.modeling.config import PARConfig
from par_agent.modeling.presets import preset
from par_agent.tasks import TASKS
from par_agent.utils.checked import (
    Checked,
    Count,
    Length,
    Minutes,
    NonNegative,
    Positive,
    Range,
    Seed,
    Share,
    Size,
    SmallCount,
    Strength,
    option_hints,
    option_values,
)
from par_agent.utils.device import computes_bfloat16, usable_device
from par_agent.utils.files import claimed_folder, only_process, read_json

SMALL_MODEL: dict[str, float] = {"learning_rate": 1e-3, "batch_size": 32, "accumulation": 1}
"""How a small model is trained, from scratch or on."""
NOVA_MODEL: dict[str, float] = {"learning_rate": 1e-4, "batch_size": 4, "accumulation": 8}
"""How a model on NOVA's weights is trained: at NOVA's own learning rate, and as many windows a step as a small one."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Checked):
    """What of the datasets is read, and how frames are augmented."""

    data_root: Path = Path("data/rendered")
    """Folder that --task looks in."""
    demos: Count | None = None
    """Demonstrations of each dataset that are trained on, always the same ones, and more include fewer; all but the
    held-out ones if not given. Latents are computed of all once, for any number (--no-cache: of those needed)."""
    weights: tuple[Positive, ...] = ()
    """Share of each dataset in a batch; equal if not given."""
    camera: str = "render_camera"
    """Camera that the policy sees through."""
    cache: bool = True
    """Keeps the frames' latents on disk, in `variants` copies; otherwise frames are encoded when they are needed."""
    variants: SmallCount = 4
    """Augmented copies of every frame in the cache, the unchanged one included; without cache every window is one."""
    shift: Annotated[int, Range(0, 1024)] = 6
    """Largest shift of a copy, pixels; the same for all frames of an episode."""
    color_jitter: Annotated[float, Range(0, 1, below=True)] = 0.0
    """Largest relative change of a copy's brightness, contrast and saturation, below 1."""
    skip_corrupt: bool = False
    """Reads all episodes first and trains without the damaged ones; otherwise the first damaged one is an error."""


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig(Checked):
    """How the weights move."""

    warmup: NonNegative = 100
    """Steps of linear warm-up; a cosine to the last step follows."""
    weight_decay: Strength = 0.05
    """Decay of matrices."""
    clip: Positive = 1.0
    """Largest norm of the gradient."""
    ema: Share = 0.998
    """Decay of the averaged weights, which are what is saved as the policy."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig(Checked):
    """What is measured and kept on the way."""

    validate_every: Count = 250
    """Steps between measurements on held-out episodes."""
    save_minutes: Minutes = 3.0
    """Minutes between saved training states."""
    keep: Count = 2
    """Newest training states that stay."""
    wandb: str | None = None
    """Project of Weights & Biases to log to beside TensorBoard; needs wandb."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Checked):
    """What the training of any policy has; run the same command again to resume.

    Raises:
        UserError: an option is out of its range, or there is no such device.
    """

    out: Path
    """Folder of the run; the trained policy ends up in its `policy` folder."""
    task: tuple[str, ...] = ()
    """Tasks, short for --data DATA_ROOT/TASK of each."""
    data: tuple[Path, ...] = ()
    """Rendered datasets, with actions unless the modality is video."""
    vae: Path | None = None
    """Frozen frame VAE made by `par-agent train-vae`; needed from scratch."""
    window: Length = 4
    """Physical tokens per window; a large number for whole episodes, of which short ones then share a window."""
    steps: Count = 3000
    """Optimiser steps. Each sees batch size x accumulation x processes windows."""
    batch_size: Size = 0
    """Windows a batch; 0: the model's own (32; 4 for models on NOVA's weights)."""
    accumulation: Size = 0
    """Batches per process whose gradients are averaged into one step, which makes large steps in little memory; 0: the
    model's own (1; 8 for models on NOVA's weights)."""
    learning_rate: Annotated[float, Range(0, 100, above=True)] = 0.0
    """Peak rate of AdamW; 0: the model's own (1e-3; 1e-4 for models on NOVA's weights, as NOVA was trained)."""
    seed: Seed = 0
    """Fixes initial weights, order and noise."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it runs: on the CPU, or on one GPU per process."""
    precision: Literal["float32", "tf32", "bfloat16"] | None = None
    """Arithmetic of the loss; weights are float32 in any case. Not given: bfloat16 on a GPU that computes in it
    (compute capability 8.0), else float32. On the CPU bfloat16 is far faster on processors that multiply it
    (AVX512-BF16, AMX). tf32, for GPUs: float32 whose factors are rounded to 10 bits."""
    dataset: DatasetConfig = DatasetConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    logging: LoggingConfig = LoggingConfig()

    settings_file: ClassVar[str]
    """File of a run's options in its folder; `--config` reads it."""

    def __post_init__(self) -> None:
        for name, default in self.model_defaults().items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, default)
        super().__post_init__()
        if self.device == "cuda":
            usable_device(self.device)
            if self.precision in ("tf32", "bfloat16") and not computes_bfloat16():
                import torch

                raise UserError(
                    f"precision is {self.precision}, in which {torch.cuda.get_device_name()} does not compute: leave "
                    "--precision out, or give float32"
                )
        elif self.precision == "tf32":
            raise UserError("precision is tf32, which is for GPUs; on the CPU give float32 or bfloat16")

    def model_defaults(self) -> dict[str, float]:
        """Values of options that are 0, which stands for the model's own."""
        return SMALL_MODEL

    @property
    def arithmetic(self) -> str:
        """The precision, also where none was given."""
        if self.precision is not None:
            return self.precision
        return "bfloat16" if self.device == "cuda" and computes_bfloat16() else "float32"

    @property
    def mixed_precision(self) -> str:
        """The precision in accelerate's words."""
        return "bf16" if self.arithmetic == "bfloat16" else "no"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        content: dict[str, Any] = json.loads(json.dumps(option_values(self), default=str))
        return content

    def describe(self) -> str:
        """All options, as they are printed when a run begins."""
        words = [f"{name}={_short(value)}" for name, value in self.to_json().items() if name != "out"]
        lines = textwrap.wrap(", ".join(words), 118, break_long_words=False, break_on_hyphens=False)
        return "\n  ".join([f"options (in {self.out / self.settings_file}):", *lines])

    def folders(self) -> list[Path]:
        """The datasets to train on.

        Raises:
            UserError: none were given.
        """
        root = self.dataset.data_root
        for name in self.task:
            if name not in TASKS and not (root / name).is_dir():
                raise UserError(f"unknown task {name!r}; known tasks: {', '.join(TASKS)}, or give --data FOLDER")
        folders = [root / name for name in self.task] + list(self.data)
        if not folders:
            raise UserError("nothing to train on; give --task NAME or --data FOLDER")
        return folders

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """While the block runs, the run's folder is this process's, and holds the options that the run has.

        Raises:
            UserError: another process trains in the folder, or it was begun with other options.
        """
        settings = self.out / self.settings_file
        with (
            only_process(self.out / ".lock", f"trains in {self.out}", within=self.out),
            claimed_folder(settings, self.to_json(), begun=self.is_begun, free=_FREE),
        ):
            yield

    def is_begun(self) -> bool:
        """Whether the run's folder holds a training state."""
        return any((self.out / "training_states").glob("step_*"))


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """What the model is, beside its preset or checkpoint."""

    new_robot: bool = False
    """With --init: fits action parts and statistics anew, for another robot than the checkpoint's."""
    new_camera: bool = False
    """With --init: goes on with all weights on the data's camera, crop, size and extra observations."""
    foresight: tuple[Length, ...] | None = None
    """Control steps past the chunk whose actions are predicted too, never executed; as in the preset or checkpoint if
    not given."""
    compile: bool = False
    """Compiles causal transformer and Action-DiT with torch.compile: worth its minutes on a GPU."""
    gradient_checkpointing: bool = False
    """Computes activations again in the backward pass instead of keeping them: less memory, a third more work."""


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(Checked):
    """The low-rank adapters of --train lora."""

    lora_rank: Size = 16
    """Rank of the adapters."""
    lora_alpha: Size = 32
    """Adapters are scaled by this over the rank."""
    lora_targets: tuple[str, ...] = ("qkv", "proj", "fc1", "fc2")
    """Linear layers that get adapters, by their names inside the blocks."""


@dataclass(frozen=True, kw_only=True)
class LossConfig(Checked):
    """What the model is made to do without, and what it is asked to predict."""

    single_step: Share = 0.5
    """Share of steps that see no earlier step; the others see a random number of them, as far as their window goes."""
    past_action_dropout: Share = 0.5
    """Share of steps, alone or not, in which begin-of-action takes the place of the chunk executed before the frame."""
    proprioception_noise: Strength = 0.0
    """Noise on joint positions, in standard deviations of the data."""
    recovery_noise: Strength = 0.25
    """Displacement of joint positions, from which targets start, in standard deviations of a chunk's last targets; it
    wanders from step to step, and the chunks of the past with it: the policy learns to come back to where the
    demonstration goes, and to look where that is."""
    frame_fraction: Share = 0.25
    """Share of steps that enter the frame loss; 0 leaves it out."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Checked):
    """What is looked at on the way."""

    picture_minutes: Minutes = 10.0
    """Minutes between pictures of what is predicted of held-out episodes, drawn when next measured."""
    rollout_every: NonNegative = 0
    """Steps between closed-loop evaluations in simulation, on initial states for development; 0: none."""
    rollout_states: Count = 10
    """Initial states per task of these evaluations."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """Trains a policy on rendered demonstrations; run the same command again to resume.

    Raises:
        UserError: an option is out of its range, or two of them contradict each other.
    """

    settings_file = "finetune.json"

    init: Path | None = None
    """Policy checkpoint to start from (its transforms and frame encoder are kept); from scratch if not given."""
    preset: str = "mini"
    """Sizes of a model that starts from scratch."""
    modality: Literal["video+action", "video"] = "video+action"
    """video: frames alone train the frame path alone; --init the result to train a policy on it."""
    train: Literal["full", "lora", "action"] = "full"
    """All weights; low-rank adapters, merged into the saved policy; or the action parts over a frozen video model."""
    model: ModelConfig = ModelConfig()
    lora: LoRAConfig = LoRAConfig()
    loss: LossConfig = LossConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.train != "full" and self.init is None:
            raise UserError(f"--train {self.train} keeps weights as they are: give the ones to keep with --init FOLDER")
        if self.model.new_robot and self.init is None:
            raise UserError("--new-robot keeps the video parts of a checkpoint: give it with --init FOLDER")
        if self.model.new_camera and (self.init is None or self.model.new_robot or not self.has_actions):
            raise UserError("--new-camera goes on with a policy: give it with --init FOLDER, without --new-robot")
        if self.init is not None and self.vae is not None:
            raise UserError(f"the checkpoint {self.init} brings its own frame encoder: leave --vae out")
        if self.model.foresight and (model := self._model()) is not None:
            # which refuses what does not fit the chunk
            dataclasses.replace(model.action, foresight=self.model.foresight)
        if self.has_actions:
            return
        if self.train == "action" or self.loss.frame_fraction == 0:
            raise UserError("--modality video trains the frame path alone: no --train action, no --frame-fraction 0")
        if self.evaluation.rollout_every:
            raise UserError("--rollout-every needs a policy that acts; --modality video trains none")

    def model_defaults(self) -> dict[str, float]:
        """Those of the model that the run starts from; one that cannot be read is refused when the run begins."""
        model = self._model()
        return NOVA_MODEL if model is not None and model.nova.bos_slot else SMALL_MODEL

    def _model(self) -> PARConfig | None:
        """The model that the run starts from; None where that cannot be told, which is refused when the run begins."""
        model = preset(self.preset)  # a wrong name is refused also where it is not used
        if self.init is None:
            return model
        config = self.init / "config.json"
        return PARConfig.from_json(read_json(config)) if config.is_file() else None

    @property
    def has_actions(self) -> bool:
        """Whether joint positions and actions are read and predicted."""
        return self.modality != "video"

    @property
    def trains_all(self) -> bool:
        """Whether no weight stays as it was."""
        return self.train == "full" and self.has_actions


def _short(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


_FREE = (
    "out",
    "device",
    "precision",
    "compile",
    "gradient_checkpointing",
    "skip_corrupt",
    *option_hints(LoggingConfig),
    *option_hints(EvaluationConfig),
)
"""Options that may differ when a run is resumed: they do not decide what is trained."""
