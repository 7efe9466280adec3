"""Benchmark runs in the test's own process: a worker process imports everything and compiles shaders again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from par_agent.evaluation.jobs import Bench, Reply, RolloutJob, WorkerSetup


class ThisProcess:
    """In place of :class:`par_agent.evaluation.workers.WorkerPool`."""

    def __init__(self, setup: WorkerSetup, count: int) -> None:
        self._setup = setup
        self.workers = count

    def __enter__(self) -> ThisProcess:
        self._bench = Bench(self._setup)
        self.renderer = self._bench.renderer()
        return self

    def __exit__(self, *exception: object) -> None:
        for env, _ in self._bench._built.values():
            env.close()

    def run(self, jobs: Iterable[RolloutJob]) -> Iterator[tuple[RolloutJob, Reply]]:
        for job in jobs:
            yield from ((job, reply) for reply in self._bench.do(job))
