"""How fine-tuning starts from a checkpoint, what it says, whom it calls, and how a finished run is extended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from par_agent.cli.finetune import next_command
from par_agent.errors import UserError
from par_agent.policy.checkpoint import Checkpoint
from par_agent.training.config import DatasetConfig, FinetuneConfig, ModelConfig
from par_agent.training.finetune import Callback, finetune
from par_agent.utils.files import read_json
from tiny import tiny_run, with_options

pytestmark = pytest.mark.usefixtures("without_pictures")


def test_a_policy_that_acts_is_trained_on_gently_through_its_own_camera(tmp_path: Path) -> None:
    def defaults(**options: Any) -> tuple[float, int, str]:
        config = FinetuneConfig(out=tmp_path, **options)
        return config.learning_rate, config.steps, config.camera

    scratch = 1e-3, 3000, "render_camera"
    assert defaults() == defaults(init=Path("par-mini"), model=ModelConfig(new_robot=True)) == scratch
    assert defaults(init=Path("par-mini")) == (3e-4, 1000, "render_camera")
    assert defaults(init=Path("par-mini-native")) == (3e-4, 1000, "base_camera")
    given = {"learning_rate": 0.1, "steps": 5, "dataset": DatasetConfig(camera="hand_camera")}
    assert defaults(init=Path("par-mini-native"), **given) == (0.1, 5, "hand_camera")
    config = FinetuneConfig(out=tmp_path, init=Path("par-mini"), model=ModelConfig(foresight=(15,)))
    assert config.to_json()["init"] == "par-mini" and (config.init_folder / "policy.json").is_file()
    with pytest.raises(UserError, match=r"no checkpoint 'par-giant': neither a folder .* nor bundled"):
        FinetuneConfig(out=tmp_path, init=Path("par-giant"))


class Recorder(Callback):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.validations: list[int] = []
        self.checkpoints: list[tuple[int, bool]] = []

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        assert {"action", "frame", "gradient_norm", "learning_rate"} <= set(values)
        self.steps.append(step)

    def on_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        assert "action_error" in metrics
        self.validations.append(step)

    def on_checkpoint(self, step: int, folder: Path) -> None:
        assert Checkpoint.load(folder).trained["steps"] == step
        self.checkpoints.append((step, folder.name == "policy"))


def test_a_finished_run_goes_on_when_its_steps_are_raised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, told = tiny_run(tmp_path, steps=4, validate_every=2, save_minutes=60.0), Recorder()
    finetune(config, callbacks=[told])
    assert (told.steps, told.validations, told.checkpoints) == ([1, 2, 3, 4], [2, 4], [(4, True)])
    printed = capsys.readouterr().out
    assert "episodes: 19 of data; 2 more are held out" in printed and "tensorboard --logdir" in printed
    assert "step 4/4: action" in printed and max(map(len, printed.split("step 2:")[1].splitlines())) < 100
    assert Checkpoint.load(config.out / "policy").instructions == ("push cube 0", "push cube 1")
    further = Recorder()
    longer = with_options(config, steps=7)
    finetune(longer, callbacks=[further])
    assert further.steps == [5, 6, 7] and Checkpoint.load(config.out / "policy").trained["steps"] == 7
    assert read_json(config.out / "finetune.json") == longer.to_json()
    with pytest.raises(UserError, match="run has done 7 steps; --steps 6 is fewer: give more, or choose another --out"):
        finetune(with_options(config, steps=6))


def test_the_next_command_measures_the_policy_in_the_tasks_that_it_was_trained_on(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    command = f"par-agent benchmark --policy {config.out}/policy --tasks PushCube --state-seed 555000 --policy-seeds 1"
    assert next_command(config) == command
    video = with_options(config, modality="video")
    assert next_command(video).startswith(f"par-agent finetune --init {config.out}/policy --data")
