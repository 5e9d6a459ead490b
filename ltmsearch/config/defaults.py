"""Default settings of a study by device, and of the warm-up by backbone family."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Learning:
    """Hyperparameters of a backbone family's short training."""

    lr: float = 1e-3
    """Peak learning rate of the warm-up (AdamW)."""
    proxy_lr: float = 2e-4
    """Learning rate of a trial, whose few steps have no warm-up of their own."""
    grows: bool = True
    """Whether training may start on smaller images: convolutions carry over to larger ones, patch embeddings do not."""
    patience: int = 1
    """Factor on the batch size and on the steps, for families whose accuracy rises late."""


UNTRAINED = Learning()
TRAINED = Learning(lr=1e-4, proxy_lr=1e-5, grows=False)
"""For a network that starts from trained weights. A single step of 2e-4 took a pretrained ViT-S from 81 % to 27 %."""

# With mobilevit_s on two CPU cores without bf16 a trial of these takes about 5 s, the warm-up about 160 s.
CPU: dict[str, int] = {
    "batch_size": 16,
    "base_steps": 300,
    "base_img_size": 64,
    "sandwich_steps": 60,
    "proxy_img_size": 112,
    "proxy_steps": 4,
    "calibration_images": 32,
    "val_images": 256,
    "rescore_images": 384,
}

ACCELERATOR: dict[str, int] = {
    "batch_size": 64,
    "base_steps": 2000,
    "sandwich_steps": 1000,
    "proxy_steps": 30,
    "calibration_images": 1024,
    "val_images": 2000,
    "rescore_images": 5000,
}


def by_device(name: str) -> str:
    """Both defaults of a setting, as text for `--help`."""
    return f"{CPU[name]} on a CPU, {ACCELERATOR[name]} on a GPU"
