"""The failed rollouts of a benchmark run: each is repeated, drawn and given a cause; their counts join the report.

<run>/failures/
    <task>_state00_seed0.png     frames, distance of the object to its goal, final image
    <task>_state00_seed0.json    cause and final distance
    section.html                 the part of report.html
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from par_agent.errors import UserError
from par_agent.evaluation.html_report import FAILURES_SECTION, render_page
from par_agent.evaluation.policies import PolicySource
from par_agent.evaluation.protocol import protocol_file, states_checksum
from par_agent.evaluation.records import MADE_STATES, Record, read_run, record_key, rollout_stem
from par_agent.tasks import ALL_STATES, TaskSpec, resolve_task
from par_agent.utils.figures import (
    EXECUTED,
    IMAGINED,
    PREDICTED,
    SOFT,
    TEXT,
    clean_axis,
    evenly,
    headed_figure,
    save,
    show_image,
)
from par_agent.utils.files import read_json, write_json, write_text
from par_agent.visualization.causes import CAUSES, GOALS, ObjectTrace, ObjectTracer, find_goal, propose_cause
from par_agent.visualization.session import FrameObserver, RolloutSession

BEGIN, END = "<!-- failures -->", "<!-- /failures -->"
"""Marks around the section in report.html."""
COLUMNS = 7
"""Moments shown of a failure."""


@dataclass(frozen=True)
class Failure:
    """One failed rollout, and those of other policy seeds that executed the same actions."""

    task: str
    state: int
    policy_seeds: tuple[int, ...]
    """The first is the one that is drawn."""
    cause: str
    """One of :data:`par_agent.visualization.causes.CAUSES`."""
    distance_cm: float
    """Of the object to its goal at the end."""
    repeated: bool
    """Whether the rollout was repeated to the bit; another version or machine may do otherwise."""

    @property
    def name(self) -> str:
        """Beginning of the names of its files."""
        return rollout_stem(self.task, self.state, self.policy_seeds[0])


class FailedRun:
    """A run's folder, read; ``policy`` is where its policy is now, None: where it was."""

    def __init__(self, folder: Path, policy: str | None = None, device: str = "cpu") -> None:
        self.folder = folder
        self.identity, records = read_run(folder)
        if policy is None:
            found = folder / "results.json"
            about = read_json(found)["provenance"] if found.exists() else self.identity
            policy = about.get("policy_folder") or about["policy"]
        assert policy is not None
        if (Path(policy) / "baseline.json").is_file():
            raise UserError(f"{policy} is no checkpoint of PAR, and only these can be drawn")
        self.source = PolicySource(policy, self.identity["policy_options"], device)
        if self.source.fingerprint() != self.identity["checkpoint"]:
            raise UserError(
                f"{folder} was made by another policy (checkpoint {self.identity['checkpoint']}) than {policy!r} "
                f"({self.source.fingerprint()}); say where that is with --policy"
            )
        failed = [r for r in records if not r["success_once"] and r["error"] is None]
        self.without_rules = sorted({r["task"] for r in failed} - set(GOALS))
        """Tasks with failures and without rules."""
        self.groups = _same_actions([r for r in failed if r["task"] in GOALS])
        """Failed rollouts, those with equal actions together."""

    def states_file(self, spec: TaskSpec) -> Path:
        """File of a task's initial states: of several in the run, the one with most, which begins with the others'."""
        made: dict[str, str] = self.identity.get(MADE_STATES, {})
        own = [self.folder / "states" / name for name in made if name.rpartition("-")[0] == spec.name]
        known = {**self.identity.get("initial_states", {}), **made}
        further = protocol_file(spec, ALL_STATES)
        stored = further if further.name in known else protocol_file(spec)
        path = max(own, key=lambda path: int(path.stem.rpartition("-")[2]), default=stored)
        if path.name not in known and self.identity["state_seed"] is not None:
            raise UserError(f"{self.folder} does not say which initial states of {spec.name} it made: run it again")
        if states_checksum(path) != known.get(path.name, states_checksum(path)):
            raise UserError(f"{path} holds other initial states than those that {self.folder} started from")
        return path

    def draw(self, limit: int | None = None) -> Iterator[Failure]:
        """Yields the failures, at most `limit` per task, after repeating and drawing those without files."""
        track, variation = self.identity["track"], self.identity["variation"]
        steps = {task["env_id"].rsplit("-v", 1)[0]: task["max_steps"] for task in self.identity["tasks"]}
        for task in sorted({group[0]["task"] for group in self.groups}):
            spec = replace(resolve_task(task), max_steps=steps[task])
            groups = [group for group in self.groups if group[0]["task"] == task][:limit]
            with RolloutSession(spec, self.source, track, self.states_file, variation=variation) as session:
                for group in groups:
                    yield self._draw_group(session, group)

    def _draw_group(self, session: RolloutSession, group: list[Record]) -> Failure:
        """Repeats and draws the first of some rollouts with equal actions, unless it is drawn already."""
        first, seeds = group[0], tuple(record["policy_seed"] for record in group)
        path = self.folder / "failures" / f"{rollout_stem(*record_key(first))}.json"
        picture = path.with_suffix(".png")
        if path.exists() and picture.exists():
            return Failure(**{**read_json(path), "policy_seeds": seeds})
        failure, _, draw = examine(session, first["state"], seeds, first["actions_sha256"])
        draw(picture)
        write_json(path, asdict(failure))
        return failure


def _same_actions(records: list[Record]) -> list[list[Record]]:
    """Rollouts of one state that executed the same actions, together, by task, state and policy seed."""
    groups: dict[tuple[str, int, str], list[Record]] = {}
    for record in sorted(records, key=record_key):
        groups.setdefault((record["task"], record["state"], record["actions_sha256"]), []).append(record)
    return list(groups.values())


def examine(
    session: RolloutSession, state: int, policy_seeds: tuple[int, ...], actions_sha256: str | None = None
) -> tuple[Failure, Record, Callable[[Path], None]]:
    """Rolls out under the first of some policy seeds; the cause that is proposed, the record, and what draws a PNG."""
    tracer, observer = ObjectTracer(session.env), FrameObserver(session, session.spec.max_steps)
    record = session.roll_out(state, policy_seeds[0], [tracer, observer])
    goal, trace = find_goal(session.spec.name), tracer.trace
    distance = round(100 * float(trace.distances(goal)[-1]), 2)
    repeated = actions_sha256 in (None, record["actions_sha256"])
    failure = Failure(session.spec.name, state, policy_seeds, propose_cause(trace, goal), distance, repeated)
    return failure, record, partial(_draw_failure, failure, trace, observer.frames)


def _draw_failure(failure: Failure, trace: ObjectTrace, images: dict[int, np.ndarray], path: Path) -> None:
    """Writes a PNG of one failure; images: (H, W, 3) uint8 by control step."""
    steps = sorted(images)
    chosen = [steps[i] for i in evenly(len(steps), COLUMNS)]
    title = f"{failure.task}, state {failure.state}: {failure.cause}"
    figure, [body] = headed_figure(12, 5.0, [4.6], title, CAUSES[failure.cause])
    left, right = body.subfigures(1, 2, width_ratios=[8.6, 3.4])
    top, bottom = left.subfigures(2, 1, height_ratios=[1.55, 3.0])
    for axis, step in zip(top.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        show_image(axis, images[step], caption=f"step {step}")
    _draw_distance(bottom.subplots(), failure, trace, chosen)
    final = right.subplots()
    show_image(final, images[steps[-1]], EXECUTED)
    final.set_title(f"the end, step {steps[-1]}: {failure.distance_cm:.1f} cm off", fontsize=9, color=TEXT, loc="left")
    save(figure, path)


def _draw_distance(axis: Any, failure: Failure, trace: ObjectTrace, chosen: list[int]) -> None:
    goal = find_goal(failure.task)
    distances = 100 * trace.distances(goal)
    axis.plot(distances, color=EXECUTED, linewidth=1.6, label="object to goal")
    axis.axhline(100 * goal.tolerance, color=PREDICTED, linewidth=1.2, linestyle="--", label="tolerance")
    clean_axis(axis, "distance of the object to its goal, cm")
    area: Any = {"transform": axis.get_xaxis_transform(), "color": IMAGINED, "alpha": 0.13, "linewidth": 0}
    axis.fill_between(range(len(distances)), 0, 1, where=trace.held, label="held by the gripper", **area)
    axis.set_xlim(0, len(distances) - 1)
    axis.set_ylim(0, 1.25 * distances.max())
    axis.set_xticks(chosen)
    axis.set_xlabel("control step", fontsize=8, color=SOFT)
    axis.legend(loc="upper right", ncols=3, frameon=False, fontsize=7.5)


def count_causes(failures: list[Failure]) -> dict[str, Counter[str]]:
    """Failed rollouts by task and cause."""
    counts: dict[str, Counter[str]] = {}
    for failure in failures:
        counts.setdefault(failure.task, Counter())[failure.cause] += len(failure.policy_seeds)
    return counts


def write_section(run: FailedRun, failures: list[Failure]) -> None:
    """Writes section.html and puts it into report.html, where there is one."""
    counts = count_causes(failures)
    causes = [cause for cause in CAUSES if any(count[cause] for count in counts.values())]
    section = render_page(
        "par_agent.visualization",
        "failures_template.html",
        causes={cause: CAUSES[cause] for cause in causes},
        counts={task: [count[cause] for cause in causes] for task, count in counts.items()},
        failures=failures,
        other=sum(not failure.repeated for failure in failures),
    )
    section_file, report = run.folder / FAILURES_SECTION, run.folder / "report.html"
    write_text(section_file, section)
    if report.exists():
        before, _, rest = report.read_text(encoding="utf-8").partition(BEGIN)
        write_text(report, before + BEGIN + section + END + rest.partition(END)[2])
