"""Training on a CPU: slow and faulty kernels are replaced by others with the same results."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.processes import completed
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ltmsearch.engine.runtime import Runtime

CPU = torch.device("cpu")
BF16 = Runtime(device=CPU, dtype=torch.bfloat16, reason="")


def runtime(precision: str) -> Runtime:
    return Runtime(device=CPU, dtype=torch.bfloat16 if precision == "bf16" else torch.float32, reason="")


class BackwardFormats(TorchDispatchMode):
    """Number formats of the gradients that backward kernels of convolution and attention get."""

    def __init__(self) -> None:
        super().__init__()
        self.formats: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.endswith("backward") and ("convolution" in name or "attention" in name):
            self.formats.setdefault(name, set()).add(args[0].dtype)
        return func(*args, **(kwargs or {}))


def attention(q: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, q.flip(2), q.roll(1, 2))


def masked_attention(q: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, q.flip(2), q.roll(1, 2), attn_mask=q.detach().mean(dim=3, keepdim=True))


def depthwise(x: Tensor) -> Tensor:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6)
    return conv(x)


def dense(x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return F.conv2d(x, torch.randn(4, 6, 3, 3, requires_grad=True), padding=1)


@pytest.mark.parametrize("operation", [attention, masked_attention, depthwise])
def test_slow_backward_kernels_run_in_fp32(operation: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 6, 8, 8).bfloat16().float().requires_grad_()
    expected = operation(x)
    with BackwardFormats() as seen:
        with BF16.autocast():
            out = operation(x)
        assert out.dtype == torch.bfloat16, "as autocast returns it"
        out.float().square().sum().backward()
    assert set().union(*seen.formats.values()) == {torch.float32}
    assert torch.equal(out, expected.bfloat16())
    grad = torch.autograd.grad(expected.bfloat16().float().square().sum(), x)[0]
    assert torch.equal(x.grad, grad)


def test_fast_kernels_stay_in_bf16() -> None:
    with BackwardFormats() as seen, BF16.autocast():
        dense(torch.randn(2, 6, 8, 8, requires_grad=True)).float().sum().backward()
    assert seen.formats == {"convolution_backward": {torch.bfloat16}}


@pytest.mark.parametrize("operation", [attention, depthwise])
def test_without_gradients_nothing_changes(operation: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 6, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = operation(x)
    with torch.no_grad(), BF16.autocast():
        assert torch.equal(operation(x), expected)


CONV = {
    "by keywords": lambda x, w: F.conv2d(x, weight=w, stride=2),
    "without a batch": lambda x, w: F.conv2d(x[0], w, stride=2),
    "one stride": lambda x, w: F.conv2d(x, w, None, (2,), (0,)),
    "two strides": lambda x, w: F.conv2d(x, w, stride=[1, 2], padding=[0, 0]),
    "padded": lambda x, w: F.conv2d(x, w, stride=2, padding=1),
    "valid": lambda x, w: F.conv2d(x, w, stride=2, padding="valid"),
}


@pytest.mark.parametrize("call", CONV.values(), ids=list(CONV))
def test_strided_convolutions_may_be_called_in_any_way(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, w = torch.randn(2, 3, 9, 8), torch.randn(5, 3, 1, 1, requires_grad=True)
    expected = call(x.double(), w.double())
    with runtime("fp32").autocast():
        out = call(x, w)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    grads = [torch.autograd.grad(each.square().sum(), w)[0] for each in (out, expected)]
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"is_causal": True}, {"scale": 0.3}, {"attn_mask": torch.eye(8).bool()}],
    ids=["causal", "scale", "mask"],
)
def test_attention_keeps_its_options(options: dict[str, Any]) -> None:
    q = torch.randn(2, 3, 8, 4).bfloat16().float().requires_grad_()
    expected = F.scaled_dot_product_attention(q, q, q, **options)
    with BF16.autocast():
        for out in (
            F.scaled_dot_product_attention(q, q, q, **options),
            F.scaled_dot_product_attention(query=q, key=q, value=q, **options),
        ):
            assert torch.equal(out, expected.bfloat16())


@pytest.mark.parametrize("operation", [attention, depthwise])
def test_autocast_leaves_float64_alone(operation: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64, requires_grad=True)
    if operation is depthwise:
        torch.set_default_dtype(torch.float64)
    try:
        with BF16.autocast():
            assert operation(x).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("operation", [attention, depthwise, dense])
def test_fp32_stays_as_it_is(operation: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 6, 8, 8, requires_grad=True)
    with runtime("fp32").autocast():
        assert torch.equal(operation(x), operation(x.detach()))


STRIDED = """
import sys, torch
from ltmsearch.engine.runtime import Runtime
torch.set_num_threads(1)
precision, channels = sys.argv[1], int(sys.argv[2])
runtime = Runtime(device=torch.device("cpu"), dtype=getattr(torch, precision), reason="")
conv = torch.nn.Conv2d(channels, 16, 1, stride=2, bias=True)
runtime.prepare(conv)
images = runtime.images(torch.randn(4, channels, 112, 112))
exact = torch.nn.functional.conv2d(images.double(), conv.weight.double(), conv.bias.double(), stride=2)
expected = torch.autograd.grad(exact.square().mean(), conv.weight)[0]
for _ in range(20):
    conv.zero_grad()
    with runtime.autocast():
        out = conv(images)
    out.float().square().mean().backward()
tolerance = 1e-5 if precision == "float32" else 0.02
assert torch.allclose(out.double(), exact, atol=tolerance, rtol=tolerance)
assert torch.allclose(conv.weight.grad.double(), expected.double(), atol=tolerance, rtol=tolerance)
"""
"""Without other kernels this process dies with "corrupted size vs. prev_size", where oneDNN uses AVX-512."""


@pytest.mark.long
@pytest.mark.parametrize("channels", [3, 15, 16])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_strided_convolutions_of_few_channels_have_right_gradients(precision: str, channels: int) -> None:
    ended = completed([sys.executable, "-c", STRIDED, precision, str(channels)], check=False)
    assert ended.returncode == 0, ended.stderr[-500:]
