"""The supernet: a backbone with a merging operator at every layer, whose weights all subnets share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ltmsearch.errors import InputError, check_choice, shortened
from ltmsearch.merging import MaskStart, MergeOperator, check_form, get_operator
from ltmsearch.models.adapter import get_adapter
from ltmsearch.models.merging_layer import attached_operators
from ltmsearch.models.registry import attach_operators, create_subnet, set_schedule
from ltmsearch.models.weights import build_backbone
from ltmsearch.models.windows import fit_windows
from ltmsearch.schedules.schedule import MergeSchedule


class Supernet(nn.Module):
    """A timm backbone that shares its weights among all merge schedules.

    Outside of `active` it is the plain backbone.

    `new_classifiers` are the paths, in `model`, of classifiers that the given weights leave as initialised.

    Args:
        backbone: timm name, e.g. `mobilevit_s`.
        operator: Name of the merging operator at every layer.
        mask_start: See `MaskStart`.
        pretrained: Load timm's published weights.
        checkpoint: Load weights from a file instead: see `load_weights`.
        any_size: Accept images of any size, for which those that fill no patch are padded; otherwise of the sizes that
            timm's network accepts.
        timm_kwargs: Passed to `create_backbone`, e.g. `num_classes` or `registers`.

    Raises:
        InputError: For an unknown backbone, operator or `mask_start`, or weights that are not available or do not fit.
    """

    def __init__(
        self,
        backbone: str,
        *,
        operator: str = "ltm",
        mask_start: MaskStart = "auto",
        pretrained: bool = False,
        checkpoint: Path | None = None,
        any_size: bool = True,
        **timm_kwargs: Any,
    ) -> None:
        super().__init__()
        check_choice("mask_start", mask_start, MaskStart)
        adapter = get_adapter(backbone)
        self.backbone = backbone
        self.operator = operator
        self._timm_kwargs = {**(adapter.any_size_kwargs if any_size else {}), **timm_kwargs}
        self.model, self.new_classifiers = build_backbone(
            backbone, pretrained=pretrained, checkpoint=checkpoint, **self._timm_kwargs
        )
        self.layers = adapter.layers(self.model)
        trained = pretrained or checkpoint is not None
        start = "content" if mask_start == "auto" and trained else mask_start
        attach_operators(backbone, self.model, operator=operator, layers=self.layers, start=start)
        self._plain = MergeSchedule.uniform(self.layers, 1.0, operator)
        self._schedule = self._plain

    def check_weights(self, weights: Mapping[str, Tensor], where: Path) -> None:
        """Raise an `InputError` unless the weights in file `where` are exactly the supernet's, by name and shape."""
        wanted, given = (
            {name: "×".join(map(str, tensor.shape)) or "a number" for name, tensor in tensors.items()}
            for tensors in (self.state_dict(), weights)
        )
        for name in (*wanted, *given):
            if wanted.get(name) != given.get(name):
                raise InputError(
                    f"{where} must contain the shared weights of this study, but {shortened(name, 100)} is "
                    f"{given.get(name, 'missing')} in it and {wanted.get(name, 'missing')} in the network"
                )

    @property
    def schedule(self) -> MergeSchedule:
        """The active schedule."""
        return self._schedule

    @contextmanager
    def active(self, schedule: MergeSchedule) -> Iterator["Supernet"]:
        """Run as the subnet of a schedule inside the `with` block; the previous one is restored on exit.

        Raises:
            InputError: If the schedule is no MergeSchedule, is for another operator, or names an unknown layer or form.
        """
        previous = self._schedule
        self._set(self.canonical(schedule))
        try:
            yield self
        finally:
            self._set(previous)

    def canonical(self, schedule: MergeSchedule) -> MergeSchedule:
        """The schedule over exactly this backbone's layers, with the form of each that merges, if there are several."""
        if not isinstance(schedule, MergeSchedule):
            raise InputError(
                f"the schedule of a supernet must be a MergeSchedule, but got {shortened(repr(schedule))}; "
                "MergeSchedule.uniform and from_mapping make one from keep ratios"
            )
        if schedule.operator != self.operator:
            raise InputError(
                f"the operator of the schedule must be the supernet's {self.operator!r}, but got {schedule.operator!r}"
            )
        for form in schedule.forms.values():
            check_form(self.operator, form)
        whole = MergeSchedule.from_mapping(self.layers, schedule.keep_ratios, self.operator, schedule.forms)
        several = len(get_operator(self.operator).forms) > 1
        default = get_adapter(self.backbone).default_form(self.operator)
        forms = {layer: whole.form(layer) or default for layer in whole.merging_layers} if several else {}
        return replace(whole, forms=forms, img_size=schedule.img_size)

    @contextmanager
    def frozen_prefix(self) -> Iterator["Supernet"]:
        """Do not train the parameters before the first layer inside the `with` block.

        They compute the same under every schedule, and without their gradients a step is much shorter: half as long
        in a MobileViT.
        """
        frozen = [p for p in self.prefix_parameters() if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield self
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    def prefix_parameters(self) -> list[nn.Parameter]:
        """The parameters before the first layer: timm registers them in the order of execution up to there."""
        first = f"{self.layers[0]}."
        later = tuple(f"{name}." for name in get_adapter(self.backbone).for_all_layers)
        before = takewhile(lambda named: not named[0].startswith(first), self.model.named_parameters())
        return [parameter for name, parameter in before if not name.startswith(later)]

    def operators(self) -> dict[str, MergeOperator]:
        """The operators by layer."""
        return attached_operators(self.model, self.layers)

    def _set(self, schedule: MergeSchedule) -> None:
        set_schedule(self.backbone, self.model, schedule)
        fits = schedule.img_size is not None
        if fits != (self._schedule.img_size is not None):
            fit_windows(self.model, fits=fits)
        self._schedule = schedule

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) images to (B, classes) logits, under the active schedule."""
        return self.model(images)

    def extract(self, schedule: MergeSchedule) -> nn.Module:
        """The stand-alone subnet of a schedule, as `timm.create_model("ltm_<backbone>", keep_ratios=…)` builds it.

        It has the same outputs, a copy of the weights, and no operators at plain layers. With an image size in the
        schedule, its windows are those of a network for that size.
        """
        schedule = self.canonical(schedule)
        subnet = create_subnet(
            self.backbone,
            keep_ratios=schedule.keep_ratios,
            operator=self.operator,
            forms=schedule.forms,
            **self._timm_kwargs,
        )
        wanted = subnet.state_dict()
        weights = {name: value for name, value in self.model.state_dict().items() if name in wanted}
        subnet.load_state_dict(deepcopy(weights))
        fit_windows(subnet, fits=schedule.img_size is not None)
        return subnet.to(next(self.parameters()).device).train(self.training)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay (timm's convention)."""
        names: set[str] = self.model.no_weight_decay()  # type: ignore[operator]
        return {f"model.{name}" for name in names}
