"""A released NOVA folder in the diffusers layout: transformer, VAE, scheduler, text encoder and tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch

from par_agent.errors import UserError
from par_agent.modeling.config import NOVAConfig
from par_agent.modeling.text_encoder import PhiTextEncoder

PARTS = ("transformer", "vae", "scheduler")
TEXT_PARTS = ("text_encoder", "tokenizer")


def require_parts(folder: Path, text_cache: Path | None) -> None:
    """Checks, before anything is loaded, that all parts are there; a cache of text features replaces the text parts."""
    wanted = PARTS if text_cache is not None else PARTS + TEXT_PARTS
    if missing := [name for name in wanted if not (folder / name).is_dir()]:
        hint = " (--text-cache FOLDER replaces the text encoder)" if set(missing) & set(TEXT_PARTS) else ""
        raise UserError(
            f"{folder} lacks {', '.join(missing)}; expected a released NOVA folder with {', '.join(wanted)}{hint}"
        )


def folder_text_encoder(
    folder: Path, text_cache: Path | None, config: NOVAConfig, device: torch.device
) -> PhiTextEncoder:
    """The folder's text encoder, or the cache alone where the folder has none."""
    found = folder if all((folder / name).is_dir() for name in TEXT_PARTS) else None
    return PhiTextEncoder(found, cache=text_cache, dim=config.text_dim, length=config.text_length, device=device)
