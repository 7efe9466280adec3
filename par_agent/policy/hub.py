"""Checkpoints on the Hugging Face Hub: how they come from there, how they get there, and the cards that describe them.

`huggingface_hub` does the work and keeps what it fetches in its own cache. Its environment variables hold:
`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE`. Only safetensors, JSON and Markdown are fetched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import par_agent
from par_agent.errors import UserError
from par_agent.tasks import get_task
from par_agent.utils.checkpoint_folders import bundled_checkpoints, find_checkpoint

if TYPE_CHECKING:
    from par_agent.policy.par_policy import PARPolicy

FETCHED = ("*.safetensors", "*.json", "*.md")
LIBRARY = "par_agent"


def pretrained_folder(name: str | Path, revision: str | None = None) -> Path:
    """Folder of a checkpoint: one on this machine, a bundled one, or one of the Hub, ``org/name``, in that order.

    Args:
        name: folder, bundled name, or name on the Hub.
        revision: branch, tag or commit on the Hub; None: its ``main``.

    Raises:
        UserError: there is no such checkpoint; the message says where it was looked for.
    """
    if (folder := find_checkpoint(name)) is not None:
        if revision is not None:
            raise UserError(f"revision is {revision!r}, but {str(name)!r} is a folder of this machine, {folder}")
        return folder
    here = (
        f"no checkpoint {str(name)!r}: neither a folder ({Path(name).absolute()}) nor bundled (bundled: "
        f"{', '.join(bundled_checkpoints()) or 'none'})"
    )
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name)):
        raise UserError(f"{here}, and not a name on the Hub, which would be ORGANISATION/NAME")
    return _fetched(str(name), revision, here)


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


@dataclass(frozen=True)
class CardFacts:
    """What a checkpoint itself does not tell and its card on the Hub should."""

    license: str | None = None
    """Licence of the weights as the Hub names it, for example ``apache-2.0``; None: not stated."""
    datasets: Sequence[str] = ()
    """Datasets of the Hub that it was trained on, ``org/name``."""
    success: Mapping[str, float] | None = None
    """Measured success rates in %, by task: ``{"PushCube": 96.0}``."""


def model_card(policy: PARPolicy, name: str, facts: CardFacts | None = None) -> str:
    """The README of a repository: metadata that the Hub reads, what the policy observes and does, how to use it."""
    from huggingface_hub import EvalResult, ModelCardData

    facts = facts or CardFacts()
    checkpoint, transforms = policy.checkpoint, policy.transforms
    results = [
        EvalResult(
            task_type="robotics",
            dataset_type="ManiSkill",
            dataset_name=get_task(task).env_id,
            metric_type="success_rate",
            metric_name="success rate in %",
            metric_value=rate,
        )
        for task, rate in (facts.success or {}).items()
    ]
    data = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag="robotics",
        license=facts.license,
        datasets=list(facts.datasets) or None,
        metrics=["success_rate"] if results else None,
        eval_results=results or None,
        model_name=name,
        tags=["robotics", "maniskill", "par"],
    )
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    size = "x".join(map(str, transforms.image_size or ())) or "unknown size"
    rows = {
        "observes": f"`{transforms.camera}` ({size}) and {transforms.proprioception_size} joint positions and extras",
        "acts": f"`{transforms.control_mode}`, chunks of {checkpoint.model.config.action.chunk_length} actions",
        "context": f"{policy.inference.context} of at most {checkpoint.model.config.max_context} physical tokens",
        "parameters": f"{parameters / 1e6:.1f}M",
        "trained": f"{checkpoint.trained.get('steps', 'unknown')} steps",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    told = policy.instruction
    instruction = told if isinstance(told, str) else next(iter(told or ()), "what to do")
    return f"""---
{data.to_yaml()}
---

# {name.split("/")[-1]}

A policy for [ManiSkill 3](https://github.com/haosulab/ManiSkill) by `par_agent`, an implementation of PAR, the
*Physical Autoregressive Model for Robotic Manipulation without Action Pretraining*
([arXiv 2508.09822](https://arxiv.org/abs/2508.09822)).

| | |
| --- | --- |
{table}

```python
import par_agent

policy = par_agent.PARPolicy.from_pretrained({name!r}, {instruction!r})
```
"""


def push(policy: PARPolicy, name: str, facts: CardFacts, private: bool | None, revision: str | None) -> str:
    """What :meth:`~par_agent.policy.par_policy.PARPolicy.push_to_hub` does."""
    from huggingface_hub import HfApi

    card = model_card(policy, name, facts)
    api = HfApi(library_name=LIBRARY, library_version=par_agent.__version__)
    where: dict[str, Any] = {"repo_id": name, "repo_type": "model"}
    with TemporaryDirectory() as folder:
        policy.save_pretrained(folder)
        Path(folder, "README.md").write_text(card, encoding="utf-8")
        try:
            api.create_repo(**where, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(**where, branch=revision, exist_ok=True)
            message = f"A PAR policy, by par_agent {par_agent.__version__}"
            done = api.upload_folder(**where, folder_path=folder, revision=revision, commit_message=message)
        except Exception as error:  # of requests or httpx, as huggingface_hub's version has it
            raise UserError(
                f"{name!r} cannot be uploaded to the Hub ({api.endpoint}): {error}; `hf auth login` or HF_TOKEN says "
                "who you are"
            ) from error
    return str(done.commit_url)
