"""transformers loads the folders written here, and the other way round; both models then compute the same."""

from __future__ import annotations

import json

import pytest
import torch
from detectron2.modeling import build_model
from safetensors.torch import load_file, save_file

from mask2former.modeling.backbone.windows import relative_position_index
from mask2former.modeling.transformers_config import config_overrides, to_transformers_config
from mask2former.modeling.transformers_folder import read_transformers, write_transformers
from tests.golden import picture
from tests.modeling.transformers_cases import CASES, case_config, case_model, randomize

transformers = pytest.importorskip("transformers", reason="extra 'hf' is not installed")

SIZE = (64, 96)  # maps down to 2x3 cells: smaller than the windows of Swin
TOLERANCE = 1e-4
SWIN = "Swin-T, instance"


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it doubts ResNets, for which this file is the proof
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(level)
    transformers.logging.enable_progress_bar()


def make_theirs(cfg):
    torch.manual_seed(0)
    theirs = transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig.from_dict(to_transformers_config(cfg))
    ).eval()
    randomize(theirs)
    return theirs


def load_into_ours(cfg, folder):
    """Our model with the weights of a folder, none of them missing or left over."""
    model = build_model(cfg).eval()
    missing, unexpected = model.load_state_dict(read_transformers(folder).tensors, strict=False)
    assert not unexpected
    assert all(name.endswith((".relative_position_index", ".num_batches_tracked")) for name in missing)
    return model


def logits_of_ours(model, pixels):
    with torch.no_grad():
        outputs = model.sem_seg_head(model.backbone(pixels))
    return outputs["pred_logits"], outputs["pred_masks"]


def logits_of_theirs(model, pixels):
    with torch.no_grad():
        outputs = model(pixel_values=pixels)
    return outputs.class_queries_logits, outputs.masks_queries_logits


def assert_same(ours, theirs):
    for actual, expected in zip(ours, theirs, strict=True):
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() / expected.abs().max() < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_what_is_written_here(tmp_path, case):
    cfg = case_config(case)
    ours = case_model(cfg)
    write_transformers(tmp_path / "model", cfg, ours.state_dict(), ours.metadata)
    theirs, report = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))

    image = picture(1, SIZE)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model")
    assert isinstance(processor, transformers.Mask2FormerImageProcessor)
    pixels = processor(image.permute(1, 2, 0).numpy(), return_tensors="pt")["pixel_values"]
    expected_pixels = ours._images([{"image": image}])[0].tensor
    assert torch.allclose(pixels, expected_pixels, atol=1e-5)
    assert_same(logits_of_ours(ours, expected_pixels), logits_of_theirs(theirs.eval(), pixels))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("shard_size", "expected_file"), [("5GB", "model.safetensors"), ("500KB", "model.safetensors.index.json")]
)
def test_what_transformers_writes_is_loaded_here(tmp_path, case, shard_size, expected_file):
    cfg = case_config(case)
    theirs = make_theirs(cfg)
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / expected_file).is_file()
    overrides = config_overrides(json.loads((tmp_path / "config.json").read_text()))
    described = cfg.clone()
    described.merge_from_list([item for pair in overrides.items() for item in pair])
    assert described == cfg
    pixels = torch.randn(2, 3, *SIZE)
    assert_same(logits_of_ours(load_into_ours(cfg, tmp_path), pixels), logits_of_theirs(theirs, pixels))


def test_weights_come_back_from_transformers_bit_for_bit(tmp_path):
    theirs = make_theirs(case_config(SWIN))
    theirs.save_pretrained(tmp_path / "theirs")
    tensors = read_transformers(tmp_path / "theirs").tensors
    write_transformers(tmp_path / "ours", case_config(SWIN), tensors, None)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    unused = "model.pixel_level_module.encoder.swin.layernorm."
    assert set(before) == set(after)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if not name.startswith(unused))


def test_files_of_transformers_4_are_loaded_here(tmp_path):
    """They have no unused norm, and the index of every window."""
    cfg = case_config(SWIN)
    theirs = make_theirs(cfg)
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {name: tensor for name, tensor in tensors.items() if ".swin.layernorm." not in name}
    assert len(old) == len(tensors) - 2
    for name in tensors:
        if name.endswith("relative_position_bias_table"):
            old[name.replace("bias_table", "index")] = relative_position_index(cfg.MODEL.SWIN.WINDOW_SIZE)
    assert len(old) == len(tensors) - 2 + sum(cfg.MODEL.SWIN.DEPTHS)
    save_file(old, tmp_path / "model.safetensors")
    pixels = torch.randn(1, 3, *SIZE)
    assert_same(logits_of_ours(load_into_ours(cfg, tmp_path), pixels), logits_of_theirs(theirs, pixels))
