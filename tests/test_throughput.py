"""The benchmark of training speed, on a tiny policy and dataset."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import throughput

from par_agent.errors import UserError
from tiny import tiny_checkpoint, tiny_dataset


@pytest.mark.parametrize("cache", [True, False])
def test_every_figure_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: bool, torch_threads: Any
) -> None:
    tiny_checkpoint().save(tmp_path / "policy")
    data = tiny_dataset(tmp_path / "data")
    config = throughput.ThroughputConfig(
        (data,), tmp_path / "policy", batch_size=3, window=2, cache=cache, steps=2, device="cpu"
    )
    throughput.main(config)
    text = capsys.readouterr().out
    assert "tiny, batch 3, window 2 (126 tokens of the causal transformer), float32, CPU" in text
    rows = dict(re.findall(r"^\| ([a-z, ]+) \| ([0-9.,]+) \|", text, flags=re.MULTILINE))
    assert list(rows) == ["causal transformer, forward and backward", "training step"]
    for pattern in (r"samples/s, [0-9,]+ tokens/s", r"waiting for data: [0-9.]+%", r"memory: [0-9.]+ GB", "GFLOP/s"):
        assert re.search(pattern, text), text
    assert (data / "latents").exists() == cache


def test_operations_of_the_transformer_are_three_times_those_of_its_forward_pass(tmp_path: Path) -> None:
    tiny_checkpoint().save(tmp_path / "policy")
    config = throughput.ThroughputConfig((tiny_dataset(tmp_path / "data"),), tmp_path / "policy", device="cpu", steps=1)
    training = throughput.Training(config, throughput.Checkpoint.load(tmp_path / "policy"))
    training.step(throughput.open_data(config, training.checkpoint).batch(0))
    encoder, arguments = training.model.nova.video_encoder, training._transformer
    forward = throughput.count_flops(lambda: encoder(*arguments))
    assert throughput.count_flops(training.transformer) == 3 * forward > 0


def test_bad_options_are_named() -> None:
    with pytest.raises(UserError, match="batch_size is 0"):
        throughput.ThroughputConfig(batch_size=0)
