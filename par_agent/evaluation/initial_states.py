"""Makes initial states with ManiSkill's own ``env.reset(seed=...)``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from par_agent.errors import UserError
from par_agent.evaluation.protocol import is_complete, load_states, protocol_file, protocol_seeds, save_states
from par_agent.jobs.local import local_runner
from par_agent.jobs.runner import DoJob
from par_agent.simulation.environment import InitialState, make_simulation
from par_agent.tasks import TaskSpec, resolve_task


def make_states(spec: TaskSpec, seeds: Sequence[int]) -> list[InitialState]:
    """Makes initial states with ``env.reset(seed=...)``, each in a freshly built scene of one environment."""
    env = make_simulation(spec)
    states = []
    for index, seed in enumerate(seeds):
        env.reset(seed=seed, options={"reconfigure": True})
        state = env.unwrapped.get_state_dict()
        copied = {kind: {name: tensor.clone() for name, tensor in group.items()} for kind, group in state.items()}
        states.append(InitialState(index, seed, copied))
    env.close()
    return states


def protocol_states(spec: TaskSpec, count: int) -> list[InitialState]:
    """The protocol's first initial states of a task; they are made where the package does not have them."""
    file = protocol_file(spec, count)
    return load_states(file, spec)[:count] if file.exists() else make_states(spec, protocol_seeds(count)[:count])


def make_missing_states(files: Mapping[Path, str], seeds: Sequence[int]) -> None:
    """Makes those files (task reference by file) that are missing or lack a checksum, in a process of its own."""
    if missing := {path: task for path, task in files.items() if not is_complete(path)}:
        with local_runner(_states_maker, seeds, Path(), workers=1) as runner:
            list(runner.run(missing.items()))


def _states_maker(seeds: Sequence[int], _folder: Path) -> DoJob:
    """What a worker does with a job, (file, task reference): it makes the file and yields it."""

    def make(job: tuple[Path, str]) -> Iterator[Path]:
        path, task = job
        try:
            spec = resolve_task(task)
            save_states(path, spec, make_states(spec, seeds))
        except Exception as error:
            raise UserError(f"cannot make initial states for {task}: {type(error).__name__}: {error}") from error
        yield path

    return make
