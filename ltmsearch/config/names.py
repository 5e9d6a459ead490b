"""Names that settings accept, in a module that imports nothing heavy, for `--help` and shell completion."""

from typing import Literal

OPERATORS = ("ltm", "pool", "tome")
DEVICES = ("auto", "cpu", "cuda")
"""Common devices; others, such as cuda:1, are accepted too."""
DATASETS = ("digits", "folder", "torch/cifar10", "torch/cifar100", "torch/fashion_mnist", "torch/mnist")
"""Common data sets; others that timm reads are accepted too."""

Sampler = Literal["auto", "tpe", "gp", "nsga2", "random"]
Precision = Literal["auto", "fp32", "bf16"]
Head = Literal["probe", "random"]
"""Starts of a classifier that given weights lack: fitted to their features, or timm's initialisation."""
Engine = Literal["torch", "compile", "onnxruntime"]
"""Runtimes whose latency is measured: torch without compilation, `torch.compile` and onnxruntime."""
NumberFormat = Literal["fp32", "bf16", "fp16"]
"""Number formats of weights and images in latency measurements."""
MemoryFormat = Literal["channels_last", "contiguous"]
"""Memory layouts of images in latency measurements."""

BACKBONES: dict[str, tuple[str, ...]] = {
    "mobilevit": ("mobilevit_xxs", "mobilevit_xs", "mobilevit_s"),
    "efficientvit": (
        "efficientvit_b0",
        "efficientvit_b1",
        "efficientvit_b2",
        "efficientvit_b3",
        "efficientvit_l1",
        "efficientvit_l2",
        "efficientvit_l3",
    ),
    "vit": (
        "vit_tiny_patch16_224",
        "vit_tiny_patch16_384",
        "vit_small_patch16_224",
        "vit_small_patch16_384",
        "vit_small_patch16_36x1_224",
        "vit_base_patch16_224",
        "vit_base_patch16_384",
        "vit_base_patch16_224_miil",
        "vit_base_patch16_plus_240",
        "vit_base_patch16_gap_224",
        "vit_base_patch16_reg4_gap_256",
        "vit_base_patch16_clip_224",
        "vit_base_patch16_clip_384",
        "vit_base_patch16_clip_quickgelu_224",
        "vit_base_patch16_plus_clip_240",
        "vit_base_patch16_siglip_224",
        "vit_base_patch16_siglip_256",
        "vit_base_patch16_siglip_384",
        "vit_base_patch16_siglip_512",
        "vit_base_patch16_siglip_gap_224",
        "vit_base_patch16_siglip_gap_256",
        "vit_base_patch16_siglip_gap_384",
        "vit_base_patch16_siglip_gap_512",
        "deit_tiny_patch16_224",
        "deit_small_patch16_224",
        "deit_base_patch16_224",
        "deit_base_patch16_384",
        "deit_tiny_distilled_patch16_224",
        "deit_small_distilled_patch16_224",
        "deit_base_distilled_patch16_224",
        "deit_base_distilled_patch16_384",
        "deit3_small_patch16_224",
        "deit3_small_patch16_384",
        "deit3_medium_patch16_224",
        "deit3_base_patch16_224",
        "deit3_base_patch16_384",
        "deit3_large_patch16_224",
        "deit3_large_patch16_384",
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        "swin_small_patch4_window7_224",
        "swin_base_patch4_window7_224",
        "swin_base_patch4_window12_384",
        "swin_large_patch4_window7_224",
        "swin_large_patch4_window12_384",
        "swin_s3_tiny_224",
        "swin_s3_small_224",
        "swin_s3_base_224",
    ),
    "swinv2": (
        "swinv2_tiny_window8_256",
        "swinv2_tiny_window16_256",
        "swinv2_small_window8_256",
        "swinv2_small_window16_256",
        "swinv2_base_window8_256",
        "swinv2_base_window16_256",
        "swinv2_base_window12_192",
        "swinv2_base_window12to16_192to256",
        "swinv2_base_window12to24_192to384",
        "swinv2_large_window12_192",
        "swinv2_large_window12to16_192to256",
        "swinv2_large_window12to24_192to384",
    ),
}  # fmt: skip
"""timm names of the backbones, by family."""


def backbone_names() -> list[str]:
    return [name for family in BACKBONES.values() for name in family]
