"""`par-agent visualize gallery`: the pictures of README and site, by one command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from par_agent.tasks import PAPER_TASKS, PROTOCOL_STATES, get_task
from par_agent.utils.checked import Checked, Count, Length, Range

State = Annotated[int, Range(0, PROTOCOL_STATES - 1)]
"""Number of one of the protocol's initial states."""


@dataclass(frozen=True)
class GalleryConfig(Checked):
    """Draws predicted against executed frames of three tasks, still and moving, an attention figure and a failure."""

    policy: str = "par-mini"
    """Checkpoint folder, name of a bundled checkpoint, or org/name[@revision] on the Hub."""
    states: tuple[State, State, State] = (0, 0, 0)
    """Initial states of PushCube, PickCube and StackCube to show."""
    every: Count = 2
    """Control steps between two images of the moving picture."""
    attention: tuple[str, State] = ("PushCube", 0)
    """Task and initial state of the attention figure."""
    context: Length = 3
    """Physical tokens of context in the attention figure; more than 1 shows past frames."""
    failure: tuple[str, State] = ("PickCube", 8)
    """Task and initial state of a rollout that fails; if it succeeds here, other states are tried in turn."""
    out: Path = Path("examples/gallery")
    """Folder for the pictures."""


def main(config: GalleryConfig) -> int:
    """Draws the pictures, small."""
    from tqdm import tqdm

    from par_agent.evaluation.policies import PolicySource
    from par_agent.utils.files import writing
    from par_agent.utils.image_quality import check_scikit_image
    from par_agent.utils.videos import check_video_path
    from par_agent.visualization.attention import draw_overlays, record_attention
    from par_agent.visualization.causes import find_goal
    from par_agent.visualization.gallery import compress, draw_moving, draw_one_failure, draw_rollouts
    from par_agent.visualization.rollout import record_rollout
    from par_agent.visualization.session import RolloutSession

    check_scikit_image()
    get_task(config.attention[0])  # both refuse what cannot be drawn before any work is done
    find_goal(config.failure[0])
    source, remembering = PolicySource(config.policy), PolicySource(config.policy, {"context": config.context})
    rollouts, attended, failed = (config.out / f"{name}.png" for name in ("rollouts", "attention", "failure"))
    moving = config.out / "rollouts.gif"
    task, first = config.failure
    others = [first, *(state for state in range(PROTOCOL_STATES) if state != first)]
    check_video_path(rollouts, 1)
    with writing(config.out):
        with tqdm(total=5, unit="rollout", desc="gallery") as progress:
            recorded = []
            for name, state in zip(PAPER_TASKS, config.states, strict=True):
                with RolloutSession(get_task(name), source) as session:
                    recorded.append(record_rollout(session, state, 0, imagine=1, every=config.every))
                progress.update()
            draw_rollouts(recorded, rollouts)
            draw_moving(recorded, config.every, moving)
            with RolloutSession(get_task(config.attention[0]), remembering) as session:
                draw_overlays(record_attention(session, config.attention[1], 0), attended, None, None)
            progress.update()
            with RolloutSession(get_task(task), source) as session:
                found = draw_one_failure(session, others, failed)
            progress.update()
        drawn = [rollouts, attended, *([] if found is None else [failed])]
        for path in drawn:
            compress(path)
    if found != first:
        what = "there is no picture of a failure" if found is None else f"state {found} did, and is shown"
        print(f"{task}, state {first} did not fail here; {what}")
    print(", ".join(map(str, [moving, *drawn])))
    return 0
