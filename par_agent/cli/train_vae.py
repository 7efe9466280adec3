"""``par-agent train-vae``: the small frame VAE that models trained from scratch see through."""

from __future__ import annotations

from par_agent.errors import UserError
from par_agent.files import cannot_write
from par_agent.training.vae import VAETraining, train_vae

TrainVAEConfig = VAETraining


def main(config: VAETraining) -> int:
    """Trains, saves and prints the held-out reconstruction error."""
    try:
        metrics = train_vae(config)
    except OSError as error:
        raise UserError(cannot_write(config.out, error)) from error
    print(f"held-out reconstruction: {metrics['psnr_db']:.2f} dB; frozen VAE in {config.out / 'vae'}")
    return 0
