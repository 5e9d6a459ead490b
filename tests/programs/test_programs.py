"""Exported programs compute the logits of the network at every batch size; others are refused."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.nets import SMALL, own_size, randomise
from torch import Tensor, nn

from ltmsearch.errors import ExportError, InputError
from ltmsearch.merging import OPERATORS
from ltmsearch.models import create_subnet
from ltmsearch.programs import ExportedFile, export_onnx, export_program, open_onnx, quantize_onnx, require_onnx
from ltmsearch.programs.onnx import onnx_reductions
from ltmsearch.programs.tracing import index_reductions, inference_copy, trace
from ltmsearch.programs.verify import BATCHES, NOISE, POOL, TOLERANCE, check_program, steady_images
from ltmsearch.schedules.schedule import Form

SIZE = 80
VARIANTS = [
    (name, form) for name, operator in sorted(OPERATORS.items()) if not operator.adaptive for form in operator.forms
]


def make_net() -> nn.Module:
    """A tiny ViT that merges by index, channels last and in training mode."""
    torch.manual_seed(0)
    model = create_subnet(
        "vit_tiny_patch16_224",
        keep_ratios={"blocks.*": 0.6},
        forms={"blocks.0": "hard", "blocks.1": "matched"},
        num_classes=5,
        img_size=SIZE,
        depth=2,
        embed_dim=32,
        num_heads=2,
    )
    return randomise(model).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return make_net()


@pytest.fixture(scope="module")
def onnx_file(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> ExportedFile:
    return export_onnx(net, tmp_path_factory.mktemp("onnx") / "model.onnx", img_size=SIZE)


@pytest.fixture(scope="module")
def program_file(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> ExportedFile:
    return export_program(net, tmp_path_factory.mktemp("program") / "model.pt2", img_size=SIZE)


def logits_of(net: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return inference_copy(net)(images)


def test_onnx_logits_match_at_every_batch_size(net: nn.Module, onnx_file: ExportedFile) -> None:
    run = open_onnx(onnx_file.file, threads=1)
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, SIZE, SIZE)
        torch.testing.assert_close(run(images), logits_of(net, images), atol=1e-4, rtol=0)
    assert onnx_file.bytes == onnx_file.file.stat().st_size
    assert onnx_file.opset is not None
    assert onnx_file.opset >= 18
    assert onnx_file.check.startswith("onnxruntime 1.")
    assert onnx_file.check.endswith(f"agrees: largest difference {onnx_file.difference:.1e} at batch 1 and 3")


def test_onnx_names_shapes_and_absence_of_paths(onnx_file: ExportedFile) -> None:
    import onnx

    model = onnx.load(onnx_file.file)
    onnx.checker.check_model(model)
    (images,), (logits,) = model.graph.input, model.graph.output
    assert [images.name, logits.name] == ["images", "logits"]
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == ["batch", 3, SIZE, SIZE]
    assert [d.dim_param or d.dim_value for d in logits.type.tensor_type.shape.dim] == ["batch", 5]
    assert len(model.graph.node) == onnx_file.nodes
    assert onnx_file.opset == next(opset.version for opset in model.opset_import if not opset.domain)
    assert b".py" not in onnx_file.file.read_bytes(), "file names of the machine that exported"


def test_products_with_weights_compute_in_int8(net: nn.Module, onnx_file: ExportedFile, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    # Two blocks with keys, queries and values in one, their output, and two layers of the MLP; the classifier. Not the
    # directions of the hard form's mask.
    assert quantize_onnx(onnx_file.file, path) == 2 * 4 + 1
    assert list(onnx_file.file.parent.iterdir()) == [onnx_file.file], "nothing is left beside it"
    images = torch.randn(3, 3, SIZE, SIZE)
    exact, quick = open_onnx(onnx_file.file, threads=1)(images), open_onnx(path, threads=1)(images)
    assert not torch.equal(exact, quick)
    assert float((exact - quick).abs().max()) < 0.2 * float(exact.abs().max())
    export_onnx(Mean(), tmp_path / "mean.onnx", img_size=8)
    with pytest.raises(ExportError, match="quantises products of tokens with weights, but this network has none"):
        quantize_onnx(tmp_path / "mean.onnx", path)


def test_program_logits_match_in_every_gradient_mode(net: nn.Module, program_file: ExportedFile) -> None:
    program = torch.export.load(program_file.file)
    assert index_reductions(program) == []
    run = program.module()
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        for batch in (1, 4):
            images = torch.randn(batch, 3, SIZE, SIZE)
            with mode():
                got = run(images)
            torch.testing.assert_close(got, logits_of(net, images), atol=1e-4, rtol=0)
    assert not [node for node in program.graph.nodes if "stack_trace" in node.meta]
    assert program_file.opset is None
    assert program_file.nodes > 100


def test_export_does_not_modify_the_network(
    net: nn.Module, onnx_file: ExportedFile, program_file: ExportedFile
) -> None:
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    fresh = make_net()
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in net.state_dict().items())
    for check in (onnx_file, program_file):
        assert list(check.file.parent.iterdir()) == [check.file]


def test_exporter_output_is_silenced(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        export_onnx(Mean(), tmp_path / "model.onnx", img_size=8)
        assert capfd.readouterr() == ("", "")
        assert caplog.records == []
        logging.getLogger("other").warning("goes on")
    assert len(caplog.records) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("operator", "form"), VARIANTS)
@pytest.mark.parametrize("backbone", sorted(SMALL))
def test_every_operator_and_family_can_be_exported(backbone: str, operator: str, form: Form, tmp_path: Path) -> None:
    if (backbone, operator) == ("efficientvit_b0", "tome"):
        pytest.skip("untrained keys are all alike: rounding decides what is merged, and which of two runtimes is right")
    size = own_size(backbone) if backbone.startswith("swin") else 96
    kwargs = {"num_classes": 7, "img_size": size, **SMALL[backbone]}
    net = randomise(create_subnet(backbone, keep_ratios={"*": 0.5}, operator=operator, forms=form, **kwargs))
    for export, name in ((export_onnx, "model.onnx"), (export_program, "model.pt2")):
        export(net, tmp_path / name, img_size=size)


class AddsByIndex(nn.Module):
    """Adds values up by index, in one of torch's ways."""

    in_chans = 3

    def __init__(self, add: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.add = add

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1)[:, :6]
        with torch.autocast("cpu", enabled=False):  # traced as a graph of its own
            return self.add(torch.zeros_like(pixels), torch.tensor([0, 0, 1, 1, 2, 2]), pixels)


@pytest.mark.parametrize(
    ("add", "name"),
    [
        (lambda out, index, values: out.index_add(1, index, values), "index_add"),
        (lambda out, index, values: out.scatter_add(1, index.expand_as(values), values), "scatter_add"),
        (lambda out, index, values: out.scatter_reduce(1, index.expand_as(values), values, "sum"), "scatter_reduce"),
        (lambda out, index, values: out.scatter(1, index.expand_as(values), values, reduce="add"), "scatter.reduce"),
        (lambda out, index, values: out.mT.index_put((index,), values.mT, accumulate=True).mT, "index_put"),
    ],
)  # fmt: skip
def test_scatter_with_reduction_is_refused_by_name(add: Any, name: str, tmp_path: Path) -> None:
    for export in (export_program, export_onnx):
        with pytest.raises(ExportError, match=f"must not scatter with reduction, but this network does: .*{name}"):
            export(AddsByIndex(add), tmp_path / "model", img_size=8)
    assert list(tmp_path.iterdir()) == []


def test_scatter_without_reduction_is_allowed() -> None:
    net = AddsByIndex(lambda out, index, values: out.mT.index_put((index * 2,), values.mT).mT)
    assert index_reductions(trace(inference_copy(net), 8)) == []
    net = AddsByIndex(lambda out, index, values: out.scatter(1, index.expand_as(values), values))
    assert index_reductions(trace(inference_copy(net), 8)) == []


def test_reductions_in_nested_onnx_graphs_are_found() -> None:
    import onnx_ir

    def graph(*nodes: Any) -> Any:
        return onnx_ir.Graph(inputs=[], outputs=[], nodes=nodes)

    plain = onnx_ir.node("ScatterElements", inputs=[], attributes={"reduction": "none"})
    adds = onnx_ir.node("ScatterND", inputs=[], attributes={"reduction": "add"})
    maximum = onnx_ir.node("ScatterElements", inputs=[], attributes={"reduction": "max"})
    branch = onnx_ir.node("If", inputs=[], attributes={"then_branch": graph(adds)})
    assert onnx_reductions(graph(plain)) == []
    plain = onnx_ir.node("ScatterElements", inputs=[], attributes={"reduction": "none"})
    assert onnx_reductions(graph(plain, maximum, branch)) == [
        "ScatterElements with reduction max", "ScatterND with reduction add",
    ]  # fmt: skip


class Mean(nn.Module):
    """Logits of a given size from the mean of an image; an optional step where the mean crosses zero."""

    in_chans = 3

    def __init__(self, scale: float = 1.0, step: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.scale, self.step = scale, step

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean(dim=(1, 2, 3))[:, None]
        out = self.scale * torch.cat((torch.ones_like(mean), mean), dim=1)
        return out if self.step is None else out + self.step(images)[:, None]


@pytest.mark.parametrize(("scale", "allowed"), [(0.1, TOLERANCE), (1.0, TOLERANCE), (50.0, 50 * TOLERANCE)])
def test_tolerance_grows_with_logits_above_one(scale: float, allowed: float) -> None:
    net = Mean(scale)
    difference = check_program(net, lambda images: net(images) + 0.9 * allowed, img_size=8, runtime="x")
    assert difference == pytest.approx(0.9 * allowed, rel=1e-2)
    with pytest.raises(ExportError, match=r"x must agree with the network up to .*, but differs by [^;]*$"):
        check_program(net, lambda images: net(images) + 1.1 * allowed, img_size=8, runtime="x")
    for wrong in (lambda images: net(images)[:, :1], lambda images: net(images) * torch.nan):
        with pytest.raises(ExportError, match="another shape, or not finite, at batch 1"):
            check_program(net, wrong, img_size=8, runtime="x")


def test_difference_in_the_larger_batch_only_is_found() -> None:
    net = Mean()
    with pytest.raises(ExportError, match="differs by 1"):
        check_program(net, lambda images: net(images) + (len(images) > 1), img_size=8, runtime="x")


def test_images_close_to_ties_are_avoided() -> None:
    images = torch.randn(POOL, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ties = images[[1, 6], 0, 0, 0]

    def step(batch: Tensor) -> Tensor:
        """Jumps where a pixel is that of image 1 or 6, as the choice of a merge does at a tie."""
        return sum((batch[:, 0, 0, 0] > tie).float() for tie in ties)  # type: ignore[return-value]

    chosen, moved = steady_images(Mean(step=step), 8)
    assert len(chosen) == sum(BATCHES)
    assert moved < 1e-4
    assert not any(torch.equal(image, images[index]) for image in chosen for index in (1, 6))


def test_error_mentions_ties_of_the_network() -> None:
    net = Mean(step=lambda images: (images.sum(dim=(1, 2, 3)) / NOISE).floor() % 2)
    with pytest.raises(
        ExportError, match=r"noise of 1e-05 in the images changes the network's own logits by 1.0e\+00, .* ties"
    ):
        check_program(net, lambda images: net(images) + 1, img_size=8, runtime="x")


def test_failed_check_keeps_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the one before")
    monkeypatch.setattr("ltmsearch.programs.onnx.open_onnx", lambda path, threads: lambda images: Mean()(images) + 1)
    with pytest.raises(ExportError, match="onnxruntime must agree"):
        export_onnx(Mean(), path, img_size=8)
    assert path.read_bytes() == b"the one before"
    assert list(tmp_path.iterdir()) == [path]


def test_tracing_failure_is_one_line(tmp_path: Path) -> None:
    net = Mean(step=lambda images: images.sum(dim=(1, 2, 3)) * float(images.sum()))
    with pytest.raises(ExportError, match="the network cannot be traced: ") as error:
        export_program(net, tmp_path / "model.pt2", img_size=8)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_missing_libraries_are_reported_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_onnx()
    monkeypatch.setattr(
        "ltmsearch.programs.onnx.find_spec", lambda library: None if library == "onnxscript" else object()
    )
    with pytest.raises(InputError, match=r"needs onnx, onnxscript and onnxruntime: pip install 'ltmsearch\[onnx\]'"):
        export_onnx(Mean(), tmp_path / "model.onnx", img_size=8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("operator", ["ltm", pytest.param("tome", marks=pytest.mark.slow)])
def test_onnxruntime_infers_all_shapes(operator: str, tmp_path: Path) -> None:
    """As it does first of all to quantise a file."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    net = create_subnet(
        "vit_tiny_patch16_224", operator=operator, keep_ratios=0.5, forms="matched", img_size=64, depth=2
    )
    export_onnx(net.eval(), tmp_path / "net.onnx", img_size=64)
    quant_pre_process(tmp_path / "net.onnx", tmp_path / "prepared.onnx")
    images = torch.randn(2, 3, 64, 64)
    prepared = open_onnx(tmp_path / "prepared.onnx", threads=1)
    torch.testing.assert_close(prepared(images), net(images), atol=1e-4, rtol=1e-4)
