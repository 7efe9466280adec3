"""Language instructions of a policy: one for all of its environments, or one for each."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from par_agent.errors import UserError
from par_agent.modeling.text_encoder import TextEncoder, words_of
from par_agent.tasks import TaskSpec, resolve_task

Task = str | TaskSpec
"""A task, or its name."""

SHOWN = 8
"""Instructions that a message lists."""


@dataclass(frozen=True)
class Instructions:
    """Texts and their features."""

    texts: tuple[str, ...]
    """One text for all environments, or one per environment (B); empty: none was given yet."""
    features: tuple[Tensor, ...]
    """(length, text_dim) float32 features of each text."""
    count: int | None
    """Environments that there are texts for; None: one text for all, however many."""

    @classmethod
    def given(
        cls, instruction: Any, task: Any, encoder: TextEncoder, trained: Sequence[str], device: torch.device
    ) -> Instructions:
        """What a user gave, an instruction or a task (or several); texts that are not among the ``trained`` ones, where
        these are known, are warned of."""
        if instruction is not None and task is not None:
            raise UserError("give an instruction or a task, not both: a task stands for its instruction")
        if task is not None:
            instruction = instruction_of(task)
        if instruction is None:
            return cls((), (), None)
        found = cls.read(instruction, encoder, device)
        known = [words_of(text) for text in trained]
        for text in dict.fromkeys(found.texts):
            if known and words_of(text) not in known:
                warnings.warn(
                    f"this checkpoint was not trained with the instruction {text!r}, and other words can make it do "
                    f"anything; it was trained with: {listed(trained)}",
                    stacklevel=4,
                )
        return found

    @classmethod
    def read(cls, given: Any, encoder: TextEncoder, device: torch.device) -> Instructions:
        """Encodes a text, or a list, tuple or array of one text per environment."""
        texts = (
            (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list | tuple | np.ndarray) else ()
        )
        if not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(f"instruction is {given!r}; expected a text, or a list of one text per environment")
        features = tuple(encoder.encode(text).to(device) for text in texts)
        for text, value in zip(texts, features, strict=True):
            if not len(value):
                raise UserError(f"the instruction {text!r} holds no words")
        return cls(tuple(map(str, texts)), features, None if isinstance(given, str) else len(texts))

    def to(self, device: torch.device) -> Instructions:
        """The same, with features on another device."""
        return replace(self, features=tuple(value.to(device) for value in self.features))

    def for_rows(self, batch: int) -> Instructions:
        """One text for each of ``batch`` environments."""
        if self.count is None:
            return Instructions(self.texts * batch, self.features * batch, batch)
        if self.count != batch:
            raise UserError(
                f"there are {self.count} instructions, one per environment, for {batch} environments; give as "
                "many with reset(instruction=[...]), or one text for all"
            )
        return self

    def with_rows(self, rows: Sequence[int], new: Instructions, batch: int | None) -> Instructions:
        """These, with others for some of ``batch`` environments (None: their number is not known yet)."""
        if batch is None:
            raise UserError(
                "how many environments there are is not known before the first observation: give instruction without "
                "env_idx, one text per environment"
            )
        new, old = new.for_rows(len(rows)), self.for_rows(batch)
        texts, features = list(old.texts), list(old.features)
        for row, text, value in zip(rows, new.texts, new.features, strict=True):
            texts[row], features[row] = text, value
        return Instructions(tuple(texts), tuple(features), batch)


def instruction_of(task: Any) -> str | list[str]:
    """The instruction of a task (a name, an environment id, ``module:NAME`` or a TaskSpec), or of each of several."""
    if isinstance(task, list | tuple):
        return [str(instruction_of(one)) for one in task]
    if not isinstance(task, str | TaskSpec):
        raise UserError(f"task is {task!r}; expected a task's name, a TaskSpec, or a list of one per environment")
    return (resolve_task(task) if isinstance(task, str) else task).instruction


def listed(instructions: Sequence[str]) -> str:
    """Instructions in a message; of many, the first."""
    more = len(instructions) - SHOWN
    return "; ".join(map(repr, instructions[:SHOWN])) + (f"; and {more} more" if more > 0 else "")
