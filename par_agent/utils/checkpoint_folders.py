"""Where checkpoints are: bundled with the package, in a folder, or on the Hugging Face Hub.

`huggingface_hub` brings what is on the Hub and keeps it in its own cache. Its environment variables hold:
`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE`. Only safetensors, JSON and Markdown are fetched.
Nothing heavy is imported here.
"""

from __future__ import annotations

import re
from pathlib import Path

import par_agent
from par_agent.errors import UserError
from par_agent.utils.versions import PACKAGE_FOLDER

BUNDLED_FOLDER = PACKAGE_FOLDER / "checkpoints"
POLICY, BASELINE = "policy.json", "baseline.json"
TRAINING_FILES = (POLICY, BASELINE)
"""Files that record how a checkpoint was trained."""
HUB_NAME = re.compile(r"(?!.*\.\.)(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")
FETCHED = ("*.safetensors", "*.json", "*.md")
LIBRARY = "par_agent"


def bundled_checkpoints() -> list[str]:
    """Names of the bundled checkpoints."""
    return sorted(path.name for path in BUNDLED_FOLDER.glob("*") if path.is_dir())


def find_checkpoint(name_or_folder: str | Path) -> Path | None:
    """Folder of a checkpoint of this machine: the one given, else the bundled one of that name, else None."""
    folders = (Path(name_or_folder), BUNDLED_FOLDER / name_or_folder)
    return next((folder for folder in folders if folder.is_dir()), None)


def checkpoint_folder(name_or_folder: str | Path, revision: str | None = None) -> Path:
    """Folder of a checkpoint: one of this machine, a bundled one, or one of the Hub, in that order.

    Args:
        name_or_folder: a folder, a bundled checkpoint's name, or ``org/name`` or ``org/name@revision`` on the Hub.
        revision: branch, tag or commit on the Hub; None: that of the name, else ``main``.

    Raises:
        UserError: there is no such checkpoint; the message says where it was looked for.
    """
    name = str(name_or_folder)
    if (folder := find_checkpoint(name)) is not None:
        if revision is not None:
            raise UserError(f"revision is {revision!r}, but {name!r} is a folder of this machine, {folder}")
        return folder
    here = (
        f"no checkpoint {name!r}: neither a folder ({Path(name).absolute()}) nor bundled (bundled: "
        f"{', '.join(bundled_checkpoints()) or 'none'})"
    )
    if (hub := HUB_NAME.fullmatch(name)) is None:
        raise UserError(f"{here}, and not a name on the Hub, which would be ORGANISATION/NAME[@REVISION]")
    if revision is not None and hub[2] is not None:
        raise UserError(f"revision is {revision!r}, but the name {name!r} gives one too: leave one of them out")
    return _fetched(hub[1], revision or hub[2], here)


def _fetched(name: str, revision: str | None, here: str) -> Path:
    """The folder of `huggingface_hub`'s cache that a revision of a repository is in; it is brought there if need be."""
    from huggingface_hub import constants, errors, snapshot_download

    hub = f"{here}, and on the Hub ({constants.ENDPOINT})"
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(FETCHED),
                library_name=LIBRARY,
                library_version=par_agent.__version__,
            )
        )
    except errors.GatedRepoError as error:
        raise UserError(f"{hub} only for those whom its authors let in: ask there, then `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{hub} there is no revision {revision!r} of it") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{hub} there is none of that name, or it is private: `hf auth login`") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "it cannot be reached"
        wanted = f"the cache ({constants.HF_HUB_CACHE}) does not hold {revision or 'main'} of it"
        raise UserError(f"{hub} nothing was looked up, because {reason}, and {wanted}") from error
    except Exception as error:  # of requests or httpx, as huggingface_hub's version has it
        raise UserError(f"{hub} it cannot be fetched: {error}") from error


def weight_files(folder: Path) -> list[Path]:
    """Files of a checkpoint that decide how it acts."""
    return sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json", ".pt", ".bin"))
