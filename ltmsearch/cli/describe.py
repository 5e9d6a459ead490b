"""Commands that describe a backbone without training anything: `space` and `cost`."""

from typing import Annotated

import typer

from ltmsearch.cli import options
from ltmsearch.cli.app import AsJson, app
from ltmsearch.cli.terminal import print_json, results
from ltmsearch.errors import InputError

Backbone = Annotated[str, options.backbone_argument("timm name, e.g. mobilevit_s.")]
ImgSize = Annotated[
    int, typer.Option(help="Side in pixels of the images that costs are counted for.", min=32, max=2048)
]
Operator = Annotated[str, options.one_of(options.OPERATORS, "Merging operator")]


@app.command()
def space(
    backbone: Backbone,
    img_size: ImgSize = 224,
    operator: Operator = "ltm",
    space: Annotated[
        str | None, options.shipped_option("search_spaces", "Search-space file. (default: that of the family)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a backbone's layers, tokens, shares of the cost, what merging saves, and the reachable range.

    Example: ltmsearch space mobilevit_s
    """
    from ltmsearch.costs.describe import describe_space, print_space

    record = describe_space(backbone, img_size=img_size, operator=operator, space=space)
    if as_json:
        print_json(record.as_dict())
    else:
        print_space(results(), record)


@app.command()
def cost(
    backbone: Backbone,
    keep: Annotated[
        str | None, typer.Option(help="Keep ratios in the layers' order, e.g. 0.7,1,0.5,… or one for all.")
    ] = None,
    img_size: ImgSize = 224,
    operator: Operator = "ltm",
    form: Annotated[
        str | None, options.one_of(options.FORMS, "Of the merges, for the operator ltm", default="soft")
    ] = None,
    num_classes: Annotated[int, typer.Option(help="Width of the classifier.", min=1)] = 1000,
    as_json: AsJson = False,
) -> None:
    """Count one schedule by formula and by tracing the built subnet; without --keep the plain net.

    Example: ltmsearch cost mobilevit_s --keep 0.5 --json
    """
    from ltmsearch.costs.describe import describe_cost, print_cost

    record = describe_cost(
        backbone, keep=_ratios(keep), img_size=img_size, operator=operator, form=form, num_classes=num_classes
    )
    if as_json:
        print_json(record.as_dict())
    else:
        print_cost(results(), record)


def _ratios(text: str | None) -> list[float]:
    if text is None:
        return [1.0]
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--keep must be numbers in (0, 1] with commas between them, but got {text!r}") from None
