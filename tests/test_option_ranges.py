"""Every option of every command: what is no sensible value is refused by the option's name, before any work begins."""

from __future__ import annotations

import dataclasses
import importlib
import re
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import tyro

from par_agent.baselines.methods import METHODS
from par_agent.cli import SUBCOMMANDS, main
from par_agent.cli.options import parse
from par_agent.errors import UserError
from par_agent.evaluation.run_config import RunConfig
from par_agent.modeling.config import (
    ActionConfig,
    DiffusionConfig,
    EncoderConfig,
    GenerationConfig,
    InferenceConfig,
    NOVAConfig,
    PARConfig,
)
from par_agent.modeling.nova.config import PublishedTransformer
from par_agent.modeling.vae.frame_vae import FrameVAEConfig
from par_agent.modeling.vae.opensora_vae import OpenSoraVAEConfig
from par_agent.utils.checked import Range, from_options, option_hints
from rendered import write_dataset

SCRIPTS = {
    "compare": "CompareConfig",
    "harness_speed": "SpeedConfig",
    "latency": "LatencyConfig",
    "make_states": "MakeStatesConfig",
    "report": "MakeConfig",
    "robustness": "RobustnessConfig",
    "throughput": "ThroughputConfig",
    "training_step": "TrainingStepConfig",
}
COMMANDS = {name: f"par_agent.cli.{command.target}" for name, command in SUBCOMMANDS.items()} | {
    f"{module}.py": f"{module}:{name}" for module, name in SCRIPTS.items()
}
COMMANDS |= {"report.py add": "report:AddConfig", "report.py export": "report:ExportConfig"}
HUGE = 2**70
MAY_BE_ZERO = {
    *(
        "accumulation",
        "after_success",
        "alignment",
        "attention",
        "batch_size",
        "save_minutes",
        "color_jitter",
        "ema",
        "failure",
    ),
    *("first_seed", "flow", "frame_fraction", "guidance", "kl_weight", "learning_rate", "look", "motion_steps"),
    *("past_action_dropout", "phase", "picture_minutes", "port", "proprioception_noise", "recovery_noise"),
    *(
        "randomize_seed",
        "rollout_every",
        "seed",
        "shift",
        "single_step",
        "state",
        "state_seed",
        "steps",
        "temperature",
        "video",
    ),
    *("warmup", "weight_decay"),
}
"""Options for which 0 is a value: of train-vae and others only if the command says so, see ZERO_IN."""
ZERO_IN = {
    **dict.fromkeys(("accumulation", "batch_size", "learning_rate", "steps"), ("finetune", "train-baseline")),
    "states": ("visualize gallery",),
}


def config_of(command: str) -> type:
    module, _, name = COMMANDS[command].partition(":")
    return getattr(importlib.import_module(module), name)


def types_of(hint: Any) -> list[Any]:
    """The types of an option's values, without None."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is Annotated:
        return types_of(parts[0])
    if kind is Literal:
        return [Literal]
    if kind in (Union, types.UnionType, tuple):
        return [found for part in parts if part not in (type(None), Ellipsis) for found in types_of(part)]
    return [kind]


OPTIONS = [
    pytest.param(command, name, hint, id=f"{command} {name}")
    for command in COMMANDS
    for name, hint in option_hints(config_of(command)).items()
]
GOOD = {int: 7, float: 0.5, str: "x", Path: Path("nowhere")}


def required(cls: type) -> dict[str, Any]:
    """Values for the options that have to be given."""
    hints = get_type_hints(cls)
    return {
        field.name: (GOOD[types_of(hints[field.name])[0]],)
        if get_origin(hints[field.name]) is tuple
        else GOOD[types_of(hints[field.name])[0]]
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }


def with_value(hint: Any, value: Any) -> Any:
    """The value as an option of the type takes it: of several values the last."""
    kinds = types_of(hint)
    optional = [part for part in get_args(hint) if part is not type(None)]
    inner = optional[0] if get_origin(hint) in (Union, types.UnionType) else hint
    if get_origin(inner) is not tuple:
        return value
    return (*(GOOD[kind] for kind in kinds[:-1]), value)


def numbers_of(hint: Any, ranged: bool = False) -> list[bool]:
    """Of every number that an option consists of, whether its annotation has a range."""
    parts = get_args(hint)
    if get_origin(hint) is Annotated:
        return numbers_of(parts[0], any(isinstance(part, Range) for part in parts[1:]))
    if hint in (int, float):
        return [ranged]
    return [found for part in parts if get_origin(hint) is not Literal for found in numbers_of(part)]


def test_every_option_that_is_a_number_has_a_range_at_its_field() -> None:
    hints = {f"{option.values[0]} {option.values[1]}": option.values[2] for option in OPTIONS}
    hints |= option_hints(RunConfig)
    assert [name for name, hint in hints.items() if not all(numbers_of(hint))] == []
    assert sum(len(numbers_of(hint)) for hint in hints.values()) > 100


def test_every_size_of_a_model_has_a_range_at_its_field() -> None:
    without = {"version", "guidance", "sample_size", "shift_factor", "video_mixer_rank"}
    kinds = [EncoderConfig, DiffusionConfig, GenerationConfig, NOVAConfig, ActionConfig, PARConfig, FrameVAEConfig]
    kinds += [OpenSoraVAEConfig, PublishedTransformer, InferenceConfig, *(method.Config for method in METHODS.values())]
    hints = {f"{kind.__name__}.{name}": hint for kind in kinds for name, hint in option_hints(kind).items()}
    open_ended = {name.partition(".")[2] for name, hint in hints.items() if not all(numbers_of(hint))}
    assert open_ended == without


@pytest.mark.parametrize(("command", "name", "hint"), OPTIONS)
def test_values_that_make_no_sense_are_refused_by_the_options_name(command: str, name: str, hint: Any) -> None:
    cls, kind = config_of(command), types_of(hint)[-1]
    hostile: list[Any] = {
        int: [-1, 0, HUGE, -HUGE],
        float: [float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e300],
        str: ["", " ", "a\0b"],
        Path: [Path("a\0b")],
    }.get(kind, [])
    for value in hostile:
        if value == 0 and name in MAY_BE_ZERO | ZERO_IN.keys() and command in ZERO_IN.get(name, (command,)):
            continue
        if name == "negative_prompt" and not value.strip():
            continue
        with pytest.raises(UserError, match=rf"\b{name}\b"):
            from_options(cls, {**required(cls), name: with_value(hint, value)})


@pytest.mark.parametrize(("command", "name", "hint"), OPTIONS)
def test_an_empty_value_is_refused_by_the_options_name(command: str, name: str, hint: Any) -> None:
    option = f"--{name.replace('_', '-')}"
    if types_of(hint)[-1] is bool or name == "negative_prompt":
        return
    if tyro.conf.Positional in getattr(hint, "__metadata__", ()):
        words, option = [""], "an argument"
    else:
        words = [option, ""]
    for given in (words, [*words[:-1], " "], [*words[:-1], "x", ""]):
        with pytest.raises(UserError, match=f"^{option} is empty"):
            parse(config_of(command), given, command, "")


def words_for(command: str) -> list[str]:
    """The options that have to be given, as words."""
    hints = get_type_hints(config_of(command), include_extras=True)
    words: list[str] = []
    for name, value in required(config_of(command)).items():
        given = [str(part) for part in (value if isinstance(value, tuple) else (value,))]
        positional = tyro.conf.Positional in getattr(hints[name], "__metadata__", ())
        words = given + words if positional else [*words, f"--{name.replace('_', '-')}", *given]
    return words


def commands_with(name: str) -> list[str]:
    return [command for command in COMMANDS if name in option_hints(config_of(command))]


@pytest.mark.parametrize("command", commands_with("device"))
def test_a_device_that_this_machine_lacks_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for device in ("x", "cpu:x", "cuda:99", "meta"):
        with pytest.raises((UserError, SystemExit)) as refused:
            parse(config_of(command), [*words_for(command), "--device", device], command, "")
        assert "device" in (capsys.readouterr().err or str(refused.value))


@pytest.mark.parametrize("command", commands_with("out"))
def test_a_place_for_results_that_cannot_be_is_refused(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    places = [tmp_path / "file" / "below" / "deep.mp4", Path("/proc/nowhere/deep.mp4")]
    if not config_of(command).out_is_file:
        places.append(tmp_path / "file")
    for place in places:
        with pytest.raises(UserError, match=r"cannot write to"):
            parse(config_of(command), [*words_for(command), "--out", str(place)], command, "")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", commands_with("cluster"))
def test_an_address_that_is_none_is_refused(command: str) -> None:
    for address in ("nonsense", "a:b", "http://x:80", "host:123456", "host:"):
        with pytest.raises(UserError, match="cluster is "):
            parse(config_of(command), [*words_for(command), "--cluster", address], command, "")
    for address in ("auto", "127.0.0.1:6379", "[::1]:6379", "ray://head:10001"):
        assert parse(config_of(command), [*words_for(command), "--cluster", address], command, "").cluster == address


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file and a small dataset in it."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "file").write_text("x")
    write_dataset(folder / "data")
    return folder


MINI = "par_agent/checkpoints/par-mini"
REFUSED = [
    ("demos", "--task nope", "unknown task 'nope'"),
    ("demos", "--task PushCube --first-seed 20241201", "reach 20241201"),
    ("dagger", "--task PickCubeSO100", "corrections need a Panda"),
    ("dagger", "--task PushCube --policy nowhere", "nowhere"),
    ("dagger", "--task PushCube --first-seed 20241201", "reach 20241201"),
    ("demos", "--task PushCube --cluster 127.0.0.1:1", "no Ray cluster|needs Ray"),
    ("render", "--trajectory nowhere", "no trajectory file at .*nowhere"),
    ("render", "--trajectory file", r"file\.json does not exist"),
    ("render", "--random-motion nope", "unknown task 'nope'"),
    (
        "render",
        "--random-motion PushCube --cameras nope",
        "PushCube-v1 has no camera 'nope'; it has render",
    ),
    ("render", "--random-motion PushCube --cameras render_camera render_camera", "is named twice"),
    ("render", "--random-motion PushCube --cameras", "cameras is empty"),
    ("render", "--random-motion PushCube --crop 500 0 100 100", "does not lie inside the 512x512 image"),
    ("render", "--random-motion PushCube --phase 8", "phase is 8"),
    ("import-lerobot", "nowhere", "nowhere"),
    ("export-lerobot", "--data nowhere", "nowhere"),
    ("train-vae", "--data nowhere", "nowhere"),
    ("train-vae", "--data", "data is empty"),
    ("train-vae", "--data data data", "data is given twice"),
    ("train-vae", "--data data --camera nope", "holds no camera 'nope'"),
    ("train-vae", "--data data --patch 512", "512"),
    ("finetune", f"--data nowhere --init {MINI}", "nowhere"),
    ("finetune", "--data data --vae nowhere", "nowhere"),
    ("finetune", "--data data --init nowhere", "nowhere"),
    ("finetune", f"--data data data --init {MINI}", "data is given twice"),
    ("finetune", "--task nope", "unknown task 'nope'"),
    ("finetune", f"--data data --init {MINI} --preset nope", "unknown preset 'nope'"),
    ("finetune", f"--data data --init {MINI} --foresight 3", "foresight is"),
    ("finetune", "--data data --foresight 20 10", "foresight is"),
    ("finetune", f"--data data --init {MINI} --camera nope", "nope"),
    ("generate", "--model nowhere --prompt p", "nowhere"),
    ("visualize rollout", "--policy nope", "no checkpoint 'nope'"),
    ("visualize rollout", "--task harness_task:NUDGE_CUBE --policy nope", "no checkpoint 'nope'"),
    ("visualize rollout", "--task nope", "unknown task 'nope'"),
    ("visualize attention", "--task harness_task:NUDGE_CUBE --policy nope", "no checkpoint 'nope'"),
    ("visualize attention", "--policy-kwargs nope", "'nope' is not of the form key=value"),
    ("visualize failures", "nowhere", "nowhere"),
    ("visualize gallery", "--attention nope 1", "unknown task 'nope'"),
    ("visualize gallery", "--states 0 0 99", "states is .*99"),
    ("play", "--policy nope", "no checkpoint 'nope'|needs gradio"),
    ("play", "--host nope.invalid", "cannot listen on nope.invalid|needs gradio"),
    ("info", "nope", "no checkpoint 'nope'"),
    ("check-nova", "--io nowhere", "nowhere"),
    ("import-nova", "nowhere", "nowhere"),
    ("recipe", "nope", "unknown recipe 'nope'"),
    ("benchmark", "--policy nope", "no checkpoint 'nope'"),
    ("benchmark", "--tasks nope", "unknown task 'nope'"),
    ("benchmark", "--tasks PushCube PushCube", "given twice"),
    ("benchmark", "--policy vla-eval:nope", "nope"),
    ("benchmark", "--policy dp --policy-checkpoint nowhere", "nowhere"),
    ("benchmark", "--num-states 126", "states is 126"),
    ("compare.py", "nowhere nowhere", "nowhere holds no run"),
    ("compare.py", "rows/act data", "data holds no run"),
    ("report.py", "--reported nowhere", "nowhere/rollouts.parquet does not exist"),
    ("report.py", "--reference nope", "no run of the protocol is of 'nope'"),
    ("report.py", "--documents nowhere --check", "nowhere does not exist"),
    ("report.py add", "nowhere --group rows", "nowhere holds no finished run"),
    ("report.py export", "rows/nope", "has no run 'rows/nope'"),
    ("robustness.py", "--variations nope", "unknown variation 'nope'"),
    ("make_states.py", "--tasks nope", "unknown task 'nope'"),
    ("throughput.py", "--data nowhere", "nowhere"),
    ("throughput.py", "--data", "data is empty"),
    ("harness_speed.py", "--tasks nope", "unknown task 'nope'"),
    ("latency.py", "--presets nope", "unknown preset 'nope'"),
    ("training_step.py", "--preset nope", "unknown preset 'nope'"),
    ("train-baseline", "--method nope --data data", "method is 'nope'"),
]


def test_every_command_is_refused_something() -> None:
    assert COMMANDS.keys() - {command for command, _, _ in REFUSED} == {"doctor"}  # nothing it takes can be wrong


@pytest.mark.parametrize(("command", "words", "message"), REFUSED)
def test_what_is_not_there_or_does_not_fit_is_refused_and_nothing_is_left(
    command: str, words: str, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.rglob("*"))
    names = {name: str(place / name) for name in ("nowhere", "file", "data")}
    given = [names.get(word, word) for word in words.split()]
    if "out" in option_hints(config_of(command)):
        given += ["--out", str(place / ("out.mp4" if config_of(command).out_is_file else "out"))]
    if command in SUBCOMMANDS:
        assert main([*command.split(), *given]) == 2
        error = capsys.readouterr().err
    else:
        with pytest.raises(UserError) as refused:
            run_script_main(command, given)
        error = str(refused.value)
    assert re.search(message, error), error
    assert sorted(place.rglob("*")) == before


def run_script_main(command: str, words: list[str]) -> None:
    """Runs a script of benchmarks/ in this process."""
    module = importlib.import_module(COMMANDS[command].partition(":")[0])
    module.main(parse(config_of(command), words, command, ""))
