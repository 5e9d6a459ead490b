"""What a study settles once, when it begins: number format and threads, which a stopwatch chooses, and its data.

Results depend on them to the last bit, so they are stored in the run directory and hold whenever the study continues,
however busy the machine is then.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.data.loading import ImageData
from ltmsearch.engine.runtime import Runtime, find_device, has_bf16
from ltmsearch.engine.stopwatch import choose_runtime, choose_threads, threads_requested
from ltmsearch.errors import InputError
from ltmsearch.io.files import read_json, write_atomic
from ltmsearch.models.supernet import Supernet
from ltmsearch.search.baselines import Baseline

SETTLED = "settled.json"
"""File in a run directory."""
SETTLED_BEFORE = "settled when the study began"

Images = Annotated[int, Field(ge=0)]


class ClassSize(BaseModel):
    """Number of images of a class, readable or not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    training: Images
    validation: Images


class Settled(BaseModel):
    """Choices of a study's first call, which later calls keep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    """Version of this format."""
    device: str
    """Type of the device, `cpu` or `cuda`."""
    precision: Literal["fp32", "bf16"]
    """Number format of training."""
    precision_reason: str
    scoring_precision: Literal["fp32", "bf16"] | None = None
    """Number format of scoring; None in studies that began before it could differ from that of training."""
    scoring_reason: str = ""
    threads: int | None = Field(ge=1)
    """Threads of torch on a CPU; None on other devices."""
    threads_reason: str
    thresholds: dict[str, list[float]] | None = None
    """Layer → thresholds measured with the initial weights, where the search space has none; None without such."""
    baselines: list[Baseline] | None = None
    """Baselines fitted to the budget that the study began with; None where costs are not known in advance."""
    classes: dict[str, ClassSize]
    """Classes of the data, in the order of the classifier's outputs."""

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Read the file of a run directory; None if there is none.

        Raises:
            InputError: The file cannot be read, is damaged or of another version.
        """
        path = folder / SETTLED
        try:
            return cls.model_validate(read_json(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, ValidationError):
            raise InputError(
                f"{path} is damaged or of another version; restore it, or delete it to settle number format and "
                "threads again"
            ) from None

    def save(self, folder: Path) -> None:
        """Write the file of a run directory, atomically."""
        write_atomic(folder / SETTLED, self.model_dump_json(indent=1) + "\n")

    def refuse_other_data(self, data: ImageData, where: str) -> None:
        """Raise `InputError` unless the data have the classes, and each the number of images, of the study."""
        found = class_sizes(data)
        if list(found) != list(self.classes):
            differing = sorted(set(found) ^ set(self.classes))
            what = f"differ in {_few(differing)}" if differing else "are in another order"
            raise InputError(
                f"{where} must be the data that the study began with, but its classes {what}; give the same data, or "
                "start another study with --study NAME or --out DIR"
            )
        for name, size in found.items():
            before = self.classes[name]
            if size != before:
                raise InputError(
                    f"{where} must be the data that the study began with, but class {name!r} had {before.training} "
                    f"training and {before.validation} validation images and now has {size.training} and "
                    f"{size.validation}; give the same data, or start another study with --study NAME or --out DIR"
                )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def class_sizes(data: ImageData) -> dict[str, ClassSize]:
    """Number of training and validation images of each class, also of those that cannot be read."""
    training, validation = (Counter(split.labels.tolist()) for split in (data.train, data.validation))
    return {
        name: ClassSize(training=training[label], validation=validation[label])
        for label, name in enumerate(data.class_names)
    }


def settle(settings: ResolvedSettings, supernet: Supernet, data: ImageData) -> Settled:
    """Choose number formats and threads by measuring a few steps; sets torch's threads."""
    device = find_device(settings.device)
    images = next(data.train_batches(batch_size=settings.batch_size, steps=1, seed=settings.seed))[0]
    threads, threads_reason = None, ""
    if device.type == "cpu":
        # First, since formats cannot be compared with threads that wait for each other.
        likely = ("bf16" if has_bf16(device) else "fp32") if settings.precision == "auto" else settings.precision
        runtime = Runtime(device=device, dtype=_DTYPES[likely], reason="")
        threads, threads_reason = choose_threads(runtime, supernet, images)
    training, scoring = (
        choose_runtime(device, settings.precision, supernet, images, train=train) for train in (True, False)
    )
    return Settled(
        device=device.type,
        precision=_settled_precision(training),
        precision_reason=training.reason,
        scoring_precision=_settled_precision(scoring),
        scoring_reason=scoring.reason,
        threads=threads,
        threads_reason=threads_reason,
        classes=class_sizes(data),
    )


def _settled_precision(runtime: Runtime) -> Literal["fp32", "bf16"]:
    return "bf16" if runtime.dtype == torch.bfloat16 else "fp32"


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Settled choices as they apply on this machine now."""

    training: Runtime
    scoring: Runtime
    threads: int | None
    """Threads of torch on a CPU; None on other devices."""
    threads_reason: str
    available_threads: int
    """Threads that torch would use by itself."""
    notes: tuple[str, ...] = ()
    """Differences to what was settled, one line each."""

    def __str__(self) -> str:
        text = str(self.training)
        if self.scoring.dtype != self.training.dtype:
            text += f", scores in {self.scoring.precision} ({self.scoring.reason})"
        if self.threads is None:
            return text
        return f"{text}, {self.threads} thread{'s' * (self.threads > 1)} ({self.threads_reason})"


def conditions(settled: Settled, settings: ResolvedSettings, *, available: int, continues: bool) -> Conditions:
    """Apply settled choices to this machine, as far as its hardware and the user's environment allow.

    Args:
        available: Threads that torch uses by itself.
        continues: Whether the choices were settled by an earlier call.
    """
    device, notes = find_device(settings.device), []
    if device.type != settled.device:
        notes.append(f"the study began on {settled.device} and continues on {device.type}: {_DIFFER}")
    chosen = {"training": (settled.precision, settled.precision_reason)}
    chosen["scoring"] = (settled.scoring_precision or settled.precision, settled.scoring_reason)
    if continues and settings.precision == "auto":
        lacks = any(precision == "bf16" for precision, _ in chosen.values()) and not has_bf16(device)
        if lacks:
            notes.append(f"bf16 was {SETTLED_BEFORE}, but {device} has no bf16 instructions: {_DIFFER}")
        chosen = {
            use: ("fp32", "no bf16 instructions") if lacks and precision == "bf16" else (precision, SETTLED_BEFORE)
            for use, (precision, _) in chosen.items()
        }
    threads, threads_reason = settled.threads, settled.threads_reason
    if device.type != "cpu":
        threads, threads_reason = None, ""
    elif continues:
        threads, threads_reason = _threads_now(settled.threads, available)
        if settled.threads not in (None, threads):
            before = f"{settled.threads} thread{'s were' if settled.threads != 1 else ' was'} {SETTLED_BEFORE}"
            notes.append(f"{before}, but {threads} now ({threads_reason}): {_DIFFER}")
    return Conditions(
        **{
            use: Runtime(device=device, dtype=_DTYPES[precision], reason=reason)
            for use, (precision, reason) in chosen.items()
        },
        threads=threads,
        threads_reason=threads_reason,
        available_threads=available,
        notes=tuple(notes),
    )


def requested_runtime(device: str, precision: str) -> Runtime:
    """The runtime of a number format that is not `auto`, such as those that a worker gets."""
    return Runtime(device=find_device(device), dtype=_DTYPES[precision], reason="as requested")


def _threads_now(settled: int | None, available: int) -> tuple[int, str]:
    """The number of threads when a study continues, and the reason: a number that the user sets wins."""
    if threads_requested():
        return available, "as requested"
    if settled is None or settled > available:
        return available, "all that torch uses here"
    return settled, SETTLED_BEFORE


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_DIFFER = "scores may differ in their last digits from those of an uninterrupted search"
