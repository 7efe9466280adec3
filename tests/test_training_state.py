"""Training states: restored exactly, complete or absent, and damaged ones refused."""

from __future__ import annotations

import json
import re
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from par_agent.errors import UserError
from par_agent.training import state
from par_agent.training.optimisation import EMA, clip_and_step, make_optimizer
from par_agent.training.state import latest_training_state, load_training_state, save_training_state

FILES = ["ema.safetensors", "model.safetensors", "optimizer.safetensors", "state.json"]


class Run:
    """A little network with convolutions in either memory layout, its average and its optimiser."""

    def __init__(self, width: int = 4, frozen: bool = False) -> None:
        torch.manual_seed(0)
        convolutions = nn.Sequential(nn.Conv2d(3, width, 3), nn.SiLU(), nn.Conv2d(width, width, 1))
        convolutions = convolutions.to(memory_format=torch.channels_last)
        convolutions.requires_grad_(not frozen)
        self.model = nn.Sequential(convolutions, nn.Flatten(), nn.Linear(16 * width, 2))
        self.ema = EMA(self.model, 0.9)
        self.optimizer = make_optimizer(self.model, 1e-2, 0.1)
        self.weights = {"model": self.model.state_dict(), "ema": self.ema.tensors}

    def train(self, start: int, stop: int, left_out: int | None = None) -> None:
        """Makes steps; no gradient reaches the convolution ``left_out``."""
        for step in range(start, stop):
            x = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(step))
            self.model(x.contiguous(memory_format=torch.channels_last)).square().sum().backward()
            if left_out is not None:
                self.model[0][left_out].zero_grad(set_to_none=True)
            clip_and_step(self.model, self.optimizer, 1.0, "")
            self.ema.update(self.model, step)

    def save(self, folder: Path, step: int, **options) -> Path:
        state = {"note": [1, "two"]}
        return save_training_state(folder, step, self.weights, self.model, self.optimizer, state, **options)

    def load(self, path: Path) -> dict:
        return load_training_state(path, self.weights, self.model, self.optimizer)

    def tensors(self) -> list[torch.Tensor]:
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        moments = [self.optimizer.state[p][name] for p in parameters for name in ("exp_avg", "exp_avg_sq", "step")]
        return [*parameters, *self.ema.tensors.values(), *moments]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def equal(a: Run, b: Run) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))


def test_weights_average_and_moments_come_back_exactly(tmp_path):
    saved, loaded = Run(), Run()
    saved.train(0, 3)
    path = saved.save(tmp_path, 3)
    assert path == tmp_path / "step_00000003" and names(path) == FILES
    assert loaded.load(path) == {"step": 3, "note": [1, "two"]}
    assert equal(saved, loaded)


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path):
    straight, first, second = Run(), Run(), Run()
    straight.train(0, 8)
    first.train(0, 3)
    second.load(first.save(tmp_path, 3))
    second.train(3, 8)
    assert equal(straight, second)


def test_saving_before_the_first_step_changes_nothing(tmp_path):
    straight, saved, loaded = Run(), Run(), Run()
    loaded.load(saved.save(tmp_path, 0))
    assert latest_training_state(tmp_path) == tmp_path / "step_00000000"
    for run in (straight, saved, loaded):
        run.train(0, 2)
    assert equal(straight, saved) and equal(straight, loaded)


def test_a_layer_that_has_had_no_gradient_when_the_state_is_saved_goes_on_bit_for_bit(tmp_path):
    straight, first, second = Run(), Run(), Run()
    for run in (straight, first):
        run.train(0, 3, left_out=0)
    second.load(first.save(tmp_path, 3))
    for run in (straight, first, second):
        run.train(3, 6)
    assert equal(straight, first) and equal(straight, second)


def test_frozen_weights_have_no_moments_in_the_file(tmp_path):
    saved, loaded = Run(frozen=True), Run(frozen=True)
    saved.train(0, 3)
    path = saved.save(tmp_path, 3)
    kinds = ("exp_avg", "exp_avg_sq", "step")
    expected = {f"2.{name}.{kind}" for name in ("weight", "bias") for kind in kinds}
    assert set(load_file(path / "optimizer.safetensors")) == expected
    loaded.load(path)
    assert equal(saved, loaded)


def test_all_files_of_a_training_state_are_as_readable_as_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    modes = {file.stat().st_mode for file in Run().save(tmp_path, 0).iterdir()}
    assert modes == {(tmp_path / "other").stat().st_mode}


def test_the_newest_stay(tmp_path):
    run = Run()
    for step in (5, 30, 200, 1000):
        run.save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step_00000200", "step_00001000"]
    assert latest_training_state(tmp_path).name == "step_00001000"


def test_there_is_none_before_the_first(tmp_path):
    assert latest_training_state(tmp_path / "absent") is None
    assert latest_training_state(tmp_path) is None


def test_the_same_step_may_be_saved_again(tmp_path):
    run = Run()
    run.save(tmp_path, 1)
    run.train(0, 1)
    loaded = Run()
    loaded.load(run.save(tmp_path, 1))
    assert equal(run, loaded) and names(tmp_path) == ["step_00000001"]


def test_what_a_killed_process_left_is_not_taken_for_a_training_state_and_goes(tmp_path):
    (tmp_path / ".step_00000009.123.tmp").mkdir()
    (tmp_path / ".step_00000009.123.tmp" / "model.safetensors").write_bytes(b"half")
    assert latest_training_state(tmp_path) is None
    Run().save(tmp_path, 1)
    assert names(tmp_path) == ["step_00000001"]


def test_killed_while_an_old_one_is_deleted_leaves_whole_training_states_only(tmp_path, monkeypatch):
    run = Run()
    run.save(tmp_path, 1, keep=1)

    def half_deleted(folder: Path, ignore_errors: bool = False) -> None:
        if Path(folder).exists():
            (Path(folder) / "model.safetensors").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(state.shutil, "rmtree", half_deleted)
    with pytest.raises(KeyboardInterrupt):
        run.save(tmp_path, 2, keep=1)
    assert [names(path) for path in tmp_path.glob("step_*")] == [FILES]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_full_disk_leaves_the_older_training_states_alone(tmp_path, name):
    """A limit on the size of files stands for the full disk: the same write fails in the same way."""
    run, loaded = Run(), Run()
    run.train(0, 1)
    size = (run.save(tmp_path, 1) / name).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write the training state .*step_00000002.*allow larger files"):
            run.save(tmp_path, 2, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step_00000001"]
    loaded.load(latest_training_state(tmp_path))
    assert equal(run, loaded)
    run.save(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step_00000002"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "absent"])
def test_a_damaged_training_state_is_refused_by_name(tmp_path, name, damage):
    run = Run()
    run.train(0, 1)
    path = run.save(tmp_path, 7)
    content = (path / name).read_bytes()
    (path / name).unlink()
    if damage == "truncated":
        (path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cannot resume from .*step_00000007.*delete that folder"):
        Run().load(path)


NAN, INFINITE = float("nan"), float("inf")
WEIGHT, MOMENT = "0.0.weight", "2.weight.exp_avg_sq"


@pytest.mark.parametrize(
    ("name", "key", "change", "message"),
    [
        ("model", WEIGHT, lambda x: x.fill_(NAN), r"NaN or infinite values in \(1\): 0\.0\.weight"),
        ("ema", WEIGHT, lambda x: x.fill_(-INFINITE), r"ema\.safetensors does not fit.*\n.*infinite.*0\.0\.weight"),
        ("optimizer", MOMENT, lambda x: x.fill_(INFINITE), r"optimizer\.safetensors does.*\n.*2\.weight\.exp_avg_sq"),
        (
            "optimizer",
            MOMENT,
            lambda x: x.fill_(-1),
            r"holds negative numbers in 2\.weight\.exp_avg_sq",
        ),
        ("optimizer", "2.weight.step", lambda x: x.fill_(NAN), r"NaN or infinite values in \(1\): 2\.weight\.step"),
        ("model", WEIGHT, lambda x: x.int(), r"0\.0\.weight is int32, expected float32"),
        ("model", WEIGHT, lambda x: x.half(), r"0\.0\.weight is float16, expected float32"),
        ("optimizer", MOMENT, lambda x: x.long(), r"2\.weight\.exp_avg_sq is int64, expected float32"),
        ("optimizer", MOMENT, lambda x: x[:1].clone(), r"2\.weight\.exp_avg_sq is 1x.*the configuration says"),
        ("ema", WEIGHT, lambda x: x[:1].clone(), r"0\.0\.weight is 1x3x3x3, the configuration says 4x3x3x3"),
        ("optimizer", MOMENT, None, r"missing keys \(1\): 2\.weight\.exp_avg_sq"),
        (
            "optimizer",
            "2.weight.",
            None,
            r"missing keys \(3\): 2\.weight\.step, 2\.weight\.exp_avg, ",
        ),
        ("optimizer", "", None, r"optimizer\.safetensors does not fit.*\n.*missing keys \(18\): 0\."),
        ("ema", WEIGHT, None, r"missing keys \(1\): 0\.0\.weight"),
    ],
)
def test_tensors_that_no_training_wrote_are_refused_by_name_and_change_nothing(tmp_path, name, key, change, message):
    run = Run()
    run.train(0, 2)
    path = run.save(tmp_path, 2)
    tensors = load_file(path / f"{name}.safetensors")
    for found in [found for found in tensors if found.startswith(key)]:
        tensor = tensors.pop(found)
        if change is not None:
            tensors[found] = change(tensor)
    save_file(tensors, path / f"{name}.safetensors")
    resumed, before = Run(), Run()
    with pytest.raises(UserError, match=r"cannot resume from .*step_00000002") as refused:
        resumed.load(path)
    assert re.search(message, str(refused.value))
    assert not any(moment.any() for moments in resumed.optimizer.state.values() for moment in moments.values())
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.ema.tensors.values(), before.ema.tensors.values(), strict=True)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": -5}, "its state is of step -5"),
        ({"step": "2"}, r"state\.json\.step is '2'; expected a whole number"),
        ({"batches": -1}, "batches in state.json is -1; it must be 0 or more"),
    ],
)
def test_a_state_that_cannot_be_is_refused(tmp_path, change, message):
    path = Run().save(tmp_path, 2)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, **change}))
    with pytest.raises(UserError, match=message):
        Run().load(path)


def test_another_models_training_state_is_refused(tmp_path):
    path = Run(width=8).save(tmp_path, 1)
    with pytest.raises(UserError, match=r"cannot resume from .*step_00000001"):
        Run(width=4).load(path)


def test_nothing_is_pickled(tmp_path):
    run = Run()
    run.train(0, 1)
    path = run.save(tmp_path, 1)
    assert json.loads((path / "state.json").read_text()) == {"step": 1, "note": [1, "two"]}
    for file in path.glob("*.safetensors"):
        header = int.from_bytes(file.read_bytes()[:8], "little")
        assert json.loads(file.read_bytes()[8 : 8 + header])
