"""A CUDA device that is not there: real numbers in the CPU's memory, a claimed device, and CUDA's rules.

Tensors of the device compute on the CPU, so that what depends on the data runs too, and results equal the CPU's. They
refuse what CUDA refuses: operations that mix devices (numbers without dimensions and indices apart), conversion to
numpy, and generators of the CPU.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("cuda", 0)
_ACROSS = {"copy_", "_to_copy", "_copy_from", "_local_scalar_dense"}
"""Operations that move data between devices."""
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
"""Operations whose indices may lie on the CPU."""
_POINTWISE = {"fill_", "where", "masked_fill", "masked_fill_", "lerp", "lerp_"}
"""Operations that take the CPU's numbers without dimensions, beside those that torch tags as pointwise."""


_LAZY = {torch.ops.aten._conj.default: torch.ops.aten.conj_physical.default}
"""Operations that leave a mark on a tensor, which is not seen here, and those that do the work."""


class CudaTensor(Tensor):
    """A tensor that claims to be on the first CUDA device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> CudaTensor:
        with torch.inference_mode(held.is_inference()):
            made = Tensor._make_wrapper_subclass(
                cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, requires_grad=requires_grad
            )
        made.held = held
        return made

    device = property(lambda self: DEVICE)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], context: None, size: Any, stride: Any) -> CudaTensor:
        return CudaTensor(parts["held"])

    def __repr__(self, **options: Any) -> str:
        return f"CudaTensor({self.held!r})"

    def numpy(self, **options: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tree_flatten((args, kwargs))[0]
        check_devices(func, args, given)
        func = _LAZY.get(func, func)
        result = func(*tree_map_only(CudaTensor, _held, args), **tree_map_only(CudaTensor, _held, kwargs))
        if func.overloadpacket.__name__ == "_to_copy" and not isinstance(args[0], CudaTensor):
            return result
        known = {id(value.held): value for value in given if isinstance(value, CudaTensor)}
        changed = [value for value in given if isinstance(value, Tensor) and not isinstance(value, CudaTensor)]
        if any(value is result for value in changed):  # the CPU's own tensor, changed in place
            return result
        return tree_map_only(
            Tensor, lambda value: known[id(value)] if id(value) in known else CudaTensor(value), result
        )


def _held(value: CudaTensor) -> Tensor:
    return value.held


def check_devices(func: Any, args: tuple[Any, ...], given: list[Any]) -> None:
    """Refuses what CUDA refuses."""
    name = func.overloadpacket.__name__
    if any(isinstance(value, torch.Generator) for value in given):
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' ({name})")
    foreign = [value for value in given if isinstance(value, Tensor) and not isinstance(value, CudaTensor)]
    # Derivatives make zeros of their own, which here lie in the CPU's memory and claim nothing.
    if not foreign or name in _ACROSS or torch._C._current_autograd_node() is not None:
        return
    if name in _INDEXED and isinstance(args[0], CudaTensor):
        indices = tree_flatten(args[1])[0]
        foreign = [value for value in foreign if value.ndim and not any(value is index for index in indices)]
    elif torch.Tag.pointwise in func.tags or name in _POINTWISE:
        foreign = [value for value in foreign if value.ndim]
    if foreign:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({name})"
        )


class _Placement(TorchFunctionMode):
    """Makes tensors where ``device`` says, and moves them there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "to":
            return _moved(func, args, kwargs)
        if name == "cuda":
            return _placed(args[0], DEVICE)
        if name == "cpu":
            return _placed(args[0], torch.device("cpu"))
        if name in ("pin_memory", "is_pinned"):
            if isinstance(args[0], CudaTensor):
                raise RuntimeError(f"cannot pin 'torch.cuda.FloatTensor' ({name})")
            return args[0] if name == "pin_memory" else False
        if name == "new_tensor":
            kwargs.setdefault("device", args[0].device)
        if kwargs.get("device") is None:
            return func(*args, **kwargs)
        device = torch.device(kwargs.pop("device"))
        if device.type == "meta":
            return func(*args, device=device, **kwargs)
        if device.type == "cuda" and kwargs.get("generator") is not None:
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' ({name})")
        leaf = kwargs.pop("requires_grad", False)
        made = _placed(func(*args, device="cpu", **kwargs), device)
        return made.requires_grad_() if leaf else made


def _moved(func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """``Tensor.to``."""
    tensor, *rest = args
    device = kwargs.pop("device", None)
    if rest and isinstance(rest[0], Tensor):  # to(other): its device and type
        device, rest[0] = rest[0].device, rest[0].dtype
    elif rest and (rest[0] is None or isinstance(rest[0], str | int | torch.device)):
        device = rest.pop(0)
    given = dict(zip(("dtype", "non_blocking", "copy"), rest, strict=False)) | kwargs
    given = {name: value for name, value in given.items() if value is not None}
    result = func(tensor, **given) if given else tensor
    return result if device is None else _placed(result, torch.device(device))


class _ToCuda(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return CudaTensor(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, *gradient: Any) -> Any:
        return gradient[0].held.clone()


class _ToCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: CudaTensor) -> Tensor:
        return tensor.held.clone()

    @staticmethod
    def backward(ctx: Any, *gradient: Any) -> Any:
        return CudaTensor(gradient[0].clone())


def _placed(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, a copy where it lies on another one."""
    if device.type not in ("cpu", "cuda"):
        raise RuntimeError(f"the virtual machine has no {device}")
    if isinstance(tensor, CudaTensor) == (device.type == "cuda"):
        return tensor
    move = _ToCuda if device.type == "cuda" else _ToCpu
    return move.apply(tensor)


@contextlib.contextmanager
def virtual_cuda(patch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A machine with one CUDA device, for the block and the threads that it starts."""
    for name, value in {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "is_bf16_supported": True,
        "get_device_name": "virtual",
        "get_device_capability": (9, 0),
        "synchronize": None,
        "get_rng_state": None,
        "set_rng_state": None,
    }.items():
        patch.setattr(torch.cuda, name, lambda *args, _value=value, **options: _value)
    autocast = torch.autocast
    patch.setattr(torch, "autocast", lambda device_type, *args, **options: autocast("cpu", *args, **options))
    run = threading.Thread.run

    def run_there(thread: threading.Thread) -> None:
        with _Placement():
            run(thread)

    patch.setattr(threading.Thread, "run", run_there)
    with _Placement():
        yield DEVICE
