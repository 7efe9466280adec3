"""`par-agent visualize rollout`: what a policy imagined beside what then happened, as a strip and as a video."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from par_agent.tasks import BUNDLED, TaskSpec, resolve_task
from par_agent.utils.checked import Checked, Count, NonNegative, Seed, SmallCount

if TYPE_CHECKING:
    from par_agent.visualization.session import RolloutSession


@dataclass(frozen=True)
class VisualizedRollout(Checked):
    """Which rollout of which policy is drawn, and where the files go."""

    task: str = "PickCube"
    """Task by name, or module:NAME for a TaskSpec of your own."""
    state: NonNegative = 0
    """Number of the protocol's initial state, from 0."""
    seed: Seed = 0
    """Policy seed; the rollout equals the benchmark's with this state and seed."""
    policy: str | None = None
    """Checkpoint folder, name of a bundled checkpoint, or org/name[@revision] on the Hub. Default: the track's bundled
    checkpoint."""
    policy_kwargs: tuple[str, ...] = ()
    """Options of the policy as key=value."""
    track: Literal["paper", "native"] = "paper"
    """What the policy observes: the render camera and joint positions, or ManiSkill's own obs_mode="rgb"."""
    device: str = "cpu"
    """Device that the policy runs on."""
    out: Path = Path("visualizations")
    """Folder for the files."""


@dataclass(frozen=True)
class RolloutConfig(VisualizedRollout):
    """Rolls a policy out once and draws predicted frames above executed ones, aligned in time, with their actions."""

    imagine: SmallCount = 12
    """Number of chunks that the policy imagines ahead from the start."""
    every: Count = 2
    """Control steps between two frames of the video; rendering them takes most of the time."""
    video: bool = True
    """Writes the video as well as the picture."""


def open_session(config: VisualizedRollout) -> RolloutSession:
    """Task and policy that the command line asks for."""
    from par_agent.evaluation.policies import PolicySource
    from par_agent.visualization.session import RolloutSession

    source = PolicySource.from_options(config.policy or BUNDLED[config.track], config.policy_kwargs, config.device)
    spec = resolve_task(config.task)
    return RolloutSession(spec, source, config.track, partial(_states_file, config))


def file_stem(config: VisualizedRollout) -> str:
    """Beginning of the names of a rollout's files."""
    from par_agent.evaluation.records import rollout_stem

    return rollout_stem(config.task.rpartition(":")[2], config.state, config.seed)


def _states_file(config: VisualizedRollout, spec: TaskSpec) -> Path:
    """File of the task's initial states; those of a task of one's own are made where they are missing."""
    from par_agent.evaluation.initial_states import make_missing_states
    from par_agent.evaluation.protocol import protocol_file, protocol_seeds

    if protocol_file(spec).exists():
        return protocol_file(spec)
    count = config.state + 1
    path = config.out / "states" / f"{spec.name}-{count}.safetensors"
    make_missing_states({path: config.task}, protocol_seeds()[:count])
    return path


def main(config: RolloutConfig) -> int:
    """Writes one PNG and one MP4."""
    from tqdm import tqdm

    from par_agent.utils.image_quality import check_scikit_image
    from par_agent.utils.videos import check_video_path
    from par_agent.visualization.rollout import draw_strip, draw_video, record_rollout

    check_scikit_image()
    name = file_stem(config)
    strip, video = config.out / f"{name}.png", config.out / f"{name}.mp4"
    check_video_path(strip, 1)
    with open_session(config) as session, tqdm(unit="step", desc="roll out") as progress:
        options = {"imagine": config.imagine, "every": config.every}
        rollout = record_rollout(session, config.state, config.seed, on_step=lambda step: progress.update(), **options)
    draw_strip(rollout, strip)
    if config.video:
        draw_video(rollout, video)
    print(f"{rollout.title}: {rollout.outcome}; {strip}{f' and {video}' if config.video else ''}")
    return 0
