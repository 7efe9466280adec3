"""How the bundled checkpoints, and the rows of the table of methods, are made: named lists of commands.

In a command ``{data}`` is the folder of demonstrations and rendered datasets, ``{out}`` that of training runs, and
``{bundled}`` that of the bundled checkpoints.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from par_agent.modeling.presets import PRESETS
from par_agent.tasks import PAPER_TASKS
from par_agent.utils.versions import PACKAGE_FOLDER


@dataclass(frozen=True)
class Step:
    """One command of a recipe, which can be stopped and run again."""

    command: str
    """Words behind ``par-agent``, with placeholders; where it starts with ``python``, behind the interpreter."""
    note: str = ""
    """What to know of it, for example how long it took on 2 cores of an AMD EPYC."""

    def words(self, data: Path, out: Path) -> list[str]:
        """The words of the command, with folders in place of the placeholders."""
        folders = {"data": data, "out": out, "bundled": PACKAGE_FOLDER / "checkpoints"}
        return [word.format(**folders) for word in shlex.split(self.command)]


@dataclass(frozen=True)
class Recipe:
    """A list of commands with a name."""

    summary: str
    """What it makes."""
    steps: tuple[Step, ...]
    """In their order."""


_TASKS = " ".join(PAPER_TASKS)
_CROP = "--crop 192 112 320 320 --workers 2"
_TRAJECTORY = "{data}/demos/{task}-v1/motionplanning/trajectory.none.pd_joint_pos.physx_cpu.h5"
_DATA = "--data-root {data}/rendered --task " + _TASKS


def _for_tasks(command: str) -> list[Step]:
    """The command for each of the paper's tasks; ``{task}`` is its name."""
    return [Step(command.replace("{task}", task)) for task in PAPER_TASKS]


DEMONSTRATIONS = _for_tasks("demos --task {task} --num 1000 --workers 2 --out {data}/demos")
RENDERED = _for_tasks(f"render --trajectory {_TRAJECTORY} {_CROP} --out {{data}}/rendered/{{task}}")
MOTION = _for_tasks(
    f"render --random-motion {{task}} --num 400 --motion-steps 24 --stride 12 {_CROP} "
    "--out {data}/rendered/{task}-video"
)
_FRAMES = " ".join(f"{{data}}/rendered/{task} {{data}}/rendered/{task}-video" for task in PAPER_TASKS)
FRAME_ENCODER = Step(f"train-vae --data {_FRAMES} --steps 2400 --out {{out}}/vae", "9 minutes")
SEEN = [*DEMONSTRATIONS, *RENDERED, *MOTION, FRAME_ENCODER]
"""What every policy that sees through the render camera needs."""


def _par_mini() -> Iterable[Step]:
    """Steps of the bundled ``par-mini``, trained from scratch."""
    plain = "--recovery-noise 0 --proprioception-noise 0.05"
    windows = "--window 3 --batch-size 48 --variants 2 --shift 2 --frame-fraction 0.08"
    early = f"{windows} {plain} --single-step 0.4 --past-action-dropout 0.4"
    short = f"{early} --steps 1000 --learning-rate 8e-4 --warmup 20 --ema 0.995"
    late = f"{windows} --past-action-dropout 0.3 --precision bfloat16"
    single = f"{late} --single-step 0.75"
    first = f"{plain} --foresight --variants 4 --shift 6 --steps 1600 --ema 0.995"
    ahead = f"{early} --foresight 15 23 31 47 --steps 2400 --warmup 50 --ema 0.998"
    start = "--vae {out}/vae/vae"
    yield from SEEN
    for name, weights, options, note in (
        ("mini1", "0.5 0.2 0.3", first, "46 minutes"),
        ("mini5", "0.12 0.48 0.4", ahead, "30 minutes; the bundled one was stopped after 684 steps"),
        ("mini6", "0.12 0.48 0.4", short, "30 minutes"),
        ("mini7", "0.1 0.5 0.4", f"{short} --seed 1", "30 minutes"),
        (
            "mini8",
            "0.08 0.46 0.46",
            f"{late} {plain} --single-step 0.6 {_length(6500, '1e-3', 100, 0.998, 2)}",
            "45 minutes; the bundled one was stopped after 2,454 steps",
        ),
        (
            "mini9",
            "0.08 0.46 0.46",
            f"{single} {_length(3500, '1e-3', 50, 0.997, 3)}",
            "65 minutes; recovery noise begins",
        ),
        ("mini10", "0.2 0.42 0.38", f"{single} {_length(800, '6e-4', 20, 0.995, 4)}", "12 minutes; more of PushCube"),
        ("mini11", "0.2 0.42 0.38", f"{single} {_length(2400, '1e-3', 50, 0.997, 5)}", "53 minutes"),
    ):
        yield Step(f"finetune {_DATA} --weights {weights} {start} {options} --out {{out}}/{name}", note)
        start = f"--init {{out}}/{name}/policy"
    save = (
        "import sys, torch, par_agent; par_agent.PARPolicy.from_pretrained(sys.argv[1], context=1, past_actions=True)"
        ".save_pretrained(sys.argv[2], torch.float16)"
    )
    yield Step(f"python -c {shlex.quote(save)} {{out}}/mini11/policy {{out}}/par-mini", "weights in half precision")


def _length(steps: int, rate: str, warmup: int, ema: float, seed: int) -> str:
    return f"--steps {steps} --learning-rate {rate} --warmup {warmup} --ema {ema} --seed {seed}"


def _par_mini_native() -> Iterable[Step]:
    """Steps of the bundled ``par-mini-native``, from ``par-mini`` on."""
    shared = (
        "--data-root {data}/native --camera base_camera --window 3 --batch-size 48 --past-action-dropout 0.3 "
        "--frame-fraction 0.08 --variants 2 --shift 2 --precision bfloat16 --single-step 0.75 --learning-rate 1e-3 "
        "--warmup 50"
    )
    yield from DEMONSTRATIONS
    yield from _for_tasks(
        f"render --trajectory {_TRAJECTORY} --cameras base_camera --extra goal_pos --crop 46 24 80 80 --size 320 320 "
        "--workers 2 --out {data}/native/{task}"
    )
    for name, options in (
        ("native1", "--new-camera --weights 0.2 0.36 0.44 --init {bundled}/par-mini --steps 1700 --ema 0.997 --seed 6"),
        ("native2", "--weights 0.2 0.4 0.4 --init {out}/native1/policy --steps 4600 --ema 0.998 --seed 7"),
        ("native3", "--weights 0.1 0.35 0.55 --init {out}/native2/policy --steps 4200 --ema 0.998 --seed 10"),
    ):
        yield Step(f"finetune --task {_TASKS} {shared} {options} --out {{out}}/{name}")


_EQUAL = (
    "--vae {out}/vae/vae --variants 2 --shift 2 --precision bfloat16 --learning-rate 1e-3 --warmup 100 --ema 0.998 "
    "--steps 3000 --weights 0.2 0.4 0.4"
)
_PAR = "--single-step 0.75 --past-action-dropout 0.3 --frame-fraction 0.08"
_ACTS = "context=1 past_actions=true"
_ROWS = {
    **dict.fromkeys(
        ("mini", "par-noar", "par-discrete", "par-noimagine"), (f"--window 3 --batch-size 48 {_PAR}", _ACTS)
    ),
    "act": ("--window 3 --batch-size 48", "deterministic=true ensemble=0.01"),
    "bc-t": ("--window 4 --batch-size 36", "deterministic=true"),
    "dp": ("--window 3 --batch-size 48", "deterministic=true"),
    "icrt": ("--window 3 --batch-size 64", "deterministic=true"),
    "rdt": ("--window 3 --batch-size 48 --compile", ""),
}
"""Row of the table of methods -> what its training has of its own, and how it acts."""


def _row(name: str) -> Iterable[Step]:
    options, acts = _ROWS[name]
    train = f"finetune --preset {name}" if name in PRESETS else f"train-baseline --method {name}"
    folder = f"{{out}}/rows/{name}"
    yield from SEEN
    yield Step(f"{train} {_DATA} {_EQUAL} {options} --out {folder}")
    kwargs = f" --policy-kwargs {acts}" if acts else ""
    yield Step(f"benchmark --policy {name} --policy-checkpoint {folder}/policy{kwargs}")


def _demonstrations() -> Iterable[Step]:
    """Training on fewer demonstrations of PushCube, and on video before them."""
    common = "--variants 2 --shift 2 --precision bfloat16 --learning-rate 1e-3 --window 3 --batch-size 48"
    push = f"--data-root {{data}}/rendered --task PushCube {common} --warmup 50"
    motion, encoder = "{data}/rendered/PushCube-motion", "--vae {out}/vae/vae"
    yield from SEEN
    yield Step(f"render --random-motion PushCube --num 500 --motion-steps 40 --stride 8 {_CROP} --out {motion}")
    yield Step(
        f"finetune --preset mini --modality video --data {motion} {encoder} {common} --warmup 100 --steps 700 "
        "--frame-fraction 0.25 --out {out}/video/pretraining"
    )
    scratch, pretrained = f"--preset mini {encoder}", "--init {out}/video/pretraining/policy"
    for kind, start, numbers, steps in (
        ("scratch-{}", scratch, (50, 100, 200, 300, 950), 400),
        ("scratch-{}-1100", scratch, (50, 950), 1100),  # as many steps as video and demonstrations together
        ("pretrained-{}", pretrained, (50, 100, 300, 950), 400),
    ):
        for number in numbers:
            folder = f"{{out}}/demos/{kind.format(number)}"
            yield Step(f"finetune {start} {push} {_PAR} --steps {steps} --demos {number} --out {folder}")
            yield _rolled_out("mini", folder, _ACTS)
    for number in (50, 200, 950):
        folder = f"{{out}}/demos/act-{number}"
        yield Step(f"train-baseline --method act {encoder} {push} --steps 400 --demos {number} --out {folder}")
        yield _rolled_out("act", folder, _ROWS["act"][1])


def _rolled_out(policy: str, folder: str, acts: str) -> Step:
    return Step(
        f"benchmark --policy {policy} --policy-checkpoint {folder}/policy --policy-kwargs {acts} --tasks PushCube "
        "--policy-seeds 1"
    )


RECIPES = {
    "par-mini": Recipe("the bundled checkpoint par-mini", tuple(_par_mini())),
    "par-mini-native": Recipe("the bundled checkpoint par-mini-native, from par-mini on", tuple(_par_mini_native())),
    **{f"row-{name}": Recipe(f"the table's row {name}, and its figures", tuple(_row(name))) for name in _ROWS},
    "demonstrations": Recipe("PAR and ACT by number of demonstrations", tuple(_demonstrations())),
}
