"""Where the policy of a run comes from: a checkpoint or a class of your own, built anew in every worker process."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from par_agent.errors import UserError
from par_agent.policy.interface import Policy, check_policy
from par_agent.tasks import UNKNOWN_CONTROLLER, TaskSpec
from par_agent.utils.checkpoint_folders import TRAINING_FILES, checkpoint_folder, weight_files
from par_agent.utils.files import read_object
from par_agent.utils.hashes import hash_files
from par_agent.utils.json_fields import parse_options
from par_agent.utils.references import load_object

if TYPE_CHECKING:
    from par_agent.simulation.environment import TaskEnvironment


@dataclass(frozen=True)
class PolicySource:
    """Where policies come from: enough to build one in any worker process, and to tell two of them apart."""

    reference: str
    """A bundled checkpoint's name, a checkpoint folder, ``org/name[@revision]`` on the Hub or ``module:Class``, as the
    user gave it."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for the class or for ``PARPolicy.from_pretrained``."""
    device: str = "cpu"
    """Device that checkpoints are loaded on."""
    checkpoint: Path | None = None
    """Weights for a class that has a parameter ``checkpoint``: a folder or a name, as above."""
    name: str | None = None
    """Short name for tables and folders; None: the class's or folder's name; for RUN/policy, the name RUN."""
    neutral_options: tuple[str, ...] = ()
    """Names of options that change no action: policies that differ in these alone are the same."""

    @classmethod
    def from_options(cls, reference: str, options: Sequence[str], device: str) -> PolicySource:
        """What the command line names; raises UserError for options that are not ``key=value``."""
        return cls(reference, parse_options(options), device)

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
        return {name: value for name, value in self.options.items() if name not in self.neutral_options}

    @cached_property
    def description(self) -> dict[str, Any]:
        """What the JSON beside the weights says; empty where there is none."""
        files = [] if self.folder is None else [self.folder / name for name in TRAINING_FILES]
        return next((read_object(path) for path in files if path.is_file()), {})

    @cached_property
    def controller(self) -> tuple[str, int] | None:
        """Control mode that the weights were trained with, and its numbers per action; None where unknown."""
        if isinstance(transforms := self.description.get("transforms"), dict):
            mode, relative = transforms.get("control_mode"), transforms.get("relative")
            if isinstance(mode, str) and isinstance(relative, list) and mode != UNKNOWN_CONTROLLER:
                return mode, len(relative)
        return None

    def task(self, spec: TaskSpec) -> TaskSpec:
        """The task as this policy is rolled out in it: with the controller that its weights were trained with."""
        if self.controller is None or self.controller[0] == spec.control_mode:
            return spec
        return replace(spec, control_mode=self.controller[0], action_size=self.controller[1])

    def open(self, spec: TaskSpec, track: str, **options: Any) -> tuple[TaskEnvironment, Policy]:
        """The policy for a task and the environment that it acts in, which has :class:`TaskEnvironment`'s options."""
        from par_agent.simulation.environment import TaskEnvironment

        spec = self.task(spec)
        policy = self.build(spec, track)
        env = TaskEnvironment(spec, track, **options)
        env.check(policy)
        return env, policy

    def build(self, spec: TaskSpec, track: str = "paper") -> Policy:
        """Makes the policy for one task and checks that it fits.

        A class is called with the options and, if it has such parameters, with ``task`` (the :class:`TaskSpec`),
        ``device`` and ``checkpoint``.
        """
        arguments: dict[str, Any]
        if ":" in self.reference:
            make = load_object(self.reference)
            arguments = dict(self.options)
            known = {"task": spec, "device": self.device, "checkpoint": self.folder and str(self.folder)}
            for name, value in known.items():
                if value is not None and name in inspect.signature(make).parameters:
                    arguments.setdefault(name, value)
            if self.checkpoint is not None and arguments.get("checkpoint") != str(self.folder):
                raise UserError(f"policy {self.reference!r} takes no checkpoint; leave --policy-checkpoint out")
        else:
            from par_agent.policy.par_policy import PARPolicy

            make = partial(PARPolicy.from_pretrained, str(self.folder))
            arguments = {"instruction": spec.instruction, "device": self.device, **self.options}
        try:
            inspect.signature(make).bind(**arguments)
        except TypeError as error:
            raise UserError(
                f"policy {self.reference!r} does not take these options ({error}); its parameters are "
                f"{inspect.signature(make)}"
            ) from None
        policy = make(**arguments)
        check_policy(policy, spec, track)
        return policy

    def fingerprint(self) -> str:
        """Hash of what decides the policy's actions: the checkpoint's files, the source file of the class, or both.

        Of a class in a package, all of the package's sources count.
        """
        code: list[Path] = []
        if ":" in self.reference:
            cls = load_object(self.reference)
            if not callable(cls):
                raise UserError(f"{self.reference!r} is a {type(cls).__name__}; expected a class")
            source = Path(inspect.getfile(cls))
            code = sorted(source.parent.glob("*.py")) if "." in cls.__module__ else [source]
        return hash_files(code + ([] if self.folder is None else weight_files(self.folder)))

    @cached_property
    def folder(self) -> Path | None:
        """Where the weights are, None for a class without; raises UserError where they do not exist.

        What is on the Hub is looked up once, so that worker processes get the same commit.
        """
        if ":" not in self.reference:
            try:
                return checkpoint_folder(self.reference)
            except UserError as error:
                raise UserError(f"{error}; a class of your own is given as module:Class") from None
        return None if self.checkpoint is None else checkpoint_folder(self.checkpoint)
