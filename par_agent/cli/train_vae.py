"""``par-agent train-vae``: the small frame VAE that models trained from scratch see through."""

from __future__ import annotations

from par_agent.training.vae import train_vae
from par_agent.training.vae_config import VAETraining
from par_agent.utils.files import writing


def main(config: VAETraining) -> int:
    """Trains, saves and prints the held-out reconstruction error."""
    with writing(config.out):
        metrics = train_vae(config)
    print(f"held-out reconstruction: {metrics['psnr_db']:.2f} dB; frozen VAE in {config.out / 'vae'}")
    return 0
