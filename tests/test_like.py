"""Rendering as a checkpoint sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from par_agent.cli.render import RenderConfig
from par_agent.errors import UserError
from par_agent.policy.checkpoint import Checkpoint
from tiny import tiny_checkpoint


def test_frames_are_rendered_as_a_checkpoint_sees_them_unless_told_otherwise(tmp_path: Path) -> None:
    spec = RenderConfig(out=tmp_path, random_motion="PickCube", like="par-mini-native").spec()
    assert (spec.cameras, spec.crop, spec.size) == (("base_camera",), (46, 24, 80, 80), (320, 320))
    assert (spec.extra, spec.stride) == (("goal_pos",), 8)
    other = RenderConfig(out=tmp_path, random_motion="PickCube", like="par-mini-native", stride=4, size=(64, 64)).spec()
    assert (other.crop, other.size, other.stride) == ((46, 24, 80, 80), (64, 64), 4)
    with pytest.raises(UserError, match="no checkpoint 'par-giant'"):
        RenderConfig(out=tmp_path, random_motion="PickCube", like="par-giant").spec()
    untrained = tiny_checkpoint()
    Checkpoint(untrained.model, untrained.encoder, None, untrained.text_encoder).save(tmp_path / "new")
    with pytest.raises(UserError, match="cannot act yet and has no camera: give --crop and --size in place of --like"):
        RenderConfig(out=tmp_path, random_motion="PickCube", like=str(tmp_path / "new")).spec()
