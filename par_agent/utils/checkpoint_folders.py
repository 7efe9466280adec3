"""Where checkpoints are: bundled with the package, or in a folder on disk. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path

from par_agent.errors import UserError
from par_agent.utils.versions import PACKAGE_FOLDER

BUNDLED_FOLDER = PACKAGE_FOLDER / "checkpoints"
POLICY, BASELINE = "policy.json", "baseline.json"
TRAINING_FILES = (POLICY, BASELINE)
"""Files that record how a checkpoint was trained."""


def bundled_checkpoints() -> list[str]:
    """Names of the bundled checkpoints."""
    return sorted(path.name for path in BUNDLED_FOLDER.glob("*") if path.is_dir())


def find_checkpoint(name_or_folder: str | Path) -> Path | None:
    """Folder of a checkpoint: the one given, else the bundled one of that name; None where there is neither."""
    folders = (Path(name_or_folder), BUNDLED_FOLDER / name_or_folder)
    return next((folder for folder in folders if folder.is_dir()), None)


def checkpoint_folder(name_or_folder: str | Path) -> Path:
    """Folder of a checkpoint, as :func:`find_checkpoint` finds it."""
    if (folder := find_checkpoint(name_or_folder)) is None:
        raise UserError(
            f"no checkpoint {str(name_or_folder)!r}: neither a checkpoint folder nor bundled (bundled: "
            f"{', '.join(bundled_checkpoints()) or 'none'})"
        )
    return folder


def weight_files(folder: Path) -> list[Path]:
    """Files of a checkpoint that decide how it acts."""
    return sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json", ".pt", ".bin"))
