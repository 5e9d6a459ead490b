"""Search spaces that families do not ship."""

from pathlib import Path


def soft_and_hard(folder: Path) -> Path:
    """The file of a space of MobileViT with two forms that merge by place."""
    path = folder / "soft-and-hard.yaml"
    path.write_text(
        "schema_version: 1\nfamily: mobilevit\nkeep_ratios: [1.0, 0.7, 0.5, 0.35, 0.25]\nforms: [soft, hard]\n"
        "ib_weight: [0.01, 1.0]\nlayers: []\n"
    )
    return path
