"""What a policy must offer to be rolled out, and how the benchmark finds one: by checkpoint or as `module:Class`."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from par_agent.errors import UserError
from par_agent.tasks import TASKS, UNKNOWN_CONTROLLER, TaskSpec, get_task
from par_agent.utils.files import read_object
from par_agent.utils.strict_json import parse_json
from par_agent.utils.versions import PACKAGE_FOLDER, hash_files

if TYPE_CHECKING:
    import torch

_HASH_DIGITS = 12
ABOUT = ("policy.json", "baseline.json")
"""Files in which checkpoints say what they were trained with."""


class Policy(Protocol):
    """Anything that turns observations into actions.

    Two optional members are used where they exist: ``needs_frame`` (bool), False while the next ``act()`` will only pop
    an already planned action and read no image, which saves the render; and ``check(spec,
    track)``, which raises ``UserError`` where the policy expects another camera, image size or controller than the task
    has on the track.
    """

    action_size: int
    """Numbers per action."""

    def reset(self, env_idx: Any = None, seed: int | None = None) -> None:
        """Forgets the episode; all of the policy's own randomness until the next reset follows from ``seed``."""

    def act(self, obs: dict[str, Any]) -> torch.Tensor:
        """Actions (num_envs, action_size) float32 for one observation per environment."""


def search_folder(folder: str) -> None:
    """Lets ``module:name`` be found in a folder too, here and in worker processes started from here.

    What is installed comes first: a worker must not import another copy of a package than the process that started it.
    """
    if os.path.isdir(folder) and folder not in sys.path:
        sys.path.append(folder)


def load_object(reference: str) -> Any:
    """Imports ``module:name``; see :func:`search_folder`.

    Raises:
        UserError: the module cannot be imported or has no such name.
    """
    module_name, _, name = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"cannot import {module_name!r} of {reference!r}: {error}; run the command from the folder that holds it, "
            "or install it"
        ) from error
    if not hasattr(module, name):
        raise UserError(f"module {module_name!r} has no {name!r}")
    return getattr(module, name)


def resolve_task(reference: str) -> TaskSpec:
    """A task by its name, or your own :class:`TaskSpec` as ``module:NAME`` (the module also registers its environment).

    Raises:
        UserError: no such task.
    """
    if ":" not in reference:
        return get_task(reference)
    spec = load_object(reference)
    if not isinstance(spec, TaskSpec):
        raise UserError(f"{reference!r} is a {type(spec).__name__}; expected a par_agent.tasks.TaskSpec")
    if spec.name in TASKS and TASKS[spec.name] != spec:
        raise UserError(f"{reference!r}: the name {spec.name} belongs to a registered task; choose another env_id")
    return spec


def resolve_tasks(references: Sequence[str]) -> dict[str, TaskSpec]:
    """Tasks by reference, each as :func:`resolve_task` finds it.

    Raises:
        UserError: one does not exist, or is given twice.
    """
    specs = {reference: resolve_task(reference) for reference in references}
    if len({spec.name for spec in specs.values()}) < len(references):
        raise UserError(f"a task is given twice: {', '.join(references)}")
    return specs


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Reads ``key=value`` options; values are JSON where they parse as such (``4``, ``true``, ``null``), else text.

    Raises:
        UserError: an option without ``=``, or a key given twice.
    """
    parsed: dict[str, Any] = {}
    for option in options:
        key, separator, text = option.partition("=")
        if not separator or not key.isidentifier():
            raise UserError(f"policy option {option!r} is not of the form key=value")
        if key in parsed:
            raise UserError(f"policy option {key!r} is given twice")
        try:
            parsed[key] = parse_json(text, key)
        except UserError:
            parsed[key] = text
    return parsed


@dataclass(frozen=True)
class PolicySource:
    """Where policies come from: enough to build one in any worker process, and to tell two of them apart."""

    reference: str
    """A bundled checkpoint's name, a checkpoint folder or ``module:Class``, as the user gave it."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for the class or for ``PARPolicy.from_pretrained``."""
    device: str = "cpu"
    """Device that checkpoints are loaded on."""
    checkpoint: Path | None = None
    """Folder of weights for a class that has a parameter ``checkpoint``."""
    name: str | None = None
    """Short name for tables and folders; None: that of the class or folder, of a run's `policy` the run's."""
    indifferent: tuple[str, ...] = ()
    """Options that decide no action, by which policies are not told apart."""

    @property
    def label(self) -> str:
        """Short name for tables and folders."""
        if self.name is not None:
            return self.name
        if ":" in self.reference:
            return self.reference.rpartition(":")[2]
        folder = Path(self.reference).resolve()
        return folder.parent.name if folder.name == "policy" else folder.name

    @property
    def deciding_options(self) -> dict[str, Any]:
        """The options by which policies are told apart."""
        return {name: value for name, value in self.options.items() if name not in self.indifferent}

    @cached_property
    def controller(self) -> tuple[str, int] | None:
        """Control mode that the weights were trained with, and its numbers per action; None where nothing tells them.

        Raises:
            UserError: no such checkpoint, or a damaged one.
        """
        for path in [] if self.folder is None else [self.folder / name for name in ABOUT]:
            if path.is_file() and isinstance(transforms := read_object(path).get("transforms"), dict):
                mode, relative = transforms.get("control_mode"), transforms.get("relative")
                if isinstance(mode, str) and isinstance(relative, list) and mode != UNKNOWN_CONTROLLER:
                    return mode, len(relative)
        return None

    def task(self, spec: TaskSpec) -> TaskSpec:
        """The task as this policy is rolled out in it: with the controller that its weights were trained with."""
        if self.controller is None or self.controller[0] == spec.control_mode:
            return spec
        return replace(spec, control_mode=self.controller[0], action_size=self.controller[1])

    def build(self, spec: TaskSpec, track: str = "paper") -> Policy:
        """Makes the policy for one task and checks that it fits.

        A class is called with the options and, if it has such parameters, with ``task`` (the :class:`TaskSpec`),
        ``device`` and ``checkpoint``.

        Raises:
            UserError: the options do not fit, or the policy does not fit the task.
        """
        policy = self._from_class(spec) if ":" in self.reference else self._from_checkpoint(spec)
        check_policy(policy, spec, track)
        return policy

    def fingerprint(self) -> str:
        """Hash of what decides the policy's actions: the checkpoint's files, the source file of the class, or both.

        Of a class in a package, all of the package's sources count.

        Raises:
            UserError: no such checkpoint, module or class.
        """
        if ":" in self.reference:
            cls = load_object(self.reference)
            if not callable(cls):
                raise UserError(f"{self.reference!r} is a {type(cls).__name__}; expected a class")
            source = Path(inspect.getfile(cls))
            code = sorted(source.parent.glob("*.py")) if "." in cls.__module__ else [source]
            return hash_files(code + ([] if self.folder is None else weight_files(self.folder)))
        assert self.folder is not None
        return hash_files(weight_files(self.folder))

    @property
    def folder(self) -> Path | None:
        """Where the weights are; None of a class that was given none.

        Raises:
            UserError: no such checkpoint.
        """
        if ":" not in self.reference:
            return checkpoint_folder(self.reference)
        if self.checkpoint is not None and not self.checkpoint.is_dir():
            raise UserError(f"the policy's checkpoint {self.checkpoint} does not exist")
        return self.checkpoint

    def _from_checkpoint(self, spec: TaskSpec) -> Policy:
        from par_agent.policy.par_policy import PARPolicy

        folder = str(checkpoint_folder(self.reference))
        arguments = {"instruction": spec.instruction, "device": self.device, **self.options}
        return _call(PARPolicy.from_pretrained, self.reference, folder, **arguments)

    def _from_class(self, spec: TaskSpec) -> Policy:
        cls = load_object(self.reference)
        arguments = dict(self.options)
        known = {"task": spec, "device": self.device, "checkpoint": self.checkpoint and str(self.checkpoint)}
        for name, value in known.items():
            if value is not None and name in inspect.signature(cls).parameters:
                arguments.setdefault(name, value)
        if self.checkpoint is not None and arguments.get("checkpoint") != str(self.checkpoint):
            raise UserError(f"policy {self.reference!r} takes no checkpoint; leave --policy-checkpoint out")
        return _call(cls, self.reference, **arguments)


def weight_files(folder: Path) -> list[Path]:
    """A checkpoint's files that decide what it does."""
    return sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json", ".pt", ".bin"))


def _call(function: Any, reference: str, *args: Any, **arguments: Any) -> Any:
    """Calls `function`; options that it does not take become an error about the options."""
    try:
        inspect.signature(function).bind(*args, **arguments)
    except TypeError as error:
        raise UserError(
            f"policy {reference!r} does not take these options ({error}); its parameters are "
            f"{inspect.signature(function)}"
        ) from None
    return function(*args, **arguments)


def check_policy(policy: Any, spec: TaskSpec, track: str) -> None:
    """Compares a policy's conventions with the task's.

    Raises:
        UserError: a missing member, another action size, or what the policy's own ``check`` finds.
    """
    name = type(policy).__name__
    for member in ("reset", "act", "action_size"):
        if not hasattr(policy, member):
            raise UserError(
                f"policy {name} has no {member!r}; see par_agent.evaluation.policies.Policy for what is needed"
            )
    if policy.action_size != spec.action_size:
        raise UserError(
            f"policy {name} gives actions of {policy.action_size} numbers; task {spec.name} takes {spec.action_size} "
            f"(control mode {spec.control_mode})"
        )
    if hasattr(policy, "check"):
        policy.check(spec, track)


def checkpoint_folder(reference: str) -> Path:
    """Folder of a bundled checkpoint (``par-mini``) or of one on disk.

    Raises:
        UserError: neither.
    """
    bundled = PACKAGE_FOLDER / "checkpoints"
    for folder in (Path(reference), bundled / reference):
        if folder.is_dir():
            return folder
    known = sorted(path.name for path in bundled.glob("*") if path.is_dir())
    raise UserError(
        f"no policy {reference!r}: neither a checkpoint folder nor bundled (bundled: {', '.join(known) or 'none'}); "
        "a class of your own is given as module:Class"
    )


def hash_content(content: Any) -> str:
    """Hash of anything that JSON can hold, 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_HASH_DIGITS]
