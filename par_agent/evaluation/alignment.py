"""How well what a policy imagines agrees with what then happens: frames in PSNR and SSIM, the hand's path in cm.

From every look the policy imagines K chunks ahead. The frame imagined after ``k`` chunks is compared with the frame
that the policy reads ``k`` chunks later, the path of the end effector under the imagined actions with the path that it
takes. Two more numbers say what a frame's PSNR is worth: that of the frame looked at last, which a prediction has to
beat, and that of the true frame seen through the frame encoder, which no prediction can exceed by much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from par_agent.errors import UserError

if TYPE_CHECKING:
    from par_agent.evaluation.trace import Look, Trace
    from par_agent.modeling.vae.frame_encoder import FrameEncoder
    from par_agent.policy.transforms import Transforms
    from par_agent.simulation.end_effector import EndEffector

MEASURES = {
    "psnr_db": "PSNR of the imagined frame, dB",
    "ssim": "SSIM of the imagined frame, 0 to 1",
    "still_psnr_db": "PSNR of the frame looked at last in its place, dB",
    "path_cm": "mean distance between imagined and executed path of the end effector, cm",
}
"""What is measured at every horizon, with units."""
ENCODER_PSNR = "encoder_psnr_db"
"""PSNR of the true frames seen through the frame encoder, dB, at every look."""

Alignment = dict[str, list[Any]]
"""By measure, for every look, its values at horizons 1, 2, … as far as the rollout went; see :data:`MEASURES`."""


def check_installed() -> None:
    """Checks that frames can be compared.

    Raises:
        UserError: scikit-image is missing.
    """
    try:
        import skimage.metrics  # noqa: F401
    except ImportError as error:
        raise UserError(f"comparing frames needs scikit-image ({error}): pip install 'par-agent[viz]'") from None


def psnr(frame: np.ndarray, true: np.ndarray) -> float:
    """Peak signal-to-noise ratio of a frame (H, W, 3) uint8, dB; equal frames count as 8-bit rounding, 58.9 dB."""
    error = np.mean((frame.astype(np.float64) - true) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1 / 12)))


def ssim(frame: np.ndarray, true: np.ndarray) -> float:
    """Structural similarity of a frame (H, W, 3) uint8, mean over pixels and colours (Wang et al. 2004)."""
    from skimage.metrics import structural_similarity

    return float(structural_similarity(frame, true, channel_axis=2, data_range=255, win_size=_window(true)))


def measure(trace: Trace, transforms: Transforms, encoder: FrameEncoder, hand: EndEffector) -> Alignment:
    """Compares everything that a rollout's policy imagined with what happened.

    Args:
        trace: the rollout.
        transforms: the policy's.
        encoder: the policy's frame encoder.
        hand: the robot's forward kinematics.
    """
    read = {look.step: look.frame for look in trace.looks}
    path = hand.positions(np.array(trace.joints))
    alignment: Alignment = {name: [] for name in MEASURES}
    for look in trace.looks:
        chunk = look.actions.shape[1]
        later = [look.step + (k + 1) * chunk for k in range(len(look.frames))]
        found = [(look.frames[k], read[step]) for k, step in enumerate(later) if step in read]
        alignment["psnr_db"].append([round(psnr(frame, true), 2) for frame, true in found])
        alignment["ssim"].append([round(ssim(frame, true), 4) for frame, true in found])
        alignment["still_psnr_db"].append([round(psnr(look.frame, true), 2) for _, true in found])
        alignment["path_cm"].append(_path_errors(look, path, transforms, hand))
    alignment[ENCODER_PSNR] = [round(_encoder_psnr(look.frame, encoder), 2) for look in trace.looks]
    return alignment


def imagined_path(look: Look, transforms: Transforms, hand: EndEffector) -> np.ndarray:
    """Positions (K, L, 3) of the end effector, metres, where every imagined action commands it to be."""
    import torch

    actions, joints = torch.from_numpy(look.actions), torch.from_numpy(look.joints)
    targets = transforms.commanded_positions(actions[..., None, :], joints.expand(*actions.shape[:2], -1))
    return hand.positions(targets.flatten(0, 1).numpy()).reshape(*actions.shape[:2], 3)


def _path_errors(look: Look, path: np.ndarray, transforms: Transforms, hand: EndEffector) -> list[float]:
    """Mean distance, cm, over each imagined chunk whose steps were all executed."""
    errors = []
    for k, imagined in enumerate(imagined_path(look, transforms, hand)):
        begin = look.step + k * len(imagined) + 1
        executed = path[begin : begin + len(imagined)]
        if len(executed) == len(imagined):
            errors.append(round(100 * float(np.linalg.norm(imagined - executed, axis=1).mean()), 3))
    return errors


def _encoder_psnr(frame: np.ndarray, encoder: FrameEncoder) -> float:
    import torch

    device = next(encoder.parameters()).device
    latents = encoder.encode(torch.from_numpy(frame)[None].to(device))
    return psnr(encoder.decode(latents)[0].cpu().numpy(), frame)


def _window(frame: np.ndarray) -> int:
    """Side of SSIM's window, pixels: 7, less for frames that are smaller."""
    return min(7, min(frame.shape[:2]) // 2 * 2 - 1)


def by_horizon(alignments: list[Alignment]) -> dict[str, list[float]]:
    """Means over all looks of some rollouts, by measure and horizon (index 0: one chunk ahead)."""
    means: dict[str, list[float]] = {}
    for name in MEASURES:
        rows = [row for alignment in alignments for row in alignment[name]]
        longest = max(map(len, rows), default=0)
        means[name] = [float(np.mean([row[k] for row in rows if k < len(row)])) for k in range(longest)]
    return means
