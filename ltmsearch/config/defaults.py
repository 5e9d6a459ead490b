"""Default settings of a study by device, and of the warm-up by backbone family."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltmsearch.config.objective import measure_of
from ltmsearch.io.files import safe_name


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
TRAINED = Learning(lr=1e-5, proxy_lr=1e-5, grows=False)
"""For a network that starts from trained weights. A single step of 2e-4 took a pretrained ViT-S from 81 % to 27 %;
benchmarks/warm_up_rate.py compares the rates of its warm-up."""

# With mobilevit_s on two CPU cores without bf16 a trial of these takes about 5 s, the warm-up about 160 s.
CPU: dict[str, int] = {
    "batch_size": 16,
    "base_steps": 300,
    "base_img_size": 64,
    "sandwich_steps": 60,
    "proxy_img_size": 112,
    "proxy_steps": 4,
    "calibration_images": 32,
    "scoring_batch_size": 64,
    "screened_schedules": 160,
    "search_images": 256,
    "rescore_images": 384,
    "report_images": 1000,
}

DISTILLED_SHARE = 2
"""Sandwich steps where subnets learn from a teacher, as a multiple of those where they learn beside labels. Trials then
take no steps of their own: in a pretrained ViT-S four of them raised the divergence of every schedule that was tried,
by 0.06 to 0.16 nats at a learning rate of 1e-5, while sixty sandwich steps lowered it by 0.4."""

ACCELERATOR: dict[str, int] = {
    "batch_size": 64,
    "base_steps": 2000,
    "sandwich_steps": 1000,
    "proxy_steps": 30,
    "calibration_images": 1024,
    "scoring_batch_size": 256,
    "screened_schedules": 1000,
    "search_images": 2000,
    "rescore_images": 5000,
    "report_images": 10000,
}


def by_device(name: str) -> str:
    """Both defaults of a setting, as text for `--help`."""
    return f"{CPU[name]} on a CPU, {ACCELERATOR[name]} on a GPU"


def defaults_of(settings: Any, device: str, learning: Learning, earlier: Any = None) -> dict[str, Any]:
    """Values of the settings of a study that are None, for `cpu` or an accelerator's type, e.g. `cuda`.

    Args:
        settings: Settings of the study, `StudySettings`.
        learning: That of the backbone's family; trained weights replace it by `TRAINED`.
        earlier: Settings of the study that this one starts from: on the same data its network needs no warm-up, and
            with the same operator neither do its subnets.
    """
    s, trained = settings, bool(settings.pretrained or settings.checkpoint or settings.resume_from)
    learning = TRAINED if trained else learning
    objective = measure_of(s)
    defaults: dict[str, Any] = CPU if device == "cpu" else ACCELERATOR | {"proxy_img_size": s.img_size}
    proxy = s.proxy_img_size or defaults["proxy_img_size"]
    small = defaults.get("base_img_size", proxy) if learning.grows else proxy
    defaults = defaults | {
        "base_img_size": min(small, proxy),
        "batch_size": defaults["batch_size"] * learning.patience,
        "base_steps": defaults["base_steps"] * learning.patience,
        "warmup_lr": learning.lr,
        # The weights of an earlier study have had trials at this rate already.
        "proxy_lr": (UNTRAINED if s.resume_from else learning).proxy_lr,
        "objective": objective,
        "study": s.study_name,
        "out": str(s.run_dir),
    }
    if objective == "kl":
        defaults |= {"proxy_steps": 0, "sandwich_steps": DISTILLED_SHARE * defaults["sandwich_steps"]}
    if earlier is not None and all(
        getattr(earlier, name) == getattr(s, name) for name in ("data_place", "network", "images")
    ):
        defaults["base_steps"] = 0
        defaults["sandwich_steps"] *= s.operator != earlier.operator
    if s.budget_ms is not None and s.latency_profile is None:
        defaults["latency_device"] = device if s.device == "auto" else s.device
    return defaults


def default_name(settings: Any) -> str:
    """Name of a study: backbone, operator, budgets, image size and data."""
    s = settings
    data = Path(s.data_dir).resolve().name if s.dataset == "folder" and s.data_dir else s.dataset
    lowest = "" if s.lowest_gflops is None else f"{s.lowest_gflops:g}-"
    budgets = [] if s.budget_gflops is None else [f"{lowest}{s.budget_gflops:g}gflops"]
    budgets += [] if s.budget_ms is None else [f"{s.budget_ms:g}ms"]
    budgets += [] if s.split_layer is None else [f"split-{s.split_layer}"]
    parts = [s.backbone, s.operator, *budgets, str(s.img_size), data]
    return safe_name("-".join(parts))
