"""Recipes: every command parses, and they run one after the other, each going on where it was stopped."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from par_agent.cli import SUBCOMMANDS, find_subcommand, main
from par_agent.cli.options import parse
from par_agent.cli.recipe import RecipeConfig, commands, read_recipes
from par_agent.errors import UserError
from rendered import write_dataset

TOY = r"""
[toy]
summary = of a toy
commands =
    train-vae --data {data}/rendered/PushCube --out {out}/vae --steps 2 --batch-size 1 --patch 8 --warmup 1 \
    --channels 4 --widths 8
    python -c "import sys; sys.exit('no model')"
    info par-mini
"""


@pytest.mark.parametrize("name", read_recipes().sections())
def test_every_command_of_a_recipe_is_one_of_par_agents(name: str, tmp_path: Path) -> None:
    steps = commands(RecipeConfig(name, data_root=tmp_path / "da ta", out=tmp_path / "runs"))
    made: list[str] = []
    for words, _ in steps:
        if words[0] != "python":
            for option, value in pairwise(words):
                if option == "--init" and any(value.startswith(folder) for folder in made):
                    Path(value).mkdir(parents=True, exist_ok=True)  # it must be there when the options are read
            command, options = find_subcommand(words)
            config = parse(SUBCOMMANDS[command].load()[1], options, command, "")
            for read in (
                getattr(config, option, None) for option in ("vae", "init", "trajectory", "policy_checkpoint")
            ):
                assert read is None or read.exists() or any(str(read).startswith(folder) for folder in made), read
        made += [words[place + 1] for place, word in enumerate(words) if word == "--out"]
    assert made and all(folder.startswith(str(tmp_path)) for folder in made)


def test_a_recipe_trains_on_the_device_that_is_asked_for(tmp_path: Path) -> None:
    for words, _ in commands(RecipeConfig("par-mini", device="cuda")):
        assert ("--device" in words) == (words[0] == "train-vae" or "finetune" in words)


def test_an_unknown_recipe_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(UserError, match=r"unknown recipe 'nope'; known:(.|\n)*row-act: .*\n(.|\n)*demonstrations"):
        commands(RecipeConfig("nope"))


def test_a_recipe_is_printed_run_and_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "data" / "rendered" / "PushCube")
    recipes = tmp_path / "recipes.ini"
    recipes.write_text(TOY)
    monkeypatch.setattr("par_agent.cli.recipe.RECIPES", recipes)
    command = ["recipe", "toy", "--data-root", str(tmp_path / "data"), "--out", str(tmp_path / "runs")]
    assert main([*command, "--dry-run"]) == 0
    printed = capfd.readouterr().out
    assert f"par-agent train-vae --data {tmp_path}/data/rendered/PushCube --out {tmp_path}/runs/vae " in printed
    assert not (tmp_path / "runs").exists()
    for _ in range(2):
        assert main(command) == 1
        printed, errors = capfd.readouterr()
        assert "step 2 of 3" in printed and "step 3 of 3" not in printed and "no model" in errors
        assert (tmp_path / "runs" / "vae" / "vae" / "config.json").is_file()
    assert "resumed from" in printed
