"""Options of `par-agent finetune`, in the groups that its --help shows."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from par_agent.errors import UserError, user_errors
from par_agent.modeling.config import PARConfig
from par_agent.modeling.presets import preset
from par_agent.policy.transforms import Cameras, camera_names
from par_agent.tasks import TASKS
from par_agent.utils.checked import (
    Checked,
    Count,
    Group,
    Length,
    Minutes,
    NonNegative,
    Positive,
    Range,
    Seed,
    Share,
    ShareBelow1,
    Size,
    SmallCount,
    Strength,
    option_hints,
    option_values,
)
from par_agent.utils.checkpoint_folders import POLICY, checkpoint_folder
from par_agent.utils.device import computes_bfloat16, usable_device
from par_agent.utils.files import claimed_folder, only_process, read_object

SMALL_MODEL: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": 32, "accumulation": 1, "steps": 3000}
"""How a small model is trained."""
NOVA_MODEL: dict[str, Any] = {"learning_rate": 1e-4, "batch_size": 4, "accumulation": 8, "steps": 3000}
"""How a model on NOVA's weights is trained: at NOVA's own learning rate, and as many windows a step as a small one."""
GENTLER, FEWER_STEPS = 0.3, 1000
"""A policy that acts already is trained on at this share of the learning rate, and for so many steps."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Group):
    """Which data is read, and how frames are augmented."""

    data_root: Path = Path("data/rendered")
    """Folder with the datasets that --task names."""
    demos: Count | None = None
    """Demonstrations of each dataset to train on: always its first ones. Default: all except the held-out ones. The
    cache of latents holds all episodes; with --no-cache only the needed frames are encoded."""
    weights: tuple[Positive, ...] = ()
    """Share of each dataset in a batch. Default: equal shares."""
    camera: str | tuple[str, ...] | None = None
    """Camera whose frames the policy reads, or several whose images are of one size, such as base_camera hand_camera.
    Default: as the checkpoint of --init, else render_camera."""
    cache: bool = True
    """Caches the frames' latents on disk, in `variants` copies; without it frames are encoded when they are needed."""
    variants: SmallCount = 4
    """Copies of every frame in the cache: the unchanged one and augmented ones; unused without the cache."""
    shift: Annotated[int, Range(0, 1024)] = 6
    """Largest shift of a copy in pixels; the same for all frames of an episode."""
    color_jitter: ShareBelow1 = 0.0
    """Largest relative change of a copy's brightness, contrast and saturation, below 1."""
    skip_corrupt: bool = False
    """Reads all episodes first and leaves out damaged ones; without it the first damaged episode is an error."""


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig(Group):
    """AdamW, its schedule, and the averaged weights."""

    warmup: NonNegative = 100
    """Steps of linear warm-up; cosine decay to the last step follows."""
    weight_decay: Strength = 0.05
    """Weight decay of matrices."""
    clip: Positive = 1.0
    """Largest norm of the gradient; larger gradients are scaled down to it."""
    ema: Share = 0.998
    """Decay of the exponential moving average of the weights; the saved policy has the averaged weights."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig(Group):
    """Measurements, logs and training states."""

    validate_every: Count = 250
    """Steps between measurements on held-out episodes."""
    save_minutes: Minutes = 3.0
    """Minutes between saved training states."""
    keep: Count = 2
    """How many of the newest training states are kept."""
    wandb: str | None = None
    """Weights & Biases project to log to, besides TensorBoard; needs par-agent[wandb]."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Checked):
    """What the training of any policy has; run the same command again to resume."""

    out: Path
    """Folder of the run; the trained policy is written to its `policy` folder."""
    task: tuple[str, ...] = ()
    """Tasks; each stands for --data DATA_ROOT/TASK."""
    data: tuple[Path, ...] = ()
    """Rendered datasets. They need actions, except for `par-agent finetune --modality video`."""
    vae: Path | None = None
    """Frozen frame VAE made by `par-agent train-vae`; needed for training from scratch."""
    window: Length = 4
    """Physical tokens per window. If it is larger than an episode, a window holds several episodes."""
    steps: Count = 0
    """Optimiser steps, each on batch size x accumulation x processes windows. A finished run goes on when they are
    raised. 0: 3000, or 1000 where --init acts already."""
    batch_size: Size = 0
    """Windows per batch and process. 0: 32, or 4 for models with NOVA's weights."""
    accumulation: Size = 0
    """Batches per process whose gradients are averaged into one step, which needs less memory than one large batch.
    0: 1, or 8 for models with NOVA's weights."""
    learning_rate: Annotated[float, Range(0, 100, above=True)] = 0.0
    """Peak learning rate of AdamW. 0: 1e-3, or 1e-4 for models with NOVA's weights, as NOVA was trained; 0.3 of that
    where --init acts already."""
    seed: Seed = 0
    """Random seed of initial weights, data order and noise."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device to train on: the CPU, or one GPU per process."""
    precision: Literal["float32", "tf32", "bfloat16"] | None = None
    """Arithmetic of the loss; weights are always float32. Default: bfloat16 on a GPU that computes in it (compute
    capability 8.0), else float32. On the CPU bfloat16 is much faster on processors that multiply it (AVX512-BF16,
    AMX). tf32 is for GPUs: float32, with the factors of products rounded to 10 bits."""
    dataset: DatasetConfig = DatasetConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    logging: LoggingConfig = LoggingConfig()

    settings_file: ClassVar[str]
    """File of a run's options in its folder; `--config` reads it."""

    def __post_init__(self) -> None:
        for name, default in self.model_defaults().items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, default)
        if not self.dataset.camera:
            object.__setattr__(self, "dataset", dataclasses.replace(self.dataset, camera=self.default_camera()))
        super().__post_init__()
        if len(set(self.cameras)) < len(self.cameras):
            raise UserError(f"--camera {' '.join(self.cameras)}: name each camera once")
        if self.device == "cuda":
            usable_device(self.device)
            if self.precision in ("tf32", "bfloat16") and not computes_bfloat16():
                import torch

                raise UserError(
                    f"{torch.cuda.get_device_name()} does not support precision {self.precision}: leave --precision "
                    "out, or give float32"
                )
        elif self.precision == "tf32":
            raise UserError("precision is tf32, which is for GPUs; on the CPU give float32 or bfloat16")

    def model_defaults(self) -> dict[str, Any]:
        """Values of options that are 0, which stands for the model's own."""
        return SMALL_MODEL

    def default_camera(self) -> Cameras:
        """The camera where none is given."""
        return "render_camera"

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras whose frames the policy reads."""
        return camera_names(self.dataset.camera or ())

    @property
    def camera(self) -> Cameras:
        """Their names, as a checkpoint has them: one text for one camera."""
        return self.cameras[0] if len(self.cameras) == 1 else self.cameras

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
        shown = {name: value for name, value in self.to_json().items() if name != "out"}
        words = [f"{name}={' '.join(map(str, v)) if isinstance(v, list) else v}" for name, v in shown.items()]
        lines = textwrap.wrap(", ".join(words), 118, break_long_words=False, break_on_hyphens=False)
        return "\n  ".join([f"options (in {self.out / self.settings_file}):", *lines])

    def folders(self) -> list[Path]:
        """The datasets to train on."""
        root = self.dataset.data_root
        for name in self.task:
            if name not in TASKS and not (root / name).is_dir():
                raise UserError(f"unknown task {name!r}; known tasks: {', '.join(TASKS)}, or give --data FOLDER")
        folders = [root / name for name in self.task] + list(self.data)
        if not folders:
            raise UserError("nothing to train on; give --task NAME or --data FOLDER")
        return folders

    def claimed(self) -> contextlib.AbstractContextManager[None]:
        """While the block runs, the run's folder is this process's, and holds the options that the run has."""
        return claimed_run(self.out, self.settings_file, self.to_json(), _FREE)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Group):
    """The model, besides its preset or checkpoint."""

    new_robot: bool = False
    """With --init: trains new action parts and statistics, for another robot than the checkpoint's."""
    new_camera: bool = False
    """With --init: keeps all weights, but takes cameras, crop, size and extra observations from the data."""
    foresight: tuple[Length, ...] | None = None
    """Further control steps whose actions are predicted but never executed, counted from the start of the chunk.
    Default: those of the preset or checkpoint."""
    compile: bool = False
    """Compiles the causal transformer and the Action-DiT with torch.compile, which takes minutes; meant for GPUs."""
    gradient_checkpointing: bool = False
    """Recomputes activations in the backward pass instead of storing them: less memory, a third more computation."""


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(Group):
    """The low-rank adapters of --train lora."""

    lora_rank: Size = 16
    """Rank of the adapters."""
    lora_alpha: Size = 32
    """Adapters are scaled by this, divided by the rank."""
    lora_targets: tuple[str, ...] = ("qkv", "proj", "fc1", "fc2")
    """Linear layers that get adapters, by their names inside the blocks."""


@dataclass(frozen=True, kw_only=True)
class LossConfig(Group):
    """Dropout of history, noise on joint positions, and the frame loss."""

    single_step: Share = 0.5
    """Share of steps that attend to no earlier step. Others attend to a random number of steps of their window."""
    past_action_dropout: Share = 0.5
    """Share of steps in which the begin-of-action token replaces the chunk that was executed before the frame."""
    proprioception_noise: Strength = 0.0
    """Noise on joint positions, in standard deviations of the data."""
    recovery_noise: Strength = 0.25
    """Noise on the joint positions that a chunk starts from, in standard deviations of a chunk's last targets. Targets
    stay, so the policy learns to return to the demonstrated path and to find it in the image. The noise of a step is
    correlated with that of the step before, and past chunks get the same noise."""
    frame_fraction: Share = 0.25
    """Share of steps that enter the frame loss; 0 leaves it out."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Group):
    """Pictures and rollouts during training."""

    picture_minutes: Minutes = 10.0
    """Minutes between pictures of predictions on held-out episodes, drawn at the next measurement on these."""
    rollout_every: NonNegative = 0
    """Steps between closed-loop evaluations in simulation, on initial states for development; 0: none."""
    rollout_states: Count = 10
    """Initial states per task in these evaluations."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """Trains a policy on rendered demonstrations; run the same command again to resume."""

    settings_file = "finetune.json"

    init: Path | None = None
    """Policy checkpoint to start from, a folder, a bundled one's name or org/name[@revision] on the Hub; its transforms
    and frame encoder are kept. Default: from scratch."""
    preset: str = "mini"
    """Preset of a model trained from scratch: mini, par-noar, par-discrete, par-noimagine or par-nova-0.6b."""
    modality: Literal["video+action", "video"] = "video+action"
    """video: trains only the frame path, from frames only; train a policy from the result with --init."""
    train: Literal["full", "lora", "action"] = "full"
    """full: all weights; lora: low-rank adapters, merged into the saved policy; action: the action parts only."""
    model: ModelConfig = ModelConfig()
    lora: LoRAConfig = LoRAConfig()
    loss: LossConfig = LossConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
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

    @functools.cached_property
    def init_folder(self) -> Path:
        """Folder of the checkpoint that ``init`` names."""
        assert self.init is not None
        with user_errors("init: "):
            return checkpoint_folder(self.init)

    def model_defaults(self) -> dict[str, Any]:
        """Those of the model that the run starts from; one that cannot be read is refused when the run begins."""
        model = self._model()
        defaults = NOVA_MODEL if model is not None and model.nova.bos_slot else SMALL_MODEL
        if self._known_transforms() is None or self.model.new_robot:
            return defaults
        return defaults | {"learning_rate": GENTLER * defaults["learning_rate"], "steps": FEWER_STEPS}

    def default_camera(self) -> Cameras:
        known = None if self.model.new_camera else self._known_transforms()
        given = None if known is None else known.get("camera")
        if isinstance(given, list):
            return tuple(map(str, given))
        return super().default_camera() if given is None else str(given)

    def _known_transforms(self) -> dict[str, Any] | None:
        """The transforms of a checkpoint that acts already."""
        if self.init is None or not (path := self.init_folder / POLICY).is_file():
            return None
        transforms = read_object(path).get("transforms")
        return transforms if isinstance(transforms, dict) else None

    def _model(self) -> PARConfig | None:
        """The model that the run starts from; None if its config cannot be read; the run then fails at its start."""
        model = preset(self.preset)  # a wrong name is refused also where it is not used
        if self.init is None:
            return model
        return PARConfig.read(self.init_folder) if (self.init_folder / "config.json").is_file() else None

    @property
    def has_actions(self) -> bool:
        """Whether joint positions and actions are read and predicted."""
        return self.modality != "video"

    @property
    def trains_all(self) -> bool:
        """Whether no weight stays as it was."""
        return self.train == "full" and self.has_actions


@contextlib.contextmanager
def claimed_run(out: Path, file: str, options: dict[str, Any], free: tuple[str, ...]) -> Iterator[None]:
    """While the block runs, folder ``out`` is this process's, and ``out / file`` holds the run's options.

    Of a run that has begun, only the ``free`` ones may be others.
    """

    def begun() -> bool:
        return any((out / "training_states").glob("step_*"))

    with (
        only_process(out / ".lock", f"trains in {out}", within=out),
        claimed_folder(out / file, options, begun=begun, free=free),
    ):
        yield


_FREE = (
    "out",
    "device",
    "precision",
    "compile",
    "gradient_checkpointing",
    "skip_corrupt",
    "steps",
    *option_hints(LoggingConfig),
    *option_hints(EvaluationConfig),
)
"""Options that may differ when a run is resumed: they do not decide what is trained."""
