"""`par-agent info` prints Table 1 of the paper for presets and the same table for checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from par_agent.cli import main
from par_agent.modeling.presets import PRESETS
from tiny import tiny_checkpoint


def table(capsys: pytest.CaptureFixture[str], model: str) -> dict[str, list[str]]:
    assert main(["info", model]) == 0
    rows = [line.rsplit(maxsplit=2) for line in capsys.readouterr().out.splitlines() if line.endswith("M")]
    return {name.strip(): numbers for name, *numbers in rows}


def test_the_full_size_prints_table_1(capsys: pytest.CaptureFixture[str]) -> None:
    rows = table(capsys, "par-nova-0.6b")
    assert {name: numbers[1] for name, numbers in rows.items()} == {
        "action tokenizer": "0.6M",
        "action de-tokenizer": "21.1M",
        "frame de-tokenizer": "32.8M",
        "causal transformer": "608.7M",
        "total": "663.3M",
        "motion embedding (NOVA's)": "2.6M",
        "frozen video VAE": "239.2M",
        "frozen text encoder (Phi-2)": "2648.6M",
    }
    assert rows["causal transformer"][0] == "608,723,968"
    assert rows["motion embedding (NOVA's)"][0] == "2,625,536"
    assert rows["frozen video VAE"][0] == "239,189,991"


def test_the_papers_total_is_explained_where_it_differs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "par-nova-0.6b"]) == 0
    assert "the rounded parts add up to 663.2M, which is how the paper's Table 1 counts" in capsys.readouterr().out


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_table(capsys: pytest.CaptureFixture[str], name: str) -> None:
    rows = table(capsys, name)
    parts = ("action tokenizer", "action de-tokenizer", "frame de-tokenizer", "causal transformer")
    counts = [int(rows[part][0].replace(",", "")) for part in parts]
    assert int(rows["total"][0].replace(",", "")) == sum(counts)


def test_a_checkpoint_is_described_without_its_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    checkpoint.trained = {"steps": 1234, "options": {"init": "runs/first/policy"}}
    checkpoint.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert main(["info", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert (
        "trained for 1,234 steps from runs/first/policy on" in text
        and "latents 2x8x8" in text
        and "4 actions of 8 numbers" in text
    )


def test_unknown_models_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["info", "par-huge"]) == 2
    assert "no checkpoint 'par-huge': neither a folder" in (error := capsys.readouterr().err)
    assert "(bundled: par-mini, par-mini-native, par-mini-video)" in error and "nor is it a preset: mini, " in error
    assert main(["info", str(tmp_path)]) == 2
    assert "is not a policy checkpoint (no policy.json)" in capsys.readouterr().err
    tiny_checkpoint().save(tmp_path)
    content = json.loads((tmp_path / "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps({**content, "text_encoder": "clip"}))
    assert main(["info", str(tmp_path)]) == 2
    assert "text encoder 'clip' is not known; known: hash, phi" in capsys.readouterr().err
