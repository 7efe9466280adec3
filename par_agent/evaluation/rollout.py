"""One rollout: from an initial state to success, the step limit or an exception, as one flat record."""

from __future__ import annotations

import hashlib
import inspect
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from par_agent.errors import UserError
from par_agent.evaluation.policies import Policy
from par_agent.evaluation.protocol import InitialState

if TYPE_CHECKING:
    import numpy as np
    import torch

    from par_agent.evaluation.environment import TaskEnvironment

VIDEO_FRAMES_PER_SECOND = 20
"""ManiSkill's control frequency: videos play in real time."""

TIMING_FIELDS = ("seconds", "plan_ms")
"""Fields of a record that differ between two runs of the same rollout; all others are equal to the bit."""


def derive_seed(policy_seed: int, env_seed: int) -> int:
    """The seed of one rollout's policy: a different one for every policy seed and initial state, 0 <= seed < 2**32."""
    import numpy as np

    return int(np.random.SeedSequence([policy_seed, env_seed]).generate_state(1)[0])


def roll_out(
    env: TaskEnvironment,
    policy: Policy,
    state: InitialState,
    policy_seed: int,
    *,
    run_to_end: bool = False,
    frames: list[np.ndarray] | None = None,
) -> dict[str, Any]:
    """Rolls a policy out once.

    Args:
        env: the task's environment.
        policy: reset here, with a seed derived from `policy_seed` and the state.
        state: where the rollout starts.
        policy_seed: 0..4 in the protocol.
        run_to_end: go on after the first success until the step limit.
        frames: if given, the image after every control step is rendered once more and appended.

    Returns:
        A record of plain numbers: ``success_once`` (solved after any step), ``success_at_end`` (solved after the last
        one; None unless `run_to_end`), ``steps`` executed, ``steps_to_success`` (None without success), ``reward`` (sum
        over steps; None where the task has none), ``renders`` (frames the policy consumed), ``plan_ms`` (median time of
        an ``act()`` that plans, milliseconds), ``seconds`` (wall time) and ``actions_sha256`` of all executed actions.
    """
    import torch

    started = time.perf_counter()
    seed = derive_seed(policy_seed, state.env_seed)
    _seed_everything(seed)
    env.reset(state)
    _reset_policy(policy, seed)
    if frames is not None:
        frames.append(env.render())
    plan_seconds: list[float] = []
    digest = hashlib.sha256()
    reward: float | None = 0.0
    steps_to_success, success = None, False
    steps = renders = 0
    while steps < env.spec.max_steps and (run_to_end or not success):
        needs_frame = bool(getattr(policy, "needs_frame", True))
        observation = env.observe(with_frame=needs_frame)
        asked = time.perf_counter()
        with torch.no_grad():
            action = _checked_action(policy.act(observation), env.spec.action_size)
        if needs_frame:
            plan_seconds.append(time.perf_counter() - asked)
            renders += 1
        digest.update(action.numpy().tobytes())
        result = env.step(action)
        if frames is not None:
            frames.append(env.render())
        steps += 1
        success = result.success
        reward = None if reward is None or result.reward is None else reward + result.reward
        if success and steps_to_success is None:
            steps_to_success = steps
    return {
        "success_once": steps_to_success is not None,
        "success_at_end": success if run_to_end else None,
        "steps": steps,
        "steps_to_success": steps_to_success,
        "reward": None if reward is None else round(reward, 6),
        "renders": renders,
        "actions_sha256": digest.hexdigest()[:16],
        "plan_ms": round(1000 * median(plan_seconds), 2) if plan_seconds else None,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _seed_everything(seed: int) -> None:
    """Seeds the global generators too, for policies that draw from them."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _reset_policy(policy: Policy, seed: int) -> None:
    """Resets a policy; one whose ``reset`` takes no seed has to draw from the global generators."""
    if "seed" in inspect.signature(policy.reset).parameters:
        policy.reset(seed=seed)
    else:
        policy.reset()


def _checked_action(action: Any, action_size: int) -> torch.Tensor:
    """A policy's action as (1, action_size) float32 on the CPU.

    Raises:
        UserError: wrong shape, or numbers that are not finite.
    """
    import torch

    action = torch.as_tensor(action, dtype=torch.float32).detach().cpu()
    if tuple(action.shape) != (1, action_size):
        raise UserError(f"the policy returned actions of shape {tuple(action.shape)}; expected (1, {action_size})")
    if not bool(torch.isfinite(action).all()):
        raise UserError(f"the policy returned an action that is not finite: {action.tolist()}")
    return action.contiguous()


def save_video(path: Path, frames: list[np.ndarray]) -> None:
    """Writes frames (H, W, 3) uint8 as an MP4 that plays in real time, atomically.

    Raises:
        OSError: the file cannot be written.
    """
    import imageio_ffmpeg

    from par_agent.files import atomic_path

    height, width = frames[0].shape[:2]
    with atomic_path(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary), (width, height), fps=VIDEO_FRAMES_PER_SECOND, output_params=["-f", "mp4"]
        )
        writer.send(None)
        for frame in frames:
            writer.send(frame.tobytes())
        writer.close()
