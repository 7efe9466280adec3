"""Which weights are trained: all, the action parts over a frozen video model, or low-rank adapters (Hu et al. 2021).

Adapters are peft's own layers, put into the model in place. A layer ``y = W x`` becomes ``y = W x + (alpha / r) B A x``
with ``A`` (r, in) and ``B`` (out, r); a policy is always saved with them merged: ``W + (alpha / r) B A``.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from par_agent.errors import UserError
from par_agent.modeling.par import PARModel
from par_agent.modeling.weights import find_weights, write_tensors
from par_agent.training.config import FinetuneConfig
from par_agent.utils.files import write_json
from par_agent.utils.hashes import hash_file
from par_agent.utils.references import optional_module

ACTION_PARTS = ("action_tokenizer", "action_detokenizer")
"""Modules of a model that only actions pass through."""
_BASE, _A, _B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"
_PEFT_PREFIX = "base_model.model."


def choose_weights(model: PARModel, config: FinetuneConfig, *, fresh_actions: bool) -> None:
    """Marks the weights that ``config`` trains and freezes all others; puts adapters into the model where asked.

    Where the action parts are random (``fresh_actions``), LoRA trains them in full: there is nothing to adapt.
    """
    video = not config.has_actions
    if config.train == "full":
        in_full = tuple(name for name, _ in model.named_children() if not (video and name in ACTION_PARTS))
    else:
        in_full = ACTION_PARTS if config.train == "action" or (fresh_actions and not video) else ()
    if config.train == "lora":
        _add_adapters(model, config, skipped=ACTION_PARTS if video or fresh_actions else ())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(in_full) or ".lora_" in name)


def hash_frozen(config: FinetuneConfig) -> str | None:
    """Hash of the weight file whose frozen weights the run builds on; None: it trains all, or starts from none."""
    return None if config.init is None or config.trains_all else hash_file(find_weights(config.init_folder))


def adapter_targets(model: PARModel) -> dict[str, list[str]]:
    """Linear layers of the model's blocks, by what they are called inside a block: qkv, proj, fc1, fc2, …"""
    found: dict[str, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".blocks." in name:
            found[name.rpartition(".")[2]].append(name)
    return dict(found)


def _add_adapters(model: PARModel, config: FinetuneConfig, skipped: tuple[str, ...]) -> None:
    peft = optional_module("peft", "--train lora needs peft", "lora")
    targets = adapter_targets(model)
    if unknown := [target for target in config.lora.lora_targets if target not in targets]:
        raise UserError(f"unknown LoRA target {unknown[0]!r}; {model.config.name} has {', '.join(sorted(targets))}")
    names = [name for target in config.lora.lora_targets for name in targets[target] if not name.startswith(skipped)]
    adapters = peft.LoraConfig(r=config.lora.lora_rank, lora_alpha=config.lora.lora_alpha, target_modules=names)
    peft.inject_adapter_in_model(adapters, model)


def merged(tensors: dict[str, Tensor], config: FinetuneConfig) -> dict[str, Tensor]:
    """Weights of the plain model: those of a model with adapters, each adapter added to its layer."""
    scale, plain = config.lora.lora_alpha / config.lora.lora_rank, {}
    for name, value in tensors.items():
        layer, is_base, kind = name.partition(_BASE)
        if is_base and kind == "weight":
            value = value + scale * tensors[layer + _B] @ tensors[layer + _A]
        if ".lora_" not in name:
            plain[name.replace(_BASE, ".")] = value
    return plain


def save_adapter(folder: Path, tensors: dict[str, Tensor], config: FinetuneConfig) -> None:
    """Writes trained weights alone, in peft's layout: ``PeftModel.from_pretrained(model, folder)`` reads them."""
    layers = sorted(name.removesuffix(_A) for name in tensors if name.endswith(_A))
    parts = sorted({name.split(".")[0] for name in tensors if ".lora_" not in name})
    named = {_PEFT_PREFIX + name.replace(".default.", "."): value for name, value in tensors.items()}
    content: dict[str, Any] = {
        "peft_type": "LORA",
        "r": config.lora.lora_rank,
        "lora_alpha": config.lora.lora_alpha,
        "target_modules": layers,
        "modules_to_save": parts or None,
        "base_model_name_or_path": str(config.init),
    }
    write_tensors(folder / "adapter_model.safetensors", named)
    write_json(folder / "adapter_config.json", content)
