"""What a run of the benchmark rolls out."""

from __future__ import annotations

from pathlib import Path

import pytest

from par_agent.errors import UserError
from par_agent.evaluation.policies import PolicySource
from par_agent.evaluation.run_config import RunConfig
from par_agent.evaluation.run_info import RunInfo


def test_a_run_of_fewer_steps_is_another_run_and_not_the_protocol() -> None:
    policy = PolicySource("par-mini")
    short, whole = RunConfig(policy=policy, tasks=("PushCube",), max_steps=50), RunConfig(policy=policy)
    assert (short.spec("PushCube").max_steps, whole.spec("PushCube").max_steps) == (50, 400)
    assert whole.is_protocol and not short.is_comparable
    assert short.protocol_label == "NOT THE PROTOCOL: 50 control steps, the protocol"
    assert RunInfo.of(short).identity["tasks"][0]["max_steps"] == 50


def test_weights_for_a_class_of_ones_own_may_be_bundled() -> None:
    source = PolicySource("module:Class", checkpoint=Path("par-mini"))
    assert source.folder == PolicySource("par-mini").folder
    with pytest.raises(UserError, match="no checkpoint 'par-giant': neither a folder"):
        _ = PolicySource("module:Class", checkpoint=Path("par-giant")).folder
