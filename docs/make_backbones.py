"""Writes the names of the backbones that ltmsearch serves: `python docs/make_backbones.py`, about two minutes.

Builds every network of timm's transformer modules without memory for its weights, and asks the families of ltmsearch
whether they recognise its structure. Writes `ltmsearch/config/backbones.py`, from which shell completion reads the
names without importing torch, and `docs/reference/backbones.md`. Run it after a change of a family, and for a new timm.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from timm.models import is_model_in_modules

from ltmsearch.models.adapter import FAMILIES
from ltmsearch.models.unserved import reason_for

ROOT = Path(__file__).resolve().parents[1]
MODULES = (
    "beit", "cait", "coat", "convit", "crossvit", "csatv2", "davit", "deepseek_vit", "deit", "edgenext",
    "efficientformer", "efficientformer_v2", "efficientvit_mit", "efficientvit_msra", "eva", "fastvit", "focalnet",
    "gcvit", "gemma4_vit", "hiera", "hieradet_sam2", "iformer", "levit", "lowformer", "maxxvit", "metaformer",
    "mobilenetv5", "mobilevit", "mvitv2", "naflexvit", "nest", "nextvit", "pit", "pvt_v2", "qwen3_vit", "shvit",
    "swiftformer", "swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr", "tiny_vit", "tnt", "twins",
    "visformer", "vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos",
    "vision_transformer_sam", "vitamin", "volo", "xcit",
)  # fmt: skip
"""timm's modules whose networks have attention among tokens."""


def reason_or_family(name: str) -> tuple[str, str | None]:
    """Name of timm's class of a network and the family that serves it, or the reason why none does, and None."""
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        model = timm.create_model(name)
    family = next((family for family in FAMILIES if family.recognises(model)), None)
    if family is None:
        return reason_for(type(model)), None
    reason = family.refusal(model)
    return (family.family, family.family) if reason is None else (reason, None)


def names() -> list[str]:
    found = [name for name in timm.list_models() if is_model_in_modules(name, MODULES)]
    return [name for name in found if not name.startswith("ltm_")]


def module_text(served: dict[str, list[str]]) -> Iterator[str]:
    yield '"""Names of the backbones that ltmsearch serves, by family. Do not edit.'
    yield ""
    yield "Written by `docs/make_backbones.py`."
    yield "Other networks are recognised by their structure: see `get_adapter`."
    yield '"""'
    yield ""
    yield "BACKBONES: dict[str, tuple[str, ...]] = {"
    for family, members in served.items():
        yield f'    "{family}": ('
        yield from (f'        "{name}",' for name in members)
        yield "    ),"
    yield "}"
    yield ""
    yield ""
    yield "def backbone_names() -> list[str]:"
    yield "    return [name for names in BACKBONES.values() for name in names]"
    yield ""
    yield ""
    yield "def family_of(name: str) -> str | None:"
    yield '    """The family of a listed backbone."""'
    yield "    return next((family for family, names in BACKBONES.items() if name in names), None)"


def page_text(served: dict[str, list[str]], refused: dict[str, list[str]]) -> Iterator[str]:
    number = sum(map(len, served.values()))
    total = number + sum(map(len, refused.values()))
    yield "# Backbones"
    yield ""
    yield "<!-- Written by docs/make_backbones.py. -->"
    yield ""
    yield f"ltmsearch serves {number} of the {total} names of transformers in timm {timm.__version__}, with every"
    yield "pretrained tag of each, such as `vit_base_patch16_clip_224.openai`. What counts is a network's structure:"
    yield "those that are not listed are built and looked at, and refused in one line if they cannot merge."
    yield ""
    yield "## Served"
    yield ""
    yield "| family | names | |"
    yield "|---|---|---|"
    for family, members in served.items():
        yield f"| {family} | {len(members)} | {', '.join(f'`{name}`' for name in members)} |"
    yield ""
    yield "## Refused"
    yield ""
    yield "| reason | names | |"
    yield "|---|---|---|"
    for reason, members in sorted(refused.items(), key=lambda entry: -len(entry[1])):
        yield f"| {reason} | {len(members)} | {', '.join(f'`{name}`' for name in members)} |"


def main() -> None:
    served: dict[str, list[str]] = {family.family: [] for family in FAMILIES}
    refused: dict[str, list[str]] = defaultdict(list)
    for name in names():
        reason, family = reason_or_family(name)
        (refused[reason] if family is None else served[family]).append(name)
    for path, lines in (
        (ROOT / "ltmsearch/config/backbones.py", module_text(served)),
        (ROOT / "docs/reference/backbones.md", page_text(served, refused)),
    ):
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print({family: len(members) for family, members in served.items()}, "refused", sum(map(len, refused.values())))


if __name__ == "__main__":
    main()
