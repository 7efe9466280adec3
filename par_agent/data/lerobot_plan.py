"""Plans an import: finds, checks and prints what a LeRobotDataset gives before any image is decoded."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from par_agent.data import lerobot
from par_agent.data.conventions import joint_targets
from par_agent.data.lerobot_features import CONTROL_MODES, Feature, Keys, LeRobotRequest, choose_keys
from par_agent.data.lerobot_folder import LeRobotFolder, whole_number
from par_agent.data.render_spec import RenderSpec, wordings
from par_agent.data.selection import format_numbers, select
from par_agent.data.tables import Table
from par_agent.errors import UserError, user_errors
from par_agent.policy.transforms import crop_and_resize
from par_agent.tasks import UNKNOWN_CONTROLLER

DEFAULT_STRIDE = 8


@dataclass(frozen=True)
class ImportPlan:
    """What an import will read."""

    source: LeRobotFolder
    request: LeRobotRequest
    keys: Keys
    spec: RenderSpec
    control_mode: str
    """What the actions are."""
    episodes: tuple[int, ...]
    """Numbers of the episodes to read."""
    survey: Survey
    """What their numbers show."""

    def __str__(self) -> str:
        """How the dataset was understood, and what is left out."""
        source, keys = self.source, self.keys
        robot = source.info.get("robot_type") or "unknown"
        lines = [f"{source.folder}: LeRobot {source.version}, robot {robot}, {source.fps:g} rows a second"]
        for name, camera in keys.cameras.items():
            height, width, channels = camera.image_size
            lines.append(f"  camera {name}: {camera.name}, {camera.dtype}s of {height}x{width}, {channels} channels")
        lines.append(f"  state: {_described(keys.state)}")
        if keys.action:
            targets = joint_targets(self.control_mode, keys.action_size, keys.state_size)
            lines.append(f"  action: {_described(keys.action)}; {self.control_mode}, {sum(targets)} joint targets")
        else:
            lines.append("  no actions: videos alone")
        if keys.unused:
            lines.append(f"  not read: {', '.join(feature.name for feature in keys.unused)}")
        for instruction, count in self.survey.instructions.most_common(3):
            lines.append(f"  instruction of {count} episodes: {instruction!r}")
        if (others := len(self.survey.instructions) - 3) > 0:
            lines.append(f"  and {others} other instructions")
        lines.append(f"  episodes: {len(self.episodes)} of {len(source.records)}, {self.survey.rows} rows")
        success = "no feature tells success" if keys.success is None else f"{keys.success.name} tells success"
        lines[-1] += f"; {'failures included' if self.request.include_failures else success}"
        return "\n".join(lines)


def _described(features: tuple[Feature, ...]) -> str:
    names = [name for feature in features for name in feature.number_names]
    some = f" ({', '.join(names[:12])}{', ...' * (len(names) > 12)})" if names else ""
    return f"{' + '.join(f.name for f in features)}, {sum(f.size for f in features)} numbers{some}"


def plan_import(source: LeRobotFolder, request: LeRobotRequest) -> ImportPlan:
    """Reads all numbers, but no images, of the requested episodes, and plans the import.

    Raises:
        UserError: features are not found or do not fit; the kind of actions is not known; an episode cannot be read,
            unless such episodes are left out; or no episode is left.
    """
    with user_errors(f"{source.folder / lerobot.INFO}: "):
        video = source.export_record is not None
        keys = choose_keys(source.features, str(source.folder), request, video=video)
    _check_options(source, request, keys)
    if not request.instruction:
        _ = source.tasks  # without which no episode can be read
    survey = Survey()
    if source.unreadable and request.episodes is None and not request.skip_corrupt:
        raise UserError(f"{source.unreadable[0]}; or leave such episodes out: --skip-corrupt")
    for error in source.unreadable:
        tqdm.write(f"left out: {error}")

    @functools.lru_cache(1)
    def read(number: int) -> EpisodeRows:
        return read_rows(source, keys, request, number)

    taken = select(
        str(source.folder),
        list(source.records),
        request.episodes,
        lambda number: read(number).succeeded,
        lambda number: survey.add(read(number), keys),
        include_failures=request.include_failures,
        skip_corrupt=request.skip_corrupt,
    )
    mode = _control_mode(source, request, keys, follows=survey.misses <= survey.spread)
    spec = _spec(source, request, keys, taken, survey.instructions)
    return ImportPlan(source, request, keys, spec, mode, taken, survey)


class Survey:
    """What the numbers of all episodes show."""

    def __init__(self) -> None:
        self.rows = 0
        """Of all episodes together."""
        self.instructions: Counter[str | tuple[str, ...]] = Counter()
        """How many episodes each has."""
        self.misses, self.spread = 0.0, 0.0
        """Sums of squares: of actions minus the joints of the same names, and of these joints minus their mean."""

    def add(self, rows: EpisodeRows, keys: Keys) -> None:
        self.rows += len(rows.state)
        self.instructions[rows.instruction] += 1
        if rows.action is not None and keys.called_like_joints:
            joints = np.flatnonzero(joint_targets("pd_joint_pos", keys.action_size, keys.state_size))
            state = rows.state[:, joints]
            self.misses += float(np.square(rows.action[:, joints] - state).sum())
            self.spread += float(np.square(state - state.mean(0)).sum())


def _check_options(source: LeRobotFolder, request: LeRobotRequest, keys: Keys) -> None:
    """Compares options with the dataset's features."""
    fixed = ("crop", "size", "stride", "control_mode", "image_key", "state_key", "action_key")
    if source.export_record is not None and any(getattr(request, name) for name in fixed):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in fixed)
        raise UserError(
            f"{source.folder} was exported by par_agent and knows its frames and actions: leave {options} out"
        )
    if request.control_mode not in (None, *CONTROL_MODES):
        raise UserError(f"--control-mode is {request.control_mode!r}; expected one of {', '.join(CONTROL_MODES)}")
    if request.control_mode == "pd_joint_pos" and keys.action_size > keys.state_size:
        raise UserError(
            f"--control-mode pd_joint_pos: {source.folder} has {keys.action_size} numbers an action and "
            f"{keys.state_size} of state; pd_joint_pos needs at least as many state numbers as action numbers: name "
            "another state with --state-key"
        )
    for camera in keys.cameras.values():
        height, width, _ = camera.image_size
        crop_and_resize(np.zeros((height, width, 3), np.uint8), request.crop, request.size)


def _control_mode(source: LeRobotFolder, request: LeRobotRequest, keys: Keys, *, follows: bool) -> str:
    """The control mode; ``follows``: actions lie near the joints of the same names, as targets do."""
    if request.control_mode is not None or not keys.action:
        return request.control_mode or UNKNOWN_CONTROLLER
    if source.export_record is not None:
        modes = (about.get("control_mode") for about in source.export_record["episodes"])
        return next(modes, None) or UNKNOWN_CONTROLLER
    if keys.called_like_joints and follows:
        return "pd_joint_pos"
    reason = f"action: {_described(keys.action)}; state: {_described(keys.state)}"
    if keys.called_like_joints:
        reason = "they are called like the joints, but are far from where these are"
    raise UserError(
        f"{source.folder} does not tell what its actions are ({reason}): say it with --control-mode pd_joint_pos if "
        f"they are target positions of the joints, else with one of {', '.join(CONTROL_MODES[1:])}"
    )


def _spec(
    source: LeRobotFolder, request: LeRobotRequest, keys: Keys, taken: tuple[int, ...], instructions: Counter[Any]
) -> RenderSpec:
    """The spec of the imported dataset: the original one, where this package exported it."""
    all_taken = taken == tuple(source.records)
    if source.export_record is not None:
        original = RenderSpec.from_json(source.export_record["spec"], source.folder / lerobot.EXPORT_RECORD)
        cameras = request.cameras or original.cameras
        if lacking := [camera for camera in cameras if camera not in keys.cameras]:
            raise UserError(f"{source.folder} lacks its camera {lacking[0]!r}; copy or export the dataset again")
        if all_taken:
            return dataclasses.replace(original, cameras=cameras)
        own = source.export_record["episodes"]
        chosen = [
            whole_number(own[number].get("source_episode"), f"source_episode of {source.name(number)}")
            for number in taken
        ]
        return dataclasses.replace(
            original, cameras=cameras, num_episodes=len(taken), source_episodes=format_numbers(chosen)
        )
    stride = DEFAULT_STRIDE if request.stride is None else request.stride
    return RenderSpec(
        env_id=str(source.info.get("robot_type") or "unknown"),
        source=str(source.folder),
        num_episodes=len(taken),
        instruction=next(iter(instructions)) if len(instructions) == 1 else "",
        cameras=tuple(keys.cameras),
        crop=request.crop,
        size=request.size,
        stride=stride,
        source_episodes=None if all_taken else format_numbers(taken),
    )


@dataclass(frozen=True)
class EpisodeRows:
    """An episode of E + 1 rows."""

    table: Table
    """With images, if the caller asked for them."""
    state: np.ndarray
    """(E + 1, P) float32."""
    action: np.ndarray | None
    """(E + 1, A) float32; None of a video."""
    extra: dict[str, np.ndarray]
    """Name -> (E + 1, n) float32."""
    instruction: str | tuple[str, ...]
    """What to do, or wordings of it."""
    succeeded: bool
    """False if the dataset says that the episode failed; always True where failures are included."""


def read_rows(
    source: LeRobotFolder, keys: Keys, request: LeRobotRequest, number: int, images: tuple[Feature, ...] = ()
) -> EpisodeRows:
    """Reads an episode, with the images that are stored among its rows."""
    success = None if request.include_failures else keys.success
    features = (*keys.state, *keys.action, *keys.extra.values())
    task = [] if request.instruction or source.export_record is not None else ["task_index"]
    columns = [feature.name for feature in (*features, *images, *([success] if success else []))]
    shown = [name for name in source.info["features"] if name == lerobot.IS_NEW and source.export_record is not None]
    table = source.rows(number, [*columns, *task, *shown])

    def matrix(feature: Feature) -> np.ndarray:
        values = table.matrix(feature.name, truths=feature is success)
        if values.shape[1] != feature.size:
            raise table.damaged(
                f"{feature.name} has {values.shape[1]} numbers a row; {lerobot.INFO} says {feature.size}"
            )
        return values

    try:
        return EpisodeRows(
            table,
            np.concatenate([matrix(feature) for feature in keys.state], 1),
            np.concatenate([matrix(feature) for feature in keys.action], 1) if keys.action else None,
            {name: matrix(feature) for name, feature in keys.extra.items()},
            _instruction(source, request, number, table),
            success is None or bool(matrix(success).any()),
        )
    except UserError as error:
        raise UserError(f"{source.name(number)}: {error}") from None


def _instruction(source: LeRobotFolder, request: LeRobotRequest, number: int, table: Table) -> str | tuple[str, ...]:
    """The instruction of an episode: that of all its rows, unless one is given."""
    if request.instruction:
        return wordings(request.instruction)
    if source.export_record is not None:
        own = source.export_record["episodes"][number].get("instruction", "")
        return tuple(own) if isinstance(own, list) else str(own)
    found = [whole_number(index, f"{table.path}: task_index") for index in table.matrix("task_index")[:, 0].tolist()]
    for index in set(found) - set(source.tasks):
        raise UserError(f"its task_index is {index}, which the table of tasks lacks: give --instruction TEXT")
    texts = [source.tasks[index] for index in found]
    if change := next((row for row, text in enumerate(texts) if text != texts[0]), 0):
        raise UserError(
            f"its task changes at row {change}, from {texts[0]!r} to {texts[change]!r}; an episode has one: give "
            "--instruction TEXT for all episodes"
        )
    if not texts[0].strip():
        raise UserError(f"its task {found[0]} has no words: give --instruction TEXT for all episodes")
    return texts[0]
