"""Closed-loop evaluation while training, in the real simulator."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from par_agent.cli.finetune import DEVELOPMENT_SEED, _track_of, make_rollouts
from par_agent.errors import UserError
from par_agent.tasks import PROTOCOL_SEED
from par_agent.training.finetune import finetune
from par_agent.utils.files import read_json, write_json
from tiny import tiny_checkpoint, tiny_run, with_options


def test_a_dataset_of_an_unknown_task_is_refused_before_training(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, rollout_every=1)
    path = config.data[0] / "spec.json"
    write_json(path, {**read_json(path), "env_id": "FoldTowel-v1"})
    with pytest.raises(UserError, match="episodes of FoldTowel-v1, which --rollout-every cannot evaluate"):
        make_rollouts(config)


def test_the_camera_decides_the_track(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, rollout_every=1)
    make_rollouts(with_options(config, camera="base_camera"))
    with pytest.raises(UserError, match="shows camera 'base_camera', 'hand_camera' in PushCube: leave"):
        make_rollouts(with_options(config, camera=("base_camera", "hand_camera")))
    with pytest.raises(UserError, match="no track of the benchmark shows camera 'wrist' in PushCube: leave"):
        make_rollouts(with_options(config, camera="wrist"))
    assert _track_of(("base_camera",), ("PushCube", "StackCube")) == "native"


@pytest.mark.slow
def test_the_policy_is_rolled_out_on_states_for_development(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, steps=1, rollout_every=1, rollout_states=1)
    checkpoint = tiny_checkpoint()
    assert checkpoint.transforms is not None
    checkpoint.transforms = dataclasses.replace(checkpoint.transforms, image_size=(512, 512))
    checkpoint.save(config.init)  # type: ignore[arg-type]
    rates: list[dict[str, float]] = []
    rollouts = make_rollouts(config)

    def recorded(policy: Path) -> dict[str, float]:
        rates.append(rollouts(policy))
        return rates[-1]

    finetune(config, recorded)
    assert rates == [{"PushCube": 0.0}]  # random weights push nothing
    (states,) = (config.out / "rollouts").glob("*/states/*.safetensors")
    assert f"seed{DEVELOPMENT_SEED}" in states.parts[-3]
    assert DEVELOPMENT_SEED + config.evaluation.rollout_states < PROTOCOL_SEED
