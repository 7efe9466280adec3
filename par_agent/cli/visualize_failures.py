"""`par-agent visualize failures`: the failed rollouts of a benchmark run, drawn, each with a proposed cause."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from par_agent.utils.checked import Checked, Count


@dataclass(frozen=True)
class FailuresConfig(Checked):
    """Repeats the failed rollouts of a run and proposes a cause for each; report.html shows them."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run of `par-agent benchmark`."""
    policy: str | None = None
    """The run's policy, if it has moved since the run."""
    limit: Count | None = None
    """Number of failures to draw per task. Default: all. Rollouts with equal actions count as one."""
    device: str = "cpu"
    """Device that the policy runs on."""


def main(config: FailuresConfig) -> int:
    """Draws what is not drawn yet, and writes the section of the report."""
    from tqdm import tqdm

    from par_agent.utils.files import only_process, writing
    from par_agent.visualization.failures import FailedRun, count_causes, write_section

    run = FailedRun(config.run, config.policy, config.device)
    for task in run.without_rules:
        print(f"{task}: there are no rules for why it fails; its failures are left out")
    with (
        writing(config.run),
        only_process(config.run / ".failures.lock", f"draws failures in {config.run}", within=config.run),
    ):
        failures = list(tqdm(run.draw(config.limit), total=len(run.groups), unit="rollout", desc="failures"))
        write_section(run, failures)
    if not failures:
        print(f"no failed rollouts{' with rules' if run.without_rules else ''} in {config.run}")
        return 0
    for task, counts in count_causes(failures).items():
        print(f"{task}: " + ", ".join(f"{count} {cause}" for cause, count in counts.most_common()))
    print(f"{config.run / 'report.html'}, pictures in {config.run / 'failures'}")
    return 0
