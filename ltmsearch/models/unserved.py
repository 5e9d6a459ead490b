"""Why networks of some of timm's classes have no layers that merge, for error messages and the list of backbones."""

RELATIVE = "its attention adds biases for pairs of places on the full grid, and a merged token has no single place"
CHANNELS = "its attention mixes channels, so that fewer tokens leave its products as they are"
LOCAL = "its attention looks at the neighbourhood of each place on the full grid"
SHRINKING = "its blocks shrink the grid themselves, between attention and MLP"
MIXED = "its attention mixes tokens by convolutions on the full grid"
NOT_YET = "nobody has written an adapter for its blocks yet: see docs/howto/family.md"

REASONS = {
    "Beit": RELATIVE,
    "VisionTransformerRelPos": RELATIVE,
    "VisionTransformerSAM": RELATIVE,
    "Levit": RELATIVE,
    "LevitDistilled": RELATIVE,
    "EfficientFormer": RELATIVE,
    "EfficientFormerV2": RELATIVE,
    "Xcit": CHANNELS,
    "EdgeNeXt": CHANNELS,
    "VOLO": LOCAL,
    "FocalNet": LOCAL,
    "CoaT": MIXED,
    "MultiScaleVit": SHRINKING,
    "HieraDet": SHRINKING,
    "SwinTransformerV2Cr": "its blocks normalise a third time; use swinv2_tiny_window8_256 or its siblings",
    "EfficientVitMsra": "its attention is cascaded over groups of channels inside windows; use efficientvit_b0 to _l3",
    "NaFlexVit": "it takes sequences of patches of any length, with a mask, instead of images on one grid",
}
"""Name of timm's class of network → the reason, as the end of a sentence."""


def reason_for(kind: type) -> str:
    """The reason for a class of network, which need not be timm's."""
    if kind.__module__.partition(".")[0] != "timm":
        return f"it is of the class {kind.__module__}.{kind.__name__}, which is none of timm's, and {NOT_YET}"
    return f"it is timm's {kind.__name__}, and {REASONS.get(kind.__name__, NOT_YET)}"
