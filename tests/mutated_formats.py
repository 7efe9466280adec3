"""Every file format that is read, in miniature: how it is made, how it is read, and what of it nobody can check."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from reported_runs import ROLLOUTS_FILE, RUNS_FILE, read_finished, read_reported, write_rollouts, write_runs

import made_runs
from nova_fixtures import ROOT as NOVA_FIXTURES
from nova_fixtures import write_nova
from par_agent.data.demos import DemoRequest, make_demos
from par_agent.data.episodes import RenderedDataset
from par_agent.data.index import EpisodeIndex
from par_agent.data.lerobot_export import export_lerobot
from par_agent.data.lerobot_features import LeRobotRequest
from par_agent.data.lerobot_folder import LeRobotFolder
from par_agent.data.lerobot_import import import_lerobot
from par_agent.data.lerobot_plan import plan_import
from par_agent.data.trajectory import TrajectoryFile
from par_agent.evaluation.protocol import load_states, save_states
from par_agent.evaluation.records import read_run
from par_agent.modeling.nova.model import NOVA
from par_agent.modeling.text_encoder import StoredTextEncoder
from par_agent.modeling.vae.frame_encoder import load_frame_encoder, save_frame_encoder
from par_agent.modeling.vae.opensora_vae import AutoencoderKLOpenSora
from par_agent.policy.checkpoint import Checkpoint
from par_agent.simulation.environment import InitialState
from par_agent.tasks import TASKS
from par_agent.training.optimisation import EMA, clip_and_step, make_optimizer
from par_agent.training.state import Progress, load_training_state, save_training_state
from par_agent.utils.files import naming, read_object, write_json
from par_agent.utils.json_fields import build
from par_agent.vla_eval.messages import episode_seed, from_message, read_actions
from rendered import write_dataset
from tiny import tiny_checkpoint

SMALL = 4
"""Control steps of the episodes here."""


@dataclass(frozen=True)
class Format:
    """A kind of file, or of folder."""

    make: Callable[[Path], None]
    """Writes a good one into an empty folder."""
    load: Callable[[Path], Any]
    """Reads it as the commands do; gives all that they take from it."""
    files: dict[str, tuple[str, ...]]
    """Files to damage, and how: bytes, json, lines, hdf5."""
    payload: str = "$^"
    """Places in what was read (a regular expression) whose values nobody can check: pixels, for example."""
    shapes: bool = True
    """Whether its readers know the shapes of arrays there."""
    named: bool = True
    """Whether errors have to name the file."""


# --- rendered episodes, trajectories ----------------------------------------------------------------------------------

EPISODE = "episodes/episode_000000.h5"


def make_rendered(folder: Path) -> None:
    write_dataset(folder, episodes=1, size=(8, 8), extra=("goal_pos",), crop=(2, 3, 8, 8), phase=1)


def load_rendered(folder: Path) -> Any:
    dataset = RenderedDataset(folder)
    episode = dataset.read(dataset.paths[0])
    index = EpisodeIndex(dataset, 4, extra=tuple(dataset.extra.items()))
    about = {"cameras": dataset.cameras, "extra": dataset.extra, "has_actions": dataset.has_actions}
    return {
        "episode": vars(episode),
        "index": index.columns,
        "words": index.instructions,
        "spec": dataset.spec,
        **about,
    }


def make_trajectory(folder: Path) -> None:
    generator = np.random.default_rng(0)
    env = {"env_id": "PickCube-v1", "env_kwargs": {"control_mode": "pd_joint_pos", "obs_mode": "rgb"}}
    episodes = []
    with h5py.File(folder / "trajectory.h5", "w") as file:
        for number in range(2):
            steps = SMALL + number
            group = f"traj_{number}"
            file[f"{group}/actions"] = generator.normal(size=(steps, 8)).astype(np.float32)
            for name, width in {"actors/cube": 13, "articulations/panda": 31}.items():
                file[f"{group}/env_states/{name}"] = generator.normal(size=(steps + 1, width)).astype(np.float32)
            file[f"{group}/obs/agent/qpos"] = generator.normal(size=(steps + 1, 9)).astype(np.float32)
            file[f"{group}/obs/extra/goal_pos"] = np.ones((steps + 1, 3), np.float32)
            pixels = generator.integers(0, 256, (steps + 1, 4, 4, 3), dtype=np.uint8)
            file.create_dataset(f"{group}/obs/sensor_data/hand/rgb", data=pixels, compression="gzip")
            for name in ("success", "terminated", "truncated"):
                file[f"{group}/{name}"] = np.arange(steps) == steps - 1
            seeds = {"episode_seed": number, "reset_kwargs": {"seed": number, "options": {}}}
            told = {"control_mode": "pd_joint_pos", "elapsed_steps": steps, "success": True, "fail": False}
            episodes.append({"episode_id": number, **seeds, **told})
    write_json(folder / "trajectory.json", {"env_info": env, "commit_info": None, "episodes": episodes})


def load_trajectory(folder: Path) -> Any:
    with TrajectoryFile(folder / "trajectory.h5") as file:
        found: dict[str, Any] = {"env_id": file.env_id, "options": file.options, "episodes": file.episodes}
        for number in file.episodes:
            recording = file.read_recording(number, ("hand",), 2, extra=("goal_pos",))
            found[f"episode {number}"] = {
                "read": file.read(number),
                "seen": recording,
                "solved": file.succeeded(number),
            }
    return found


REQUEST = DemoRequest("PickCube", 2)


def make_finished_demos(folder: Path) -> None:
    make_trajectory(folder)
    target = REQUEST.path(folder)
    target.parent.mkdir(parents=True)
    about = json.loads((folder / "trajectory.json").read_text())
    (folder / "trajectory.h5").rename(target)
    (folder / "trajectory.json").unlink()
    write_json(target.with_suffix(".json"), {**about, "request": REQUEST.record()})


DEMOS = str(REQUEST.path(Path()))


# --- LeRobot ----------------------------------------------------------------------------------------------------------


def make_lerobot(folder: Path) -> None:
    write_dataset(folder / "rendered", episodes=1, size=(8, 8), extra=("goal_pos",))
    export_lerobot(RenderedDataset(folder / "rendered"), folder / "dataset", images=True)
    shutil.rmtree(folder / "rendered")


def make_foreign_lerobot(folder: Path) -> None:
    make_lerobot(folder)
    (folder / "dataset/meta/par_agent.json").unlink()


def load_lerobot(folder: Path) -> Any:
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    import_lerobot(plan_import(LeRobotFolder(folder / "dataset"), LeRobotRequest(**OPTIONS[folder.name])), out)
    return load_rendered(out)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def make_checkpoint(folder: Path) -> None:
    tiny_checkpoint().save(folder)


def load_policy(folder: Path) -> Any:
    found = Checkpoint.load(folder)
    about = {"config": found.model.config, "transforms": found.transforms, "inference": found.inference}
    text = found.text_encoder.encode("push the cube")
    return {"model": found.model.state_dict(), "encoder": found.encoder.state_dict(), "text": text, **about}


class _Run:
    """A little model in training."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Linear(3, 2)
        self.average = EMA(self.model, 0.9)
        self.optimizer = make_optimizer(self.model, 1e-2, 0.1)
        self.weights = {"model": self.model.state_dict(), "ema": self.average.tensors}


def make_training(folder: Path) -> None:
    run = _Run()
    run.model(torch.ones(4, 3)).square().sum().backward()
    clip_and_step(run.model, run.optimizer, 1.0, "")
    progress = dataclasses.asdict(Progress(step=7, batches=7, loss=0.5, best=0.25, base="0123", seconds=3.5))
    save_training_state(folder, progress.pop("step"), run.weights, run.model, run.optimizer, progress)


def load_training(folder: Path) -> Any:
    run = _Run()
    state = load_training_state(folder / "step_00000007", run.weights, run.model, run.optimizer)
    with naming(folder):
        progress = build(Progress, state, ())
    moments = [run.optimizer.state[parameter] for parameter in run.model.parameters()]
    return {"weights": run.weights, "moments": moments, "progress": progress}


def make_vae(folder: Path) -> None:
    save_frame_encoder(tiny_checkpoint().encoder, folder)


def load_vae(folder: Path) -> Any:
    encoder = load_frame_encoder(folder)
    return {"tensors": encoder.state_dict(), "config": encoder.config}


def make_nova(folder: Path) -> None:
    write_nova(folder / "transformer", mixer_rank=2)
    about = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", "clip_sample": False}
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", about)


def load_nova(folder: Path) -> Any:
    nova = NOVA.from_pretrained(folder)
    return {"config": nova.config, "tensors": nova.state_dict()}


def make_nova_vae(folder: Path) -> None:
    shutil.copytree(NOVA_FIXTURES / "vae_tiny", folder / "vae")


def load_nova_vae(folder: Path) -> Any:
    vae = AutoencoderKLOpenSora.from_pretrained(folder / "vae")
    return {"config": vae.config, "tensors": vae.state_dict()}


def make_features(folder: Path) -> None:
    StoredTextEncoder({"push": torch.ones(2, 8), "pull": torch.zeros(3, 8)}, 8, 24).save(folder / "text.safetensors")


def load_features(folder: Path) -> Any:
    return StoredTextEncoder.load(folder / "text.safetensors", 8, 24).features


# --- evaluation -------------------------------------------------------------------------------------------------------


def make_states(folder: Path) -> None:
    pose = torch.tensor([[0.1, 0.2, 0.3, 1.0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    states = [
        InitialState(
            number,
            5 + number,
            {"actors": {"cube": pose + 0}, "articulations": {"panda": torch.cat([pose, pose[:, :4] * number], 1)}},
        )
        for number in range(3)
    ]
    save_states(folder / "PickCube.safetensors", TASKS["PickCube"], states)


def load_states_file(folder: Path) -> Any:
    return load_states(folder / "PickCube.safetensors", TASKS["PickCube"])


def make_run(folder: Path) -> None:
    run = made_runs.identity()
    training = {"steps": 10, "demonstrations": {"PushCube": 5}, "options": {"demos": None, "init": None}}
    made_runs.write_finished(folder / "run", 1, 2, 1, run, training=training)


def load_run(folder: Path) -> Any:
    run, records = read_run(folder / "run")
    found = read_finished(folder / "run", "a")
    return {"run": run, "records": records, "results": found.results, "training": found.training}


def make_reported(folder: Path) -> None:
    make_run(folder)
    run = read_finished(folder / "run", "rows/a")
    write_rollouts(folder / ROLLOUTS_FILE, {run.name: run.records})
    write_runs(folder / RUNS_FILE, [run])


def load_reported(folder: Path) -> Any:
    return {name: vars(run) for name, run in read_reported(folder).items()}


def make_message(folder: Path) -> None:
    observation = {
        "images": {"hand": [[[1, 2, 3]]]},
        "state": [0.1] * 9,
        "extra": {"goal_pos": [0.1, 0.2, 0.3]},
        "task_description": "push",
        "task": {"seeds": [1, 2], "episode_idx": 1},
    }
    write_json(folder / "message.json", {"observation": observation, "answer": {"actions": [[0.5] * 8] * 2}})


def load_message(folder: Path) -> Any:
    """What a server and a benchmark make of each other's messages; the policy checks the arrays' shapes."""
    message = read_object(folder / "message.json")
    observation, answer = message.get("observation"), message.get("answer")
    from_message(observation)
    return {"seed": episode_seed(observation), "answer": read_actions(answer, TASKS["PickCube"]).shape[1]}


BOTH = ("bytes", "json")
OPTIONS: dict[str, dict[str, Any]] = {"lerobot": {}, "foreign lerobot": {"control_mode": "pd_joint_pos", "stride": 4}}
META = "dataset/meta/"
TABLES = (
    "dataset/data/chunk-000/file-000.parquet",
    f"{META}episodes/chunk-000/file-000.parquet",
    f"{META}tasks.parquet",
)
TOLD = r"attributes({}$|\.(instruction|source|source_episode|seed|control_mode|env_id)$)|^\.words"
"""What only an episode itself tells."""
FORMATS: dict[str, Format] = {
    "rendered episode": Format(
        make_rendered,
        load_rendered,
        {EPISODE: ("bytes", "hdf5")},
        rf"episode\.frames\.|{TOLD}",
    ),
    "rendered dataset": Format(
        make_rendered,
        load_rendered,
        {"spec.json": BOTH, "dataset.json": BOTH},
        r"^\.spec\.(crop|source|instruction|first_seed|motion_steps|num_episodes|recorded|extra)",
    ),
    # Whether objects and sizes are those of the task, the renderer checks.
    "trajectory arrays": Format(
        make_trajectory,
        load_trajectory,
        {"trajectory.h5": ("bytes", "hdf5")},
        r"\.read\.(actions|states)|\.seen\.|solved$",
        shapes=False,
    ),
    "trajectory description": Format(
        make_trajectory, load_trajectory, {"trajectory.json": BOTH}, r"env_id|options|episode|^{}$"
    ),
    "finished demos": Format(
        make_finished_demos,
        lambda folder: make_demos(REQUEST, folder, progress=False) and None,
        {DEMOS: ("bytes", "hdf5"), DEMOS.replace(".h5", ".json"): BOTH},
    ),
    "lerobot": Format(
        make_lerobot,
        load_lerobot,
        {f"{META}info.json": BOTH, f"{META}par_agent.json": BOTH, **dict.fromkeys(TABLES, ("bytes",))},
        rf"{TOLD}|^\.spec\.|extra",
    ),
    "foreign lerobot": Format(
        make_foreign_lerobot, load_lerobot, {f"{META}info.json": BOTH, **dict.fromkeys(TABLES, ("bytes",))}
    ),
    "policy checkpoint": Format(
        make_checkpoint,
        load_policy,
        {"config.json": BOTH, "policy.json": BOTH, "frame_encoder/config.json": BOTH, "model.safetensors": ("bytes",)},
        r"^\.(transforms|inference)\.|^\.config\.",
    ),
    "training state": Format(
        make_training,
        load_training,
        {
            f"step_00000007/{name}": BOTH if name == "state.json" else ("bytes",)
            for name in ("state.json", "model.safetensors", "ema.safetensors", "optimizer.safetensors")
        },
        r"^\.progress\.",
    ),
    "frame encoder": Format(make_vae, load_vae, {"config.json": BOTH, "model.safetensors": ("bytes",)}),
    "nova transformer": Format(
        make_nova,
        load_nova,
        {
            "transformer/config.json": BOTH,
            "scheduler/scheduler_config.json": BOTH,
            "transformer/diffusion_pytorch_model.safetensors": ("bytes",),
        },
        r"^\.tensors\.|^\.config\.",
    ),
    "nova vae": Format(make_nova_vae, load_nova_vae, {"vae/config.json": BOTH}, r"^\.config\."),
    "text features": Format(make_features, load_features, {"text.safetensors": ("bytes",)}),
    "initial states": Format(
        make_states, load_states_file, {"PickCube.safetensors": ("bytes",), "checksums.json": BOTH}
    ),
    "benchmark run": Format(
        make_run,
        load_run,
        {"run/run.json": BOTH, "run/rollouts.jsonl": ("bytes", "lines"), "run/results.json": BOTH},
        r"^\.(training|run)|records\[\d+\]\.(protocol|renders|plan_ms|seconds|reward|actions_sha256)|results\..*(renders|plan_ms|seconds|reward)",
    ),
    "reported runs": Format(
        make_reported,
        load_reported,
        {ROLLOUTS_FILE: ("bytes",), RUNS_FILE: BOTH},
        r"\.(about|run)\b|^{}$",
    ),
    "vla-eval messages": Format(make_message, load_message, {"message.json": ("json",)}, "seed", named=False),
}
