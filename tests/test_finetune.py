"""Training a policy: resuming, refusing what does not fit, learning."""

from __future__ import annotations

import itertools
import math
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from held import Held, Moment
from par_agent import PARPolicy
from par_agent.cli import main
from par_agent.errors import UserError
from par_agent.policy.transforms import Transforms
from par_agent.training.finetune import FinetuneConfig, finetune, make_accelerator
from par_agent.training.objective import Objective
from par_agent.training.par_training import Training
from par_agent.training.setup import prepare
from par_agent.training.state import latest_training_state
from par_agent.utils.interrupts import Interrupted
from tiny import LENGTH, command, option_words, tiny_checkpoint, tiny_dataset, tiny_run, with_options

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> FinetuneConfig:
    """A run of a few steps on random episodes, from a tiny checkpoint. Its data and checkpoint are only read."""
    return tiny_run(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def config(shared: FinetuneConfig, tmp_path: Path) -> FinetuneConfig:
    """The shared run in a folder of its own."""
    return with_options(shared, out=tmp_path / "run")


@pytest.fixture(scope="module")
def finished(shared: FinetuneConfig) -> FinetuneConfig:
    """The shared run, made and only read."""
    finetune(shared)
    return shared


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "policy" / "model.safetensors")


def observation() -> dict[str, Any]:
    """A black image and joints at zero."""
    image = torch.zeros(1, 24, 32, 3, dtype=torch.uint8)
    return {"agent": {"qpos": torch.zeros(1, 9)}, "sensor_data": {"render_camera": {"rgb": image}}}


def test_training_ends_in_a_policy_that_acts(finished: FinetuneConfig) -> None:
    config = finished
    policy = PARPolicy.from_pretrained(config.out / "policy", "push cube 1")
    assert policy.act(observation()).shape == (1, 8)
    before = load_file(config.init / "model.safetensors")
    assert any(not torch.equal(value, before[name]) for name, value in weights(config.out).items())
    assert policy.checkpoint.trained["steps"] == 6
    assert policy.checkpoint.transforms == tiny_checkpoint().transforms
    assert list((config.out / "tensorboard").iterdir())


@pytest.mark.parametrize(("dropout", "known"), [(0.3, True), (1.0, False)])
def test_a_policy_acts_on_the_chunks_before_if_training_showed_them(
    config: FinetuneConfig, dropout: float, known: bool
) -> None:
    trained = finetune(with_options(config, steps=1, past_action_dropout=dropout))
    assert trained.inference.past_actions == known
    PARPolicy.from_pretrained(config.out / "policy", "push cube 1").act(observation())


def test_a_policy_remembers_no_more_than_its_training_showed(finished: FinetuneConfig) -> None:
    assert finished.window == 2
    folder = finished.out / "policy"
    assert PARPolicy.from_pretrained(folder, "push cube 1", context=2).inference.context == 2
    with pytest.raises(UserError, match="context is 3; this checkpoint was trained on 2 physical tokens"):
        PARPolicy.from_pretrained(folder, "push cube 1", context=3)


def test_an_unknown_task_is_refused_before_anything_is_written(config: FinetuneConfig) -> None:
    with pytest.raises(UserError, match="unknown task 'PushCub'"):
        finetune(with_options(config, data=(), task=("PushCub",)))
    assert not config.out.exists()


def test_foresight_is_learnt_beside_the_chunk_and_never_executed(config: FinetuneConfig) -> None:
    def transforms_of(config: FinetuneConfig) -> Transforms:
        transforms = prepare(config, torch.device("cpu")).policy.transforms
        assert transforms is not None
        return transforms

    trained = finetune(with_options(config, steps=1, foresight=(5, 7)))
    assert trained.transforms is not None
    assert trained.transforms.action_mean[:LENGTH] == tiny_checkpoint().transforms.action_mean
    assert trained.transforms.targets == LENGTH + 2
    policy = PARPolicy.from_pretrained(config.out / "policy", "push cube 1")
    plan = policy.plan(observation())
    assert plan.actions.shape == (1, LENGTH, 8)
    start = with_options(config, init=config.out / "policy", demos=2)
    assert transforms_of(start) == trained.transforms, "known statistics stay"
    assert transforms_of(with_options(start, foresight=(5, 6))).action_std != trained.transforms.action_std
    assert transforms_of(with_options(start, foresight=())).targets == LENGTH


def test_a_killed_run_goes_on_and_equals_an_uninterrupted_one(
    config: FinetuneConfig, finished: FinetuneConfig, tmp_path: Path
) -> None:
    moment = Moment("par_agent.training.loop:save_training_state", number=4)
    with Held(["par-agent", "finetune", *option_words(config)], moment, tmp_path / "marks") as held:
        held.until_held()
        held.tell(signal.SIGKILL)
        assert held.status() == -signal.SIGKILL, held.output
    equals_when_resumed(config, finished, saved=4)


def test_a_run_stopped_by_ctrl_c_goes_on_and_equals_an_uninterrupted_one(
    config: FinetuneConfig,
    finished: FinetuneConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        before_batch(5, lambda: signal.raise_signal(signal.SIGINT), patch)
        ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        try:
            assert main(command(config)[3:]) == 130
        finally:
            signal.signal(signal.SIGINT, ignored)
    message = "the first 5 steps are saved, and the same command goes on from there"
    assert message in capsys.readouterr().err  # the step in hand is done first
    equals_when_resumed(config, finished, saved=5)


def equals_when_resumed(config: FinetuneConfig, whole: FinetuneConfig, saved: int) -> None:
    """A run that has saved so many steps ends with the weights of one that was not stopped."""
    states = config.out / "training_states"
    assert latest_training_state(states) == states / f"step_{saved:08d}"
    finetune(config)
    for name, value in weights(whole.out).items():
        assert torch.equal(value, weights(config.out)[name]), name


def before_batch(number: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets something happen before a batch's loss is computed, counted from 1."""
    forward, batches = Objective.forward, itertools.count(1)

    def acting(self: Objective, *arguments: Any) -> Any:
        if next(batches) == number:
            act()
        return forward(self, *arguments)

    monkeypatch.setattr(Objective, "forward", acting)


@pytest.mark.parametrize(("step", "saved"), [(1, 1), (2, 1), (4, 3), (5, 5)])
def test_an_interrupted_run_loses_no_measurement(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch, step: int, saved: int
) -> None:
    """A step that is to be measured, here every other, is not saved before it is: it would never be then."""
    measured: list[int] = []

    def measure(self: Training, policy: Any, monitor: Any) -> tuple[dict[str, float], float]:
        measured.append(self.progress.step)
        return {}, 1.0

    monkeypatch.setattr(Training, "measure", measure)
    config = with_options(config, validate_every=2)
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as interruption:
        before_batch(step, lambda: signal.raise_signal(signal.SIGTERM), patch)
        finetune(config)
    assert interruption.value.number == signal.SIGTERM
    assert f"the first {saved} steps are saved" in str(interruption.value.kept)
    finetune(config)
    assert measured == [2, 4, 6]


def test_an_interruption_before_the_first_checkpoint_says_that_nothing_is_saved(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted) as interruption:
        before_batch(1, lambda: signal.raise_signal(signal.SIGTERM), monkeypatch)
        finetune(with_options(config, validate_every=1))
    assert interruption.value.kept == "no step is saved yet: the same command begins anew"


def test_a_training_that_fails_leaves_no_thread_that_reads(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ArithmeticError

    before_batch(2, fail, monkeypatch)
    with pytest.raises(ArithmeticError) as failure:
        finetune(config)
    assert failure.value.__traceback__ is not None  # which keeps what the loop had open
    assert [thread for thread in threading.enumerate() if thread.name == "prefetch"] == []


def test_a_run_stopped_before_it_wrote_its_policy_writes_it(config: FinetuneConfig, finished: FinetuneConfig) -> None:
    shutil.copytree(finished.out, config.out)
    (config.out / "policy" / "model.safetensors").unlink()
    finetune(config)
    for name, value in weights(finished.out).items():
        assert torch.equal(value, weights(config.out)[name]), name


@pytest.fixture
def other_arithmetic() -> Iterator[None]:
    """Accelerate, which fixes a process's arithmetic at its first training, forgets it before and after."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def test_bfloat16_on_the_cpu_trains_float32_weights(
    config: FinetuneConfig, finished: FinetuneConfig, other_arithmetic: None
) -> None:
    finetune(with_options(config, precision="bfloat16"))
    rounded, moved = weights(config.out), 0.0
    for name, value in weights(finished.out).items():
        assert rounded[name].dtype == torch.float32
        torch.testing.assert_close(rounded[name], value, rtol=0, atol=6 * config.learning_rate)
        moved = max(moved, (rounded[name] - value).abs().max().item())
    assert moved > 0


def test_another_precision_in_the_same_process_is_refused(config: FinetuneConfig) -> None:
    make_accelerator(config)
    other = with_options(config, precision="bfloat16")
    with pytest.raises(UserError, match="trained on cpu with mixed precision 'no' and cannot go on on cpu with 'bf16'"):
        finetune(other)


def test_single_task_batch_can_be_overfitted(config: FinetuneConfig, tmp_path: Path) -> None:
    data = tiny_dataset(tmp_path / "two", episodes=2)
    few = {"batch_size": 8, "variants": 1, "validate_every": 1000, "save_minutes": 60.0}
    long = with_options(config, data=(data,), steps=60, learning_rate=3e-3, **few)
    lines: list[str] = []

    def record(self: Any, name: str, value: float, step: int) -> None:
        if name == "train/action":
            lines.append(value)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", record)
        finetune(long)
    assert sum(lines[-3:]) < 0.6 * sum(lines[:3])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": ("PushCub",), "data": ()}, "unknown task 'PushCub'; known tasks: PushCube"),
        ({"data": ()}, "nothing to train on"),
        ({"init": None}, "needs --vae FOLDER"),
        ({"data": (Path("nowhere"),)}, "nowhere is not a rendered dataset"),
        ({"camera": "base_camera"}, "sees through render_camera"),
        ({"foresight": (2,)}, "must be rising numbers from the chunk length 4 on"),
        ({"weights": (1.0, 2.0)}, "1 datasets need as many sampling weights"),
    ],
)
def test_bad_options_are_explained(config: FinetuneConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        finetune(with_options(config, **change))


def test_data_of_another_crop_or_chunk_length_is_refused(config: FinetuneConfig, tmp_path: Path) -> None:
    other = tiny_dataset(tmp_path / "crop")
    spec = (other / "spec.json").read_text().replace("4,\n    8,", "0,\n    0,")
    (other / "spec.json").write_text(spec)
    with pytest.raises(UserError, match=r"rendered with crop \(0, 0, 16, 16\); .* --crop 4 8 16 16"):
        finetune(with_options(config, data=(other,)))
    coarse = tiny_dataset(tmp_path / "coarse", stride=8)
    with pytest.raises(UserError, match="a frame every 8 control steps"):
        finetune(with_options(config, data=(coarse,), out=tmp_path / "run2"))


def test_another_configuration_in_the_same_folder_is_refused(finished: FinetuneConfig) -> None:
    with pytest.raises(UserError, match=r"begun with other settings .*learning_rate: 0.001 there, 0.5 asked for"):
        finetune(with_options(finished, learning_rate=0.5))


def spoil(data: Path, number: int, factor: float) -> None:
    """Multiplies an episode's actions."""
    with h5py.File(data / "episodes" / f"episode_{number:06d}.h5", "r+") as file:
        file["actions"][...] = file["actions"][...] * factor


def test_a_broken_episode_stops_the_training_by_name_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    spoil(config.data[0], 7, math.nan)
    with pytest.raises(UserError, match=r"episode_000007.h5 is damaged \(actions hold NaN or infinity in row 0: nan\)"):
        finetune(config)
    tiny_dataset(config.data[0], episodes=21)
    spoil(config.data[0], 7, 1e5)
    config = with_options(config, steps=50, accumulation=3, learning_rate=1e-5)
    explosion = r"broke down at step \d+: the loss is [\d.]+e\+(08|09|10).*--init .*run/policy"
    with pytest.raises(UserError, match=explosion) as error:
        finetune(config)
    named = re.findall(r"data/episode_\d+", str(error.value))
    assert "data/episode_000007" in named and len(named) <= config.batch_size  # one batch of three is at fault
    for name in ("model", "ema"):
        found = latest_training_state(config.out / "training_states")
        if found is not None:  # the episode may come in the first step
            assert all(value.isfinite().all() for value in load_file(found / f"{name}.safetensors").values())


def test_weights_that_explode_stop_the_training(config: FinetuneConfig) -> None:
    with pytest.raises(UserError, match=r"broke down at step \d+: .*episodes data/episode_00.*state is intact"):
        finetune(with_options(config, learning_rate=100.0, clip=1e9, steps=30, warmup=1))


def test_full_disk_keeps_the_last_checkpoint(config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    import par_agent.training.state as module

    real, calls = module.write_tensors, 0

    def full(*args: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise OSError(28, "No space left on device")
        real(*args, **options)

    monkeypatch.setattr(module, "write_tensors", full)
    with pytest.raises(UserError, match=r"cannot write the training state .*No space left on device.*same command"):
        finetune(config)
    assert latest_training_state(config.out / "training_states").name == "step_00000001"  # type: ignore[union-attr]
    monkeypatch.setattr(module, "write_tensors", real)
    finetune(config)
    assert latest_training_state(config.out / "training_states").name == "step_00000006"  # type: ignore[union-attr]


def test_a_disk_that_fills_up_while_the_policy_is_written_stops_with_a_message_and_the_run_goes_on_later(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import par_agent.modeling.weights as module

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_tensors", full)
        assert main(command(config)[3:]) == 2
    message = r"cannot write below .*run: .*No space left on device.*same command"
    assert re.search(message, capsys.readouterr().err)
    assert not list(config.out.rglob("*.tmp")) and not (config.out / "policy" / "model.safetensors").exists()
    assert main(command(config)[3:]) == 0
    assert (config.out / "policy" / "model.safetensors").exists()
