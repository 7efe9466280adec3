"""`par-agent doctor`: what is installed, which devices there are, and how to get what is missing."""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass

from par_agent.utils.checked import Checked
from par_agent.utils.versions import PACKAGE_FOLDER, installed_version, planner_problem

PACKAGES = ("torch", "numpy", "mani_skill", "sapien", "gymnasium", "diffusers", "accelerate", "safetensors")
OPTIONAL_PACKAGES = ("mplib", "transformers", "peft", "wandb", "torchvision")
IN_CHECKOUT = (PACKAGE_FOLDER.parent / "Makefile").is_file()
SETUP = "make setup" if IN_CHECKOUT else f"{sys.executable} -m pip install --upgrade par-agent"
DRIVER = (
    "make setup (installs Mesa's software Vulkan driver, or says how)"
    if IN_CHECKOUT
    else "apt-get install mesa-vulkan-drivers libvulkan1 libgl1 libglib2.0-0 (Mesa 24.3 or newer), or your GPU's driver"
)
WITHOUT_PLANNER = f"{sys.executable} -m pip install --no-deps mani_skill==3.0.1"
"""How ManiSkill is installed for Python 3.13, for which its motion planner has no wheel."""


@dataclass(frozen=True)
class DoctorConfig(Checked):
    """Prints versions, devices, renderer and what is missing, with the fix; exit status 1 if something is missing."""

    json: bool = False
    """Print one JSON object instead of lines."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    """What was looked at."""
    value: str
    """Version, device, or what is wrong."""
    fix: str = ""
    """Command that repairs it; empty where nothing needs repair."""
    usable: bool = True
    """False for an extra that cannot be used here, without which everything else works."""

    @property
    def ok(self) -> bool:
        """Whether nothing needs repair."""
        return not self.fix


def find_software() -> list[Finding]:
    """Interpreter, operating system, and versions of the packages that matter most."""
    supported = (3, 10) <= sys.version_info[:2] <= (3, 13)
    fix = "" if supported else "install Python 3.10, 3.11 or 3.12, then: make setup PYTHON=/path/to/python3.12"
    fixes = {"mani_skill": WITHOUT_PLANNER} if sys.version_info >= (3, 13) else {}
    versions = {package: installed_version(package) for package in (*PACKAGES, *OPTIONAL_PACKAGES)}
    return [
        Finding("python", f"{platform.python_version()} ({sys.executable})", fix),
        Finding("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        *(
            Finding(package, version or "not installed", "" if version else fixes.get(package, SETUP))
            for package, version in versions.items()
            if version or package in PACKAGES
        ),
    ]


def check_planner(numpy_version: str | None, mplib_version: str | None) -> list[Finding]:
    """Whether ManiSkill's motion planner runs; it is an extra, needed by `par-agent demos` alone."""
    if problem := planner_problem(numpy_version, mplib_version):
        value = f"{problem}; only `par-agent demos` needs it: pip install 'par-agent[demos]'"
        return [Finding("motion planner", value, usable=False)]
    return [Finding("motion planner", f"mplib {mplib_version} with numpy {numpy_version}")]


def find_devices() -> list[Finding]:
    """CPU cores that this process may use, and CUDA devices."""
    findings = [Finding("cpu", f"{len(os.sched_getaffinity(0))} cores")]
    try:
        import torch
    except (ImportError, OSError) as error:
        return [*findings, Finding("cuda", f"torch cannot be imported: {error}", SETUP)]
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [*findings, Finding("cuda", ", ".join(names) or "none (the CPU is used)")]


def find_renderer() -> list[Finding]:
    """Vulkan device that ManiSkill will render with, looked for in a subprocess because drivers may crash."""
    command = [sys.executable, "-m", "par_agent.simulation.renderer_probe"]
    probe = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (probe.stdout + probe.stderr).strip().splitlines() or [f"the probe ended with status {probe.returncode}"]
    if probe.returncode == 0:
        return [Finding("renderer", lines[0])]
    return [Finding("renderer", f"none: {lines[-1]}", DRIVER)]


def find_programs() -> list[Finding]:
    """git, without which ManiSkill cannot be imported, and the ffmpeg that writes videos."""
    git = shutil.which("git")
    fix = "" if git else "apt-get install git"
    found = Finding("git", git or "not found, and ManiSkill does not import without it", fix)
    try:
        import imageio_ffmpeg

        ffmpeg = f"{imageio_ffmpeg.get_ffmpeg_version()} ({imageio_ffmpeg.get_ffmpeg_exe()})"
        return [found, Finding("ffmpeg", ffmpeg)]
    except (ImportError, RuntimeError) as error:
        return [found, Finding("ffmpeg", f"none: {error}", f"{sys.executable} -m pip install 'imageio[ffmpeg]'")]


def check_torchvision() -> list[Finding]:
    """Whether torchvision fits torch: otherwise diffusers and transformers cannot be imported either."""
    if (version := installed_version("torchvision")) is None:
        return []
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        problem = f"{version} does not fit torch: {error}"
        return [Finding("torchvision", problem, f"{sys.executable} -m pip uninstall -y torchvision")]
    return []


def report(findings: list[Finding]) -> str:
    """The findings as lines for a terminal; what needs repair comes again at the end, with the fix."""
    width = max(len(finding.name) for finding in findings)
    marks = ["!! " if not finding.ok else "ok " if finding.usable else "-- " for finding in findings]
    lines = [f"{mark} {finding.name:<{width}}  {finding.value}" for mark, finding in zip(marks, findings, strict=True)]
    broken = [finding for finding in findings if not finding.ok]
    if not broken:
        return "\n".join([*lines, "", "Nothing is missing."])
    return "\n".join([*lines, "", *(f"{f.name}: {f.value}\n    fix: {f.fix}" for f in broken)])


def main(config: DoctorConfig) -> int:
    """Prints the report; returns 1 if something needed is missing."""
    planner = check_planner(installed_version("numpy"), installed_version("mplib"))
    findings = [*find_software(), *planner, *check_torchvision(), *find_devices(), *find_renderer(), *find_programs()]
    healthy = all(finding.ok for finding in findings)
    if config.json:
        print(json.dumps({"ok": healthy, "findings": [{**asdict(f), "ok": f.ok} for f in findings]}, indent=2))
    else:
        print(report(findings))
    return 0 if healthy else 1
