"""The Triton kernels: run by Triton's interpreter on the CPU, by a GPU where there is one, and compiled for GPUs."""

import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from torch import Tensor

from mask2former.modeling.pixel_decoder.ops import triton_kernels
from mask2former.modeling.pixel_decoder.ops.reference import (
    fused_ms_deform_attn_reference,
    ms_deform_attn_reference,
)

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SIZES = [(3, 4), (1, 5), (2, 1)]
Run = Callable[..., "Tensor | tuple[Tensor, ...]"]


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A process of its own, because Triton decides when it is imported whether it interprets."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            patch.setenv("OMP_NUM_THREADS", "1")
            pool.submit(os.getpid).result()
        yield pool


@pytest.fixture(params=["interpreter", pytest.param("gpu", marks=needs_gpu)])
def run(request: pytest.FixtureRequest) -> Run:
    """Calls a function of triton_kernels with tensors of the CPU and returns such."""
    if request.param == "interpreter":
        pool = request.getfixturevalue("interpreter")
        return lambda name, *arguments: pool.submit(call, name, arguments, "cpu").result()
    return lambda name, *arguments: call(name, arguments, "cuda")


def call(name: str, arguments: tuple, device: str, *, deterministic: bool = False):
    placed = [argument.to(device) if isinstance(argument, Tensor) else argument for argument in arguments]
    torch.use_deterministic_algorithms(deterministic)
    try:
        result = getattr(triton_kernels, name)(*placed)
    finally:
        torch.use_deterministic_algorithms(False)
    return result.cpu() if isinstance(result, Tensor) else tuple(tensor.cpu() for tensor in result)


def make_arguments(sizes=SIZES, *, fused=False, shared=False, batch=2, queries=5, heads=2, width=3, points=2):
    """Float64 tensors in the order of the operator's arguments; many points lie outside the maps."""
    torch.manual_seed(0)
    places = (batch, queries, heads, len(sizes), points)
    value = torch.randn(batch, sum(h * w for h, w in sizes), heads, width, dtype=torch.float64)
    weights = torch.randn(places, dtype=torch.float64)
    if not fused:
        return [value, torch.rand(*places, 2, dtype=torch.float64) * 1.6 - 0.3, weights]
    reference = torch.rand(1 if shared else batch, queries, len(sizes), 2, dtype=torch.float64)
    return [value, reference, torch.randn(*places, 2, dtype=torch.float64), weights]


def flat(sizes: list[tuple[int, int]]) -> list[int]:
    return [number for size in sizes for number in size]


def expect(sizes, arguments: list[Tensor], grad_output: Tensor | None = None) -> list[Tensor]:
    """The result and all gradients by the definition in float64."""
    leaves = [argument.detach().double().requires_grad_() for argument in arguments]
    reference = fused_ms_deform_attn_reference if len(leaves) == 4 else ms_deform_attn_reference
    output = reference(leaves[0], sizes, *leaves[1:])
    grad_output = torch.ones_like(output) if grad_output is None else grad_output.double()
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


def compute(run: Run, sizes, arguments: list[Tensor], grad_output: Tensor | None = None) -> list[Tensor]:
    """The result and all gradients by the kernels."""
    prefix = "fused_" if len(arguments) == 4 else ""
    output = run(f"{prefix}forward", arguments[0], flat(sizes), *arguments[1:])
    grad_output = torch.ones_like(output) if grad_output is None else grad_output
    wanted = (True,) if prefix else ()
    return [output, *run(f"{prefix}backward", grad_output, arguments[0], flat(sizes), *arguments[1:], *wanted)]


def assert_all_close(computed: list[Tensor], expected: list[Tensor], *, atol: float, rtol: float = 0.0) -> None:
    names = ("output", "grad_value", "grad_2", "grad_3", "grad_4")
    for name, ours, theirs in zip(names, computed, expected, strict=False):
        torch.testing.assert_close(
            ours.double(), theirs, atol=atol, rtol=rtol, msg=lambda text, name=name: f"{name}: {text}"
        )


def random_grad(arguments: list[Tensor]) -> Tensor:
    value, queries = arguments[0], arguments[-1].shape[1]
    return torch.randn(value.shape[0], queries, value.shape[2] * value.shape[3], dtype=value.dtype)


@pytest.mark.parametrize(
    "case",
    [
        {"width": 8, "fused": True},
        {"width": 20, "heads": 3, "fused": False},
        {"width": 20, "heads": 3, "fused": True},
        {"width": 32, "queries": 37, "batch": 3, "points": 1, "fused": False},  # more queries than a program takes
        {"width": 32, "queries": 37, "batch": 3, "points": 1, "fused": True},
        {"width": 64, "points": 3, "fused": False},
        {"width": 96, "heads": 1, "fused": True},
        {"sizes": [(1, 1)], "points": 1, "fused": False},
        {"sizes": [(1, 1), (1, 7), (7, 1), (16, 2)], "points": 4, "fused": True},
        {"sizes": [(2, 3)] * 8, "points": 1, "fused": False},
    ],
    ids=str,
)
def test_float32_equals_the_definition_in_value_and_gradients(run: Run, case: dict) -> None:
    arguments = [argument.float() for argument in make_arguments(**case)]
    grad_output = random_grad(arguments)
    sizes = case.get("sizes", SIZES)
    computed = compute(run, sizes, arguments, grad_output)
    assert_all_close(computed, expect(sizes, arguments, grad_output), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_float64_keeps_all_its_digits(run: Run, shared: bool) -> None:
    arguments = make_arguments(fused=True, shared=shared)
    computed, expected = compute(run, SIZES, arguments), expect(SIZES, arguments)
    assert_all_close(computed, expected, atol=1e-13)
    assert computed[2].shape == arguments[1].shape  # shared reference points collect the gradient of the batch


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_only_what_it_returns(run: Run, dtype: torch.dtype, fused: bool) -> None:
    arguments = [argument.to(dtype) for argument in make_arguments(fused=fused)]
    grad_output = random_grad(arguments)
    computed = compute(run, SIZES, arguments, grad_output)
    assert all(tensor.dtype == dtype for tensor in computed)
    expected = expect(SIZES, arguments, grad_output)
    assert_all_close(computed, expected, atol=1e-5, rtol=torch.finfo(dtype).eps)


def test_gradients_keep_the_dtype_of_their_arguments(run: Run) -> None:
    value, *rest = make_arguments(fused=True)
    arguments = [value.bfloat16(), *(argument.float() for argument in rest)]
    computed = compute(run, SIZES, arguments)
    assert [tensor.dtype for tensor in computed] == [torch.bfloat16, torch.bfloat16, *[torch.float32] * 3]
    assert_all_close(computed[2:], expect(SIZES, arguments)[2:], atol=1e-5)


def test_borders_and_centers_have_the_values_and_slopes_of_the_definition(run: Run) -> None:
    sizes = [(4, 4), (8, 4)]  # powers of two: the coordinates of both are exact
    x_T11 = torch.tensor([-0.125, 0.0, 0.125, 0.25, 0.875, 1.0, 1.125], dtype=torch.float64)[:, None, None]
    value, locations, weights = make_arguments(sizes, queries=len(x_T11))
    locations[..., 0, 0], locations[..., 0, 1] = x_T11, 0.6  # one point moves along x, the other along y
    locations[..., 1, 0], locations[..., 1, 1] = 0.3, x_T11
    arguments = [value, locations, weights]
    assert_all_close(compute(run, sizes, arguments), expect(sizes, arguments), atol=1e-12)


def test_points_far_outside_read_and_move_nothing(run: Run) -> None:
    far_T111 = torch.tensor([-3.0, 40.0, 1e30, -1e30, float("inf"), float("nan")])[:, None, None, None]
    value, locations, weights = [argument.float() for argument in make_arguments(queries=len(far_T111))]
    locations[..., 1] = far_T111
    assert not any(tensor.any() for tensor in compute(run, SIZES, [value, locations, weights]))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("empty", [{"batch": 0}, {"queries": 0}])
def test_nothing_to_do_gives_nothing_and_zero_gradients(run: Run, empty: dict, fused: bool) -> None:
    arguments = make_arguments(**empty, fused=fused, shared=True)
    output, *gradients = compute(run, SIZES, arguments)
    assert output.shape == (arguments[0].shape[0], arguments[-1].shape[1], 6)
    for gradient, argument in zip(gradients, arguments, strict=True):
        assert gradient.shape == argument.shape and not gradient.any()


@pytest.mark.parametrize("fused", [False, True])
def test_memory_layout_does_not_matter(run: Run, fused: bool) -> None:
    arguments = [argument.float() for argument in make_arguments(fused=fused)]
    expected = expect(SIZES, arguments)
    strided = [argument.transpose(0, 1).contiguous().transpose(0, 1) for argument in arguments]
    grad_output = torch.ones(1, 1, 1).expand(2, 5, 6)
    assert_all_close(compute(run, SIZES, strided, grad_output), expected, atol=1e-5)


@pytest.fixture(params=["interpreter", pytest.param("gpu", marks=needs_gpu)])
def run_deterministically(request: pytest.FixtureRequest) -> Run:
    if request.param == "interpreter":
        pool = request.getfixturevalue("interpreter")
        return lambda name, *arguments: pool.submit(call, name, arguments, "cpu", deterministic=True).result()
    return lambda name, *arguments: call(name, arguments, "cuda", deterministic=True)


@pytest.mark.parametrize(("magnitude", "fused"), [(1e-30, True), (1.0, False), (1e30, False)])
def test_deterministic_gradients_are_as_exact_as_others(
    run_deterministically: Run, magnitude: float, fused: bool
) -> None:
    arguments = [argument.float() for argument in make_arguments([(1, 2)], queries=200, fused=fused)]
    grad_output = random_grad(arguments) * magnitude
    computed = compute(run_deterministically, [(1, 2)], arguments, grad_output)
    grad_value = expect([(1, 2)], arguments, grad_output)[1]
    torch.testing.assert_close(computed[1].double(), grad_value, atol=1e-5 * magnitude, rtol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("broken", ["grad_output", "weights"])
def test_deterministic_gradients_do_not_hide_overflow(run_deterministically: Run, broken: str, fused: bool) -> None:
    arguments = [argument.float() for argument in make_arguments(fused=fused)]
    grad_output = torch.ones(2, 5, 6)
    spoiled = grad_output if broken == "grad_output" else arguments[-1]
    spoiled.view(-1)[0] = float("inf")
    assert not compute(run_deterministically, SIZES, arguments, grad_output)[1].isfinite().any()


@needs_gpu
@pytest.mark.parametrize("fused", [False, True])
def test_deterministic_gradients_are_equal_bit_by_bit_in_every_run(fused: bool) -> None:
    arguments = [argument.float() for argument in make_arguments([(3, 3)], queries=5000, fused=fused)]
    inputs = (random_grad(arguments), arguments[0], [3, 3], *arguments[1:], *((True,) if fused else ()))
    name = "fused_backward" if fused else "backward"
    runs = [call(name, inputs, "cuda", deterministic=True)[0] for _ in range(5)]
    assert all(torch.equal(again, runs[0]) for again in runs[1:])


@needs_gpu
def test_more_than_two_to_the_31_numbers_are_addressed() -> None:
    size = (4096, 2049)
    value = torch.zeros(1, size[0] * size[1], 8, 32, dtype=torch.bfloat16, device="cuda")
    assert value.numel() > 2**31
    value[:, -1] = 1
    locations = torch.tensor([1 - 0.5 / size[1], 1 - 0.5 / size[0]], device="cuda").expand(1, 1, 8, 1, 1, 2)
    output = triton_kernels.forward(value, list(size), locations, torch.ones(1, 1, 8, 1, 1, device="cuda"))
    torch.testing.assert_close(output, torch.ones_like(output))


class CompilingKernel:
    """Stands for a kernel, but compiles it for a GPU that need not exist instead of running it."""

    def __init__(self, kernel, capability: int) -> None:
        self.kernel, self.capability, self.assembly = kernel, capability, ""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.compile

    def compile(self, *arguments, num_warps: int, enable_fp_fusion: bool, **constants) -> None:
        import triton
        from triton.backends.compiler import GPUTarget

        names = {torch.float32: "fp32", torch.float64: "fp64", torch.float16: "fp16", torch.bfloat16: "bf16"}
        names[torch.int64] = "i64"
        signature, alignment = dict.fromkeys(self.kernel.arg_names, "constexpr"), {}
        for index, (parameter, argument) in enumerate(zip(self.kernel.params, arguments, strict=False)):
            if argument is None:
                constants[parameter.name] = None
            elif isinstance(argument, Tensor):
                signature[parameter.name] = f"*{names[argument.dtype]}"
                alignment[(index,)] = [["tt.divisibility", 16]]
            else:
                assert parameter.do_not_specialize, f"another {parameter.name} would compile the kernel anew"
                signature[parameter.name] = "i32"
        source = triton.compiler.ASTSource(self.kernel, signature, constants, alignment)
        options = {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}
        self.assembly = triton.compile(source, GPUTarget("cuda", self.capability, 32), options).asm["ptx"]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets and does not compile")
@pytest.mark.parametrize(
    ("dtype", "fused", "deterministic", "capability", "addition"),
    [
        (torch.bfloat16, True, False, 90, "add.v4.f32"),
        (torch.float32, False, False, 80, "add.f32"),
        (torch.float16, True, True, 80, "add.u64"),
    ],
)
def test_the_kernels_compile_to_vector_loads_and_float32_sums(
    monkeypatch: pytest.MonkeyPatch, tmp_path, dtype, fused: bool, deterministic: bool, capability: int, addition: str
) -> None:
    from mask2former.modeling.pixel_decoder.ops import triton_backward, triton_forward

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = [
        CompilingKernel(kernel, capability)
        for kernel in (triton_forward.forward_kernel, triton_backward.backward_kernel)
    ]
    monkeypatch.setattr(triton_kernels, "_load_kernels", lambda device_type: tuple(kernels))
    sizes = SIZES[:2]
    value, *rest = make_arguments(sizes, fused=fused, heads=8, width=32)
    arguments = [value.to(dtype), *(argument.float() for argument in rest)]
    prefix = "fused_" if fused else ""
    call(f"{prefix}forward", (arguments[0], flat(sizes), *arguments[1:]), "cpu")
    grad_output = random_grad(arguments)
    inputs = (grad_output, arguments[0], flat(sizes), *arguments[1:], *((True,) if fused else ()))
    call(f"{prefix}backward", inputs, "cpu", deterministic=deterministic)
    assert all("ld.global.v4.b32" in kernel.assembly for kernel in kernels)
    assert addition in kernels[1].assembly


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets and takes any tensor")
def test_tensors_of_the_cpu_are_refused() -> None:
    value, locations, weights = make_arguments()
    with pytest.raises(ValueError, match="needs tensors on a GPU, got cpu.*TRITON_INTERPRET=1"):
        triton_kernels.forward(value, flat(SIZES), locations, weights)


def test_too_many_levels_are_refused(run: Run) -> None:
    sizes = [(1, 2)] * 9
    value, locations, weights = make_arguments(sizes)
    with pytest.raises(ValueError, match="at most 8 levels, got 9"):
        run("forward", value, flat(sizes), locations, weights)


def test_without_triton_the_package_imports_and_the_functions_name_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.find_spec(triton_kernels.__name__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    value, locations, weights = make_arguments()
    with pytest.raises(ImportError, match="pip install triton"):
        module.forward(value, flat(SIZES), locations, weights)
