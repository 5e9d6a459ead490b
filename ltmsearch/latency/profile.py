"""Latency profiles: what was timed of a backbone's subnets on one target, kept per device and found again."""

import hashlib
import json
from pathlib import Path
from typing import Self

import numpy as np
import platformdirs
from pydantic import BaseModel, ConfigDict, ValidationError

from ltmsearch.costs import CostModel, LatencyModel, Timing, fit_latency
from ltmsearch.errors import InputError, shortened
from ltmsearch.io.files import read_json, write_atomic
from ltmsearch.latency.measurement import Reading
from ltmsearch.latency.target import LatencyTarget, target_file_name
from ltmsearch.schedules.schedule import Form, MergeSchedule
from ltmsearch.schedules.space import SearchSpace

SCHEMA = 1
FOLDS = 5
"""Parts of the subnets, each of which is predicted from the others to see how far predictions are off."""


class TimedSubnet(BaseModel):
    """One subnet of a profile."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep_ratios: dict[str, float]
    forms: dict[str, Form]
    reading: Reading
    extra_ms: dict[str, float]
    """Beyond the plain net, by module; "" is the whole net."""

    def schedule(self, operator: str) -> MergeSchedule:
        """Its schedule."""
        return MergeSchedule(keep_ratios=self.keep_ratios, operator=operator, forms=self.forms)


class Check(BaseModel):
    """How far predictions are off subnets that the model was not fitted to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    error: float | None
    """Mean absolute difference between predicted and measured latency, as a share of the measured; None where there
    are so few subnets that none can be predicted from the others."""
    noise: float
    """Mean standard error of the measured ones, as a share: what no prediction can be better than."""
    subnets: int
    """How many were predicted from others."""

    def __str__(self) -> str:
        off = "too few to hold any out" if self.error is None else f"off by {self.error:.1%} on average where held out"
        return f"{off} (noise of a single reading {self.noise:.1%})"


class LatencyProfile(BaseModel):
    """What was timed of one backbone, one operator and one space on one target."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA
    backbone: str
    operator: str
    space: str
    """Digest of the search space whose choices were timed."""
    target: LatencyTarget
    plain: Reading
    """Of the plain net."""
    subnets: list[TimedSubnet]
    load: float
    """Greatest load of the machine meanwhile, over one minute."""
    seconds: float
    """That all of it took."""
    weights: dict[str, float]
    """Of the fitted model: see `LatencyModel`."""
    check: Check

    @classmethod
    def fitted(cls, costs: CostModel, plain: Reading, subnets: list[TimedSubnet], **about: object) -> Self:
        """A profile with the model fitted to all subnets, and checked on parts of them.

        Args:
            costs: The shapes of the layers.
            plain: Latency of the plain net.
            subnets: What was timed.
            about: The other fields.
        """
        timings = [Timing(schedule=s.schedule(costs.operator), extra_ms=s.extra_ms) for s in subnets]
        model = fit_latency(costs, plain.ms, timings)
        return cls.model_validate(
            {
                "operator": costs.operator,
                "plain": plain,
                "subnets": subnets,
                "weights": dict(model.weights),
                "check": _cross_check(costs, plain, subnets, timings),
                **about,
            }
        )

    @classmethod
    def load_file(cls, path: Path) -> Self:
        """Read a profile.

        Raises:
            InputError: If the file is missing or is no profile.
        """
        try:
            content = read_json(path)
            if content.get("schema_version") != SCHEMA:
                raise InputError(
                    f"{path}: schema_version must be {SCHEMA} for this ltmsearch, but got "
                    f"{shortened(repr(content.get('schema_version')))}; ltmsearch profile makes it anew"
                )
            return cls.model_validate(content)
        except OSError as error:
            raise InputError(f"the latency profile {path} cannot be read: {error.strerror or error}") from error
        except (ValueError, ValidationError, AttributeError) as error:
            raise InputError(f"{path} must be a latency profile, as ltmsearch profile writes it") from error

    def save(self, path: Path) -> Path:
        """Write as JSON, atomically; the folder is made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_atomic(path, self.model_dump_json(indent=1) + "\n")

    def model(self, costs: CostModel) -> LatencyModel:
        """The fitted model.

        Args:
            costs: Of the profile's backbone at its image size.
        """
        return LatencyModel(chains=costs.chains, operator=self.operator, base_ms=self.plain.ms, weights=self.weights)

    def refuse_unless_for(self, where: Path, *, backbone: str, operator: str, space: str, img_size: int) -> None:
        """Raise unless a study can use this profile.

        Raises:
            InputError: Naming what does not fit.
        """
        for name, mine, wanted in (
            ("backbone", self.backbone, backbone),
            ("operator", self.operator, operator),
            ("image size", self.target.img_size, img_size),
            ("search space", self.space, space),
        ):
            if mine != wanted:
                raise InputError(f"{where} is a latency profile of the {name} {mine}, but the study's is {wanted}")


def _cross_check(costs: CostModel, plain: Reading, subnets: list[TimedSubnet], timings: list[Timing]) -> Check:
    order = np.random.default_rng(0).permutation(len(subnets))
    errors = []
    for fold in range(FOLDS):
        held = set(order[fold::FOLDS].tolist())
        known = [timing for i, timing in enumerate(timings) if i not in held]
        if not known:
            continue
        model = fit_latency(costs, plain.ms, known)
        for i in held:
            measured = subnets[i].reading.ms
            try:
                errors.append(abs(model.latency_ms(timings[i].schedule) - measured) / measured)
            except ValueError:  # a choice that no other subnet takes
                continue
    noise = float(np.mean([s.reading.error for s in subnets]))
    error = float(np.mean(errors)) if errors else None
    return Check(error=error, noise=noise, subnets=len(errors))


def profile_path(backbone: str, operator: str, space: SearchSpace, target: LatencyTarget) -> Path:
    """Where the profile of a target on this machine is kept: below the user's cache folder."""
    key = json.dumps([SCHEMA, backbone, operator, space.digest(), target.model_dump()], sort_keys=True)
    short = hashlib.sha256(key.encode()).hexdigest()[:12]
    name = f"{backbone}-{operator}-{target_file_name(target)}-{short}.json"
    return platformdirs.user_cache_path("ltmsearch") / "profiles" / name


def find_profile(path: Path) -> LatencyProfile | None:
    """The profile that an earlier run kept there, None where there is none or it cannot be used any more."""
    if not path.exists():
        return None
    try:
        return LatencyProfile.load_file(path)
    except InputError:
        return None
