"""Rename the tensors of other libraries' checkpoints to the names that timm, or timm's own converter, takes.

Pure functions of state dicts. Names of transformers are those that its `save_pretrained` writes (4.x and 5.x) and those
of its modules (5.x); tests compare them, and the networks' outputs, with the installed transformers. Outputs of ViT and
DeiT differ in the last digits: their layer norms have eps 1e-12 in transformers and 1e-6 in timm.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Stems = Mapping[str, str]
"""Name in the file → name for timm, both without `.weight` or `.bias`; `#` is a number, the same ones in both."""

TOKENS: Stems = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
ATTENTION: Stems = {
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.self.query": "attn.q",
    "attention.self.key": "attn.k",
    "attention.self.value": "attn.v",
    "attention.q_proj": "attn.q",
    "attention.k_proj": "attn.k",
    "attention.v_proj": "attn.v",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
}
BLOCK: Stems = {
    **ATTENTION,
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
SCALED_BLOCK: Stems = {
    **ATTENTION,
    "norm1": "norm1",
    "norm2": "norm2",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
WINDOW: Stems = {
    "attention.self.relative_position_bias_table": "attn.relative_position_bias_table",
    "attention.relative_position_bias.relative_position_bias_table": "attn.relative_position_bias_table",
    "attention.self.relative_position_index": "attn.relative_position_index",  # a constant, which timm drops
    "attention.self.relative_coords_table": "attn.relative_coords_table",  # likewise
    "attention.self.continuous_position_bias_mlp.#": "attn.cpb_mlp.#",
    "attention.self.logit_scale": "attn.logit_scale",
}
FUSED = {"attn.qkv": ("attn.q", "attn.k", "attn.v"), "mlp.w12": ("mlp.gate", "mlp.up")}
"""Layers that timm, or its converter, has in one tensor, in this order."""
HALF_BIASES = {"attn.q.bias": "attn.q_bias", "attn.v.bias": "attn.v_bias"}
"""timm's names where keys have no bias: Swin V2 and DINOv3."""
HEADS = {
    "classifier": "head",
    "cls_classifier": "head",
    "distillation_classifier": "head_dist",
}
CLASSIFIER = "ForImageClassification"
PARTS = {
    "classifier.weight": CLASSIFIER,
    "cls_classifier.weight": f"{CLASSIFIER}WithTeacher",
    "decoder.0.weight": "ForMaskedImageModeling",
}
"""Name beside the bare model → end of the class's name in transformers."""
UNUSED = re.compile(r"pooler\.|embeddings\.mask_token$|hidden_states_norms\.")
"""Parts of a bare model that timm's networks lack: the pooler, what masked training needs, norms of feature maps."""
INSIDE = ("vit", "deit", "dinov2", "dinov2_with_registers", "swin", "swinv2")
"""What a classifier of transformers names the bare model in it."""
START = re.compile(r"(?P<prefix>(?:.+\.)?)embeddings\.patch_embeddings\.(?:projection\.)?weight")
CHUNKED = re.compile(r"blocks\.\d+\.(\d+\..+)")
MARK = "mask_token"
"""timm's converter recognises DINOv2 by this name, and drops the tensor."""


def _inside(places: Iterable[str], target: str, stems: Stems) -> Stems:
    return {f"{place}.{name}": f"{target}.{timm}" for place in places for name, timm in stems.items()}


LAYERS = ("encoder.layer.#", "layers.#")
SWIN: Stems = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.norm": "patch_embed.norm",
    "layernorm": "norm",
    **_inside(["encoder.layers.#.blocks.#"], "layers.#.blocks.#", {**BLOCK, **WINDOW}),
    # As in the checkpoints of Swin's authors, whose names timm converts: at the end of a stage.
    **_inside(["encoder.layers.#.downsample"], "layers.#.downsample", {"norm": "norm", "reduction": "reduction"}),
}
DINOV2_MLP: Stems = {
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.w12",
    "mlp.weights_out": "mlp.w3",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.w3",
}
DINOV2: Stems = {**TOKENS, **_inside(LAYERS, "blocks.#", {**SCALED_BLOCK, **DINOV2_MLP})}


def _dinov3(mlp: Stems) -> Stems:
    return {
        "embeddings.cls_token": "cls_token",
        "embeddings.register_tokens": "storage_tokens",
        "embeddings.patch_embeddings": "patch_embed.proj",
        "norm": "norm",
        **_inside(["layer.#", "model.layer.#"], "blocks.#", {**SCALED_BLOCK, **mlp}),
    }


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A model of transformers."""

    name: str
    signs: tuple[str, ...]
    """Parts of its names which no kind after it has all of."""
    stems: Stems
    heads: Stems = field(default_factory=lambda: HEADS)


KINDS = (
    Kind(name="Swinv2", signs=(".blocks.", "continuous_position_bias_mlp"), stems=SWIN),
    Kind(name="Swin", signs=(".blocks.", "relative_position_bias_table"), stems=SWIN),
    Kind(
        name="DINOv3ViT",
        signs=("embeddings.register_tokens", "embeddings.patch_embeddings.weight", "mlp.gate_proj"),
        stems=_dinov3({"mlp.gate_proj": "mlp.w1", "mlp.up_proj": "mlp.w2", "mlp.down_proj": "mlp.w3"}),
    ),
    Kind(
        name="DINOv3ViT",
        signs=("embeddings.register_tokens", "embeddings.patch_embeddings.weight"),
        stems=_dinov3({"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}),
    ),
    Kind(
        name="Dinov2WithRegisters",
        signs=("embeddings.register_tokens", "layer_scale1"),
        stems={**DINOV2, "embeddings.register_tokens": "register_tokens"},
        heads={},
    ),
    # The classifiers of DINOv2 take class token and mean patch together, and timm's only one of the two.
    Kind(name="Dinov2", signs=("embeddings.cls_token", "layer_scale1"), stems=DINOV2, heads={}),
    Kind(
        name="DeiT",
        signs=("embeddings.distillation_token",),
        stems={**TOKENS, "embeddings.distillation_token": "dist_token", **_inside(LAYERS, "blocks.#", BLOCK)},
    ),
    Kind(name="ViT", signs=("embeddings.cls_token",), stems={**TOKENS, **_inside(LAYERS, "blocks.#", BLOCK)}),
)


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """A state dict by names that timm, or its converter for the network, takes."""

    tensors: dict[str, Tensor]
    """Tensors that were not recognised keep their names."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Name of a renamed tensor → its name in the file, or the first of several names."""
    unplaced: frozenset[str] = frozenset()
    """Names of other parts of the model, such as its pooler, for which timm's network has no place."""
    origin: str = ""
    """Where the names were from, as a phrase; empty if they were not changed."""
    marked: bool = False
    """Whether `MARK` was added, which is not a tensor of the file."""


def rename(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Renamed:
    """Rename the tensors of a model of transformers, or of Meta's DINOv2; others keep their names.

    Queries, keys and values are put together. Other values are not changed, except in a DeiT with one classifier, for
    the same logits.

    Args:
        state: Tensors by the names in the file, without what training scripts put around them.
        wanted: The state dict of timm's network.
    """
    if (found := transformers_model(state)) is not None:
        return _rename_transformers(state, *found, wanted)
    return _rename_dinov2(state)


def transformers_model(names: Collection[str]) -> tuple[Kind, str] | None:
    """The model of transformers that has these names, and what is before its names; None for another library's."""
    starts = [match["prefix"] for name in names if (match := START.fullmatch(name))]
    if len(starts) != 1:
        return None
    own = [name for name in names if name.startswith(starts[0])]
    kinds = (kind for kind in KINDS if all(any(sign in name for name in own) for sign in kind.signs))
    kind = next(kinds, None)
    return None if kind is None else (kind, starts[0])


def _rename_transformers(state: Mapping[str, Tensor], kind: Kind, prefix: str, wanted: Mapping[str, Tensor]) -> Renamed:
    before, _, inside = prefix.removesuffix(".").rpartition(".")
    outer = f"{before}." if before else ""
    # A class of the user's own may classify other features than the class of transformers.
    heads = kind.heads if inside in INSIDE else {}
    tensors: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    unplaced = set()
    for name, value in state.items():
        own = name.startswith(prefix)
        renamed = _new_name(kind.stems, name[len(prefix) :]) if own else None
        if not own and name.startswith(outer):
            renamed = _new_name(heads, name[len(outer) :])
        if renamed is None or renamed in tensors:
            tensors[name] = value
            if not own or UNUSED.match(name[len(prefix) :]):
                unplaced.add(name)
        else:
            tensors[renamed], sources[renamed] = value, name
    _fuse(tensors, sources)
    _name_half_biases(tensors, sources, wanted)
    marked = kind.name.startswith("Dinov2")
    if marked:
        tensors[MARK] = torch.zeros(0)
    part = next((part for sign, part in PARTS.items() if inside in INSIDE and f"{outer}{sign}" in state), "Model")
    origin = f"converted from Hugging Face transformers' {kind.name}{part}"
    if marked and part == CLASSIFIER:
        origin += ", whose classifier does not fit timm's: it takes class token and mean patch together"
    if kind.name == "DeiT" and part == CLASSIFIER and _classify_by_class_token(tensors, wanted):
        origin += ", whose one classifier is doubled beside a zero one: timm averages those of its two tokens"
    return Renamed(tensors=tensors, sources=sources, unplaced=frozenset(unplaced), origin=origin, marked=marked)


def _rename_dinov2(state: Mapping[str, Tensor]) -> Renamed:
    """Names of Meta's DINOv2, for timm's converter.

    Source: `dinov2/models/vision_transformer.py` in https://github.com/facebookresearch/dinov2. Blocks may be in chunks
    (`block_chunks`, for FSDP), where the second number is the block's: `blocks.1.10.norm1.bias`.
    """
    if "cls_token" not in state:
        return Renamed(tensors=dict(state))
    names = {name: f"blocks.{match[1]}" if (match := CHUNKED.fullmatch(name)) else name for name in state}
    chunked = any(name != new for name, new in names.items()) and len(set(names.values())) == len(names)
    tensors = {names[name] if chunked else name: value for name, value in state.items()}
    marked = MARK not in state and ("register_tokens" in state or any(".mlp.w12." in name for name in state))
    if marked:
        tensors[MARK] = torch.zeros(0)
    return Renamed(
        tensors=tensors,
        sources={new: name for name, new in names.items() if name != new} if chunked else {},
        origin="converted from chunks of blocks, as Meta's DINOv2 has them" if chunked else "",
        marked=marked,
    )


def _new_name(stems: Stems, name: str) -> str | None:
    """The new name of a tensor; None if the table does not have it."""
    numbers = re.findall(r"(?<=\.)\d+(?=\.|$)", name)
    plain = re.sub(r"(?<=\.)\d+(?=\.|$)", "#", name)
    stem, dot, end = plain.rpartition(".")
    if end not in ("weight", "bias"):
        stem, dot, end = plain, "", ""
    if stem not in stems:
        return None
    parts = iter(numbers)
    return re.sub("#", lambda _: next(parts), f"{stems[stem]}{dot}{end}")


def _classify_by_class_token(tensors: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Change a classifier of DeiT's class token, in place, so that its mean with a zero one gives its logits.

    Returns:
        Whether it fits the network, and was changed.
    """
    pairs = [(f"head.{end}", f"head_dist.{end}") for end in ("weight", "bias")]
    if not all(one in tensors and two in wanted and tensors[one].shape == wanted[two].shape for one, two in pairs):
        return False
    for one, two in pairs:
        tensors[one], tensors[two] = 2 * tensors[one], torch.zeros_like(tensors[one])
    return True


def _fuse(tensors: dict[str, Tensor], sources: dict[str, str]) -> None:
    """Put the parts of a layer together, in place, where all are there and match."""
    for whole, parts in FUSED.items():
        for end in ("weight", "bias"):
            first = f".{parts[0]}.{end}"
            for layer in [name.removesuffix(first) for name in tensors if name.endswith(first)]:
                names = [f"{layer}.{part}.{end}" for part in parts]
                values = [tensors[name] for name in names if name in tensors and tensors[name].dim()]
                if len(values) == len(names) and len({value.shape[1:] for value in values}) == 1:
                    fused = f"{layer}.{whole}.{end}"
                    first_source, *others = [sources.pop(name, name) for name in names]
                    sources[fused] = f"{first_source} and {len(others)} more"
                    for name in names:
                        del tensors[name]
                    tensors[fused] = torch.cat(values)


def _name_half_biases(tensors: dict[str, Tensor], sources: dict[str, str], wanted: Collection[str]) -> None:
    """Rename biases of queries and values, in place; drop zeros, which change nothing, where the network has no bias.

    timm has some DINOv3 networks without these biases, since they are zero in the published weights.
    """
    for end, timm in HALF_BIASES.items():
        for name in [name for name in tensors if name.endswith(f".{end}")]:
            renamed, value, source = name.removesuffix(end) + timm, tensors.pop(name), sources.pop(name, name)
            if renamed in wanted or value.any():
                tensors[renamed], sources[renamed] = value, source
