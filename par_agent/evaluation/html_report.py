"""A run as one page, report.html: table, every rollout as a cell that opens its video, steps to success, provenance.

The page is one file, with the videos beside it. Without JavaScript a cell is a link to its video.
"""

from __future__ import annotations

from typing import Any

from par_agent.evaluation.provenance import provenance_rows
from par_agent.evaluation.records import Record, rollout_name
from par_agent.evaluation.results import TaskResult, comparison_rows, measured_sections, result_table
from par_agent.evaluation.run_info import RunInfo
from par_agent.utils.figures import COLOURS

FAILURES_SECTION = "failures/section.html"
"""Part of the page in a run's folder that `par-agent visualize failures` writes, already HTML."""

_WIDTH, _HEIGHT = 900, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 720, 12, 270
_LEGEND_LINE = 22


def html_report(run: RunInfo, results: list[TaskResult], records: list[Record], source: dict[str, Any]) -> str:
    """The page's HTML; ``source`` is what :func:`par_agent.evaluation.provenance.provenance` gives."""
    config = run.config
    failures = run.folder / FAILURES_SECTION
    grids = [_grid(run, task, [record for record in records if record["task"] == task]) for task in run.tasks]
    header, rows = result_table(results)
    cells = [cell for grid in grids for row in grid["rows"] for cell in row["cells"] if cell is not None]
    return render_page(
        "par_agent.evaluation",
        "report_template.html",
        label=config.policy.label,
        track=config.track,
        protocol_label=config.protocol_label,
        is_protocol=config.is_protocol,
        planned=run.total,
        missing=run.total - len(records),
        header=header,
        rows=rows,
        sections=measured_sections(results),
        plot=_plot(records, results, max(spec.max_steps for spec in run.specs.values())),
        grids=grids,
        videos=any(cell["video"] for cell in cells),
        failures=failures.read_text(encoding="utf-8") if failures.exists() else "",
        errors=[
            {"name": rollout_name(record), "text": record["error"]} for record in records if record["error"] is not None
        ],
        comparison_header=("method", "source", *run.tasks),
        comparison=comparison_rows(results, config.policy.label, run.tasks),
        provenance=provenance_rows(source),
    )


def render_page(package: str, template: str, **values: Any) -> str:
    """A package's jinja2 template as HTML; values are escaped, and a missing one is an error."""
    import jinja2

    options: Any = {"autoescape": True, "undefined": jinja2.StrictUndefined}
    return (
        jinja2.Environment(loader=jinja2.PackageLoader(package, "."), **options).get_template(template).render(values)
    )


def _grid(run: RunInfo, task: str, records: list[Record]) -> dict[str, Any]:
    """A task's cells, policy seeds down and initial states across; None where a rollout is missing."""
    cells = {(record["state"], record["policy_seed"]): _cell(run, record) for record in records}
    states = range(run.config.states)
    return {
        "task": task,
        "states": [
            {"index": state, "successes": sum(r["success_once"] for r in records if r["state"] == state)}
            for state in states
        ],
        "rows": [
            {"policy_seed": seed, "cells": [cells.get((state, seed)) for state in states]}
            for seed in range(run.config.policy_seeds)
        ],
    }


def _cell(run: RunInfo, record: Record) -> dict[str, Any]:
    video = run.video_file(record["task"], record["state"], record["policy_seed"])
    if record["error"] is not None:
        kind, sign, text = "error", "!", f"error: {record['error']}"
    elif record["success_once"]:
        kind, sign, text = "success", "✓", f"success after {record['steps_to_success']} control steps"
    else:
        kind, sign, text = "failure", "·", f"no success in {record['steps']} control steps"
    if record["success_once"] and record["success_at_end"] is False:
        text += ", and not solved at the end"
    details = [text, f"environment seed {record['env_seed']}"]
    if record["reward"] is not None:
        details.append(f"sum of rewards {record['reward']:.1f}")
    if record["seconds"] is not None:
        details.append(f"{record['seconds']:.1f} s")
    return {
        "kind": kind,
        "sign": sign,
        "name": rollout_name(record),
        "text": "; ".join(details),
        "video": video.relative_to(run.folder).as_posix() if video.exists() else None,
    }


def _plot(records: list[Record], results: list[TaskResult], max_steps: int) -> dict[str, Any]:
    """Geometry of the curves: share of rollouts solved over control steps, in the units of the SVG's view box."""

    def x(steps: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * steps / max_steps, 1)

    def y(share: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * share, 1)

    curves = []
    for index, result in enumerate(results):
        solved = sorted(
            record["steps_to_success"]
            for record in records
            if record["task"] == result.task and record["steps_to_success"] is not None
        )
        corners = "".join(f"H{x(steps)}V{y((i + 1) / result.rollouts)}" for i, steps in enumerate(solved))
        curves.append(
            {
                "name": result.task,
                "path": f"M{x(0)},{y(0)}{corners}H{x(max_steps)}",
                "colour": COLOURS[index % len(COLOURS)],
                "dash": "6 4" if index >= len(COLOURS) else "",
                "legend": _TOP + 8 + _LEGEND_LINE * index,
            }
        )
    return {
        **{"width": _WIDTH, "height": _HEIGHT, "left": _LEFT, "right": _RIGHT, "bottom": _BOTTOM},
        "x_ticks": [{"at": x(steps), "label": steps} for steps in range(0, max_steps + 1, max(1, max_steps // 8))],
        "y_ticks": [{"at": y(share / 100), "label": share} for share in range(0, 101, 25)],
        "curves": curves,
    }
