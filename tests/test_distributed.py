"""Training on two processes: the same weights as on one, the same data, one writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from held import Held, Moment
from par_agent.errors import UserError
from par_agent.training.config import FinetuneConfig
from par_agent.training.finetune import finetune
from par_agent.training.state import latest_training_state
from par_agent.utils.files import read_json
from tiny import command, option_words, tiny_run, with_options

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


def held_on_two_processes(config: FinetuneConfig, marks: Path) -> Held:
    """Both processes hold when the third checkpoint is written."""
    moment = Moment("par_agent.training.loop:save_training_state", number=3)
    return Held(["par-agent", "finetune", *option_words(config)], moment, marks, launcher=torchrun([])[1:])


def saved(config: FinetuneConfig) -> int:
    """Steps of the newest training state."""
    found = latest_training_state(config.out / "training_states")
    assert found is not None
    return int(found.name.removeprefix("step_"))


def assert_equal_policies(one: FinetuneConfig, other: FinetuneConfig) -> None:
    expected = load_file(other.out / "policy" / "model.safetensors")
    for name, value in load_file(one.out / "policy" / "model.safetensors").items():
        assert torch.equal(value, expected[name]), name


def finish(process: subprocess.Popen) -> str:
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


def test_two_processes_learn_what_one_learns_with_twice_the_accumulation(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, steps=STEPS, accumulation=2)
    both = with_options(config, out=tmp_path / "both", accumulation=1)
    output = finish(on_two_processes(both))
    finetune(config)
    alone, together = (load_file(c.out / "policy" / "model.safetensors") for c in (config, both))
    start = load_file(tmp_path / "init" / "model.safetensors")
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=0, atol=2e-6, msg=name)
    assert any((value - start[name]).abs().max() > 1e-4 for name, value in alone.items())
    states = [read_json(latest_training_state(c.out / "training_states") / "state.json") for c in (config, both)]  # type: ignore[operator]
    assert [state["batches"] for state in states] == [2 * STEPS, 2 * STEPS]
    assert output.count(f"step {STEPS}: ") == 1  # the main process alone measures and prints
    assert len(list((both.out / "tensorboard").iterdir())) == 1


def test_deepspeed_is_refused_with_what_to_use_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match=r"FSDP shards the same: .*fsdp_version: 2"):
        finetune(FinetuneConfig(out=tmp_path))


@pytest.mark.slow
def test_two_killed_processes_resume_to_the_bit(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, steps=9, validate_every=100)
    whole = with_options(config, out=tmp_path / "whole")
    finish(on_two_processes(whole))
    with held_on_two_processes(config, tmp_path / "marks") as held:
        held.until_held(count=2)
        for one in (*held.workers(), held.process):
            one.kill()
    assert saved(config) == 3
    finish(on_two_processes(config))
    assert_equal_policies(config, whole)


@pytest.mark.slow
def test_two_processes_of_which_one_is_told_end_after_the_same_step_and_resume_to_the_bit(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, steps=9, validate_every=100)
    whole = with_options(config, out=tmp_path / "whole")
    finish(on_two_processes(whole))
    with held_on_two_processes(config, tmp_path / "marks") as held:
        held.until_held(count=2)[1].send_signal(signal.SIGTERM)
        held.until_told()
        held.let_go()
        assert held.status() != 0
        assert held.output.count("the first 4 steps are saved") == 2, held.output
    assert saved(config) == 4
    finish(on_two_processes(config))
    assert_equal_policies(config, whole)


@pytest.mark.slow
def test_sharded_training_equals_unsharded_and_leaves_whole_checkpoints(tmp_path: Path) -> None:
    script = Path(__file__).with_name("sharded_training.py")
    subprocess.run(torchrun([str(script), str(tmp_path)]), check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
