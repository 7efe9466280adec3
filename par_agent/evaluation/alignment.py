"""How well imagined frames (PSNR, SSIM) and paths of the end effector (cm) agree with those executed.

In every plan the policy imagines N chunks ahead. The frame imagined after ``k`` chunks is compared with the frame that
the policy reads ``k`` chunks later, and the imagined path with the path that the end effector takes. Two more numbers
put a frame's PSNR into scale: a prediction has to beat that of the frame read last, and that of the true frame after
encoding and decoding is an upper bound for frames that are drawn completely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from par_agent.errors import UserError
from par_agent.evaluation.measurements import Section
from par_agent.evaluation.object_search import Color, object_colors, share_in_place
from par_agent.evaluation.trace import Plan, RolloutTracer, Trace
from par_agent.simulation.end_effector import EndEffector
from par_agent.utils.figures import COLOURS, SOFT, clean_axis, new_figure, save
from par_agent.utils.image_quality import check_scikit_image, moving_psnr, psnr, ssim
from par_agent.utils.json_fields import check

if TYPE_CHECKING:
    from par_agent.modeling.vae.frame_encoder import FrameEncoder
    from par_agent.policy.transforms import Transforms
    from par_agent.simulation.environment import TaskEnvironment

MEASURES = {
    "psnr_db": "PSNR of the imagined frame, dB",
    "ssim": "SSIM of the imagined frame, 0 to 1",
    "still_psnr_db": "PSNR of the frame read last in its place, dB",
    "moving_psnr_db": "PSNR of the imagined frame over moving pixels, dB",
    "still_moving_psnr_db": "PSNR over moving pixels of the frame read last in its place, dB",
    "objects_found": "share of coloured objects (cubes, goals) that the imagined frame shows where they then are",
    "still_objects_found": "the same of the frame read last in its place",
    "path_cm": "mean distance between imagined and executed path of the end effector, cm",
}
"""What is measured at every horizon, with units."""
ENCODER_PSNR = "encoder_psnr_db"
"""PSNR of the true frames seen through the frame encoder, dB, in every plan."""

AlignmentValues = dict[str, list[Any]]
"""By measure, for every plan, its values at horizons 1, 2, … as far as the rollout went; see :data:`MEASURES`."""

HEADER = (
    *("task", "chunks ahead", "PSNR dB / still", "PSNR dB via VAE", "moving PSNR dB / still", "objects / still"),
    *("SSIM", "path cm"),
)
NOTE = (
    "Imagined frames compared with those that followed, means over all plans of all rollouts. Still: the frame "
    "read last in place of the imagined one; imagination should beat it. VAE: the true frame after encoding and "
    "decoding, an upper bound for frames that are drawn completely. Moving: over pixels that differ from the frame "
    "read last by more than 20 of 255; over all where none does. Objects: share of the task's coloured objects that "
    "the frame shows within 6 of 320 pixels of where they then are, or hides where they are hidden. Path: mean "
    "distance over the chunk between the end effector's position that the imagined actions command and the measured "
    "one. One chunk ahead the imagined actions are the executed ones, so the distance is the controller's lag."
)

_PANELS = {
    "psnr_db": "PSNR, dB",
    "moving_psnr_db": "PSNR of moving pixels, dB",
    "objects_found": "objects in place, share",
    "ssim": "SSIM",
    "path_cm": "path error, cm",
}
_LINES: Any = {"-": "imagined", ":": "still: the last frame", "--": "through the encoder alone"}


@dataclass(frozen=True)
class Alignment:
    """The alignment of a run; raises UserError where scikit-image is missing."""

    chunks: int
    """Chunks imagined ahead in every plan, ``N``."""

    name: ClassVar[str] = "alignment"

    def __post_init__(self) -> None:
        check_scikit_image()

    @property
    def settings(self) -> int:
        return self.chunks

    def observer(self, env: TaskEnvironment, policy: Any) -> AlignmentObserver:
        return AlignmentObserver(env, policy, self.chunks)

    @staticmethod
    def check_field(value: Any) -> None:
        check("alignment", value, dict)
        if set(value) != {*MEASURES, ENCODER_PSNR}:
            raise UserError(f"alignment has {', '.join(value)}; expected {', '.join([*MEASURES, ENCODER_PSNR])}")
        for name, values in value.items():
            by_plan = tuple[float, ...] if name == ENCODER_PSNR else tuple[tuple[float, ...], ...]
            check(f"alignment.{name}", values, by_plan)

    @staticmethod
    def summarise(values: list[AlignmentValues]) -> dict[str, Any]:
        """Means over all plans of some rollouts, by measure and horizon (index 0: one chunk ahead)."""
        means: dict[str, Any] = {}
        for name in MEASURES:
            rows = [row for alignment in values for row in alignment[name]]
            longest = max(map(len, rows), default=0)
            means[name] = [float(np.mean([row[k] for row in rows if k < len(row)])) for k in range(longest)]
        means[ENCODER_PSNR] = float(np.mean([value for alignment in values for value in alignment[ENCODER_PSNR]]))
        return means

    @staticmethod
    def cells(summary: dict[str, Any]) -> dict[str, str]:
        """Of the frame one chunk ahead."""
        return {name: f"{summary[name][0]:.4f}" if summary[name] else "" for name in ("psnr_db", "ssim", "path_cm")}

    @staticmethod
    def section(summaries: Mapping[str, dict[str, Any]]) -> Section:
        rows = [row for task, summary in summaries.items() for row in _rows(task, summary)]
        title, draw = "Imagined against executed", partial(_draw, summaries)
        return Section("alignment", title, HEADER, rows, NOTE, "alignment.png", draw)


def _rows(task: str, summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row per horizon, for :data:`HEADER`."""

    def cell(name: str, k: int, digits: int) -> str:
        return f"{summary[name][k]:.{digits}f}" if k < len(summary[name]) else "–"

    def with_still(name: str, k: int, digits: int) -> str:
        return f"{cell(name, k, digits)}/{cell(f'still_{name}', k, digits)}"

    return [
        (
            *(task, str(k + 1), with_still("psnr_db", k, 1), f"{summary[ENCODER_PSNR]:.1f}"),
            *(with_still("moving_psnr_db", k, 1), with_still("objects_found", k, 2)),
            *(cell("ssim", k, 2), cell("path_cm", k, 2)),
        )
        for k in range(len(summary["path_cm"]))
    ]


def _draw(summaries: Mapping[str, dict[str, Any]], path: Path) -> None:
    """Writes a PNG of summaries by task: a panel a measure over the horizon, one colour per task."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(15, 3.3)
    axes = dict(zip(_PANELS, figure.subplots(1, len(_PANELS)), strict=True))
    legend = []
    for (task, found), colour in zip(summaries.items(), cycle(COLOURS), strict=False):
        for name, axis in axes.items():
            axis.plot(range(1, len(found[name]) + 1), found[name], "o-", color=colour, markersize=4)
            if still := found.get(f"still_{name}"):
                axis.plot(range(1, len(still) + 1), still, ":", color=colour)
        axes["psnr_db"].axhline(found[ENCODER_PSNR], linestyle="--", linewidth=1, color=colour, alpha=0.6)
        legend.append(Line2D([], [], color=colour, marker="o", markersize=4, label=task))
    for name, axis in axes.items():
        clean_axis(axis, _PANELS[name])
        axis.set_xlabel("chunks ahead", fontsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for name in ("ssim", "objects_found"):
        axes[name].set_ylim(0, 1)
    axes["path_cm"].set_ylim(bottom=0)
    legend += [Line2D([], [], color=SOFT, linestyle=style, label=label) for style, label in _LINES.items()]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False, fontsize=8)
    save(figure, path)


class AlignmentObserver(RolloutTracer):
    """Adds the alignment to every rollout's record."""

    def after_reset(self) -> None:
        super().after_reset()
        self._colors = [object_colors(self.env, row) for row in range(self.env.num_envs)]

    def record_fields(self, position: int) -> dict[str, Any]:
        hand = EndEffector(self.env, position)  # of this rollout's scene
        trace, encoder = self.traces[position], self.policy.checkpoint.encoder
        return {Alignment.name: align(trace, self.policy.transforms, encoder, hand, self._colors[position])}


def align(
    trace: Trace, transforms: Transforms, encoder: FrameEncoder, hand: EndEffector, colors: Sequence[Color] = ()
) -> AlignmentValues:
    """Compares all that was imagined in a rollout with what happened.

    ``hand`` is the robot's forward kinematics, ``colors`` are those of the task's objects; without any, none are
    looked for.
    """
    read = {plan.step: plan.frame for plan in trace.plans}
    path = hand.positions(np.array(trace.joints))
    values: AlignmentValues = {name: [] for name in MEASURES}
    for plan in trace.plans:
        later = [plan.step + (k + 1) * plan.actions.shape[1] for k in range(len(plan.frames))]
        pairs = [(plan.frames[k], read[step]) for k, step in enumerate(later) if step in read]
        compared = [_compare(frame, true, plan.frame, colors, len(transforms.cameras)) for frame, true in pairs]
        for name in values.keys() - {"path_cm"}:
            values[name].append([found[name] for found in compared if name in found])
        values["path_cm"].append(_path_errors(plan, path, transforms, hand))
    values[ENCODER_PSNR] = [round(_encoder_psnr(plan.frame, encoder), 2) for plan in trace.plans]
    return values


def _compare(
    frame: np.ndarray, true: np.ndarray, last: np.ndarray, colors: Sequence[Color], cameras: int
) -> dict[str, float]:
    """The measures of an imagined frame; all are (H, W, 3) uint8, of so many cameras side by side."""
    found = {
        "psnr_db": round(psnr(frame, true), 2),
        "still_psnr_db": round(psnr(last, true), 2),
        "moving_psnr_db": round(moving_psnr(frame, true, last), 2),
        "still_moving_psnr_db": round(moving_psnr(last, true, last), 2),
        "ssim": round(ssim(frame, true), 4),
    }
    if colors:
        for name, shown in {"objects_found": frame, "still_objects_found": last}.items():
            views = zip(np.split(shown, cameras, 1), np.split(true, cameras, 1), strict=True)
            found[name] = round(float(np.mean([share_in_place(*pair, colors) for pair in views])), 3)
    return found


def imagined_path(plan: Plan, transforms: Transforms, hand: EndEffector) -> np.ndarray:
    """Positions (N, L, 3) of the end effector, metres, where every imagined action commands it to be."""
    import torch

    actions, joints = torch.from_numpy(plan.actions), torch.from_numpy(plan.joints)
    targets = transforms.commanded_positions(actions[..., None, :], joints.expand(*actions.shape[:2], -1))
    return hand.positions(targets.flatten(0, 1).numpy()).reshape(*actions.shape[:2], 3)


def _path_errors(plan: Plan, path: np.ndarray, transforms: Transforms, hand: EndEffector) -> list[float]:
    """Mean distance, cm, over each imagined chunk whose steps were all executed."""
    errors = []
    for k, imagined in enumerate(imagined_path(plan, transforms, hand)):
        begin = plan.step + k * len(imagined) + 1
        executed = path[begin : begin + len(imagined)]
        if len(executed) == len(imagined):
            errors.append(round(100 * float(np.linalg.norm(imagined - executed, axis=1).mean()), 3))
    return errors


def _encoder_psnr(frame: np.ndarray, encoder: FrameEncoder) -> float:
    import torch

    device = next(encoder.parameters()).device
    latents = encoder.encode(torch.from_numpy(frame)[None].to(device))
    return psnr(encoder.decode(latents)[0].cpu(), frame)
