"""Checkpoints go to the Hugging Face Hub and come back, from a hub that runs on this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from hub_server import TOKEN, Hub, serving
from par_agent.errors import UserError
from par_agent.utils.checkpoint_folders import checkpoint_folder
from tiny import tiny_checkpoint

ROUND_TRIP = """
import os, sys, torch
from par_agent import PARPolicy
from par_agent.errors import UserError

image = torch.arange(24 * 32 * 3, dtype=torch.uint8).reshape(1, 24, 32, 3)
observation = {"agent": {"qpos": torch.zeros(1, 9)}, "sensor_data": {"render_camera": {"rgb": image}}}
own = PARPolicy.from_pretrained(sys.argv[1], "push cube 1", past_actions=True)
facts = {"license": "apache-2.0", "datasets": ["lab/cubes"], "success": {"PushCube": 96.0}}
token, os.environ["HF_TOKEN"] = os.environ["HF_TOKEN"], "hf_wrong"
try:
    own.push_to_hub("lab/another")
except UserError as error:
    print(str(error).replace(chr(10), " "))
os.environ["HF_TOKEN"] = token
print(own.push_to_hub("lab/cube-policy", **facts))
print(own.push_to_hub("lab/cube-policy", revision="v2"))
for revision in (None, "v2"):
    fetched = PARPolicy.from_pretrained("lab/cube-policy", "push cube 1", revision=revision)
    assert fetched.inference == own.inference
    assert torch.equal(fetched.act(observation), own.act(observation))
    own.reset()
"""
FETCH = """
import sys
from par_agent.errors import UserError
from par_agent.utils.checkpoint_folders import checkpoint_folder
for name in sys.argv[1:]:
    try:
        print("found", checkpoint_folder(name))
    except UserError as error:
        print("error", str(error).replace(chr(10), " "))
"""
COMMANDS = """
import sys
from contextlib import redirect_stderr
from pathlib import Path

from par_agent.cli import main
from par_agent.cli.benchmark import BenchmarkConfig, run_config
from par_agent.cli.render import RenderConfig
from par_agent.training.config import FinetuneConfig
from par_agent.training.start import load_start

out, name = Path(sys.argv[1]), "lab/cube-policy@v2"
own = {"policy": "par_agent.baselines.policy:BaselinePolicy", "policy_checkpoint": Path(name)}
for options in ({"policy": name}, own):
    policy = run_config(BenchmarkConfig(**options)).policy
    assert len(policy.fingerprint()) > 8
    print(policy.folder)
assert RenderConfig(out=out, random_motion="PushCube", like=name).spec().cameras == ("render_camera",)
config = FinetuneConfig(out=out, init=Path(name))
assert config.steps == 1000 and load_start(config).transforms is not None
print(config.init_folder)
assert main(["info", name]) == 0
with redirect_stderr(sys.stdout):
    assert main(["info", "lab/cube-policy@v3"]) == 2
"""


def run(program: str, address: str, cache: Path, *arguments: str, **environment: str) -> list[str]:
    """Lines that a program prints for which the hub is at an address and the cache in a folder."""
    hub = {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", program, *arguments]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    finished = subprocess.run(command, capture_output=True, text=True, env={**kept, **hub, **environment})
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub to which a policy was uploaded twice, and from which it acted as it did before."""
    folder = tmp_path_factory.mktemp("hub")
    tiny_checkpoint().save(folder / "own")
    with serving() as hub:
        refused, *pushed = run(ROUND_TRIP, hub.address, folder / "cache", str(folder / "own"))
        assert "'lab/another' cannot be uploaded to the Hub" in refused and "HF_TOKEN says who you are" in refused
        assert len(pushed) == 2
        assert all(line.startswith(f"{hub.address}/lab/cube-policy/commit/") for line in pushed)
        yield hub


def test_a_policy_acts_the_same_after_a_round_trip_and_nothing_is_uploaded_without_a_token(hub: Hub) -> None:
    assert set(hub.commits) == {"lab/cube-policy"}
    assert set(hub.branches["lab/cube-policy"]) == {"main", "v2"}
    _, files = hub.find("lab/cube-policy", "main")
    assert {"README.md", "config.json", "model.safetensors", "policy.json", "frame_encoder/config.json"} < set(files)


def test_the_card_has_the_metadata_that_the_hub_reads(hub: Hub) -> None:
    _, files = hub.find("lab/cube-policy", "main")
    _, head, text = files["README.md"].decode().split("---\n", 2)
    card = yaml.safe_load(head)
    assert card["pipeline_tag"] == "robotics" and card["library_name"] == "par_agent"
    assert card["license"] == "apache-2.0" and card["datasets"] == ["lab/cubes"]
    (result,) = card["model-index"][0]["results"]
    assert result["dataset"]["name"] == "PushCube-v1" and result["metrics"][0]["value"] == 96.0
    assert card["metrics"] == ["success_rate"]
    assert "from_pretrained('lab/cube-policy', 'push cube 1')" in text
    assert "| `render_camera` (24x32), 9 joint positions |" in text


def test_what_is_in_the_cache_is_used_without_the_hub(hub: Hub, tmp_path: Path) -> None:
    (first,) = run(FETCH, hub.address, tmp_path, "lab/cube-policy")
    assert first.startswith("found")
    before = len(hub.requests)
    commit = hub.branches["lab/cube-policy"]["main"]
    assert run(FETCH, hub.address, tmp_path, "lab/cube-policy", f"lab/cube-policy@{commit}") == [first, first]
    assert not any("/resolve/" in request for request in hub.requests[before:]), "nothing is fetched twice"
    asked = len(hub.requests)
    assert run(FETCH, hub.address, tmp_path, "lab/cube-policy", HF_HUB_OFFLINE="1") == [first]
    assert len(hub.requests) == asked
    (offline,) = run(FETCH, hub.address, tmp_path, "lab/other", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in offline and str(tmp_path) in offline


def test_commands_take_names_of_the_hub_wherever_they_take_a_checkpoint(hub: Hub, tmp_path: Path) -> None:
    commit = hub.branches["lab/cube-policy"]["v2"]
    *found, missing = run(COMMANDS, hub.address, tmp_path, str(tmp_path))
    assert [Path(folder).name for folder in found[:3]] == [commit] * 3
    assert found[3].startswith("checkpoint ") and commit in found[3]
    assert "no checkpoint 'lab/cube-policy@v3': neither a folder" in missing and "no revision 'v3' of it" in missing


def test_a_hub_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    with serving() as gone:
        address = gone.address
    (line,) = run(FETCH, address, tmp_path, "lab/cube-policy")
    assert f"on the Hub ({address}) nothing was looked up, because it cannot be reached" in line


def test_a_wrong_name_says_what_was_looked_for_and_where(hub: Hub, tmp_path: Path) -> None:
    names = ("lab/no-such-policy", "lab/cube-policy@v3", "par-mimi")
    missing, revision, plain = run(FETCH, hub.address, tmp_path, *names)
    assert f"no checkpoint 'lab/no-such-policy': neither a folder ({Path.cwd()}/lab/no-such-policy)" in missing
    bundled = "bundled: par-mini, par-mini-native, par-mini-video)"
    assert f"{bundled}, and on the Hub ({hub.address}) there is none of that name" in missing
    assert "there is no revision 'v3' of it" in revision
    assert "not a name on the Hub, which would be ORGANISATION/NAME[@REVISION]" in plain
    with pytest.raises(UserError, match="not a name on the Hub"):
        checkpoint_folder("lab/cube-policy@v1/../../elsewhere")
    with pytest.raises(UserError, match="revision is 'v2', but 'par-mini' is a folder of this machine"):
        checkpoint_folder("par-mini", "v2")
    with pytest.raises(UserError, match="revision is 'v2', but the name 'lab/cube-policy@v1' gives one too"):
        checkpoint_folder("lab/cube-policy@v1", "v2")


def test_a_folder_of_the_name_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint().save(tmp_path / "lab" / "cube-policy")
    assert checkpoint_folder("lab/cube-policy") == Path("lab/cube-policy")
    with pytest.raises(UserError, match="folder of this machine"):
        checkpoint_folder("lab/cube-policy", "v2")


@pytest.mark.parametrize("name", ["par-mini", "par-mini-native"])
def test_bundled_checkpoints_have_the_metadata_of_the_hub(name: str) -> None:
    _, head, text = (checkpoint_folder(name) / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(head)
    assert card["pipeline_tag"] == "robotics" and card["library_name"] == "par_agent"
    assert card["license"] == "apache-2.0" and card["metrics"] == ["success_rate"]
    (row,) = re.findall(rf"^\| \[{name}\].*$", text, re.MULTILINE)
    measured = [float(rate) for rate in re.findall(r"\*\*([\d.]+)\*\*", row)]
    assert measured == [result["metrics"][0]["value"] for result in card["model-index"][0]["results"]]
