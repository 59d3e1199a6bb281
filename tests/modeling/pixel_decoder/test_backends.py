"""Every implementation of multi-scale deformable attention that runs here equals the plain PyTorch one."""

import itertools
import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from mask2former.modeling.pixel_decoder.ops import backends, ms_deform_attn, ms_deform_attn_reference
from mask2former.modeling.pixel_decoder.ops.functional import fused_ms_deform_attn
from mask2former.modeling.pixel_decoder.ops.reference import fused_ms_deform_attn_reference
from tests.modeling.pixel_decoder.cuda_emulation import COMPILER, emulated_cuda
from tests.modeling.pixel_decoder.test_msdeformattn import Exportable, flat, make_decoder, make_features

CPP_IS_MISSING = "cpp" not in backends.available_backends()
needs_cpp = pytest.mark.skipif(CPP_IS_MISSING, reason="the C++ library is not built (M2F_BUILD_OPS=1 says why)")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
#: "cuda on the host": the kernels of the CUDA library under an emulation of CUDA.
GPU_BACKENDS = [
    pytest.param("cuda on the host", marks=needs_compiler),
    pytest.param("cuda", marks=needs_gpu),
    pytest.param("triton", marks=needs_gpu),  # on the CPU: test_triton_kernels.py
]

Sizes = list[tuple[int, int]]
SIZES: Sizes = [(3, 4), (1, 5), (2, 1)]


@pytest.fixture
def force(monkeypatch):
    """Force a backend for the rest of a test; None: the choice of the package."""

    def force(name: str | None) -> None:
        monkeypatch.delenv(backends.VARIABLE, raising=False)
        if name is not None:
            monkeypatch.setenv(backends.VARIABLE, name)
        backends.forget_choices()

    yield force
    monkeypatch.undo()
    backends.forget_choices()


@pytest.fixture(params=["embedding_bag", pytest.param("cpp", marks=needs_cpp), *GPU_BACKENDS])
def forced(request, force, monkeypatch) -> str:
    """The name of an implementation other than the reference, which is the one in use."""
    if request.param == "cuda on the host":
        monkeypatch.setitem(backends._LOADERS, "cuda", emulated_cuda)
    force(request.param.split()[0])
    return request.param


def device_of(name: str) -> torch.device:
    return torch.device("cuda" if name in ("cuda", "triton") else "cpu")


@pytest.fixture
def faster(forced):
    """The same; new tensors are on its device."""
    with device_of(forced):
        yield forced


@pytest.fixture
def compiled(faster) -> str:
    """One that is an operator of its own."""
    if faster == "embedding_bag":
        pytest.skip("a matter of compiled backends")
    return faster


@pytest.fixture
def gpu_backend(compiled) -> str:
    """One with kernels for GPUs."""
    if compiled == "cpp":
        pytest.skip("a matter of GPU kernels")
    return compiled


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def make_arguments(
    sizes: Sizes = SIZES, *, batch=2, queries=5, heads=2, width=8, points=2, dtype=torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations inside, near and outside the maps, weights of both signs."""
    torch.manual_seed(0)
    value = torch.randn(batch, sum(height * width for height, width in sizes), heads, width, dtype=dtype)
    locations = torch.rand(batch, queries, heads, len(sizes), points, 2, dtype=dtype) * 1.8 - 0.4
    return value, locations, torch.randn(batch, queries, heads, len(sizes), points, dtype=dtype)


def make_fused_arguments(sizes: Sizes = SIZES, *, shared=False, **options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, reference points, offsets in cells, logits."""
    value, locations, logits = make_arguments(sizes, **options)
    batch, queries = locations.shape[:2]
    reference = torch.rand(1 if shared else batch, queries, len(sizes), 2, dtype=value.dtype)
    return value, reference, 2 * torch.randn_like(locations), 2 * logits


def results(function, sizes: Sizes, arguments, *, clone: bool = True) -> list[Tensor]:
    """The output and the gradients of all arguments of an uneven sum of it."""
    arguments = [argument.detach() for argument in arguments]
    arguments = [(argument.clone() if clone else argument).requires_grad_() for argument in arguments]
    output = function(arguments[0], sizes, *arguments[1:])
    torch.manual_seed(1)
    (output * torch.randn(output.shape, dtype=torch.float64).to(output.dtype)).sum().backward()
    return [output.detach(), *(argument.grad for argument in arguments)]


def assert_equal_to_reference(sizes: Sizes, arguments, fused_arguments, tolerance: float = 1e-11) -> None:
    pairs = [
        (ms_deform_attn, ms_deform_attn_reference, arguments),
        (fused_ms_deform_attn, fused_ms_deform_attn_reference, fused_arguments),
    ]
    for function, reference, inputs in pairs:
        for got, expected in zip(results(function, sizes, inputs), results(reference, sizes, inputs), strict=True):
            assert got.dtype == expected.dtype
            scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
            torch.testing.assert_close(got, expected, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize(
    "sizes",
    [[(5, 7)], [(1, 1)], [(7, 3), (4, 2)], [(2, 3), (4, 5), (9, 11)], [(1, 1), (1, 9), (9, 1), (3, 3)], [(2, 2)] * 5],
    ids=str,
)
@pytest.mark.parametrize("points", [1, 3, 4])
def test_any_number_of_levels_and_points(faster, sizes, points) -> None:
    options = {"batch": 3, "heads": 3, "points": points}
    assert_equal_to_reference(sizes, make_arguments(sizes, **options), make_fused_arguments(sizes, **options))


@pytest.mark.parametrize("width", [1, 3, 8, 20, 32, 40, 64, 96])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_any_width_of_a_head(faster, width, dtype, tolerance) -> None:
    options = {"width": width, "dtype": dtype}
    assert_equal_to_reference(SIZES, make_arguments(**options), make_fused_arguments(**options), tolerance)


@pytest.mark.parametrize("fused", [False, True])
def test_memory_may_start_anywhere(faster, fused) -> None:
    # Vector loads need 16 bytes; a view of a larger tensor may start at any number.
    arguments = make_fused_arguments(dtype=torch.float32) if fused else make_arguments(dtype=torch.float32)
    shifted = [torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape) for tensor in arguments]
    assert all(tensor.data_ptr() % 16 for tensor in shifted)
    function = fused_ms_deform_attn if fused else ms_deform_attn
    for got, expected in zip(
        results(function, SIZES, shifted, clone=False), results(function, SIZES, arguments), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_pictures_may_share_their_reference_points(faster) -> None:
    assert_equal_to_reference(SIZES, make_arguments(), make_fused_arguments(shared=True))


@pytest.mark.parametrize("empty", [{"batch": 0}, {"queries": 0}], ids=str)
def test_nothing_to_do(faster, empty) -> None:
    assert_equal_to_reference(SIZES, make_arguments(**empty), make_fused_arguments(**empty))


def test_memory_layout_does_not_matter(faster) -> None:
    def strided(arguments):
        return [argument.transpose(0, 1).contiguous().transpose(0, 1) for argument in arguments]

    for function, arguments in ((ms_deform_attn, make_arguments()), (fused_ms_deform_attn, make_fused_arguments())):
        torch.testing.assert_close(
            function(strided(arguments)[0], SIZES, *strided(arguments)[1:]),
            function(arguments[0], SIZES, *arguments[1:]),
        )
    value, locations, weights = (argument.requires_grad_() for argument in make_arguments())
    ms_deform_attn(value, SIZES, locations, weights).sum().backward()  # the gradient of a sum has no strides
    dense = value.grad.clone()
    value.grad = None
    output = ms_deform_attn(value, SIZES, locations, weights)
    output.backward(torch.ones_like(output))
    torch.testing.assert_close(value.grad, dense)


@pytest.mark.parametrize(
    "place",
    [-50.0, -1e9, 1e9, 1.4, -0.125, 0.0, 0.125, 0.375, 0.5, 0.875, 1.0, 1.125],
)
def test_places_outside_on_the_border_and_on_centers(faster, place) -> None:
    # Cells are 1/4 wide: -0.125 and 1.125 are one cell beyond the outermost centers 0.125 and 0.875.
    value, locations, weights = make_arguments([(4, 4)])
    locations[..., 0] = place
    expected = ms_deform_attn_reference(value, [(4, 4)], locations, weights)
    torch.testing.assert_close(ms_deform_attn(value, [(4, 4)], locations, weights), expected)
    grads = [
        torch.autograd.grad(
            function(value.requires_grad_(), [(4, 4)], locations, weights.requires_grad_()).sum(), (value, weights)
        )
        for function in (ms_deform_attn, ms_deform_attn_reference)
    ]  # not that of the locations: it jumps at centers, where either side is right
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("place", [-10.0, -0.126, 1.125, 1.126, 10.0])
def test_places_outside_a_map_know_nothing_of_the_next(faster, place) -> None:
    sizes: Sizes = [(4, 8), (2, 2)]  # the next is narrower: no padding of one serves the other
    value, locations, weights = make_arguments(sizes)
    locations[:, :, :, 0, :, 1] = place
    found = results(ms_deform_attn, sizes, (value, locations, weights))
    for got, expected in zip(found, results(ms_deform_attn_reference, sizes, (value, locations, weights)), strict=True):
        torch.testing.assert_close(got, expected)
    value[:, 32:] = torch.inf
    weights[:, :, :, 1] = 0
    locations[:, :, :, 1] = 10.0
    assert not ms_deform_attn(value, sizes, locations, weights).any()


def test_gradients_are_exact(faster) -> None:
    sizes: Sizes = [(2, 3), (1, 2)]
    options = {"batch": 1, "queries": 2, "width": 2, "points": 2}
    for function, arguments in (
        (ms_deform_attn, make_arguments(sizes, **options)),
        (fused_ms_deform_attn, make_fused_arguments(sizes, **options)),
    ):
        arguments = [argument.requires_grad_() for argument in arguments]
        assert torch.autograd.gradcheck(lambda v, *rest, f=function: f(v, sizes, *rest), arguments)


def test_gradients_of_gradients_are_refused(compiled) -> None:
    value, locations, weights = make_arguments()
    value.requires_grad_()
    output = ms_deform_attn(value, SIZES, locations, weights.requires_grad_())
    (grad,) = torch.autograd.grad(output.square().sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match="ms_deform_attn_backward"):
        grad.sum().backward()


@pytest.mark.parametrize("width", [20, 32])
@pytest.mark.parametrize("points_are_narrow", [False, True])
@pytest.mark.parametrize(("dtype", "epsilon"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision_loses_no_more_than_its_rounding(faster, dtype, epsilon, points_are_narrow, width) -> None:
    # Arguments are exact in the dtype in which they are given; what is left is the rounding of results and of float32.
    for function, reference, inputs in (
        (ms_deform_attn, ms_deform_attn_reference, make_arguments(width=width)),
        (fused_ms_deform_attn, fused_ms_deform_attn_reference, make_fused_arguments(width=width)),
    ):
        value, *rest = inputs
        rest = [argument.float() for argument in rest]
        if points_are_narrow:  # but never the reference points, which are rest[0] of the fused function
            rest = [*rest[:-2], *(argument.to(dtype) for argument in rest[-2:])]
        arguments = [argument.requires_grad_() for argument in (value.to(dtype), *rest)]
        wide = [argument.detach().double().requires_grad_() for argument in arguments]
        got, exact = function(arguments[0], SIZES, *arguments[1:]), reference(wide[0], SIZES, *wide[1:])
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), exact, atol=1e-5, rtol=epsilon)
        grad = torch.randn(exact.shape, dtype=torch.float64).to(dtype)
        got.backward(grad)
        exact.backward(grad.double())
        for argument, wide_argument in zip(arguments, wide, strict=True):
            assert argument.grad.dtype == argument.dtype
            rounding = epsilon if argument.dtype == dtype else 0
            torch.testing.assert_close(argument.grad.double(), wide_argument.grad, atol=4e-5, rtol=rounding)


@needs_cpp
def test_two_backward_passes_agree_to_the_last_bit_whatever_the_threads(force) -> None:
    force("cpp")
    sizes: Sizes = [(9, 11), (5, 6)]
    arguments = make_fused_arguments(sizes, queries=129, width=32, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = results(fused_ms_deform_attn, sizes, arguments)
        torch.set_num_threads(3)
        shared = results(fused_ms_deform_attn, sizes, arguments)
    finally:
        torch.set_num_threads(threads)
    # The gradient of the reference points is a sum by torch, which may split it between threads.
    assert all(torch.equal(alone[i], shared[i]) for i in (0, 1, 3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_gradients_agree_to_the_last_bit_and_with_the_others(gpu_backend, deterministic, dtype) -> None:
    sizes: Sizes = [(2, 2)]  # many queries add to few cells
    value, *rest = make_fused_arguments(sizes, queries=70, width=32, dtype=torch.float32)
    first, second = (results(fused_ms_deform_attn, sizes, (value.to(dtype), *rest)) for _ in range(2))
    assert all(torch.equal(again, once) for again, once in zip(second, first, strict=True))
    torch.use_deterministic_algorithms(False)
    for got, expected in zip(
        first, results(fused_ms_deform_attn_reference, sizes, (value.to(dtype), *rest)), strict=True
    ):
        tolerance = 1e-4 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=2 * torch.finfo(dtype).eps)


def test_a_head_may_have_many_points(gpu_backend) -> None:
    if gpu_backend == "triton":
        pytest.skip("a matter of the CUDA library: Triton would compile for minutes")
    # More than fit into the shared memory of a full block.
    sizes: Sizes = [(3, 4), (2, 2)]
    for points in (60, 250, 500):
        options = {"batch": 1, "queries": 3, "heads": 2, "points": points}
        assert_equal_to_reference(sizes, make_arguments(sizes, **options), make_fused_arguments(sizes, **options), 1e-9)


def test_what_the_cuda_kernels_cannot_count_is_refused(gpu_backend) -> None:
    if gpu_backend == "triton":
        pytest.skip("a matter of the CUDA library")
    for sizes, points, message in (
        ([(1, 1)] * 33, 1, "at most 32 levels, got 33"),
        ([(1, 1)], 1025, "at most 1024 points for a query and head, got 1025"),
    ):
        arguments = make_arguments(sizes, batch=1, queries=1, points=points)
        with pytest.raises(RuntimeError, match=message):
            ms_deform_attn(arguments[0], sizes, *arguments[1:])


def test_gradients_of_reference_points_are_computed_only_where_they_are_wanted(compiled) -> None:
    value, reference, offsets, logits = make_fused_arguments()
    grads = torch.ops.mask2former.fused_ms_deform_attn_backward(
        torch.ones(2, 5, 16, dtype=value.dtype), value, list(itertools.chain(*SIZES)), reference, offsets, logits, False
    )
    assert [grad.shape for grad in grads] == [value.shape, (0,), offsets.shape, logits.shape]


@pytest.mark.parametrize("fused", [False, True])
def test_the_operators_keep_the_promises_of_torch_library(compiled, fused) -> None:
    arguments = make_fused_arguments() if fused else make_arguments()
    sizes = list(itertools.chain(*SIZES))
    name = "fused_ms_deform_attn" if fused else "ms_deform_attn"
    operator = getattr(torch.ops.mask2former, name)
    wanted = (True,) if fused else ()
    value, *rest = (argument.requires_grad_() for argument in arguments)
    torch.library.opcheck(operator.default, (value, sizes, *rest))
    grad = torch.randn_like(operator(value, sizes, *rest))
    plain = [argument.detach() for argument in arguments]
    torch.library.opcheck(
        getattr(torch.ops.mask2former, f"{name}_backward").default, (grad, plain[0], sizes, *plain[1:], *wanted)
    )


def test_a_compiled_pixel_decoder_equals_the_eager_one(forced) -> None:
    # No `with torch.device`: older versions of torch cannot trace through it.
    decoder = make_decoder(num_layers=1).to(device_of(forced))
    features = {name: x.to(device_of(forced)) for name, x in make_features(batch=1, height=40, width=52).items()}
    # Tracing is what the operators must survive; making code of the rest is the business of torch.
    traced = torch.compile(Exportable(decoder), backend="aot_eager", fullgraph=True)
    outcomes = []
    for function in (traced, lambda features: flat(decoder.forward_features(features))):
        decoder.zero_grad()
        outputs = function(features)
        sum(output.square().mean() for output in outputs).backward()
        outcomes.append([*outputs, *(parameter.grad for parameter in decoder.parameters())])
    for got, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, expected)


def operators_of_an_export() -> list[str]:
    decoder, features = make_decoder(num_layers=1).eval(), make_features(batch=1, height=45, width=53)
    with torch.no_grad():
        exported = torch.export.export(Exportable(decoder), (features,))
    graphs = [module.graph for module in exported.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    return [str(node.target) for graph in graphs for node in graph.nodes]


def test_an_export_contains_the_operator(compiled) -> None:
    operators = operators_of_an_export()
    assert operators.count("mask2former.fused_ms_deform_attn.default") == 1
    assert not [name for name in operators if "grid_sampler" in name]


@pytest.mark.parametrize(("name", "operator"), [("reference", "grid_sampler"), ("embedding_bag", "embedding_bag")])
def test_an_export_of_plain_pytorch_has_its_operators_alone(force, name, operator) -> None:
    force(name)
    operators = operators_of_an_export()
    assert not [name for name in operators if "mask2former" in name]
    assert [name for name in operators if operator in name]


def test_coordinates_that_are_no_numbers_give_results_that_are_none(force) -> None:
    force("embedding_bag")
    value, locations, weights = make_arguments()
    expected = ms_deform_attn(value, SIZES, locations, weights)
    locations[0, 1, 0, 2, 1, 0] = torch.nan
    found = ms_deform_attn(value, SIZES, locations, weights)
    assert found[0, 1, :8].isnan().all()
    found[0, 1, :8] = expected[0, 1, :8]
    assert torch.equal(found, expected)


def test_the_compiled_backend_is_preferred_on_the_cpu(force) -> None:
    force(None)
    expected = "reference" if CPP_IS_MISSING else "cpp"
    assert backends.chosen_backend("cpu") == expected == backends.available_backends()[0]


def test_a_gpu_prefers_compiled_cuda_then_triton(force, monkeypatch) -> None:
    def stand_in(name: str) -> backends.Backend:
        return backends.Backend(name, frozenset({"cuda"}), frozenset(), True, *[None] * 4)

    force(None)
    monkeypatch.setitem(backends._LOADERS, "triton", lambda: stand_in("triton"))
    monkeypatch.setitem(backends._LOADERS, "cuda", lambda: stand_in("cuda"))
    assert backends.chosen_backend("cuda") == "cuda"
    monkeypatch.setitem(backends._LOADERS, "cuda", lambda: "not compiled")
    backends.forget_choices()
    assert backends.chosen_backend("cuda") == "triton"
    monkeypatch.setitem(backends._LOADERS, "triton", lambda: "not installed")
    backends.forget_choices()
    assert backends.chosen_backend("cuda") == "reference"


@pytest.mark.skipif(
    shutil.which("nvcc") is None or torch.version.cuda is None, reason="needs nvcc and a torch with CUDA"
)
def test_where_nvcc_is_the_cuda_library_was_compiled_for_this_torch() -> None:
    program = (
        "from mask2former.modeling.pixel_decoder.ops import backends\n"
        "raise SystemExit(backends._load_library('_C_cuda.so', 'mask2former_cuda', 'nvcc') or 0)\n"
    )  # in a process of its own: the emulated library has the same operators
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_an_unknown_backend_is_refused_with_those_that_exist(force) -> None:
    force("fortran")
    with pytest.raises(ValueError, match="M2F_OPS_BACKEND=fortran .*Available here: .*reference"):
        ms_deform_attn(make_arguments()[0], SIZES, *make_arguments()[1:])


def test_a_backend_that_cannot_run_here_is_refused_with_the_reason(force, monkeypatch) -> None:
    force("cpp")
    monkeypatch.setitem(backends._LOADERS, "cpp", lambda: "no compiler")
    with pytest.raises(ValueError, match="M2F_OPS_BACKEND=cpp cannot be used: no compiler. Available here"):
        backends.chosen_backend("cpu")
    assert "cpp" not in backends.available_backends()


@needs_cpp
def test_a_library_older_than_the_sources_beside_it_is_not_run(force, monkeypatch, caplog) -> None:
    force(None)
    monkeypatch.setattr(backends, "fingerprint", lambda: "0123456789abcdef")
    assert backends.chosen_backend("cpu") == "reference"
    assert "was built from other sources than those beside it: build it again with `make setup`" in caplog.text


@needs_cpp
def test_a_backend_forced_for_another_device_is_refused(force) -> None:
    force("cpp")
    with pytest.raises(ValueError, match="M2F_OPS_BACKEND=cpp runs on cpu, the tensors are on cuda"):
        backends.chosen_backend("cuda")


def test_the_log_says_once_what_runs(force, caplog) -> None:
    force("reference")
    arguments = make_arguments()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            ms_deform_attn(arguments[0], SIZES, *arguments[1:])
    assert [record.getMessage() for record in caplog.records if "deformable" in record.getMessage()] == [
        "multi-scale deformable attention on cpu: reference"
    ]


@needs_cpp
@pytest.mark.parametrize("change", ["dtype", "shape", "tokens"])
def test_the_library_itself_refuses_what_does_not_fit(change) -> None:
    value, locations, weights = make_arguments()
    if change == "dtype":
        weights, message = weights.float(), "weights must be Double, got Float"
    elif change == "shape":
        weights, message = weights[:, :4], "weights must be"
    else:
        value, message = value[:, 1:], "must add up to the 18 tokens"
    with pytest.raises(RuntimeError, match=message):
        backends.backend("cpp").forward(value, list(itertools.chain(*SIZES)), locations, weights)


@needs_cpp
@pytest.mark.parametrize("instructions", ["default", "avx2"])
def test_machines_with_fewer_instructions_compute_the_same(instructions) -> None:
    program = (
        "import torch\n"
        "from tests.modeling.pixel_decoder.test_backends import *\n"
        "for width in (3, 20, 32):\n"
        "    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-5)):\n"
        "        arguments = [make(width=width, dtype=dtype) for make in (make_arguments, make_fused_arguments)]\n"
        "        assert_equal_to_reference(SIZES, *arguments, tolerance)\n"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": instructions, backends.VARIABLE: "cpp"}
    finished = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
