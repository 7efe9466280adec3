"""Torch devices and types by name, where unknown or unusable ones are a UserError, and moving tensors to a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from par_agent.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def usable_device(name: str | torch.device | None) -> torch.device:
    """The device of this name, after a check that it works; None: torch's default device."""
    import torch

    try:
        device = torch.empty(0, device=name).device
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        return device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        usable = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise UserError(f"device {str(name)!r} cannot be used ({reason}); this machine has: {usable}") from None


def floating_type(name: str | torch.dtype) -> torch.dtype:
    """A type that models compute in, float32, float16 or bfloat16, by its name or as it is."""
    import torch

    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if (found := str(name).removeprefix("torch.")) not in known:
        raise UserError(f"dtype is {name!r}; allowed: {', '.join(known)}")
    return known[found]


def computes_bfloat16() -> bool:
    """Whether the CUDA device multiplies bfloat16 in hardware; below compute capability 8.0 it is emulated."""
    import torch

    return torch.cuda.is_bf16_supported(including_emulation=False)


def use_tf32(allowed: bool) -> None:
    """Sets for this process whether GPUs multiply float32 in TF32 (10 bits), far faster from compute capability 8.0."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on ``device``; the CPU does not wait for a copy to a GPU."""
    import torch

    if tensor.device.type != "cpu" or torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # torch keeps the pinned memory until it was read
