"""`integrations/lerobot_policy_par`: LeRobot finds the policy, runs it like `PARPolicy`, and trains it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from par_agent import PARPolicy
from rendered import write_dataset
from tiny import checkpoint_of_cameras, tiny_checkpoint

pytest.importorskip("lerobot", reason="needs LeRobot, hence Python 3.12: pip install lerobot")

PLUGIN = Path(__file__).parents[1] / "integrations" / "lerobot_policy_par"
INSTRUCTION = "push cube 1"


@pytest.fixture(autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    """The plug-in as pip would install it: its module, and metadata with its name. Returns what PYTHONPATH needs."""
    import tomllib

    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    folder = tmp_path_factory.mktemp("site")
    metadata = folder / f"{project['name']}-{project['version']}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    for path in (str(folder), str(PLUGIN)):
        monkeypatch.syspath_prepend(path)
    return os.pathsep.join([str(folder), str(PLUGIN), str(PLUGIN.parents[1])])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny checkpoint that remembers."""
    made = tiny_checkpoint()
    made.save(tmp_path / "own")
    return tmp_path / "own"


def images(batch: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 24, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def make(checkpoint: Path, **options):
    """Policy and processors as LeRobot's factory makes them."""
    from lerobot.policies import make_pre_post_processors
    from lerobot.policies.factory import get_policy_class, make_policy_config
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    config = make_policy_config("par", checkpoint=str(checkpoint), device="cpu", **options)
    return get_policy_class("par")(config).eval(), *make_pre_post_processors(config)


def test_it_acts_as_the_policy_does_before_and_after_saving(checkpoint: Path, tmp_path: Path) -> None:
    ours = PARPolicy.from_pretrained(checkpoint, INSTRUCTION)
    policy, before, after = make(checkpoint)
    policy.save_pretrained(tmp_path / "saved")
    again = type(policy).from_pretrained(tmp_path / "saved")
    for step in range(10):
        image, joints = images(1, step), torch.full((1, 9), 0.1 * step)
        wanted = ours.act({"agent": {"qpos": joints}, "sensor_data": {"render_camera": {"rgb": image}}})
        observation = {
            "observation.images.render_camera": image[0].permute(2, 0, 1) / 255,
            "observation.state": joints[0],
            "task": INSTRUCTION,
        }
        for lerobots in (policy, again):
            torch.testing.assert_close(after(lerobots.select_action(before(dict(observation)))), wanted, rtol=0, atol=0)
    assert "mani_skill" not in sys.modules and "sapien" not in sys.modules


def test_every_camera_that_the_checkpoint_reads_is_read(tmp_path: Path) -> None:
    from lerobot.configs import FeatureType, PolicyFeature

    cameras = ("base_camera", "hand_camera")
    checkpoint_of_cameras(cameras).save(tmp_path / "two")
    policy, _, _ = make(tmp_path / "two")
    ours = PARPolicy.from_pretrained(tmp_path / "two", INSTRUCTION)
    shown = {camera: images(1, seed) for seed, camera in enumerate(cameras)}
    observed = {camera: {"rgb": image} for camera, image in shown.items()}
    batch = {f"observation.images.{camera}": image.permute(0, 3, 1, 2) / 255 for camera, image in shown.items()}
    batch |= {"observation.state": torch.zeros(1, 9), "task": [INSTRUCTION]}
    plan = ours.plan({"agent": {"qpos": torch.zeros(1, 9)}, "sensor_data": observed})
    torch.testing.assert_close(policy.predict_action_chunk(batch), plan.actions, rtol=0, atol=0)
    features = {"observation.images.base_camera": PolicyFeature(FeatureType.VISUAL, (3, 24, 32))}
    with pytest.raises(ValueError, match=r"reads .*base_camera, .*hand_camera; there are .*base_camera"):
        make(tmp_path / "two", input_features=features)


def test_a_chunk_is_that_of_a_plan_and_every_row_has_its_task(checkpoint: Path) -> None:
    policy, _, _ = make(checkpoint)
    ours = PARPolicy.from_pretrained(checkpoint, ["push cube 1", "pull cube 2"])
    image, joints = images(2, 3), torch.zeros(2, 9)
    plan = ours.plan({"agent": {"qpos": joints}, "sensor_data": {"render_camera": {"rgb": image}}})
    batch = {
        "observation.images.render_camera": image.permute(0, 3, 1, 2) / 255,
        "observation.state": joints,
        "task": ["push cube 1", "pull cube 2"],
    }
    torch.testing.assert_close(policy.predict_action_chunk(batch), plan.actions, rtol=0, atol=0)


def test_features_that_do_not_fit_are_named(checkpoint: Path) -> None:
    from lerobot.configs import FeatureType, PolicyFeature

    features = {"observation.state": PolicyFeature(FeatureType.STATE, (6,))}
    with pytest.raises(ValueError, match=r"has 9 numbers in observation.state, not \(6,\)"):
        make(checkpoint, input_features=features)
    features = {"observation.images.wrist": PolicyFeature(FeatureType.VISUAL, (3, 24, 32))}
    with pytest.raises(ValueError, match=r"reads .*render_camera; there are .*wrist"):
        make(checkpoint, input_features=features)


def test_lerobots_own_trainer_makes_a_step_and_saves_a_policy_that_acts(
    checkpoint: Path, tmp_path: Path, installed: str
) -> None:
    pytest.importorskip("datasets", reason="needs LeRobot's trainer: pip install 'lerobot[training]'")
    from par_agent.cli import main

    write_dataset(tmp_path / "rendered", size=(24, 32), image_size=(24, 32), instruction=INSTRUCTION)
    words = ["--data", str(tmp_path / "rendered"), "--out", str(tmp_path / "exported"), "--images"]
    assert main(["export-lerobot", *words]) == 0
    options = {
        "policy.type": "par",
        "policy.checkpoint": checkpoint,
        "policy.device": "cpu",
        "policy.push_to_hub": "false",
        "dataset.repo_id": "par/tests",
        "dataset.root": tmp_path / "exported",
        "output_dir": tmp_path / "run",
        "steps": 1,
        "batch_size": 2,
        "num_workers": 0,
        "wandb.enable": "false",
    }
    command = [sys.executable, "-m", "lerobot.scripts.lerobot_train", *(f"--{k}={v}" for k, v in options.items())]
    environment = {**os.environ, "PYTHONPATH": installed, "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    saved = tmp_path / "run" / "checkpoints" / "last" / "pretrained_model"
    policy, _, _ = make(checkpoint)
    trained = type(policy).from_pretrained(saved)
    before = dict(policy.model.named_parameters())
    assert any(not torch.equal(value, before[name]) for name, value in trained.model.named_parameters())
    PARPolicy.from_pretrained(saved / "par", INSTRUCTION)
