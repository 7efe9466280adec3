"""Models that are read from checkpoint folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from par_agent.modeling.weights import load_module, save_module
from par_agent.utils.checkpoint_folders import checkpoint_folder

M = TypeVar("M", bound="Pretrained")


class Pretrained(nn.Module):
    """A model whose folder holds ``config.json`` and its weights; it is made from its config alone."""

    config: Any
    """Its sizes."""
    config_class: ClassVar[Any]
    """Class of its config, which ``read(folder)`` reads."""

    @classmethod
    def from_pretrained(cls: type[M], name_or_folder: str | Path) -> M:
        """The model of a checkpoint in evaluation mode, float32, on the CPU.

        Args:
            name_or_folder: name of a bundled checkpoint, such as ``"par-mini"``, a folder, or
                ``"org/name[@revision]"`` on the Hugging Face Hub.

        Raises:
            UserError: there is no such checkpoint, or it is damaged.
        """
        folder = checkpoint_folder(name_or_folder)
        with torch.device("meta"):
            model = cls(cls.config_class.read(folder))
        load_module(model, folder)
        return model.eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes ``config.json`` and the weights, as ``dtype`` or as they are, into a folder."""
        save_module(self, self.config.to_json(), Path(folder), dtype)
