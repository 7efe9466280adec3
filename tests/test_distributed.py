"""Training on two processes: the same weights as on one, the same data, one writer."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from par_agent.errors import UserError
from par_agent.files import read_json
from par_agent.training.checkpoint import latest_checkpoint
from par_agent.training.config import FinetuneConfig
from par_agent.training.finetune import finetune
from tiny import command, tiny_run

STEPS = 5


def torchrun(arguments: list[str]) -> list[str]:
    """A command on two processes of this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments]


def on_two_processes(config: FinetuneConfig) -> subprocess.Popen:
    """Starts `par-agent finetune` on two processes."""
    return subprocess.Popen(
        torchrun(command(config)[1:]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen) -> str:
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


def test_two_processes_learn_what_one_learns_with_twice_the_accumulation(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, steps=STEPS, accumulation=2)
    both = dataclasses.replace(config, out=tmp_path / "both", accumulation=1)
    output = finish(on_two_processes(both))
    finetune(config)
    alone, together = (load_file(c.out / "policy" / "model.safetensors") for c in (config, both))
    start = load_file(tmp_path / "init" / "model.safetensors")
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=0, atol=2e-6, msg=name)
    assert any((value - start[name]).abs().max() > 1e-4 for name, value in alone.items())
    states = [read_json(latest_checkpoint(c.out / "checkpoints") / "state.json") for c in (config, both)]  # type: ignore[operator]
    assert [state["batches"] for state in states] == [2 * STEPS, 2 * STEPS]
    assert output.count(f"step {STEPS}: ") == 1  # the main process alone measures and prints
    assert len(list((both.out / "tensorboard").iterdir())) == 1


def test_deepspeed_is_refused_with_what_to_use_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match=r"FSDP shards the same: .*fsdp_version: 2"):
        finetune(FinetuneConfig(out=tmp_path))


@pytest.mark.slow
def test_two_killed_processes_resume_to_the_bit(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, steps=80, validate_every=100)
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    finish(on_two_processes(whole))
    process = on_two_processes(config)
    while latest_checkpoint(config.out / "checkpoints") is None:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        one.kill()
    process.communicate()
    assert latest_checkpoint(config.out / "checkpoints").name < "step_00000080"  # type: ignore[union-attr]
    finish(on_two_processes(config))
    expected = load_file(whole.out / "policy" / "model.safetensors")
    for name, value in load_file(config.out / "policy" / "model.safetensors").items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.slow
def test_sharded_training_equals_unsharded_and_leaves_whole_checkpoints(tmp_path: Path) -> None:
    script = Path(__file__).with_name("sharded_training.py")
    subprocess.run(torchrun([str(script), str(tmp_path)]), check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
