"""Options from a file, from the command line, or both; and what finetune refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from par_agent.cli import main
from par_agent.cli.options import parse
from par_agent.cli.visualize_failures import FailuresConfig
from par_agent.errors import UserError
from par_agent.training.config import DatasetConfig, FinetuneConfig, ModelConfig
from par_agent.utils.checked import from_options, option_hints


def read(*arguments: object) -> FinetuneConfig:
    config = parse(FinetuneConfig, list(map(str, arguments)), "par-agent finetune", "Trains.")
    assert type(config) is FinetuneConfig
    return config


def test_the_file_that_a_run_writes_gives_the_same_options_again(tmp_path: Path) -> None:
    config = FinetuneConfig(
        out=tmp_path,
        data=(Path("a b"), Path("c")),
        init=Path("par-mini"),
        train="lora",
        learning_rate=1e-5,
        dataset=DatasetConfig(weights=(0.25, 0.75)),
        model=ModelConfig(gradient_checkpointing=True, foresight=(9, 12)),
    )
    with config.claimed():
        assert read("--config", tmp_path / "finetune.json") == config


def test_options_on_the_command_line_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"out": "x", "steps": 7, "data": ["a", "b"], "gradient_checkpointing": True}))
    config = read("--steps", 10, f"--config={path}", "--no-gradient-checkpointing", "--data", "c")
    assert config == FinetuneConfig(out=Path("x"), steps=10, data=(Path("c"),))
    assert read("--config", path, "--out", "y").model.gradient_checkpointing


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
        ({"steps": "7"}, r"run.json: steps is '7'; expected a whole number"),
        ({"data": "a"}, r"run.json: data is 'a'; expected a list, each entry a path"),
        ({"steps": -1}, "steps is -1; it must be at least 1"),
    ],
)
def test_files_that_are_no_options_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read("--config", tmp_path / "run.json", "--out", "x")
    with pytest.raises(UserError, match="--config needs a file"):
        read("--config")


def test_help_shows_the_most_important_options_first_and_the_others_in_groups(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    text = capsys.readouterr().out
    groups = ["dataset", "optimiser", "logging", "model", "lora", "loss", "evaluation"]
    first, *others = re.split("|".join(f"{group} options" for group in groups), text.partition(" options ")[2])
    assert set(re.findall(r"--([a-z-]+)", first)) >= {"out", "task", "data", "init", "steps", "batch-size", "device"}
    assert len(re.findall(r"^\W*--[a-z]", first, re.MULTILINE)) <= 16 and len(others) == len(groups)
    for name in option_hints(FinetuneConfig):  # under one name, without the group's
        assert re.search(rf"--{name.replace('_', '-')}\b", text)
    assert "--config FILE.json" in " ".join(text.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps is -1; it must be at least 1"),
        ({"batch_size": -1}, "batch_size is -1; it must be at least 1"),
        ({"accumulation": -1}, "accumulation is -1; it must be at least 1"),
        ({"ema": 1.5}, "ema is 1.5; it must be from 0 to 1"),
        ({"single_step": -0.1}, "single_step is -0.1; it must be from 0 to 1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; expected a finite number"),
        ({"clip": 0.0}, "clip is 0.0; it must be above 0"),
        ({"weights": (1.0, 0.0)}, r"weights is \(1.0, 0.0\); each must be above 0"),
        ({"train": "lora"}, "--train lora keeps weights as they are: .* --init FOLDER"),
        ({"train": "lora", "init": Path("par-mini"), "lora_rank": 0}, "lora_rank is 0; it must be at least 1"),
        ({"train": "lora", "init": Path("par-mini"), "lora_targets": ()}, "lora_targets is empty"),
        ({"init": Path("par-mini"), "vae": Path("v")}, "par-mini brings its own frame encoder: leave --vae out"),
    ],
)
def test_options_out_of_range_or_at_odds_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_options(FinetuneConfig, {"out": Path("x"), **options})


def test_a_run_folder_that_was_begun_with_other_options_is_refused(tmp_path: Path) -> None:
    config = FinetuneConfig(out=tmp_path, steps=7)
    with config.claimed():
        (tmp_path / "training_states" / "step_00000001").mkdir(parents=True)
    other = FinetuneConfig(out=tmp_path, steps=7, accumulation=2)
    with pytest.raises(UserError, match="accumulation: 1 there, 2 asked for"), other.claimed():
        pass


def test_help_tells_every_option_in_whole_sentences_with_an_example(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for name, example in (("finetune", "--init par-mini"), ("benchmark", "--video 2"), ("visualize failures", "RUN")):
        with pytest.raises(SystemExit):
            main([*name.split(), "--help"])
        text = capsys.readouterr().out
        assert f"\nExample: par-agent {name} " in text and example in text
        assert "(default: )" not in text and "(default: None)" not in text
        for words in re.findall(r"│ {20,}(\S.*?) *│\n", text):  # no line ends early that has room for the next word
            assert len(words) > 60 or words.endswith((".", ")")), words
