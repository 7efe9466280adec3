"""What is trained: adapters, the action parts, or everything."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from par_agent.errors import UserError
from par_agent.modeling.par import PARModel
from par_agent.policy.checkpoint import Checkpoint
from par_agent.training.config import FinetuneConfig
from par_agent.training.finetune import finetune
from par_agent.training.state import latest_training_state
from par_agent.training.trainable import ACTION_PARTS, adapter_targets, choose_weights, merged
from tiny import tiny_checkpoint, tiny_config, tiny_features, tiny_inputs, tiny_model, tiny_run, with_options

pytestmark = pytest.mark.usefixtures("without_pictures")

STEPS = torch.arange(2).expand(3, 2)


def outputs(model: torch.nn.Module) -> torch.Tensor:
    z_frame, z_action = model(tiny_features(3), tiny_inputs(3, 2), STEPS)
    return torch.cat([z_frame, z_action], 2)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> FinetuneConfig:
    """A finished run that trains adapters; it has kept the state of every step."""
    options = {"train": "lora", "lora_rank": 2, "learning_rate": 1e-2, "keep": 10}
    config = tiny_run(tmp_path_factory.mktemp("adapters"), episodes=8, **options)
    finetune(config)
    return config


def test_action_training_leaves_the_video_model_to_the_bit(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, episodes=8, train="action")
    finetune(config)
    before, after = (load_file(folder / "model.safetensors") for folder in (config.init, config.out / "policy"))
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(ACTION_PARTS) for name in changed)
    assert {name.split(".")[0] for name in changed} == set(ACTION_PARTS)
    checkpoint = latest_training_state(config.out / "training_states")
    assert all(name.startswith(ACTION_PARTS) for name in load_file(checkpoint / "model.safetensors"))  # type: ignore[operator]


def test_a_run_on_frozen_weights_does_not_resume_on_others(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, episodes=8, steps=1, train="action")
    finetune(config)
    path = config.init / "model.safetensors"  # type: ignore[operator]
    save_file({name: value + 1 for name, value in load_file(path).items()}, path)
    with pytest.raises(UserError, match=r"init holds other weights than when .*run was begun"):
        finetune(config)


class TestAdapters:
    """LoRA, with peft's own layers."""

    @pytest.fixture(autouse=True)
    def peft(self) -> None:
        pytest.importorskip("peft")

    def adapted(self, folder: Path, **options: object) -> tuple[PARModel, PARModel, dict[str, torch.Tensor]]:
        """A plain model, the same one with random adapters, and the tensors of the latter."""
        config = tiny_run(folder, train="lora", lora_rank=2, **options)
        plain = tiny_model()
        model = copy.deepcopy(plain)
        choose_weights(model, config, fresh_actions=False)
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        return plain, model, merged(model.state_dict(), config)

    def test_adapters_alone_are_trained_and_merging_them_changes_no_output(self, tmp_path: Path) -> None:
        plain, model, tensors = self.adapted(tmp_path)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert trained and all(".lora_" in name for name in trained)
        together = PARModel(tiny_config())
        together.load_state_dict(tensors)
        with torch.no_grad():
            torch.testing.assert_close(outputs(together.eval()), outputs(model.eval()), rtol=1e-4, atol=1e-5)
            assert not torch.allclose(outputs(plain), outputs(model), atol=1e-2)

    def test_targets_choose_layers_and_unknown_ones_are_answered_with_the_known(self, tmp_path: Path) -> None:
        _, model, _ = self.adapted(tmp_path, lora_targets=("kv",))
        layers = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
        assert layers == set(adapter_targets(tiny_model())["kv"])
        with pytest.raises(UserError, match="unknown LoRA target 'q_proj'; tiny has fc1, fc2, kv, proj, q, qkv"):
            self.adapted(tmp_path, lora_targets=("qkv", "q_proj"))

    def test_a_run_ends_in_a_plain_policy_and_a_small_adapter_that_peft_loads(self, adapters: FinetuneConfig) -> None:
        from peft import PeftModel

        config = adapters
        policy = Checkpoint.load(config.out / "policy").model
        base = Checkpoint.load(config.init).model  # type: ignore[arg-type]
        adapter = config.out / "adapter"
        with torch.no_grad():
            start, expected = outputs(base), outputs(policy)
            loaded = PeftModel.from_pretrained(base, str(adapter)).eval()
            torch.testing.assert_close(outputs(loaded), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(start, expected, atol=1e-3)
        tensors = load_file(adapter / "adapter_model.safetensors")
        model = tiny_model()
        targets = adapter_targets(model)
        layers = [model.get_submodule(name) for kind in config.lora.lora_targets for name in targets[kind]]
        sizes = [layer.in_features + layer.out_features for layer in layers]  # type: ignore[operator]
        assert sum(value.numel() for value in tensors.values()) == 2 * sum(sizes)  # type: ignore[arg-type]

    def test_action_parts_that_were_never_trained_are_trained_in_full(self, tmp_path: Path) -> None:
        from peft import PeftModel

        options = {"train": "lora", "lora_rank": 2, "learning_rate": 1e-2}
        config = tiny_run(tmp_path, episodes=8, steps=2, **options)
        dataclasses.replace(tiny_checkpoint(), transforms=None).save(config.init)  # type: ignore[arg-type]
        finetune(config)
        before, after = (load_file(f / "model.safetensors") for f in (config.init, config.out / "policy"))  # type: ignore[operator]
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert "action_detokenizer.head.bias" in changed and "nova.text_embed.proj.bias" not in changed
        assert any(name.startswith("nova.video_encoder") for name in changed)
        base = Checkpoint.load(config.init).model  # type: ignore[arg-type]
        policy = Checkpoint.load(config.out / "policy").model
        loaded = PeftModel.from_pretrained(base, str(config.out / "adapter")).eval()
        with torch.no_grad():
            torch.testing.assert_close(outputs(loaded), outputs(policy), rtol=1e-4, atol=1e-5)

    def test_an_interrupted_run_goes_on_to_the_bit(self, adapters: FinetuneConfig, tmp_path: Path) -> None:
        expected = load_file(adapters.out / "policy" / "model.safetensors")
        config = with_options(adapters, out=tmp_path / "run")
        shutil.copytree(adapters.out, config.out)
        for checkpoint in sorted((config.out / "training_states").iterdir())[3:]:
            shutil.rmtree(checkpoint)
        shutil.rmtree(config.out / "policy")
        finetune(config)
        resumed = load_file(config.out / "policy" / "model.safetensors")
        assert all(torch.equal(resumed[name], value) for name, value in expected.items())
