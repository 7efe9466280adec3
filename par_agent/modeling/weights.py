"""Reading weights and configurations of published checkpoints (diffusers layout), with every fault named.

Only safetensors files are read. Pickled weights are refused and never opened.
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from par_agent.errors import UserError
from par_agent.utils.files import atomic_path, check_file, read_object, write_json
from par_agent.utils.hashes import hash_bytes

WEIGHT_NAMES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors", "model.safetensors")
EITHER = f"{WEIGHT_NAMES[0]} or {WEIGHT_NAMES[-1]}"
"""The names to tell users."""
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
CHECKSUM = "crc32"
"""Name of a file's checksum among what it says of itself; files of others, and of older versions, have none."""
MOST_NAMED = 40
"""Keys spelled out per kind of fault; past it the message counts."""


def find_weights(folder: str | Path) -> Path:
    """The weight file of a checkpoint folder.

    Raises:
        UserError: no such folder, no safetensors file in it, or pickled weights only.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; expected one with config.json and weights ({EITHER})")
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return folder / name
    if pickled := sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES):
        raise UserError(
            f"{folder} holds only pickled weights ({', '.join(pickled)}), which can run code when opened and are never "
            f"read; get the safetensors version ({EITHER})"
        )
    if sharded := sorted(path.name for path in folder.glob("*.safetensors*")):
        raise UserError(f"{folder} holds {', '.join(sharded)}; expected one file: merge the parts and name it {EITHER}")
    raise UserError(f"{folder} has no weights; expected {EITHER} in it")


def read_tensors(path: str | Path, advice: str = "download or copy it again") -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU, in the types they are stored in.

    Args:
        path: the file.
        advice: what the user can do where it is damaged; ends the message.

    Raises:
        UserError: the file is missing, truncated, pickled or not safetensors at all.
    """
    with _opened(Path(path), advice) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        expected = (file.metadata() or {}).get(CHECKSUM)
    if expected is not None and expected != _checksum(tensors):
        raise UserError(f"{path} is damaged (its tensors are not those that were written): {advice}")
    return tensors


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a safetensors file, which are not read themselves.

    Raises:
        UserError: see :func:`read_tensors`.
    """
    with _opened(Path(path)) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@contextlib.contextmanager
def _opened(path: Path, advice: str = "download or copy it again") -> Iterator[Any]:
    """A safetensors file that is open for reading."""
    from safetensors import SafetensorError, safe_open

    if path.suffix in PICKLE_SUFFIXES:
        raise UserError(f"{path} is a pickled file, which can run code when opened; only .safetensors files are read")
    check_file(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RuntimeError, MemoryError) as error:
        raise UserError(
            f"{path} is not a complete safetensors file ({error}; {path.stat().st_size:,} bytes): {advice}"
        ) from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors, from any device, as a safetensors file with a checksum that appears when it is complete.

    Raises:
        OSError: the disk is full or not writable.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(content, temporary, {**(metadata or {}), CHECKSUM: _checksum(content)})
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(*([int(number[1]), os.strerror(int(number[1]))] if number else [str(error)])) from None


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def read_config(folder: str | Path) -> dict[str, Any]:
    """The fields of ``config.json``, without the bookkeeping ones that start with an underscore.

    Raises:
        UserError: missing, not JSON, or not an object.
    """
    content = read_object(Path(folder) / "config.json")
    return {name: value for name, value in content.items() if not name.startswith("_")}


def load_weights(module: nn.Module, tensors: dict[str, Tensor], origin: str | Path, dtype: torch.dtype) -> None:
    """Puts ``tensors`` into ``module`` (which may be on the meta device), cast to ``dtype``.

    Args:
        module: the model; its ``state_dict()`` decides names and shapes.
        tensors: read weights.
        origin: where they come from, for messages.
        dtype: type that they are cast to.

    Raises:
        UserError: missing, left-over or non-finite tensors, wrong shapes or types, each named.
    """
    if text := tensor_faults(tensors, module.state_dict()):
        raise UserError(f"the weights in {origin} do not fit the model:\n{text}")
    cast = {name: value.to(dtype) for name, value in tensors.items()}
    module.load_state_dict(cast, strict=True, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_(True)  # assign=True takes the tensor's own flag, which is off


def save_module(module: nn.Module, config: dict[str, Any], folder: Path, dtype: torch.dtype | None = None) -> None:
    """Writes ``config.json`` and ``model.safetensors`` of one of our modules, each file atomically, the weights last.

    Floating-point weights are stored as ``dtype``; None: as they are.

    Raises:
        OSError: the disk is full or not writable.
    """
    write_json(folder / "config.json", config)
    tensors = module.state_dict()
    if dtype is not None:
        tensors = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
    write_tensors(folder / "model.safetensors", tensors)


def load_module(module: nn.Module, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Fills a module (which may be on the meta device) from the weights in a folder, cast to ``dtype``.

    Raises:
        UserError: the weights are missing, damaged or do not fit.
    """
    path = find_weights(folder)
    load_weights(module, read_tensors(path), path, dtype)


def hash_weights(module: nn.Module) -> str:
    """Hash of a module's tensors, the same in whatever type of numbers a file stores them."""
    tensors = sorted(module.state_dict().items())
    return hash_bytes(b"".join(name.encode() + value.float().cpu().numpy().tobytes() for name, value in tensors))


def tensor_faults(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, exact: bool = False) -> str:
    """What is wrong with tensors that were read, a line for every kind of fault; empty: nothing.

    Args:
        tensors: what was read.
        expected: names, shapes and types.
        exact: whether types have to be equal; otherwise any floats will do.
    """
    both = [(name, tensors[name], value) for name, value in expected.items() if name in tensors]
    faults = [
        _listing("missing keys", [name for name in expected if name not in tensors]),
        _listing("left-over keys", [name for name in tensors if name not in expected]),
        _listing(
            "wrong shapes",
            [
                f"{name} is {_shape(found)}, the configuration says {_shape(value)}"
                for name, found, value in both
                if found.shape != value.shape
            ],
        ),
        _listing(
            "wrong types",
            [
                f"{name} is {_type(found.dtype)}, "
                f"expected {_type(value.dtype) if exact else 'float32, float16 or bfloat16'}"
                for name, found, value in both
                if found.dtype not in ((value.dtype,) if exact else FLOATS)
            ],
        ),
        _listing("NaN or infinite values in", [name for name, value in tensors.items() if not _finite(value)]),
    ]
    return "\n".join(filter(None, faults))


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _finite(tensor: Tensor) -> bool:
    return tensor.dtype not in FLOATS or bool(tensor.isfinite().all())


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _listing(title: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f", and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"  {title} ({len(names)}): {', '.join(names[:MOST_NAMED])}{more}"
