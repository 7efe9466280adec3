"""Everything that a GPU would run, on a virtual CUDA device: no operation mixes devices, and a seed means the same."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

from nova_fixtures import ROOT, write_released_folder
from par_agent import PARPolicy
from par_agent.baselines import NAMES
from par_agent.baselines.policy import BaselinePolicy
from par_agent.baselines.training import train
from par_agent.cli import main
from par_agent.errors import UserError
from par_agent.modeling.config import InferenceConfig
from par_agent.modeling.par import PARModel, Targets
from par_agent.modeling.text_encoder import HashTextEncoder
from par_agent.modeling.vae.frame_encoder import VideoFrameEncoder, load_frame_encoder
from par_agent.modeling.vae.frame_vae import FrameVAE, FrameVAEConfig
from par_agent.policy.checkpoint import Checkpoint
from par_agent.tasks import TASKS
from par_agent.training.finetune import FinetuneConfig, finetune, make_accelerator
from par_agent.training.vae import train_vae
from par_agent.training.vae_config import VAETraining
from rendered import write_dataset
from small_baselines import run
from test_ablations import model_of
from test_baselines import TASK, observation
from tiny import LENGTH, task_checkpoint, tiny_features, tiny_inputs, tiny_model, tiny_run, with_options
from virtual_cuda import virtual_cuda

REPOSITORY = Path(__file__).parents[1]
INSTRUCTION = TASKS["PushCube"].instruction


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """Gives a context in which there is a device ``cuda``; accelerate forgets afterwards that there was.

    The CPU's own way of short attention is left out, so that equal kernels compute what is compared.
    """
    AcceleratorState._reset_state(True)
    monkeypatch.setattr("par_agent.modeling.blocks.SHORT", 0)
    yield lambda: virtual_cuda(monkeypatch)
    AcceleratorState._reset_state(True)


@pytest.fixture
def tf32() -> Iterator[None]:
    """Puts torch's switches back where they were."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def on(value: Any, device: Any) -> Any:
    """An observation, or any nest of tensors, on a device."""
    if isinstance(value, dict):
        return {key: on(entry, device) for key, entry in value.items()}
    return value.to(device)


def close(first: list[Tensor], second: list[Tensor], share: float = 1e-4) -> None:
    """Floats to a share of their norm, pixels to one grey level in a hundred."""
    for here, there in zip(first, second, strict=True):
        if here.dtype == torch.uint8:
            assert (here.int() - there.int()).abs().float().mean() < 0.01
        else:
            assert here.shape == there.shape and (here - there).double().norm() <= share * here.double().norm()


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (lambda device: torch.ones(3) + torch.ones(3, device=device), "found at least two devices"),
        (lambda device: torch.cat([torch.ones(1), torch.ones(1, device=device)]), "found at least two devices"),
        (lambda device: torch.ones(3)[torch.tensor([1], device=device)], "found at least two devices"),
        (lambda device: torch.nn.Linear(3, 2).to(device)(torch.ones(3)), "found at least two devices"),
        (lambda device: torch.where(torch.ones(2, device=device) > 0, torch.ones(2), 0.0), "two devices"),
        (lambda device: torch.ones(3, device=device).numpy(), "convert cuda:0 device type tensor to numpy"),
        (lambda device: np.asarray(torch.ones(3, device=device)), "convert cuda:0 device type tensor to numpy"),
        (lambda device: torch.rand(3, generator=torch.Generator(), device=device), "device type for generator"),
        (lambda device: torch.ones(3, device=device).normal_(generator=torch.Generator()), "type for generator"),
        (lambda device: torch.Generator(device), "CUDA"),
        (lambda device: torch.ones(3, device=device).pin_memory(), "cannot pin"),
    ],
)
def test_the_virtual_device_refuses_what_cuda_refuses(cuda: Any, refused: Callable[[Any], Any], why: str) -> None:
    with cuda() as device, pytest.raises((RuntimeError, TypeError), match=why):
        refused(device)


def test_the_virtual_device_allows_what_cuda_allows(cuda: Any) -> None:
    with cuda() as device:
        x = torch.arange(4.0, device=device, requires_grad=True)
        y = (x[torch.tensor([1, 2])] * torch.tensor(2.0)).to("cpu") + torch.ones(2)
        y.sum().backward()
        assert x.device.type == x.grad.device.type == "cuda" and y.device.type == "cpu"  # type: ignore[union-attr]
        assert x.grad.tolist() == [0, 2, 2, 0] and x.sum().item() == 6  # type: ignore[union-attr]


def nova_checkpoint() -> Checkpoint:
    """A tiny policy in NOVA's layout."""
    model = tiny_model(nova_layout=True)
    nova, small = model.config.nova, task_checkpoint()
    text = HashTextEncoder(nova.text_dim, nova.text_length)
    return dataclasses.replace(small, model=model, text_encoder=text, inference=InferenceConfig(denoising_steps=4))


@pytest.fixture(scope="module", params=["par-mini", "nova"])
def policy_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "par-mini":
        return "par-mini"
    folder = tmp_path_factory.mktemp("nova")
    nova_checkpoint().save(folder)
    return str(folder)


def test_a_policy_acts_plans_imagines_and_resets_rows_as_on_the_cpu(cuda: Any, policy_folder: str) -> None:
    def play(device: Any) -> list[Tensor]:
        options = {"random_start": True, "context": 2, "past_actions": True}
        policy = PARPolicy.from_pretrained(policy_folder, INSTRUCTION, device=device, seed=4, **options)
        length = policy.checkpoint.model.config.action.chunk_length
        seen = [policy.act(on(observation(3, seed), device)) for seed in range(length + 1)]
        policy.reset([1], seed=7)
        seen.append(policy.act(on(observation(3, 98), device)))
        policy.reset(torch.tensor([True, False, True], device=device))
        seen.append(policy.act(observation(3, 99)))  # the simulation may run elsewhere than the policy
        plan, imagined = policy.plan(on(observation(3, 5), device), frames=True), policy.imagine(1)
        assert seen[0].device.type == plan.actions.device.type == torch.device(device).type
        assert seen[-1].device.type == "cpu" and plan.frames is not None
        maps = policy.attention(on(observation(3, 6), device))
        policy.reset()
        return [value.cpu() for value in (*seen, *plan, *imagined, maps.weights, maps.steps)]

    expected = play("cpu")
    with cuda() as device:
        close(expected, play(device))


def test_a_policy_acts_in_half_precision_and_in_tf32(cuda: Any, policy_folder: str, tf32: None) -> None:
    with cuda() as device:
        chunks = [
            PARPolicy.from_pretrained(policy_folder, INSTRUCTION, device=device, dtype=dtype).plan(
                on(observation(2), device)
            )
            for dtype in ("float32", "bfloat16", "tf32")
        ]
    single, half, rounded = (chunk.actions.cpu() for chunk in chunks)
    close([single], [half], 0.1)
    close([single], [rounded])
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("kind", ["mini", "nova", "recomputed", "noar", "discrete", "noimagine"])
def test_losses_and_gradients_are_those_of_the_cpu(cuda: Any, kind: str) -> None:
    def learn(device: Any) -> list[Tensor]:
        model = model_of(kind) if kind in ("noar", "discrete", "noimagine") else tiny_model(kind == "nova")
        model = model.train().to(device)
        model.set_gradient_checkpointing(kind == "recomputed")
        inputs, length = on(vars(tiny_inputs(3, 2)), device), LENGTH
        targets = Targets(
            inputs["actions"], torch.ones(3, 2, length, device=device), inputs["latents"], torch.ones(3, 2) > 0
        )
        loss = model.loss(
            [feature.to(device) for feature in tiny_features(3)],
            dataclasses.replace(tiny_inputs(3, 2), **inputs),
            torch.arange(2, device=device).expand(3, 2),
            targets,
            context=torch.tensor([[1, 2]] * 3, device=device),
            frame_fraction=0.5,
            generator=torch.Generator().manual_seed(1),
        )
        loss.total.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert len(gradients) > 10 and all(value.device.type == torch.device(device).type for value in gradients)
        return [loss.total.detach().cpu(), torch.cat([value.cpu().flatten() for value in gradients])]

    expected = learn("cpu")
    with cuda() as device:
        close(expected, learn(device))


def test_a_training_run_steps_averages_measures_draws_saves_and_resumes(cuda: Any, tmp_path: Path) -> None:
    options = {"steps": 2, "cache": False, "picture_minutes": 0.0, "proprioception_noise": 0.1}
    config = tiny_run(tmp_path, episodes=5, out=tmp_path / "cpu", **options)
    finetune(config)
    with cuda() as device:
        whole = with_options(config, device="cuda", out=tmp_path / "cuda", precision="float32")
        AcceleratorState._reset_state(True)
        trained = finetune(whole)
        assert isinstance(trained.model, PARModel) and trained.model.nova.device == device
        (whole.out / "training_states" / "step_00000002").rename(tmp_path / "later")
        AcceleratorState._reset_state(True)
        finetune(with_options(whole, precision=None, validate_every=5))  # bfloat16, from the first step's
    same = [load_file(path / "model.safetensors") for path in (config.out / "policy-best", whole.out / "policy-best")]
    assert {name: value.dtype for name, value in same[1].items()} == {n: v.dtype for n, v in same[0].items()}
    start = load_file(tmp_path / "init" / "model.safetensors")
    resumed = load_file(whole.out / "policy" / "model.safetensors")
    steps = [torch.cat([(w[name] - value).flatten() for name, value in start.items()]) for w in (*same, resumed)]
    close(steps[:1], steps[1:2], 0.02)  # Adam makes as much of a gradient's noise as of its largest number
    close(steps[:1], steps[2:], 0.5)
    assert len(list((tmp_path / "cuda" / "pictures").iterdir())) == 1


def test_a_card_without_bfloat16_trains_in_float32_and_says_so(
    cuda: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tf32: None
) -> None:
    config = FinetuneConfig(out=tmp_path / "run")
    with cuda():
        assert with_options(config, device="cuda").mixed_precision == "bf16"
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
        for precision in ("bfloat16", "tf32"):
            with pytest.raises(UserError, match=f"virtual does not support precision {precision}"):
                with_options(config, device="cuda", precision=precision)
        torch.backends.cuda.matmul.allow_tf32 = True
        assert make_accelerator(with_options(config, device="cuda")).mixed_precision == "no"
    assert "virtual does not compute in bfloat16: training in float32" in capsys.readouterr().out
    assert not torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(UserError, match="tf32, which is for GPUs"):
        with_options(config, precision="tf32")


def test_the_frame_vae_trains(cuda: Any, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", episodes=4)
    sizes = {"steps": 3, "batch_size": 4, "patch": 12, "warmup": 2, "model": FrameVAEConfig(4, (8, 8))}
    options = VAETraining(data=(tmp_path / "data",), out=tmp_path / "cpu", **sizes)
    expected = train_vae(options)
    with cuda():
        found = train_vae(dataclasses.replace(options, out=tmp_path / "cuda", device="cuda"))
    assert found["psnr_db"] == pytest.approx(expected["psnr_db"], abs=0.1)


def test_both_frame_encoders_encode_and_decode(cuda: Any, tmp_path: Path) -> None:
    frames = torch.randint(0, 256, (2, 32, 48, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    torch.manual_seed(0)
    for make in (lambda: FrameVAE(FrameVAEConfig(4, (8, 8))), lambda: load_frame_encoder(ROOT / "vae_tiny")):
        encoder = make().eval()
        latents = encoder.encode(frames)
        expected = [latents, encoder.decode(latents)]
        with cuda() as device:
            encoder.to(device)
            latents = encoder.encode(frames.to(device))
            close(expected, [latents.cpu(), encoder.decode(latents).cpu()])
    assert isinstance(encoder, VideoFrameEncoder)


def test_nova_is_imported_checked_and_generates_the_same_clip(cuda: Any, tmp_path: Path) -> None:
    released = write_released_folder(tmp_path / "released")
    imageio.imwrite(tmp_path / "start.png", np.full((50, 70, 3), 128, np.uint8))
    few = ["--frames", "5", "--mask-steps", "2", "--diffusion-steps", "2", "--image", str(tmp_path / "start.png")]
    clip = ["generate", "--model", str(released), "--prompt", "push", *few]
    take = ["import-nova", str(released), "--instructions", "push", "--chunk-length", "4"]
    check = ["check-nova", "--io", str(ROOT / "nova_tiny_io.safetensors"), "--transformer", str(ROOT / "nova_tiny")]
    with cuda():
        for device in ("cpu", "cuda"):
            assert main([*clip, "--out", str(tmp_path / f"{device}.gif"), "--device", device]) == 0
            assert main([*take, "--out", str(tmp_path / device), "--device", device]) == 0
        assert main([*clip, "--out", str(tmp_path / "half.gif"), "--device", "cuda", "--dtype", "float16"]) == 0
        assert main([*check, "--device", "cuda"]) == 0
    frames = [imageio.imread(tmp_path / f"{device}.gif").astype(int) for device in ("cpu", "cuda")]
    assert np.abs(frames[0] - frames[1]).mean() < 1
    features = [load_file(tmp_path / device / "text_features.safetensors") for device in ("cpu", "cuda")]
    close([features[0]["push"]], [features[1]["push"]])


@pytest.mark.parametrize("method", NAMES)
def test_baselines_train_and_act_as_on_the_cpu(cuda: Any, method: str, tmp_path: Path) -> None:
    config = run(tmp_path, method, episodes=5, steps=2, validate_every=2)
    sizes = (*(size for size in config.model if not size.startswith("dropout")), "dropout=0.0")
    config = with_options(config, model=sizes)
    train(with_options(config, out=tmp_path / "cpu"))

    def act(device: Any) -> list[Tensor]:
        policy = BaselinePolicy(str(tmp_path / "cpu" / "policy"), TASK, device=str(device))
        policy.reset(seed=3)
        return [policy.act(on(observation(2, seed), device)).cpu() for seed in range(LENGTH + 1)]

    expected = act("cpu")
    AcceleratorState._reset_state(True)
    with cuda():
        train(with_options(config, out=tmp_path / "cuda", device="cuda", precision="float32"))
        close(expected, act("cuda"))
    weights = [load_file(tmp_path / name / "policy" / "model.safetensors") for name in ("cpu", "cuda")]
    close([value.float() for value in weights[0].values()], [value.float() for value in weights[1].values()], 5e-2)


def test_all_random_numbers_are_drawn_in_one_file_by_generators_of_the_cpu() -> None:
    drawing = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "Generator"}
    drawing |= {"normal", "bernoulli", "multinomial", "poisson"}
    call = re.compile(rf"\btorch\.({'|'.join(drawing)})\(")
    found = {path.name for path in (REPOSITORY / "par_agent").rglob("*.py") if call.search(path.read_text())}
    assert found == {"random_numbers.py"}
