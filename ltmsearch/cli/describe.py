"""The `space` and `cost` commands, which describe a backbone without training anything."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from ltmsearch.cli.options import choice_option, completing, field_option, options_from
from ltmsearch.cli.shared_options import AsJson
from ltmsearch.cli.terminal import print_json, results
from ltmsearch.config.backbones import backbone_names
from ltmsearch.config.network import NETWORK_KEYS, network_arguments
from ltmsearch.config.settings import StudySettings
from ltmsearch.errors import InputError
from ltmsearch.schedules.schedule import Form

Backbone = Annotated[
    str,
    typer.Argument(metavar="BACKBONE", help="timm name, e.g. mobilevit_s.", autocompletion=completing(backbone_names)),
]
ImgSize = Annotated[
    int, typer.Option(metavar="INT", help="Image side in pixels for which costs are counted.", min=32, max=2048)
]
NumClasses = Annotated[int, typer.Option(metavar="INT", help="Number of classes.", min=1)]
Operator = Annotated[str, field_option(StudySettings, "operator")]


@options_from(StudySettings, only=NETWORK_KEYS)
def space(
    backbone: Backbone,
    img_size: ImgSize = 224,
    operator: Operator = "ltm",
    space: Annotated[str | None, field_option(StudySettings, "space")] = None,
    num_classes: NumClasses = 1000,
    as_json: AsJson = False,
    **network: Any,
) -> None:
    """Show a backbone's layers with their tokens and costs, the savings of merging, and the range of reachable costs.

    Example: ltmsearch space mobilevit_s
    """
    from ltmsearch.costs.describe import describe_space, print_space

    record = describe_space(
        backbone,
        img_size=img_size,
        operator=operator,
        space=space,
        num_classes=num_classes,
        **network_arguments("space", **network),
    )
    if as_json:
        print_json(asdict(record))
    else:
        print_space(results(), record)


@options_from(StudySettings, only=NETWORK_KEYS)
def cost(
    backbone: Backbone,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="RATIOS",
            help="Keep ratios in (0, 1] in layer order, such as 0.7,1,0.5, or one for all layers; or negative "
            "integers, the tokens to remove: --keep=-8. The operator threshold has no such cost: see `validate`.",
        ),
    ] = None,
    img_size: ImgSize = 224,
    operator: Operator = "ltm",
    form: Annotated[str | None, choice_option(Form, "Form of the merges; default: that of operator and family")] = None,
    num_classes: NumClasses = 1000,
    as_json: AsJson = False,
    **network: Any,
) -> None:
    """Count the multiply-adds of one schedule, by formula and by tracing; without --keep, of the unmerged network.

    Example: ltmsearch cost mobilevit_s --keep 0.5 --json
    """
    from ltmsearch.costs.describe import describe_cost, print_cost

    record = describe_cost(
        backbone,
        keep=_ratios(keep),
        img_size=img_size,
        operator=operator,
        form=form,
        num_classes=num_classes,
        **network_arguments("cost", **network),
    )
    if as_json:
        print_json(asdict(record))
    else:
        print_cost(results(), record)


def _ratios(text: str | None) -> list[float]:
    if text is None:
        return [1.0]
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--keep must be keep ratios in (0, 1], or negative integers, separated by commas, but got {text!r}"
        ) from None
