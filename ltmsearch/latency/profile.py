"""Latency profiles: measurements of a backbone's subnets on one target, with the fitted model, stored per device."""

import hashlib
import json
from pathlib import Path
from typing import Any, Self

import numpy as np
import platformdirs
from pydantic import BaseModel, ConfigDict

from ltmsearch.config.network import NetworkKeys, network_keys
from ltmsearch.costs import CostModel, LatencyModel, Timing, fit_latency
from ltmsearch.errors import InputError, shortened
from ltmsearch.io.files import read_json, write_atomic
from ltmsearch.latency.measurement import Measurement
from ltmsearch.latency.target import LatencyTarget
from ltmsearch.schedules.schedule import Form, MergeSchedule
from ltmsearch.schedules.space import SearchSpace

SCHEMA = 1
FOLDS = 5
"""Folds of the cross-validation of predictions."""


class TimedSubnet(BaseModel):
    """One subnet of a profile."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep_ratios: dict[str, float]
    forms: dict[str, Form]
    reading: Measurement
    """Measured latency."""
    extra_ms: dict[str, float]
    """Difference to the plain network, by module; "" is the whole network."""

    def schedule(self, operator: str) -> MergeSchedule:
        """Return its schedule."""
        return MergeSchedule(keep_ratios=self.keep_ratios, operator=operator, forms=self.forms)


class Check(BaseModel):
    """Cross-validated prediction error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    error: float | None
    """Mean relative error of held-out subnets; None if there are too few subnets."""
    noise: float
    """Mean relative standard error of the measurements, a lower bound for `error`."""
    subnets: int
    """Number of held-out predictions."""

    def __str__(self) -> str:
        error = "too few to hold any out" if self.error is None else f"mean error {self.error:.1%} when held out"
        return f"{error} (measurement noise {self.noise:.1%})"


class LatencyProfile(BaseModel):
    """Measurements of one backbone, operator and search space on one target, with the model fitted to them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA
    backbone: str
    operator: str
    space: str
    """Digest of the search space."""
    target: LatencyTarget
    plain: Measurement
    """Latency of the plain network."""
    subnets: list[TimedSubnet]
    load: float
    """Highest one-minute load average of the machine meanwhile."""
    seconds: float
    """Duration of the profiling."""
    weights: dict[str, float]
    """Weights of the fitted `LatencyModel`."""
    check: Check

    @classmethod
    def fitted(cls, costs: CostModel, plain: Measurement, subnets: list[TimedSubnet], **fields: object) -> Self:
        """Fit the model to all subnets and cross-validate it."""
        timings = [Timing(schedule=s.schedule(costs.operator), extra_ms=s.extra_ms) for s in subnets]
        model = fit_latency(costs, plain.ms, timings)
        fields |= {"operator": costs.operator, "plain": plain, "subnets": subnets, "weights": dict(model.weights)}
        return cls.model_validate({"check": _cross_validate(costs, plain, subnets, timings), **fields})

    @classmethod
    def load_file(cls, path: Path) -> Self:
        """Read a profile.

        Raises:
            InputError: If the file is missing or is not a profile.
        """
        try:
            content = read_json(path)
            if content.get("schema_version") != SCHEMA:
                raise InputError(
                    f"{path}: schema_version must be {SCHEMA} for this ltmsearch, but got "
                    f"{shortened(repr(content.get('schema_version')))}; make a new one with `ltmsearch profile`"
                )
            return cls.model_validate(content)
        except OSError as error:
            raise InputError(f"the latency profile {path} cannot be read: {error.strerror or error}") from error
        except (ValueError, AttributeError) as error:
            raise InputError(f"{path} must be a latency profile made by `ltmsearch profile`") from error

    def save(self, path: Path) -> Path:
        """Write as JSON, atomically, creating the folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_atomic(path, self.model_dump_json(indent=1) + "\n")

    def model(self, costs: CostModel) -> LatencyModel:
        """Return the fitted model for the cost model of the profile's backbone and image size."""
        return LatencyModel(
            chains=costs.chains,
            operator=self.operator,
            default_form=costs.default_form,
            base=self.plain.ms,
            weights=self.weights,
        )

    def require(
        self,
        path: Path,
        *,
        backbone: str,
        operator: str,
        space: str,
        img_size: int,
        **network: Any,
    ) -> None:
        """Raise an `InputError` unless the profile, read from `path`, fits a study.

        Args:
            network: Those of `NetworkKeys` that are not as usual.
        """
        of_target, of_study = network_keys(self.target), network_keys(NetworkKeys(**network))
        for name, mine, required in (
            ("backbone", self.backbone, backbone),
            ("operator", self.operator, operator),
            ("image size", self.target.img_size, img_size),
            *((name, of_target[name], required) for name, required in of_study.items()),
            ("search space", self.space, space),
        ):
            if mine != required:
                raise InputError(f"{path} is a latency profile of the {name} {mine}, but the study's is {required}")


def _cross_validate(costs: CostModel, plain: Measurement, subnets: list[TimedSubnet], timings: list[Timing]) -> Check:
    order = np.random.default_rng(0).permutation(len(subnets))
    errors = []
    for fold in range(FOLDS):
        held_out = set(order[fold::FOLDS].tolist())
        others = [timing for i, timing in enumerate(timings) if i not in held_out]
        if not others:
            continue
        model = fit_latency(costs, plain.ms, others)
        for i in held_out:
            measured = subnets[i].reading.ms
            try:
                errors.append(abs(model.latency_ms(timings[i].schedule) - measured) / measured)
            except ValueError:  # a choice that no other subnet has
                continue
    noise = float(np.mean([s.reading.error for s in subnets]))
    return Check(error=float(np.mean(errors)) if errors else None, noise=noise, subnets=len(errors))


def profile_path(backbone: str, operator: str, space: SearchSpace, target: LatencyTarget) -> Path:
    """Return the path of a profile in the user's cache folder."""
    # Without the usual values of newer fields, so that profiles that were kept before are found.
    conditions = target.model_dump(exclude_defaults=True)
    key = json.dumps([SCHEMA, backbone, operator, space.digest(), conditions], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    device = target.device.replace(":", "")
    batches = f"{target.img_size}px-b{target.batch_size}-{target.runtime}-{target.dtype}-{device}"
    return platformdirs.user_cache_path("ltmsearch") / "profiles" / f"{backbone}-{operator}-{batches}-{digest}.json"


def find_profile(path: Path) -> LatencyProfile | None:
    """Return the profile at a path; None if there is none or it is damaged."""
    if not path.exists():
        return None
    try:
        return LatencyProfile.load_file(path)
    except InputError:
        return None
