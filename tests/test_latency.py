"""The benchmark scripts of single chunks and single training steps, on tiny models."""

from __future__ import annotations

import latency
import pytest
import torch
import training_step

from par_agent.errors import UserError
from tiny import tiny_config, tiny_model


@pytest.mark.parametrize("nova_layout", [False, True], ids=["mini", "nova"])
def test_every_case_has_a_row_and_the_cache_saves_work(nova_layout: bool) -> None:
    config = latency.LatencyConfig(step=6, repeats=1, denoising_steps=2, mask_steps=2, diffusion_steps=2, device="cpu")
    peak = latency.Peak(flops=1e9, bandwidth=1e9)
    model = tiny_model(nova_layout)
    cells = [[cell.strip() for cell in row.split("|")] for row in latency.rows(config, "mini", model, 2, peak)]
    names = [row[3] for row in cells]
    assert names == ["act, cached", "act, history recomputed", "act, cached, and next frame", "frame encoder"]
    cases = {case.name: case for case in latency.cases(config, model, 2)}
    inputs = latency.make_inputs(model, 2, config, torch.device("cpu"))
    with torch.inference_mode():
        flops = {name: latency.count_flops(lambda case=case: case.run(model, inputs)) for name, case in cases.items()}
    assert flops["act, history recomputed"] > 3 * flops["act, cached"] > 0
    assert flops["act, cached, and next frame"] > flops["act, cached"]
    assert cases["act, cached"].size > cases["act, history recomputed"].size


def test_slow_cases_can_be_left_out() -> None:
    config = latency.LatencyConfig(step=2, repeats=1, denoising_steps=1, frames=False, recompute=False, device="cpu")
    rows = latency.rows(config, "mini", tiny_model(), 1, latency.Peak(1e9, 1e9))
    assert [row.split("|")[3].strip() for row in rows] == ["act, cached", "frame encoder"]


def test_the_floor_is_the_slower_of_computing_and_reading() -> None:
    peak = latency.Peak(flops=100.0, bandwidth=10.0)
    assert peak.floor(200.0, 1.0) == 2.0 and peak.floor(1.0, 50.0) == 5.0


def test_bad_options_are_named() -> None:
    with pytest.raises(UserError, match="mask_steps is 0"):
        latency.LatencyConfig(mask_steps=0)


def test_a_training_step_prints_time_and_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training_step, "preset", lambda name: tiny_config(True))
    monkeypatch.setattr(training_step, "measure_peak", lambda device, dtype: latency.Peak(1e9, 1e9))
    training_step.main(training_step.TrainingStepConfig(device="cpu", gradient_checkpointing=True))
    text = capsys.readouterr().out
    assert "s a step" in text and "peak memory" in text
