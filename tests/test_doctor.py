"""`par-agent doctor` on this machine as it is, and on this machine with things broken on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from par_agent.cli.doctor import Finding, check_planner, report
from par_agent.simulation.renderer_probe import usable_devices

DOCTOR = [sys.executable, "-c", "import sys; from par_agent.cli import main; sys.exit(main())", "doctor"]
NO_RENDERER = {"VK_ICD_FILENAMES": "/nonexistent", "VK_DRIVER_FILES": "/nonexistent"}


def test_nothing_is_missing_where_setup_has_run():
    result = subprocess.run([*DOCTOR, "--json"], capture_output=True, text=True, check=False)
    findings = {finding["name"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert [finding for finding in findings.values() if not finding["ok"]] == []
    assert result.returncode == 0
    assert {"python", "torch", "mani_skill", "motion planner", "cpu", "cuda", "renderer", "ffmpeg"} <= set(findings)


def test_a_missing_renderer_and_a_wrong_torchvision_are_found_with_their_fixes(tmp_path):
    package, metadata = tmp_path / "torchvision", tmp_path / "torchvision-0.0.1.dist-info"
    package.mkdir()
    metadata.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.0.1\n")
    environment = {**os.environ, **NO_RENDERER, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(DOCTOR, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    renderer = next(index for index, line in enumerate(lines) if line.startswith("renderer: none"))
    assert lines[renderer + 1].strip().startswith("fix: make setup")
    assert "pip uninstall -y torchvision" in result.stdout


def test_numpy_2_is_named_as_what_crashes_the_motion_planner_which_is_an_extra():
    (finding,) = check_planner("2.1.3", "0.1.1")
    assert "crashes with numpy 2.1.3" in finding.value and "pip install 'par-agent[demos]'" in finding.value
    assert finding.ok and check_planner("2.1.3", None)[0].ok, "everything but par-agent demos works"
    assert report([finding]).startswith("-- ") and report([finding]).endswith("Nothing is missing.")
    (finding,) = check_planner("1.26.4", "0.1.1")
    assert finding.ok and finding.value == "mplib 0.1.1 with numpy 1.26.4"


def test_report_repeats_only_what_needs_repair():
    text = report([Finding("torch", "2.13.0"), Finding("ffmpeg", "none", "install it")])
    assert "Nothing is missing" not in text
    assert text.splitlines()[-2:] == ["ffmpeg: none", "    fix: install it"]
    assert report([Finding("torch", "2.13.0")]).endswith("Nothing is missing.")


@pytest.mark.parametrize(
    ("summary", "devices"),
    [
        ("GPU: llvmpipe (LLVM 15.0.6)\n  Supported: 1\n  rayTrace:  1\n", ["llvmpipe (LLVM 15.0.6)"]),
        ("GPU: a\n  Supported: 0\n\nGPU: b\n  Present: 1\n  Supported: 1\n", ["b"]),
        ("GPU: a\n  Supported: 0\n", []),
        ("", []),
    ],
)
def test_only_devices_that_sapien_supports_count_as_renderers(summary, devices):
    assert usable_devices(summary) == devices
