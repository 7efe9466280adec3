"""`PARPolicy`: a trained PAR model as an agent for ManiSkill environments."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from par_agent.checkpoint import Acting, Checkpoint
from par_agent.errors import UserError
from par_agent.modeling.par import PARStream, PhysicalTokens

if TYPE_CHECKING:
    from par_agent.tasks import TaskSpec

CHECKPOINTS = Path(__file__).parent / "checkpoints"


@dataclasses.dataclass
class EpisodeState:
    """What a policy remembers of its environments, one row each. Letters: B rows, L actions a chunk, A, P."""

    stream: PARStream
    """The model's past."""
    queue: Tensor
    """(B, L, A) planned actions in the controller's units."""
    used: Tensor
    """(B,) int64 actions of the queue that were executed; at ``execute`` the row plans again."""
    chunk: Tensor
    """(B, L, A) normalised chunk planned last."""
    fresh: Tensor
    """(B,) bool, True before a row's first plan."""
    generators: list[torch.Generator]
    """Source of each row's randomness."""


class PARPolicy:
    """Acts in one or many ManiSkill environments; plans a chunk from each frame it looks at and executes it.

    Observations are ManiSkill's own (``obs["sensor_data"][camera]["rgb"]`` and ``obs["agent"]["qpos"]``), batched torch
    tensors or, from ``CPUGymWrapper``, unbatched numpy arrays. For ``render_camera`` wrap the environment in
    :class:`par_agent.evaluation.RenderCameraObservation`.

    Args:
        checkpoint: the model and its conventions.
        instruction: what to do, in the words of training.
        device: where the model runs.
        seed: fixes the policy's randomness until a ``reset`` gives another.
        **acting: fields of :class:`par_agent.checkpoint.Acting` that differ from the checkpoint's.

    Raises:
        UserError: an unknown or impossible option, or a checkpoint that was not trained yet.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        instruction: str,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        **acting: Any,
    ) -> None:
        known = [field.name for field in dataclasses.fields(Acting)]
        if unknown := sorted(set(acting) - set(known)):
            raise UserError(f"PARPolicy does not know the option {unknown[0]!r}; it knows {', '.join(known)}")
        if checkpoint.transforms is None:
            raise UserError(
                "this checkpoint cannot act yet: its action parts are random and nothing was fitted to data; train it "
                "with `par-agent finetune --init FOLDER`"
            )
        self.checkpoint, self.instruction, self.transforms = checkpoint, instruction, checkpoint.transforms
        self.acting = dataclasses.replace(checkpoint.acting, **acting)
        self.device = torch.device(device)
        self.action_size = self.transforms.action_size
        length = self.transforms.chunk_length
        self.execute = self.acting.execute or length
        if self.execute > length:
            raise UserError(f"execute is {self.execute}; this checkpoint plans chunks of {length} actions")
        self._features = checkpoint.text_encoder.encode(instruction).to(self.device)
        if not len(self._features):
            raise UserError(f"the instruction {instruction!r} holds no words")
        self._seed = seed
        self._state: EpisodeState | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path = "par-mini",
        instruction: str = "Push and move a cube to a goal region in front of it.",
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        **acting: Any,
    ) -> PARPolicy:
        """Loads a bundled checkpoint by name, or one from a folder.

        Args:
            name_or_folder: ``"par-mini"`` or a folder made by ``par-agent finetune`` or :meth:`save_pretrained`.
            instruction: what to do; :data:`par_agent.tasks.TASKS` has the tasks' own.
            device: ``"cpu"``, ``"cuda"``, …
            seed: see the class.
            **acting: see the class.

        Raises:
            UserError: no such checkpoint, or a damaged one.
        """
        folder = Path(name_or_folder)
        if not folder.is_dir() and (CHECKPOINTS / str(name_or_folder)).is_dir():
            folder = CHECKPOINTS / str(name_or_folder)
        if not folder.is_dir():
            bundled = sorted(path.name for path in CHECKPOINTS.glob("*") if path.is_dir())
            raise UserError(
                f"no checkpoint {str(name_or_folder)!r}: neither a folder nor bundled (bundled: "
                f"{', '.join(bundled) or 'none'})"
            )
        return cls(Checkpoint.load(folder, device), instruction, device=device, seed=seed, **acting)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes the checkpoint with this policy's way of acting as its default; ``dtype`` stores weights smaller."""
        dataclasses.replace(self.checkpoint, acting=self.acting).save(folder, dtype)

    def check(self, spec: TaskSpec) -> None:
        """Compares the checkpoint's conventions with a task's.

        Raises:
            UserError: another camera, image size or number of joints.
        """
        transforms = self.transforms
        cameras = (spec.camera, *spec.sensor_cameras)
        if transforms.camera not in cameras:
            raise UserError(
                f"this checkpoint sees through {transforms.camera!r}; task {spec.name} has {', '.join(cameras)}"
            )
        size = transforms.image_size
        if transforms.camera == spec.camera and size is not None and size != tuple(spec.image_size):
            raise UserError(
                f"this checkpoint was trained on {size[0]}x{size[1]} images of {spec.camera}; task {spec.name} has "
                f"{spec.image_size[0]}x{spec.image_size[1]}"
            )
        if transforms.proprioception_size != spec.joint_count:
            raise UserError(
                f"this checkpoint reads {transforms.proprioception_size} joint positions; the robot of {spec.name} has "
                f"{spec.joint_count}"
            )

    @property
    def needs_frame(self) -> bool:
        """Whether the next :meth:`act` looks at the camera; False while it only pops planned actions."""
        return self._state is None or bool((self._state.used >= self.execute).any())

    @torch.inference_mode()
    def reset(self, env_idx: Tensor | Sequence[int] | int | None = None, seed: int | None = None) -> None:
        """Forgets episodes.

        Args:
            env_idx: rows to forget; None: all, and the number of environments may change.
            seed: new seed of these rows' randomness; None: it goes on as it is.

        Raises:
            UserError: a row that does not exist.
        """
        if seed is not None:
            self._seed = seed
        if env_idx is None:
            self._state = None
            return
        rows = torch.as_tensor(env_idx, dtype=torch.long, device=self.device).reshape(-1)
        if self._state is None:
            return
        state, count = self._state, len(self._state.used)
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= count):
            raise UserError(f"env_idx {rows.tolist()} names rows that do not exist; there are {count} environments")
        state.stream.cache.reset(rows)
        state.used[rows] = self.execute
        state.fresh[rows] = True
        if seed is not None:
            for row in rows.tolist():
                state.generators[row] = _generator(seed, row)

    @torch.inference_mode()
    def act(self, obs: dict[str, Any]) -> Tensor:
        """The next action of every environment.

        Args:
            obs: a ManiSkill observation. The camera's image may be missing while :attr:`needs_frame` is False.

        Returns:
            (B, A) float32 in the controller's units, on the observation's device; for an unbatched numpy observation
            (1, A) on the CPU.

        Raises:
            UserError: a missing key, or a wrong shape or type, with what to change in the environment.
        """
        positions, origin = self._positions(obs)
        if self._state is None:
            self._state = self._begin(len(positions))
        state = self._state
        if len(state.used) != len(positions):
            raise UserError(
                f"the observation has {len(positions)} environments, the last one had {len(state.used)}; call reset() "
                "when the number changes"
            )
        due = state.used >= self.execute
        if bool(due.any()):
            self._plan(obs, positions, due)
        rows = torch.arange(len(state.used), device=self.device)
        action = state.queue[rows, state.used]
        state.used += 1
        return action.to(origin)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _begin(self, batch: int) -> EpisodeState:
        length, size = self.transforms.chunk_length, self.action_size
        empty = torch.zeros(batch, length, size, device=self.device)
        return EpisodeState(
            self.checkpoint.model.start([self._features] * batch, self.acting.context),
            empty,
            torch.full((batch,), self.execute, device=self.device),
            empty.clone(),
            torch.ones(batch, dtype=torch.bool, device=self.device),
            [_generator(self._seed, row) for row in range(batch)],
        )

    def _plan(self, obs: dict[str, Any], positions: Tensor, due: Tensor) -> None:
        """Reads the frame of the rows that are due, and plans their next chunk."""
        assert self._state is not None
        state, transforms, model = self._state, self.transforms, self.checkpoint.model
        rows = due.nonzero()[:, 0]
        frames = transforms.frames(self._images(obs, len(positions))[rows.to("cpu")])
        latents = self.checkpoint.encoder.encode(frames.to(self.device))
        measured = positions[rows]
        known = ~state.fresh[rows] if self.acting.past_actions else torch.zeros_like(due[rows])
        inputs = PhysicalTokens(
            latents[:, None],
            transforms.normalise_proprioception(measured)[:, None],
            state.chunk[rows][:, None],
            known[:, None],
        )
        _, z_action = model.step(state.stream, inputs, rows)
        start = torch.zeros(len(rows), transforms.chunk_length, self.action_size, device=self.device)
        if self.acting.random_start:
            shape = start.shape[1:]
            start = torch.stack([torch.randn(shape, generator=state.generators[row]) for row in rows.tolist()])
        chunks = model.sample_actions(z_action, start.to(self.device), steps=self.acting.denoising_steps)
        state.chunk[rows] = chunks
        state.queue[rows] = transforms.denormalise_actions(chunks, measured)
        state.used[rows] = 0
        state.fresh[rows] = False

    def _positions(self, obs: dict[str, Any]) -> tuple[Tensor, torch.device]:
        """Joint positions (B, P) float32 on the policy's device, and the observation's device."""
        value = _lookup(obs, ("agent", "qpos"), 'make the environment with obs_mode="rgb" (joint positions are in it)')
        size = self.transforms.proprioception_size
        value = torch.as_tensor(value)
        batched = value[None] if value.ndim == 1 else value
        if batched.ndim != 2 or batched.shape[1] != size:
            raise UserError(
                f'obs["agent"]["qpos"] has shape {tuple(value.shape)}; expected (num_envs, {size}): this checkpoint is '
                f"for a robot with {size} joints"
            )
        return batched.to(self.device, torch.float32), value.device

    def _images(self, obs: dict[str, Any], batch: int) -> Tensor:
        """The camera's images (B, H, W, 3) uint8."""
        camera = self.transforms.camera
        fix = f'make the environment with obs_mode="rgb" and a sensor camera {camera!r}'
        if camera == "render_camera":
            fix = "wrap the environment in par_agent.evaluation.RenderCameraObservation"
        value = torch.as_tensor(_lookup(obs, ("sensor_data", camera, "rgb"), fix))
        batched = value[None] if value.ndim == 3 else value
        if batched.ndim != 4 or batched.shape[3] != 3 or len(batched) != batch or batched.dtype != torch.uint8:
            raise UserError(
                f'obs["sensor_data"][{camera!r}]["rgb"] is {value.dtype} of shape {tuple(value.shape)}; expected '
                f"torch.uint8 of shape ({batch}, height, width, 3): {fix}"
            )
        return batched


def _generator(seed: int, row: int) -> torch.Generator:
    """Each row draws from its own stream, so that a batch plays like its rows alone."""
    mixed = np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed) >> 1)


def _lookup(obs: Any, keys: tuple[str, ...], fix: str) -> Any:
    value, path = obs, "obs"
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            found = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            raise UserError(f'{path} has no "{key}" (it holds: {found}); {fix}')
        value, path = value[key], f'{path}["{key}"]'
    return value
