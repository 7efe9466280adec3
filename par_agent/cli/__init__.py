"""`par-agent <subcommand> [options]`: looks the subcommand up, imports it alone, and turns errors into exit codes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from par_agent.cli.entry import EXIT_BAD_INPUT, run_command
from par_agent.errors import UserError
from par_agent.utils.checked import Checked


@dataclass(frozen=True)
class Subcommand:
    """Where a subcommand lives and what it does."""

    target: str
    """`module:Class` of its configuration, in this package; the module also has `main(config) -> int`."""
    summary: str
    """One line for `par-agent --help`."""
    resumes: bool = False
    """Whether the same command goes on where it was stopped."""
    example: str = ""
    """What one types behind the name, for `--help`."""

    def load(self) -> tuple[ModuleType, type[Checked]]:
        """The module and the class."""
        module_name, _, class_name = self.target.partition(":")
        module = importlib.import_module(f"{__name__}.{module_name}")
        return module, getattr(module, class_name)


SUBCOMMANDS: dict[str, Subcommand] = {
    "demos": Subcommand(
        "demos:DemosConfig", "make demonstrations with ManiSkill's motion planner", True, "--task PushCube --num 100"
    ),
    "dagger": Subcommand(
        "dagger:DaggerConfig",
        "make corrections of a policy with ManiSkill's motion planner",
        True,
        "--policy runs/pick/policy --task PickCube --num 100",
    ),
    "render": Subcommand(
        "render:RenderConfig",
        "render a trajectory file into training data",
        True,
        "--trajectory FILE.h5 --like par-mini --out data/rendered/PushCube",
    ),
    "import-lerobot": Subcommand(
        "import_lerobot:ImportLeRobotConfig", "convert a LeRobot dataset", True, "FOLDER --out data/rendered/NAME"
    ),
    "export-lerobot": Subcommand(
        "export_lerobot:ExportLeRobotConfig",
        "write a LeRobot dataset",
        example="--data data/rendered/PushCube --out lerobot/push",
    ),
    "train-vae": Subcommand(
        "train_vae:VAETraining",
        "train the small latent frame encoder",
        True,
        "--data data/rendered/PushCube --out runs/vae",
    ),
    "finetune": Subcommand(
        "finetune:FinetuneConfig",
        "train a policy on rendered data",
        True,
        "--data data/rendered/PushCube --init par-mini --out runs/push",
    ),
    "train-baseline": Subcommand("train_baseline:BaselineConfig", "train a method that PAR is compared with", True),
    "benchmark": Subcommand(
        "benchmark:BenchmarkConfig",
        "roll a policy out under the paper's protocol",
        True,
        "--policy par-mini --tasks PickCube --states 5 --policy-seeds 1 --video 2",
    ),
    "recipe": Subcommand("recipe:RecipeConfig", "run the commands that made a checkpoint", True, "par-mini --dry-run"),
    "generate": Subcommand("generate:GenerateConfig", "draw a clip from a prompt with NOVA's weights"),
    "visualize rollout": Subcommand(
        "visualize:RolloutConfig", "draw imagined against executed frames", example="--task PickCube --state 3"
    ),
    "visualize attention": Subcommand(
        "visualize_attention:AttentionConfig", "draw attention weights", example="--task PickCube --state 3"
    ),
    "visualize failures": Subcommand(
        "visualize_failures:FailuresConfig", "say why rollouts failed", True, "benchmark-results/RUN"
    ),
    "visualize gallery": Subcommand("visualize_gallery:GalleryConfig", "draw the pictures of README and site"),
    "play": Subcommand("play:PlayConfig", "serve a local page on which a policy acts", example="--task StackCube"),
    "info": Subcommand("info:InfoConfig", "print the parts and sizes of a model or checkpoint", example="par-mini"),
    "check-nova": Subcommand("check_nova:CheckNovaConfig", "compare NOVA's parts with reference outputs"),
    "import-nova": Subcommand("import_nova:ImportNovaConfig", "make a checkpoint from NOVA's weights"),
    "doctor": Subcommand("doctor:DoctorConfig", "print versions, devices, renderer and what is missing"),
}
HELP = ("-h", "--help", "help")


def usage(first: str = "") -> str:
    """The text of `par-agent --help`, or that of the subcommands of two words whose first is given."""
    shown = {name: command.summary for name, command in SUBCOMMANDS.items() if not first or name in _pairs(first)}
    width = max(map(len, shown))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in shown.items()]
    begin = "usage: par-agent [--help] [--version] <subcommand> [options]"
    return "\n".join([begin, "", *lines, "", "Options of one subcommand: par-agent <subcommand> --help"])


def _pairs(first: str) -> list[str]:
    """Subcommands of two words, the first of which is given."""
    return [name for name in SUBCOMMANDS if name.startswith(f"{first} ")]


def _words_of_name(words: Sequence[str]) -> int:
    """How many of the first words name a subcommand; 0: there is none of that name."""
    return next((count for count in (1, 2) if " ".join(words[:count]) in SUBCOMMANDS), 0)


def find_subcommand(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The name of a subcommand, one or two words, and the arguments behind it; a UserError if there is none."""
    if (count := _words_of_name(words)) > 0:
        return " ".join(words[:count]), words[count:]
    if pairs := _pairs(words[0]):
        raise UserError(f"{' '.join(words[:2])!r} is no subcommand; known: {', '.join(pairs)}")
    raise UserError(f"unknown subcommand {words[0]!r}; known subcommands: {', '.join(SUBCOMMANDS)}")


def run_subcommand(name: str, arguments: Sequence[str]) -> int:
    """Parses `arguments` into the configuration of one of :data:`SUBCOMMANDS` and runs it."""
    from par_agent.cli.options import parse

    command = SUBCOMMANDS[name]
    module, config_class = command.load()
    description = f"{command.summary[0].upper()}{command.summary[1:]}."
    if command.example:
        description += f"\n\nExample: par-agent {name} {command.example}"
    config = parse(config_class, arguments, f"par-agent {name}", description)
    return int(module.main(config))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status; see :func:`par_agent.cli.entry.run_command`."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = SUBCOMMANDS.get(" ".join(arguments[: _words_of_name(arguments)]))
    resumes = command is not None and command.resumes
    return run_command("par-agent", lambda: _answer(arguments), resumes)


def _answer(arguments: Sequence[str]) -> int:
    """Explains, or runs the subcommand."""
    if not arguments or arguments[0] in HELP:
        print(usage())
        return 0 if arguments else EXIT_BAD_INPUT
    if arguments[0] == "--version":
        import par_agent

        print(f"par-agent {par_agent.__version__}")
        return 0
    if len(arguments) == 2 and arguments[1] in HELP and _pairs(arguments[0]):
        print(usage(arguments[0]))
        return 0
    return run_subcommand(*find_subcommand(arguments))
