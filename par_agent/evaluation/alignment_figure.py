"""A figure of the agreement of imagined with executed that :mod:`par_agent.evaluation.alignment` measures."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from par_agent.utils.figures import COLOURS, SOFT, clean_axis, new_figure, save

_PANELS = {"psnr_db": "PSNR, dB", "ssim": "SSIM", "path_cm": "path error, cm"}
_LINES: Any = {"-": "imagined", ":": "still: the last frame", "--": "through the encoder alone"}


def draw_alignment(summaries: Mapping[str, dict[str, Any]], path: Path) -> None:
    """Writes a PNG with PSNR, SSIM and the path's error over the horizon, one colour per task.

    The summaries by task are those of :meth:`par_agent.evaluation.alignment.Alignment.summarise`.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(10, 3.3)
    axes = dict(zip(_PANELS, figure.subplots(1, len(_PANELS)), strict=True))
    legend = []
    for (task, found), colour in zip(summaries.items(), cycle(COLOURS), strict=False):
        for name, axis in axes.items():
            axis.plot(range(1, len(found[name]) + 1), found[name], "o-", color=colour, markersize=4)
        still, encoder = found["still_psnr_db"], found["encoder_psnr_db"]
        axes["psnr_db"].plot(range(1, len(still) + 1), still, ":", color=colour)
        axes["psnr_db"].axhline(encoder, linestyle="--", linewidth=1, color=colour, alpha=0.6)
        legend.append(Line2D([], [], color=colour, marker="o", markersize=4, label=task))
    for name, axis in axes.items():
        clean_axis(axis, _PANELS[name])
        axis.set_xlabel("chunks ahead", fontsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes["ssim"].set_ylim(0, 1)
    axes["path_cm"].set_ylim(bottom=0)
    legend += [Line2D([], [], color=SOFT, linestyle=style, label=label) for style, label in _LINES.items()]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False, fontsize=8)
    save(figure, path)
