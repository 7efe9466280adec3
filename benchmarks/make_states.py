"""Writes the protocol's frozen initial states: `python benchmarks/make_states.py [--tasks PushCube ...]`.

Two files a task: the 25 of the protocol, and these with 100 further ones. Needed once per new task; the stored files of
registered tasks are part of the repository and should not change.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from par_agent.cli.options import run_script
from par_agent.evaluation.initial_states import make_states
from par_agent.evaluation.protocol import is_complete, load_states, protocol_file, protocol_seeds, save_states
from par_agent.simulation.environment import InitialState
from par_agent.tasks import ALL_STATES, PROTOCOL_STATES, TASKS, get_task
from par_agent.utils.checked import Checked


@dataclass(frozen=True)
class MakeStatesConfig(Checked):
    """Writes the frozen initial states of the evaluation protocol into the package."""

    tasks: tuple[str, ...] = field(default_factory=lambda: tuple(TASKS))
    """Registered tasks to make states for."""
    overwrite: bool = False
    """Also replace files that exist."""


def main(config: MakeStatesConfig) -> int:
    """Makes the files one after the other; existing ones are kept."""
    specs = [get_task(name) for name in config.tasks]
    for spec in specs:
        states: list[InitialState] = []  # the larger file begins with the states of the smaller one
        for count in (PROTOCOL_STATES, ALL_STATES):
            path = protocol_file(spec, count)
            if is_complete(path) and not config.overwrite:
                print(f"{spec.name}: {path} exists")
                states = load_states(path, spec)
                continue
            states += make_states(spec, protocol_seeds(count)[len(states) :])
            save_states(path, spec, states)
            print(f"{spec.name}: wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script("benchmarks/make_states.py", main, MakeStatesConfig, __doc__, resumes=True))
