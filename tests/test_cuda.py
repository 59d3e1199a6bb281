"""The whole model on a GPU: it says what it says on a CPU, and does not make the host wait for it."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import Tensor, nn

from mask2former import MaskFormer
from mask2former.config import load_config
from mask2former.deploy import load
from mask2former.deploy.export.exporter import ExportOptions, export_model
from mask2former.deploy.export.parity import parity_picture
from mask2former.modeling.cuda_graphs import RECORDED_AT
from mask2former.modeling.inference_layers import use_inference_layers
from mask2former.modeling.pixel_decoder.ops import backends
from tests.golden import golden_panoptic_model, picture
from tests.tiny_model import RESNET_18, gradients, tiny_config, tiny_model, tiny_sample

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ROOT = Path(__file__).parents[1]
TEST = "MODEL.MASK_FORMER.TEST"
ON_GPU = ("MODEL.DEVICE", "cuda")
BACKENDS = [*backends.PLAIN, "cuda", "triton"]
SAMPLES = [tiny_sample(num_targets=3, seed=seed, size=size) for seed, size in enumerate([(64, 64), (40, 61)])]


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Matrix units round float32 to 10 bits otherwise."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(params=BACKENDS)
def on_gpu(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Calls a function with deformable attention running through each implementation in turn."""
    if request.param not in backends.available_backends():
        pytest.skip(f"{request.param} is not available")

    def call(function: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patch:
            patch.setenv(backends.VARIABLE, request.param)
            backends.forget_choices()
            return function()

    yield call
    backends.forget_choices()


@pytest.fixture(scope="module")
def published_model() -> MaskFormer:
    """COCO panoptic R50 with the weights of the golden figures, on the CPU."""
    return golden_panoptic_model()


def _host(value: Any) -> Tensor:
    return torch.as_tensor(value).detach().float().cpu()


def _difference(found: Any, expected: Any) -> float:
    found, expected = _host(found), _host(expected)
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def test_the_published_model_gives_the_results_of_the_cpu(published_model: MaskFormer, on_gpu: Any) -> None:
    batch = [{"image": picture(21, (80, 112)), "height": 60, "width": 90}, {"image": picture(22, (100, 70))}]
    expected_results = published_model(batch)
    model = copy.deepcopy(published_model).cuda()
    for found, expected in zip(on_gpu(lambda: model(batch)), expected_results, strict=True):
        assert all(tensor.is_cuda for tensor in (found["sem_seg"], found["panoptic_seg"][0], found["instances"].scores))
        assert _difference(found["sem_seg"], expected["sem_seg"]) < 1e-3
        assert [info["category_id"] for info in found["panoptic_seg"][1]] == [
            info["category_id"] for info in expected["panoptic_seg"][1]
        ]
        # A pixel whose two best segments are equal to rounding may go to either.
        assert (found["panoptic_seg"][0].cpu() != expected["panoptic_seg"][0]).float().mean() < 1e-3
        # Of nearly equal scores either may come first.
        assert _difference(found["instances"].scores, expected["instances"].scores) < 1e-4
        classes, expected_classes = (
            result["instances"].pred_classes.bincount().tolist() for result in (found, expected)
        )
        assert classes == expected_classes
        areas, expected_areas = (
            result["instances"].pred_masks.sum(dim=(1, 2)).sort().values for result in (found, expected)
        )
        assert _difference(areas, expected_areas) < 1e-3


@torch.no_grad()
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.03), ("fp16", 0.005)])
def test_half_precision_is_near_float32(precision: str, tolerance: float, on_gpu: Any) -> None:
    plain, half = (tiny_model(*ON_GPU, f"{TEST}.PRECISION", name).eval() for name in ("fp32", precision))
    predictions = on_gpu(lambda: [model.predict(SAMPLES) for model in (half, plain)])
    for found, expected in zip(*predictions, strict=True):
        assert found.class_logits.dtype == found.masks.features.dtype == torch.float32
        assert 0 < _difference(found.masks.features, expected.masks.features) < tolerance
    assert all(result["sem_seg"].isfinite().all() for result in half(SAMPLES))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_recorded_network_gives_the_same_bits(precision: str) -> None:
    recorded, plain = (
        tiny_model(*ON_GPU, f"{TEST}.PRECISION", precision, "MODEL.CUDA_GRAPHS", on).eval() for on in (True, False)
    )
    sizes = [(64, 64), (96, 64)] * (RECORDED_AT + 2)
    for seed, size in enumerate(sizes):
        samples = [tiny_sample(seed=seed, size=size)]
        with torch.inference_mode():
            (found,), (expected,) = recorded.predict(samples), plain.predict(samples)
        assert torch.equal(found.class_logits, expected.class_logits)
        assert torch.equal(found.masks.features, expected.masks.features)
        assert torch.equal(found.masks.embeddings, expected.masks.embeddings)
    assert len(recorded._cuda_graphs._recordings) == 2
    assert not plain._cuda_graphs._recordings


@torch.no_grad()
def test_a_recording_ends_when_weights_change_or_hooks_come() -> None:
    model = tiny_model(*ON_GPU).eval()
    samples = [tiny_sample()]
    for _ in range(RECORDED_AT + 1):
        before = model.predict(samples)[0].class_logits
    assert len(model._cuda_graphs._recordings) == 1
    model.sem_seg_head.predictor.class_embed.bias.add_(1)
    for _ in range(RECORDED_AT + 1):
        after = model.predict(samples)[0].class_logits
        torch.testing.assert_close(after, before + 1, rtol=1e-4, atol=1e-4)
    calls = []
    hook = model.backbone.register_forward_hook(lambda *arguments: calls.append(arguments))
    model.predict(samples)
    hook.remove()
    assert len(calls) == 1
    with torch.enable_grad():
        assert model.predict(samples)[0].class_logits.requires_grad
    duplicate = copy.deepcopy(model)
    assert not duplicate._cuda_graphs._recordings


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_network_never_waits_for_the_gpu(precision: str) -> None:
    model = tiny_model(*ON_GPU, f"{TEST}.PRECISION", precision).eval()
    for _ in range(RECORDED_AT + 1):  # constants of these sizes are made, the network is recorded
        model.predict(SAMPLES)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.predict(SAMPLES)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.no_grad()
def test_the_results_of_a_picture_wait_for_the_gpu_once() -> None:
    """When all is decided, and the host has to know which segments there are."""
    model = tiny_model(*ON_GPU).eval()
    for _ in range(RECORDED_AT + 1):
        model(SAMPLES)
    assert _waits(lambda: model(SAMPLES)) == len(SAMPLES)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fused_convolutions_do_not_read_memory_that_nobody_wrote(dtype: torch.dtype) -> None:
    conv = nn.Sequential(Conv2d(32, 64, 3, padding=1, norm=FrozenBatchNorm2d(64))).cuda().eval()
    use_inference_layers(conv)
    x = torch.randn(2, 32, 40, 52, device="cuda").contiguous(memory_format=torch.channels_last)
    addend = torch.randn(2, 64, 40, 52, device="cuda")
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        for options in ((True,), (True, addend)):
            expected = conv[0](x, False, *(item.to(dtype) for item in options[1:])).relu()
            poison = [torch.full((2, 64, 40, 52), math.nan, device="cuda", dtype=dtype) for _ in range(8)]
            del poison
            found = conv[0](x, *options)
            assert _difference(found, expected) < 0.01


@torch.no_grad()
def test_a_model_that_moves_leaves_no_recording_behind() -> None:
    model = tiny_model(*ON_GPU).eval()
    for _ in range(RECORDED_AT):
        model.predict(SAMPLES)
    assert model._cuda_graphs._recordings
    model.cpu()
    assert not model._cuda_graphs._recordings


def test_losses_and_gradients_are_those_of_the_cpu(on_gpu: Any) -> None:
    unfrozen = (*RESNET_18, "MODEL.BACKBONE.FREEZE_AT", 0)
    cpu, gpu = tiny_model(*unfrozen).train(), tiny_model(*unfrozen, *ON_GPU).train()
    expected, found = cpu(SAMPLES), on_gpu(lambda: gpu(SAMPLES))
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        assert found[name].item() == pytest.approx(loss.item(), rel=1e-4), name
    sum(expected.values()).backward()
    on_gpu(lambda: sum(found.values()).backward())
    of_gpu = gradients(gpu)
    for name, gradient in gradients(cpu).items():
        scale = gradient.norm().clamp(min=1e-3)
        assert (of_gpu[name].cpu() - gradient).norm() / scale < 1e-2, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_training_step_under_autocast_is_near_float32(dtype: torch.dtype) -> None:
    model = tiny_model(*ON_GPU).train()
    expected = sum(model(SAMPLES).values()).item()
    with torch.autocast("cuda", dtype=dtype):
        losses = model(SAMPLES)
    total = sum(losses.values())
    assert total.item() == pytest.approx(expected, rel=0.05)
    total.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


def test_a_training_step_waits_once_for_the_costs_of_the_matcher() -> None:
    torch.manual_seed(0)
    model = build_model(tiny_config(*ON_GPU)).train()
    samples = SAMPLES[:1] * 2
    for sample in samples:
        sample["instances"].gt_masks = sample["instances"].gt_masks.pin_memory()
    sum(model(samples).values()).backward()
    assert _waits(lambda: sum(model(samples).values()).backward()) == 1


def test_compiled_for_a_gpu_equals_eager() -> None:
    small = (*RESNET_18, "MODEL.MASK_FORMER.DEC_LAYERS", 2)
    torch.compiler.reset()
    eager, compiled = (tiny_model(*ON_GPU, *small, "MODEL.COMPILE", on).eval() for on in (False, True))
    for size in ((64, 96), (96, 160)):
        with torch.inference_mode():
            (expected,), (found,) = (model.predict([tiny_sample(size=size)]) for model in (eager, compiled))
        assert _difference(found.class_logits, expected.class_logits) < 1e-3
        assert _difference(found.masks.features, expected.masks.features) < 1e-3


def _waits(function: Any) -> int:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in caught if "synchronizing CUDA operation" in str(warning.message)]
    print(*(f"{warning.filename}:{warning.lineno}" for warning in found), sep="\n")
    return len(found)


@pytest.mark.parametrize("format", ["torchscript", "torch_export"])
def test_an_export_runs_where_its_pictures_are(tmp_path: Path, format: str) -> None:
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(ROOT / "weights/digits_panoptic.safetensors")]
    cfg = load_config(ROOT / "configs/digits/panoptic.yaml", overrides)
    export_model(cfg, ExportOptions(format), tmp_path / "model")
    segmenters = [load(tmp_path / "model", device=device) for device in ("cpu", "cuda")]
    image = parity_picture((96, 144)).permute(1, 2, 0).numpy()
    expected, found = (segmenter(image) for segmenter in segmenters)
    assert expected.label_map is not None and found.label_map is not None
    assert expected.segments and (found.label_map != expected.label_map).mean() < 1e-3
