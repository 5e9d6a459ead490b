"""Names that settings accept, in a module that imports nothing heavy, for `--help` and shell completion."""

from typing import Literal

OPERATORS = ("ltm", "pool", "select", "threshold", "tome")
DEVICES = ("auto", "cpu", "cuda")
"""Common devices; others, such as cuda:1, are accepted too."""
DATASETS = ("digits", "folder", "torch/cifar10", "torch/cifar100", "torch/fashion_mnist", "torch/mnist")
"""Common data sets; others that timm reads are accepted too."""

Sampler = Literal["auto", "tpe", "gp", "nsga2", "random"]
Objective = Literal["auto", "kl", "loss"]
"""What a search minimises beside the cost."""
Precision = Literal["auto", "fp32", "bf16"]
Head = Literal["probe", "random"]
"""Starts of a classifier that given weights lack: fitted to their features, or timm's initialisation."""
Readout = Literal["timm", "register"]
"""What classifiers read: what they read in timm's network, or the registers that ltmsearch adds to it."""
Engine = Literal["torch", "compile", "onnxruntime"]
"""Runtimes whose latency is measured: torch without compilation, `torch.compile` and onnxruntime."""
NumberFormat = Literal["fp32", "bf16", "fp16"]
"""Number formats of weights and images in latency measurements."""
MemoryFormat = Literal["channels_last", "contiguous"]
"""Memory layouts of images in latency measurements."""
