"""Language instructions of a policy: one for all of its environments, or one for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from par_agent.errors import UserError
from par_agent.modeling.text_encoder import TextEncoder


@dataclass(frozen=True)
class Instructions:
    """Texts and their features."""

    texts: tuple[str, ...]
    """One text for all environments, or one per environment (B)."""
    features: tuple[Tensor, ...]
    """(length, text_dim) float32 features of each text."""
    count: int | None
    """Environments that there are texts for; None: one text for all, however many."""

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
