"""`par-agent visualize rollout`: what a policy imagined beside what then happened, as a strip and as a video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from par_agent.tasks import BUNDLED
from par_agent.utils.checked import Checked, Count, NonNegative, Seed, SmallCount

if TYPE_CHECKING:
    from par_agent.evaluation.policies import PolicySource


@dataclass(frozen=True)
class VisualizedRollout(Checked):
    """Which rollout of which policy is drawn, and where to."""

    task: str = "PickCube"
    """Task by name, or module:NAME for a TaskSpec of your own."""
    state: NonNegative = 0
    """Number of the protocol's initial state, from 0."""
    seed: Seed = 0
    """Policy seed; the rollout is the one that the benchmark makes of it."""
    policy: str | None = None
    """A bundled checkpoint's name or a checkpoint folder. Default: the track's bundled checkpoint."""
    policy_kwargs: tuple[str, ...] = ()
    """Options of the policy as key=value."""
    track: Literal["paper", "native"] = "paper"
    """What the policy sees."""
    device: str = "cpu"
    """Device that the policy runs on."""
    out: Path = Path("visualizations")
    """Folder for the files."""


@dataclass(frozen=True)
class RolloutConfig(VisualizedRollout):
    """Rolls a policy out once and draws predicted frames above executed ones, aligned in time, with their actions."""

    imagine: SmallCount = 12
    """Chunks imagined at the start."""
    every: Count = 2
    """Control steps between two images of the video; each is rendered, which takes most of the time."""
    video: bool = True
    """Whether to write the video beside the strip."""


def policy_source(config: VisualizedRollout) -> PolicySource:
    """Where the command line says that the policy comes from.

    Raises:
        UserError: options that are not of the form key=value, or a device that cannot be used.
    """
    import os

    from par_agent.evaluation.policies import PolicySource, parse_options, search_folder
    from par_agent.utils.device import usable_device

    search_folder(os.getcwd())
    usable_device(config.device)
    return PolicySource(config.policy or BUNDLED[config.track], parse_options(config.policy_kwargs), config.device)


def file_stem(config: VisualizedRollout) -> str:
    """Beginning of the names of a rollout's files."""
    return f"{config.task.rpartition(':')[2]}_state{config.state:02d}_seed{config.seed}"


def states_file(config: VisualizedRollout) -> Path | None:
    """File of the initial states of a task of one's own, made where it is missing; None: the protocol's has them.

    Raises:
        UserError: no such task, or its states cannot be made.
    """
    from par_agent.evaluation.initial_states import make_missing_states
    from par_agent.evaluation.policies import resolve_task
    from par_agent.evaluation.protocol import protocol_file, protocol_seeds

    spec = resolve_task(config.task)
    if protocol_file(spec).exists():
        return None
    count = max(config.state, 0) + 1
    path = config.out / "states" / f"{spec.name}-{count}.safetensors"
    make_missing_states({path: config.task}, protocol_seeds()[:count])
    return path


def main(config: RolloutConfig) -> int:
    """Writes one PNG and one MP4."""
    from tqdm import tqdm

    from par_agent.evaluation.alignment import check_installed
    from par_agent.visualization.rollout import perform
    from par_agent.visualization.rollout_figure import draw_strip, draw_video
    from par_agent.visualization.videos import check_video_path

    check_installed()
    source, name = policy_source(config), file_stem(config)
    strip, video = config.out / f"{name}.png", config.out / f"{name}.mp4"
    check_video_path(strip, 1)
    with tqdm(unit="step", desc="roll out") as progress:
        rollout = perform(
            config.task,
            source,
            config.state,
            config.seed,
            imagine=config.imagine,
            every=config.every,
            track=config.track,
            states_file=states_file(config),
            on_step=lambda step: progress.update(),
        )
    draw_strip(rollout, strip)
    if config.video:
        draw_video(rollout, video)
    print(f"{rollout.title}: {rollout.outcome}; {strip}{f' and {video}' if config.video else ''}")
    return 0
