"""vla-eval, the real package: its model servers as policies, PAR as one of them, the tasks as a benchmark of it."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from par_agent import PARPolicy
from par_agent.errors import UnavailableError, UserError
from par_agent.tasks import get_task
from par_agent.vla_eval.client import ModelServerPolicy, model_server_source
from par_agent.vla_eval.messages import episode_seed, from_message, read_actions, to_message
from tiny import SIZE, tiny_checkpoint

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "benchmarks" / "vla-eval"
PUSH = get_task("PushCube")


def observation(step: int = 0, frame: bool = True) -> dict[str, Any]:
    """What the benchmark shows a policy."""
    generator = torch.Generator().manual_seed(step)
    obs: dict[str, Any] = {"agent": {"qpos": torch.rand(1, 9, generator=generator)}}
    if frame:
        image = torch.randint(0, 256, (1, 24, 32, 3), dtype=torch.uint8, generator=generator)
        obs["sensor_data"] = {"render_camera": {"rgb": image}}
    return obs


# --- without the package ----------------------------------------------------------------------------------------------


def test_an_observation_travels_unchanged() -> None:
    obs = {**observation(), "extra": {"tcp_pose": torch.arange(7.0)[None], "goal": torch.ones(1, 3)}}
    message = to_message(obs, "push")
    assert message["images"]["render_camera"].shape == (24, 32, 3) and message["task_description"] == "push"
    back = from_message(message)
    np.testing.assert_array_equal(back["agent"]["qpos"], obs["agent"]["qpos"])
    np.testing.assert_array_equal(
        back["sensor_data"]["render_camera"]["rgb"], obs["sensor_data"]["render_camera"]["rgb"]
    )
    np.testing.assert_array_equal(back["extra"]["tcp_pose"], obs["extra"]["tcp_pose"])
    assert "sensor_data" not in from_message(to_message(observation(frame=False), "push"))
    with pytest.raises(UserError, match="no state; the benchmark has to send joint positions"):
        from_message({"images": {}, "task_description": "push"})


def test_actions_that_do_not_fit_are_refused() -> None:
    assert read_actions({"actions": [0.5] * 8}, PUSH).shape == (1, 8)
    assert read_actions({"actions": np.zeros((3, 8))}, PUSH).dtype == np.float32
    with pytest.raises(UserError, match=r"shape \(7,\); task PushCube takes actions of 8 numbers \(pd_joint_pos\)"):
        read_actions({"actions": np.zeros(7)}, PUSH)
    for actions in (np.zeros((0, 8)), np.zeros((1, 1, 8))):
        with pytest.raises(UserError, match="actions of shape"):
            read_actions({"actions": actions}, PUSH)
    with pytest.raises(UserError, match='has no "actions" \\(it holds: action\\)'):
        read_actions({"action": np.zeros(8)}, PUSH)
    with pytest.raises(UserError, match="not finite"):
        read_actions({"actions": [float("inf")] * 8}, PUSH)
    for answer in ([[0.5], [0.5, 0.5]], ["open"] * 8, {"arm": [0.5] * 7}, [1j] * 8):
        with pytest.raises(UserError, match="actions that are not an array of numbers"):
            read_actions({"actions": answer}, PUSH)


def test_the_seed_of_an_episode_is_found_where_there_is_one() -> None:
    assert episode_seed({"task": {"seeds": [3, 4], "episode_idx": 1}}) == 4
    assert episode_seed({"task": {"seeds": [3, 4], "episode_idx": 2}}) is None
    assert episode_seed({"task": {"name": "PushCube"}}) is episode_seed({}) is None


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vla_eval.connection", None)
    with pytest.raises(UserError, match=r"pip install 'par-agent\[vla-eval\]'"):
        model_server_source("vla-eval:ws://127.0.0.1:8000", {})


def test_a_checkpoint_is_not_given_to_a_model_server() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--policy", "vla-eval:ws://127.0.0.1:8000"]
    result = subprocess.run([*command, "--policy-checkpoint", "runs/x"], capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "does not reach a model server" in result.stderr


# --- with the package -------------------------------------------------------------------------------------------------


@pytest.fixture
def serve() -> Iterator[Any]:
    """Serves model servers in this process, on the package's own background thread; gives their addresses."""
    api = pytest.importorskip("vla_eval.api", reason="needs vla-eval: pip install 'par-agent[vla-eval]'")
    handles = []

    def start(server: Any, port: int = 0) -> Any:
        handles.append(api.serve_background(server, port=port))
        return handles[-1]

    yield start
    for handle in handles:
        handle.close()


def small(**options: Any) -> Any:
    from small_model_server import SmallModelServer

    return SmallModelServer(**options)


def test_chunks_are_executed_and_images_sent_when_they_are_read(serve: Any) -> None:
    server = small(length=3)
    policy = ModelServerPolicy(serve(server).url, PUSH, n_action_steps=2)
    policy.reset(seed=7)
    needed = []
    for step in range(5):
        needed.append(policy.needs_frame)
        action = policy.act(observation(step, frame=policy.needs_frame))
        assert action.shape == (1, 8) and action.dtype == torch.float32
    assert needed == [True, False, True, False, True] and len(server.seen) == 3
    expected = observation(2)
    np.testing.assert_array_equal(server.seen[1]["state"], expected["agent"]["qpos"][0])
    image = server.seen[1]["images"]["render_camera"]
    np.testing.assert_array_equal(image, expected["sensor_data"]["render_camera"]["rgb"][0])
    assert server.seen[1]["task_description"] == PUSH.instruction
    policy.close()


def test_a_server_that_keeps_its_chunk_says_when_it_looks(serve: Any) -> None:
    server = small(chunk_size=3, frame_every=3, needs="render_camera")
    policy = ModelServerPolicy(serve(server).url, PUSH)
    policy.reset(seed=7)
    needed = []
    for step in range(7):
        needed.append(policy.needs_frame)
        policy.act(observation(step, frame=policy.needs_frame))
    assert needed == [True, False, False, True, False, False, True] and len(server.seen) == 3
    policy.close()


def test_episodes_follow_from_their_seeds(serve: Any) -> None:
    server = small()
    policy = ModelServerPolicy(serve(server).url, PUSH)
    episodes = []
    for seed in (1, 2, 1):
        policy.reset(seed=seed)
        episodes.append(torch.cat([policy.act(observation(step)) for step in range(4)]))
    assert torch.equal(episodes[0], episodes[2]) and not torch.equal(episodes[0], episodes[1])
    assert [start["task"]["seeds"] for start in server.starts] == [[1], [2], [1]] and server.ends == 2
    assert server.starts[0]["task"]["env_id"] == "PushCube-v1"
    policy.close()


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        ("error", "failed: Server error: .*ArithmeticError: made to fail"),
        ("late", "no answer from ws://.* within 1.5 s; --policy-kwargs timeout=N waits longer"),
        ("nan", "not finite"),
        ("nothing", 'has no "actions"'),
    ],
)
def test_a_server_that_fails_ends_the_episode_and_not_the_next(serve: Any, fail: str, message: str) -> None:
    server = small(fail=fail, length=1)
    policy = ModelServerPolicy(serve(server).url, PUSH, timeout=1.5 if fail == "late" else 60)
    policy.reset(seed=1)
    first = policy.act(observation())
    with pytest.raises(UserError, match=message):
        policy.act(observation(1))
    server.fail = ""
    policy.reset(seed=1)
    assert torch.equal(policy.act(observation()), first)  # and not the answer that came too late
    policy.close()


def test_actions_of_another_size_are_refused_and_warned_of(serve: Any) -> None:
    policy = ModelServerPolicy(serve(small(size=7, control_mode="delta_xyz")).url, PUSH)
    with pytest.warns(UserWarning, match="PushCube and the model server: action .*delta_xyz not in accepts"):
        policy.check(PUSH)
    policy.reset(seed=0)
    with pytest.raises(UserError, match=r"shape \(3, 7\); task PushCube takes actions of 8 numbers"):
        policy.act(observation())
    policy.close()


def test_a_server_that_goes_away_and_comes_back(serve: Any) -> None:
    handle = serve(small(length=1))
    policy = ModelServerPolicy(handle.url, PUSH)
    policy.reset(seed=0)
    first = policy.act(observation())
    handle.close()
    with pytest.raises(UnavailableError, match=r"closed the connection|was lost during an episode"):
        policy.act(observation(1))
    with pytest.raises(UnavailableError, match=r"no model server answers at ws://.* \(ConnectionRefusedError"):
        policy.reset(seed=0)
    again = serve(small(length=1), port=handle.port)
    policy.reset(seed=0)
    assert torch.equal(policy.act(observation()), first)
    policy.close()
    again.close()
    serve(small(length=1, control_mode="raw"), port=handle.port)
    with pytest.raises(UnavailableError, match=r"another model server answers at ws://.* than when the run began"):
        policy.reset(seed=0)
    policy.close()


def test_addresses_and_options_that_cannot_be(serve: Any) -> None:
    handle = serve(small())
    for url in ("127.0.0.1:8000", "http://127.0.0.1:8000", "ws://", "ws://[::1:8000", "ws://localhost:port"):
        with pytest.raises(UserError, match="is not the address of a model server; expected vla-eval:ws://HOST:PORT"):
            model_server_source(f"vla-eval:{url}", {})
    with pytest.raises(UserError, match="n_action_steps is 0; it must be a whole number of at least 1"):
        ModelServerPolicy(handle.url, PUSH, n_action_steps=0)
    with pytest.raises(UserError, match="n_action_steps is True"):
        ModelServerPolicy(handle.url, PUSH, n_action_steps=True)
    for timeout in ("soon", True, float("nan"), 0):
        with pytest.raises(UserError, match=f"timeout is {timeout!r}; it must be a number of seconds above 0"):
            model_server_source(f"vla-eval:{handle.url}", {"timeout": timeout})
    for name in ("openvla/openvla-7b", "../x", "", None, 7):
        with pytest.raises(UserError, match=re.escape(f"name is {name!r}; it becomes a folder's")):
            model_server_source(f"vla-eval:{handle.url}", {"name": name})
    for option in ("url", "task", "server"):
        with pytest.raises(UserError, match=f"policy option '{option}' is not to be given"):
            model_server_source(f"vla-eval:{handle.url}", {option: "x"})
    asking = small()
    asking.get_observation_params = lambda: {"frame_every": 0}
    with pytest.raises(UserError, match="asks for images in every 0-th observation"):
        ModelServerPolicy(serve(asking).url, PUSH)
    with pytest.raises(UserError, match="image_format is 'bmp'"):
        ModelServerPolicy(handle.url, PUSH, image_format="bmp")
    policy = ModelServerPolicy(handle.url, PUSH)
    policy.reset()
    with pytest.raises(UserError, match="use --backend cpu"):
        policy.act({"agent": {"qpos": torch.zeros(2, 9)}})
    policy.close()


def test_results_of_servers_that_differ_are_kept_apart(serve: Any) -> None:
    with pytest.warns(UserWarning, match="does not say which weights it serves"):
        first = model_server_source(f"vla-eval:{serve(small()).url}", {})
    other = serve(small(control_mode="raw"))
    second = model_server_source(f"vla-eval:{other.url}", {"name": "small-2", "n_action_steps": 2})
    assert (first.label, second.label) == ("SmallModelServer", "small-2")
    assert first.options["server"] != second.options["server"] and "name" not in second.options
    ModelServerPolicy(task=PUSH, **second.options).close()
    with pytest.raises(UnavailableError, match="another model server answers"):
        ModelServerPolicy(other.url, PUSH, server=first.options["server"])


def test_how_a_server_is_reached_does_not_make_another_run(serve: Any) -> None:
    ways: list[dict[str, Any]] = [{}, {"timeout": 120}, {"image_format": "png"}, {"image_format": "jpeg"}]
    found = [
        model_server_source(f"vla-eval:{serve(small()).url}", {"name": "x", **way}).deciding_options for way in ways
    ]
    assert found[0] == found[1] == found[2] == {"server": found[0]["server"]}
    assert found[3] == {**found[0], "image_format": "jpeg"}


def test_ways_to_act_with_the_same_weights_are_told_apart(serve: Any, tmp_path: Path) -> None:
    pytest.importorskip("vla_eval")
    from par_agent.vla_eval.server import PARModelServer

    tiny_checkpoint().save(tmp_path / "tiny")
    ways: list[dict[str, Any]] = [
        {},
        {"inference": {"n_action_steps": 1}},
        {"inference": {"denoising_steps": 2}},
        {"seed": 1},
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sources = [
            model_server_source(f"vla-eval:{serve(PARModelServer(str(tmp_path / 'tiny'), **way)).url}", {})
            for way in ways
        ]
    assert len({source.options["server"] for source in sources}) == 4


def test_par_as_a_model_server_acts_as_the_policy_does_in_every_session(
    serve: Any, tmp_path: Path, torch_threads: Any
) -> None:
    pytest.importorskip("vla_eval")
    from par_agent.vla_eval.server import PARModelServer

    own = ThreadPoolExecutor(1)  # like the server's: how a thread splits sums, and so rounds, is its own affair
    tiny_checkpoint().save(tmp_path / "tiny")
    server = PARModelServer(str(tmp_path / "tiny"), inference={"n_action_steps": 3})
    handle = serve(server)
    direct = [PARPolicy.from_pretrained(tmp_path / "tiny", PUSH.instruction, n_action_steps=3) for _ in range(2)]
    served = [ModelServerPolicy(handle.url, PUSH) for _ in range(2)]
    for seed, policies in enumerate(zip(direct, served, strict=True), start=5):
        for policy in policies:
            policy.reset(seed=seed)
    for step in range(7):
        for row, (one, other) in enumerate(zip(direct, served, strict=True)):
            assert one.needs_frame == other.needs_frame == (step % 3 == 0)
            obs = observation(10 * step + row, frame=one.needs_frame)
            action = other.act(obs)
            assert action.shape == (1, SIZE) and torch.equal(own.submit(one.act, obs).result(), action)
    for policy in served:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            policy.check(PUSH)
        with pytest.raises(UserError, match=r"sees through .*; task PushCube shows base_camera on the native track"):
            policy.check(PUSH, "native")
        policy.close()
    assert str(tmp_path / "tiny") not in json.dumps(served[0]._connection.server)


def test_an_instruction_without_words_is_an_error_of_the_server(serve: Any, tmp_path: Path) -> None:
    pytest.importorskip("vla_eval")
    from par_agent.vla_eval.server import PARModelServer

    tiny_checkpoint().save(tmp_path / "tiny")
    task = dataclasses.replace(PUSH, instruction="")
    policy = ModelServerPolicy(serve(PARModelServer(str(tmp_path / "tiny"))).url, task)
    policy.reset(seed=0)
    with pytest.raises(UserError, match="UserError: the instruction '' holds no words"):
        policy.act(observation())


def test_the_benchmark_checks_its_parameters() -> None:
    pytest.importorskip("vla_eval")
    from par_agent.vla_eval.benchmark import ManiSkill3Benchmark

    with pytest.raises(UserError, match="states is 126; it must be a whole number from 1 to 125"):
        ManiSkill3Benchmark(states=126)
    with pytest.raises(UserError, match="frame_every is 0"):
        ManiSkill3Benchmark(frame_every=0)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"states": "5"}, "states is '5'"),
        ({"frame_every": None}, "frame_every is None; it must be a whole number of at least 1"),
        ({"track": "papr"}, "unknown track 'papr'"),
        ({"variation": "fog"}, "unknown variation 'fog'"),
        ({"tasks": "PushCube"}, "tasks is 'PushCube'; it must be a list of tasks"),
        ({"tasks": []}, "it must be a list of tasks"),
        ({"tasks": ["PushCube", "PushCube-v1"]}, "a task is given twice"),
    ]
    for arguments, message in wrong:
        with pytest.raises(UserError, match=message):
            ManiSkill3Benchmark(**arguments)
    with pytest.raises(UserError, match="different robots or controllers"):
        ManiSkill3Benchmark(tasks=["PushCube", "PickCubeSO100"])
    benchmark = ManiSkill3Benchmark(states=3)
    tasks = benchmark.get_tasks()
    assert [task["name"] for task in tasks] == ["PushCube", "PickCube", "StackCube"]
    assert len({seed for task in tasks for seed in task["seeds"]}) == 15
    with pytest.raises(UserError, match="episode 15 of PushCube: there are 15; set episodes_per_task to 15"):
        benchmark.reset({**tasks[0], "episode_idx": 15})


def test_rdts_server_shows_its_model_what_rdts_script_does(
    serve: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a stand-in for RDT's model, whose action k holds k / 100, the images it saw and its noise."""
    shown: list[tuple[torch.Tensor, list[Any], str]] = []

    class StandIn:
        def encode_instruction(self, text: str) -> str:
            return text.upper()

        def step(self, state: torch.Tensor, images: list[Any], text: str) -> torch.Tensor:
            shown.append((state, images, text))
            chunk = torch.zeros(1, 64, 8)
            chunk[..., 0], chunk[..., 1] = torch.arange(64) / 100, torch.rand(())
            return chunk

    module = types.ModuleType("scripts.maniskill_model")
    module.create_model = lambda **settings: StandIn()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scripts", types.ModuleType("scripts"))
    monkeypatch.setitem(sys.modules, "scripts.maniskill_model", module)
    (tmp_path / "base.yaml").write_text("common: {action_chunk_size: 64}")
    server = runpy.run_path(str(CONFIGS / "rdt_server.py"))["RDTModelServer"]("w.pt", str(tmp_path / "base.yaml"))
    policy = ModelServerPolicy(serve(server).url, PUSH)
    episodes = []
    for seed in (1, 2, 1):
        policy.reset(seed=seed)
        episodes.append(torch.cat([policy.act(observation(step)) for step in range(17)]))
    policy.close()
    np.testing.assert_allclose(episodes[0][:, 0], [*(4 * np.arange(16) / 100), 0], atol=1e-6)
    assert torch.equal(episodes[0], episodes[2]) and not torch.equal(episodes[0], episodes[1])
    assert episodes[0][0, 1] != episodes[0][16, 1]  # the next chunk's noise is another
    state, images, text = shown[1]
    torch.testing.assert_close(state, observation(16)["agent"]["qpos"][:, :8])
    assert text == PUSH.instruction.upper() and [image is None for image in images] == [False, True, True] * 2
    for image, step in ((images[0], 15), (images[3], 16)):
        np.testing.assert_array_equal(image, observation(step)["sensor_data"]["render_camera"]["rgb"][0])
    assert all(image is None for image in shown[0][1][:3]) and shown[0][1][3] is not None
