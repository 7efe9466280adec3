"""How a policy gets to the Hugging Face Hub, and the card that describes it there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import par_agent
from par_agent.errors import UserError
from par_agent.tasks import get_task
from par_agent.utils.checkpoint_folders import LIBRARY

if TYPE_CHECKING:
    from par_agent.policy.par_policy import PARPolicy


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
    cameras = ", ".join(f"`{camera}`" for camera in transforms.cameras)
    extras = [f'`obs["extra"]["{name}"]`' for name, _ in transforms.extra]
    rows = {
        "observes": ", ".join([f"{cameras} ({size})", f"{transforms.joint_count} joint positions", *extras]),
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
