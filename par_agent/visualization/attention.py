"""Where the action tokens attend in the course of a rollout, and figures of it (the paper's Figure 5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from par_agent.errors import UserError
from par_agent.modeling.attention_maps import AttentionMaps
from par_agent.utils.figures import (
    COLOURS,
    SOFT,
    TEXT,
    clean_axis,
    evenly,
    headed_figure,
    save,
    show_image,
    smooth,
)
from par_agent.visualization.session import FrameObserver, RolloutSession

if TYPE_CHECKING:
    from par_agent.modeling.config import EncoderConfig

KINDS = ("text", "past frames", "current frame", "joints", "actions")
"""What the keys of attention are."""
MOMENTS = 6
"""Plans whose overlays are shown."""
MAP = "cividis"
"""Colours of weights."""


class _AttentionObserver(FrameObserver):
    """Keeps the attention of every plan of one rollout, beside the frames."""

    def __init__(self, session: RolloutSession) -> None:
        super().__init__(session, session.spec.max_steps)
        self.maps: dict[int, AttentionMaps] = {}

    def before_plan(self, observation: dict[str, Any]) -> None:
        super().before_plan(observation)
        self.maps[self.steps] = self.policy.attention(observation)


@dataclass(frozen=True)
class AttentionRollout:
    """A rollout with the attention of its plans."""

    title: str
    """Task, initial state, policy seed."""
    maps: dict[int, AttentionMaps]
    """Of every plan, by the number of control steps executed before."""
    frames: dict[int, np.ndarray]
    """(H, W, 3) uint8 as the model sees them, likewise."""

    @property
    def plan_steps(self) -> list[int]:
        """Control steps after which the policy planned."""
        return sorted(self.maps)


def record_attention(
    session: RolloutSession, state: int, policy_seed: int, *, layer: int | None = None, head: int | None = None
) -> AttentionRollout:
    """Repeats a rollout of the benchmark and keeps its attention; layer and head, from 1, are those to be drawn."""
    check_choice(session.policy.checkpoint.model.config.nova.video_encoder, layer, head)
    observer = _AttentionObserver(session)
    session.roll_out(state, policy_seed, [observer])
    return AttentionRollout(session.title(state, policy_seed), observer.maps, observer.frames)


def check_choice(encoder: EncoderConfig, layer: int | None, head: int | None) -> None:
    """Raises UserError for a layer or head, counted from 1, that the model does not have; None chooses none."""
    for name, value, count in (("layer", layer, encoder.depth), ("head", head, encoder.heads)):
        if value is not None and not 1 <= value <= count:
            raise UserError(f"{name} is {value}; this model has {name}s 1 to {count}")


def shares(maps: AttentionMaps) -> np.ndarray:
    """(layers, heads, 5) mean share of the action tokens' attention on each of :data:`KINDS`; they sum to 1."""
    weights = _action_weights(maps)
    found = weights.new_zeros(*weights.shape[:2], len(KINDS))
    found[..., 0] = weights[..., : maps.prefix].sum(-1)
    patches, steps = maps.patches[0] * maps.patches[1], maps.steps[0].tolist()
    for slot, step in enumerate(steps):
        if step < 0:
            continue
        part = weights[..., maps.tokens(slot)]
        kind = 2 if step == max(steps) else 1
        found[..., kind] += part[..., :patches].sum(-1)
        found[..., 3] += part[..., patches : maps.frame_tokens].sum(-1)
        found[..., 4] += part[..., maps.frame_tokens :].sum(-1)
    return found.cpu().numpy()


def draw_tokens(rollout: AttentionRollout, path: Path, layer: int, plan: int) -> None:
    """Writes a PNG of one layer (from 1): for each head the weights of a plan (from 0, at most the last), and shares
    over the whole rollout."""
    from matplotlib.patches import Patch

    step = rollout.plan_steps[min(plan, len(rollout.plan_steps) - 1)]
    maps = rollout.maps[step]
    weights = maps.weights[layer - 1, 0].cpu().numpy()
    keys, labels, edges = _visible_keys(maps)
    heads = len(weights)
    columns = min(heads, 3)
    rows = -(-heads // columns)
    text = f"layer {layer}; maps: the plan at step {step}; areas: action tokens, all plans"
    height = 3.5 * rows
    figure, [body] = headed_figure(4.3 * columns, height + 1.0, [height], f"Attention: {rollout.title}", text)
    grid = body.subplots(2 * rows, columns, squeeze=False, height_ratios=[2.3, 1.0] * rows)
    top = float(np.quantile(weights[..., keys], 0.995))
    image = None
    for head in range(heads):
        row, column = divmod(head, columns)
        axis = grid[2 * row, column]
        image = axis.imshow(weights[head][:, keys], cmap=MAP, vmin=0, vmax=top, aspect="auto", interpolation="nearest")
        _label_tokens(axis, labels, edges, maps, f"head {head + 1}")
        _draw_shares(grid[2 * row + 1, column], rollout, layer, head)
    _label_bar(body.colorbar(image, ax=grid[:, -1], shrink=0.5, pad=0.02), "weight")
    handles: Any = [Patch(color=colour, label=kind) for kind, colour in zip(KINDS, COLOURS, strict=False)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(KINDS), frameon=False, fontsize=8)
    save(figure, path)


def draw_overlays(rollout: AttentionRollout, path: Path, layer: int | None, head: int | None) -> None:
    """Writes a PNG of what the action tokens attend to in the frames of the context, in several plans.

    Layer and head count from 1; None: the mean over all.
    """
    steps = [rollout.plan_steps[i] for i in evenly(len(rollout.maps), MOMENTS)]
    slots = rollout.maps[steps[0]].steps.shape[1]
    where = "mean over layers" if layer is None else f"layer {layer}"
    which = "mean over heads" if head is None else f"head {head}"
    title, height = f"Attention of the action tokens: {rollout.title}", 1.95 * slots
    figure, [body] = headed_figure(1.9 * len(steps) + 1.2, height + 0.75, [height], title, f"{where}, {which}")
    axes = body.subplots(slots, len(steps), squeeze=False)
    found = [frame_weights(rollout.maps[step], layer, head) for step in steps]
    top = max(float(grid.max()) for by_step in found for grid in by_step.values())
    image = None
    for column, by_step in enumerate(found):
        for row, step in enumerate(sorted(by_step, reverse=True)):
            when, share = "plan at" if row == 0 else "frame of", 100 * by_step[step].sum()
            frame_step = rollout.plan_steps[step]
            caption = f"{when} step {frame_step}: {share:.0f}%"
            image = _overlay(axes[row, column], rollout.frames[frame_step], by_step[step], top, caption)
        for row in range(len(by_step), slots):
            show_image(axes[row, column], None)
    for row in range(slots):
        names = ("current frame", "frame before", "earlier frames")
        axes[row, 0].set_ylabel(names[min(row, 2)], fontsize=8.5, color=TEXT)
    bar = body.colorbar(image, ax=axes[:, -1], shrink=0.7, pad=0.03, format=lambda value, _: f"{100 * value:.0f}%")
    _label_bar(bar, "attention on a patch")
    save(figure, path)


def frame_weights(maps: AttentionMaps, layer: int | None, head: int | None) -> dict[int, np.ndarray]:
    """(rows, columns) weights of the mean action token on a frame's patches, by the control step of the frame."""
    layers = _action_weights(maps)
    weights = layers.mean(0) if layer is None else layers[layer - 1]
    chosen = weights.mean(0) if head is None else weights[head - 1]
    found = {}
    for slot, step in enumerate(maps.steps[0].tolist()):
        if step >= 0:
            patches = chosen[maps.tokens(slot)][: maps.patches[0] * maps.patches[1]]
            found[step] = patches.reshape(maps.patches).cpu().numpy()
    return found


def _action_weights(maps: AttentionMaps) -> torch.Tensor:
    """(layers, heads, S) the mean weights of the first row's action tokens."""
    return maps.weights[:, 0, :, maps.frame_tokens :].mean(2)


def _overlay(axis: Any, frame: np.ndarray, weights: np.ndarray, top: float, caption: str) -> Any:
    """Shows a pale frame with weights over it."""
    import cv2

    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None]
    show_image(axis, (0.5 * frame + 0.5 * grey).astype(np.uint8), "none", caption)
    shown = smooth(weights, frame.shape).clip(0, top)
    return axis.imshow(shown, cmap="inferno", vmin=0, vmax=top, alpha=0.15 + 0.7 * shown / top)


def _visible_keys(maps: AttentionMaps) -> tuple[np.ndarray, list[tuple[float, str]], list[float]]:
    """Keys in the order of time without empty slots, the places and names of their groups, and where groups end."""
    steps = maps.steps[0].tolist()
    order = sorted((step, slot) for slot, step in enumerate(steps) if step >= 0)
    keys, labels, edges = list(range(maps.prefix)), [(maps.prefix / 2 - 0.5, "text")], [maps.prefix - 0.5]
    for step, slot in order:
        tokens, place = maps.tokens(slot), len(keys)
        keys += range(tokens.start, tokens.stop)
        actions = maps.block - maps.frame_tokens
        labels.append((place + maps.frame_tokens / 2 - 0.5, f"frame {step}"))
        labels.append((place + maps.frame_tokens + actions / 2 - 0.5, "acts"))
        edges += [place + maps.frame_tokens - 0.5, place + maps.block - 0.5]
    return np.array(keys), labels, edges[:-1]


def _label_tokens(
    axis: Any, labels: list[tuple[float, str]], edges: list[float], maps: AttentionMaps, title: str
) -> None:
    for edge in edges:
        axis.axvline(edge, color="white", linewidth=0.8)
    axis.axhline(maps.frame_tokens - 0.5, color="white", linewidth=0.8)
    axis.set_xticks([place for place, _ in labels], [name for _, name in labels], fontsize=6.5, color=SOFT)
    actions = maps.block - maps.frame_tokens
    places = [maps.frame_tokens / 2 - 0.5, maps.frame_tokens + actions / 2 - 0.5]
    axis.set_yticks(places, ["frame", "actions"], fontsize=6.5, color=SOFT, rotation=90, va="center")
    axis.tick_params(length=0)
    axis.set_title(title, fontsize=8.5, loc="left", color=TEXT, pad=3)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _label_bar(bar: Any, label: str) -> None:
    bar.set_label(label, fontsize=8, color=SOFT)
    bar.ax.tick_params(labelsize=7, colors=SOFT)
    bar.outline.set_visible(False)


def _draw_shares(axis: Any, rollout: AttentionRollout, layer: int, head: int) -> None:
    values = np.array([100 * shares(rollout.maps[step])[layer - 1, head] for step in rollout.plan_steps])
    axis.stackplot(rollout.plan_steps, values.T, colors=COLOURS[: len(KINDS)], linewidth=0)
    clean_axis(axis, "")
    axis.set_xlim(rollout.plan_steps[0], max(rollout.plan_steps[-1], 1))
    axis.set_ylim(0, 100)
    axis.set_yticks([0, 50, 100], ["0", "50", "100%"])
    axis.set_xlabel("control step", fontsize=7, color=SOFT, labelpad=1)
