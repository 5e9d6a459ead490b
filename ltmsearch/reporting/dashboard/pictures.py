"""What a trial's subnet merges in a few images, as one small picture."""

from io import BytesIO

from PIL import Image

from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.models import input_config
from ltmsearch.reporting.merges import example_sheet, pixels_seen
from ltmsearch.search.trial import ExampleMerges

SIDE, LAYERS = 112, 5
"""Pixels of an image's longer side, and layers shown at most."""
COLOURS = 128
"""Fewer make a file of a fifth the size."""


def merges_picture(merges: ExampleMerges, settings: ResolvedSettings) -> bytes:
    """A PNG of some ten kilobytes: a row for each image, a column for each layer that merges.

    Args:
        merges: Images and layers, one of each at least.
        settings: Of the study.
    """
    inputs = input_config(settings.backbone)
    pixels = pixels_seen(merges.images, mean=inputs["mean"], std=inputs["std"])
    size = merges.images.shape[-1]
    title = f"merged tokens at {size} px"
    sheet = example_sheet(pixels, merges.layers, title=title, side=SIDE, most=LAYERS)
    content = BytesIO()
    sheet.quantize(COLOURS, Image.Quantize.FASTOCTREE).save(content, "PNG")
    return content.getvalue()
