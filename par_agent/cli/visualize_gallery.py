"""`par-agent visualize gallery`: the pictures of README, by one command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from par_agent.tasks import PAPER_TASKS, PROTOCOL_STATES, get_task
from par_agent.utils.checked import Checked, Length, Range

State = Annotated[int, Range(0, PROTOCOL_STATES - 1)]
"""Number of one of the protocol's initial states."""


@dataclass(frozen=True)
class GalleryConfig(Checked):
    """Draws three tasks predicted against executed, one attention figure and one failure."""

    policy: str = "par-mini"
    """A bundled checkpoint's name or a checkpoint folder."""
    states: tuple[State, State, State] = (0, 0, 0)
    """Initial states of PushCube, PickCube and StackCube that are shown."""
    attention: tuple[str, State] = ("PushCube", 0)
    """Task and initial state of the attention figure."""
    context: Length = 3
    """Physical tokens that the policy of the attention figure remembers, so that past frames are among them."""
    failure: tuple[str, State] = ("PickCube", 8)
    """Task and initial state of a rollout that fails."""
    out: Path = Path("examples/gallery")
    """Folder for the pictures."""


def main(config: GalleryConfig) -> int:
    """Draws the pictures, small."""
    from tqdm import tqdm

    from par_agent.evaluation.alignment import check_installed
    from par_agent.evaluation.policies import PolicySource
    from par_agent.utils.files import writing
    from par_agent.visualization.gallery import compress, draw_attention, draw_one_failure, draw_rollouts
    from par_agent.visualization.rollout import perform
    from par_agent.visualization.videos import check_video_path

    check_installed()
    for task, _ in (config.attention, config.failure):
        get_task(task)  # which refuses unknown ones
    source = PolicySource(config.policy)
    rollouts, attended, failed = (config.out / f"{name}.png" for name in ("rollouts", "attention", "failure"))
    check_video_path(rollouts, 1)
    with writing(config.out):
        with tqdm(total=5, unit="rollout", desc="gallery") as progress:
            performed = []
            for task, state in zip(PAPER_TASKS, config.states, strict=True):
                performed.append(perform(task, source, state, 0, imagine=1, every=1000))
                progress.update()
            draw_rollouts(performed, rollouts)
            draw_attention(PolicySource(config.policy, {"context": config.context}), *config.attention, attended)
            progress.update()
            draw_one_failure(source, *config.failure, failed)
            progress.update()
        for path in (rollouts, attended, failed):
            compress(path)
    print(f"{rollouts}, {attended}, {failed}")
    return 0
