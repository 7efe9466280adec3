"""Options from a file, from the command line, or both; and what finetune refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from par_agent.cli import main
from par_agent.cli.options import parse, with_file
from par_agent.cli.visualize_failures import FailuresConfig
from par_agent.errors import UserError
from par_agent.training.config import FinetuneConfig


def read(*arguments: object) -> FinetuneConfig:
    config = parse(FinetuneConfig, list(map(str, arguments)), "par-agent finetune", "Trains.")
    assert type(config) is FinetuneConfig
    return config


def test_the_file_that_a_run_writes_gives_the_same_options_again(tmp_path: Path) -> None:
    config = FinetuneConfig(
        out=tmp_path,
        data=(Path("a b"), Path("c")),
        init=Path("i"),
        weights=(0.25, 0.75),
        train="lora",
        gradient_checkpointing=True,
        learning_rate=1e-5,
        foresight=(9, 12),
    )
    with config.claimed():
        assert read("--config", tmp_path / "finetune.json") == config


def test_options_on_the_command_line_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"out": "x", "steps": 7, "data": ["a", "b"], "gradient_checkpointing": True}))
    config = read("--steps", 10, f"--config={path}", "--no-gradient-checkpointing", "--data", "c")
    assert config == FinetuneConfig(out=Path("x"), steps=10, data=(Path("c"),))
    assert read("--config", path, "--out", "y").gradient_checkpointing


def test_what_is_given_by_position_may_come_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "options.json"
    path.write_text(json.dumps({"run": "a", "limit": 2}))
    for words, wanted in (
        (["--config", str(path)], FailuresConfig(Path("a"), limit=2)),
        (["b", "--config", str(path), "--limit", "3"], FailuresConfig(Path("b"), limit=3)),
    ):
        assert parse(FailuresConfig, words, "par-agent visualize failures", "Draws.") == wanted


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"stepz": 3}, "unknown option 'stepz'; known: out, .*steps"),
        ([1, 2], r"run.json is \[1, 2\]; expected an object"),
    ],
)
def test_files_that_are_no_options_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        with_file(FinetuneConfig, ["--config", str(tmp_path / "run.json")])
    with pytest.raises(UserError, match="--config needs a file"):
        with_file(FinetuneConfig, ["--config"])


def test_help_shows_the_options_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    text = capsys.readouterr().out
    titles = ["run options", "data options", "optimisation options", "weights options", "loss options"]
    places = [text.index(title) for title in titles]
    assert places == sorted(places) and places[0] < text.index("--out") < places[1] < text.index("--window") < places[2]
    assert "--config FILE.json" in " ".join(text.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"batch_size": -1}, "batch_size is -1; it must be at least 1"),
        ({"accumulation": -1}, "accumulation is -1; it must be at least 1"),
        ({"ema": 1.5}, "ema is 1.5; it must be from 0 to 1"),
        ({"single_step": -0.1}, "single_step is -0.1; it must be from 0 to 1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be a finite number"),
        ({"clip": 0.0}, "clip is 0.0; it must be above 0"),
        ({"weights": (1.0, 0.0)}, r"weights is \(1.0, 0.0\); each must be above 0"),
        ({"train": "lora"}, "--train lora keeps weights as they are: .* --init FOLDER"),
        ({"train": "lora", "init": Path("i"), "lora_rank": 0}, "lora_rank is 0; it must be at least 1"),
        ({"train": "lora", "init": Path("i"), "lora_targets": ()}, "lora_targets is empty"),
        ({"init": Path("i"), "vae": Path("v")}, "i brings its own frame encoder: leave --vae out"),
    ],
)
def test_options_out_of_range_or_at_odds_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FinetuneConfig(out=Path("x"), **options)


def test_a_run_folder_of_an_older_version_is_taken_for_what_it_is(tmp_path: Path) -> None:
    config = FinetuneConfig(out=tmp_path, steps=7)
    older = {name: value for name, value in config.to_json().items() if name not in ("accumulation", "train", "keep")}
    (tmp_path / "finetune.json").write_text(json.dumps(older))
    (tmp_path / "training_states" / "step_00000001").mkdir(parents=True)
    with config.claimed():
        pass
    other = FinetuneConfig(out=tmp_path, steps=7, accumulation=2)
    with pytest.raises(UserError, match="accumulation: 1 there, 2 asked for"), other.claimed():
        pass
