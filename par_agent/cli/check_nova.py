"""`par-agent check-nova`: recomputes reference tensors of NOVA or its VAE and says how far off this machine is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from par_agent.errors import UserError
from par_agent.utils.checked import Checked
from par_agent.utils.files import read_object

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STAGE_TOLERANCE = 2e-5
DENOISE_TOLERANCE = 1e-4
GENERATION_TOLERANCE = 1e-3
DTYPE_FACTOR = {"float64": 1.0, "float32": 1.0, "float16": 1e3, "bfloat16": 5e3}
"""What tolerances are multiplied by: about the ratio of the types' rounding errors to float32's, and some slack
less."""


@dataclass(frozen=True)
class CheckNovaConfig(Checked):
    """Recomputes every `out.*` tensor of a reference file and compares the results."""

    io: Path
    """Reference file (.safetensors) with `in.*` and `out.*` tensors; its description (.json) is in the same folder."""
    transformer: Path | None = None
    """Folder of the transformer that produced the tensors (config.json and safetensors weights)."""
    vae: Path | None = None
    """Folder of the VAE that produced the tensors."""
    device: str = "cpu"
    """Torch device to check, for example cuda."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """Type to compute in. The reference is float32; half types are compared with much wider tolerances."""


@dataclass(frozen=True)
class Comparison:
    """One row of the table: the largest absolute and relative error of a tensor, NaN where it was not computed."""

    name: str
    shape: tuple[int, ...]
    tolerance: float
    """Largest allowed absolute error."""
    absolute: float = math.nan
    relative: float = math.nan
    """The absolute error over the reference's largest value."""
    problem: str = ""
    """Why there is no error to show."""

    @property
    def passed(self) -> bool:
        """Whether it was computed and is within tolerance."""
        return self.absolute <= self.tolerance

    def __str__(self) -> str:
        errors = f"{self.absolute:>9.1e} {self.relative:>9.1e} {self.tolerance:>9.1e}"
        verdict = "ok" if self.passed else "FAIL"
        return f"{self.name:<36} {'x'.join(map(str, self.shape)):<16} {errors}  {verdict} {self.problem}".rstrip()


HEADER = f"{'tensor':<36} {'shape':<16} {'max abs':>9} {'max rel':>9} {'allowed':>9}"


def main(config: CheckNovaConfig) -> int:
    """Prints one row per reference tensor; returns 1 if any is off or was not computed."""
    import torch

    from par_agent.modeling.weights import read_tensors
    from par_agent.utils.device import usable_device, use_tf32

    device = usable_device(config.device)
    use_tf32(False)
    reference = read_tensors(config.io)
    names = sorted(name.removeprefix("out.") for name in reference if name.startswith("out."))
    if not names:
        raise UserError(f"{config.io} has no tensor whose name starts with 'out.'; expected a reference file")
    results = _compute(config, reference, set(names), device, getattr(torch, config.dtype))
    rows = [compare(name, results.get(name), reference[f"out.{name}"], DTYPE_FACTOR[config.dtype]) for name in names]
    print(HEADER)
    print("\n".join(map(str, rows)))
    failed = [row for row in rows if not row.passed]
    print(f"{len(rows) - len(failed)} of {len(rows)} reference tensors reproduced on {config.device} in {config.dtype}")
    return 1 if failed else 0


def compare(name: str, actual: Tensor | Exception | None, expected: Tensor, factor: float = 1.0) -> Comparison:
    """Compares one tensor; everything is judged against ``max(1, largest reference value)``."""
    size = expected.double().abs().max().item() if expected.numel() else 0.0
    allowed = tolerance(name) * max(1.0, size) * factor
    shape = tuple(expected.shape)
    if actual is None or isinstance(actual, Exception):
        return Comparison(name, shape, allowed, problem="not computed" if actual is None else f"not computed: {actual}")
    if actual.shape != expected.shape:
        return Comparison(name, shape, allowed, problem=f"has shape {'x'.join(map(str, actual.shape))}")
    error = (actual.cpu().double() - expected.double()).abs()
    absolute = error.max().item() if error.numel() else 0.0
    return Comparison(name, shape, allowed, absolute, absolute / size if size else absolute)


def tolerance(name: str) -> float:
    """Agreement expected of an independent float32 implementation, by the kind of tensor.

    `decoder.time_freq` holds sines of up to 1000 radians, of which float32 keeps 6e-5.
    """
    if name.startswith("gen"):
        return GENERATION_TOLERANCE
    if name.startswith("denoise") or name == "decoder.time_freq":
        return DENOISE_TOLERANCE
    return STAGE_TOLERANCE


def _compute(
    config: CheckNovaConfig, reference: dict[str, Tensor], names: set[str], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor | Exception]:
    """The outputs of these names, or why there are none."""
    import torch

    from par_agent.cli.parity import compute

    description = read_object(config.io.with_suffix(".json"))
    inputs = {name.removeprefix("in."): value for name, value in reference.items() if name.startswith("in.")}
    # Half types are for the model alone: noise and times stay float32, as they do in training and generation.
    wide = torch.promote_types(dtype, torch.float32)
    inputs = {name: value.to(device, wide if value.is_floating_point() else None) for name, value in inputs.items()}
    if (config.transformer is None) == (config.vae is None):
        raise UserError("pass one of --transformer FOLDER and --vae FOLDER")
    if config.vae is not None:
        from par_agent.cli.parity.vae import vae_stages
        from par_agent.modeling.vae.opensora_vae import AutoencoderKLOpenSora

        vae = AutoencoderKLOpenSora.from_pretrained(config.vae, device=device, dtype=dtype)
        return compute(vae_stages(vae, inputs), names)
    from par_agent.cli.parity.nova import nova_stages
    from par_agent.modeling.nova.model import NOVA

    assert config.transformer is not None
    nova = NOVA.from_pretrained(config.transformer, device=device, dtype=dtype)
    return compute(nova_stages(nova, inputs, description), names)
