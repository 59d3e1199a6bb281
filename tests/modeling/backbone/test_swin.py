"""The Swin Transformer backbone."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from mask2former.config import load_config
from mask2former.modeling.backbone.swin import D2SwinTransformer
from mask2former.modeling.backbone.windows import (
    join_windows,
    relative_position_index,
    shifted_region_logits,
    split_into_windows,
)
from tests.golden import CONFIGS

SWIN_TINY = CONFIGS / "ade20k/semantic-segmentation/swin/maskformer2_swin_tiny_bs16_160k.yaml"
CPU = torch.device("cpu")


def make_backbone(**changes) -> D2SwinTransformer:
    torch.manual_seed(0)
    options = {"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 4], "window_size": 3, **changes}
    return D2SwinTransformer(**options)


def test_windows_are_cut_by_row_and_joined_again() -> None:
    x = torch.arange(2 * 4 * 6.0).view(2, 4, 6, 1)
    windows = split_into_windows(x, 2)
    assert windows.shape == (2 * 6, 4, 1)
    assert windows[1].flatten().tolist() == [2, 3, 8, 9]
    assert torch.equal(join_windows(windows, 2, 4, 6), x)


def test_relative_positions_are_numbered_as_published() -> None:
    index = relative_position_index(7)
    assert index[0, :4].tolist() == [84, 83, 82, 81]
    assert index[48, 0] == 168


def test_tokens_attend_only_their_neighbors_before_the_shift() -> None:
    # One row of 4 tokens, windows of 2, shifted by 1: the last window joins the last token and the first.
    logits = shifted_region_logits(4, 4, 2, 1, CPU)
    assert logits.shape == (4, 4, 4)
    assert not logits[0].any()
    assert logits[1].tolist() == [[0, -100, 0, -100], [-100, 0, -100, 0]] * 2
    assert (logits[3] == -100).sum() == 12


@pytest.mark.parametrize(("height", "width"), [(70, 101), (64, 64), (33, 32)])
def test_maps_have_the_published_sizes(height: int, width: int) -> None:
    outputs = make_backbone()(torch.randn(1, 3, height, width))
    sizes = [(-(-height // 4), -(-width // 4))]
    for _ in range(3):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    assert list(outputs) == ["res2", "res3", "res4", "res5"]
    assert [tuple(output.shape[2:]) for output in outputs.values()] == sizes
    assert [output.shape[1] for output in outputs.values()] == [8, 16, 32, 64]


def test_pictures_of_a_batch_do_not_mix() -> None:
    backbone = make_backbone().double().eval()
    images = torch.randn(2, 3, 50, 70, dtype=torch.float64)
    together, alone = backbone(images), backbone(images[1:])
    for name in together:
        torch.testing.assert_close(together[name][1:], alone[name])


@pytest.mark.parametrize("batch", [1, 2])
def test_fused_attention_without_gradients_gives_the_same_maps(batch: int) -> None:
    backbone = make_backbone().double().eval()
    for name, parameter in backbone.named_parameters():
        if name.endswith("relative_position_bias_table"):
            torch.nn.init.normal_(parameter)
    images = torch.randn(batch, 3, 50, 70, dtype=torch.float64)
    expected = backbone(images)
    with torch.no_grad():
        found = backbone(images)
    for name, output in expected.items():
        assert output.requires_grad
        torch.testing.assert_close(found[name], output)


def test_sizes_do_not_depend_on_earlier_calls() -> None:
    backbone = make_backbone().eval()
    image = torch.randn(1, 3, 48, 64)
    first = backbone(image)["res5"]
    backbone(torch.randn(1, 3, 80, 40))
    assert torch.equal(backbone(image)["res5"], first)


def test_only_requested_maps_are_returned() -> None:
    backbone = make_backbone(out_features=("res5", "res3"))
    assert list(backbone(torch.randn(1, 3, 32, 32))) == ["res3", "res5"]
    assert backbone.output_shape() == {
        "res3": ShapeSpec(channels=16, stride=8),
        "res5": ShapeSpec(channels=64, stride=32),
    }
    assert "norm0.weight" in backbone.state_dict()


def test_stages_beyond_the_last_requested_map_are_not_run() -> None:
    every, two = make_backbone().eval(), make_backbone(out_features=("res2", "res3")).eval()
    two.layers[2].register_forward_hook(lambda *_: pytest.fail("the third stage was run"))
    image = torch.randn(1, 3, 32, 32)
    expected = every(image)
    for name, feature in two(image).items():
        assert torch.equal(feature, expected[name])


def test_checkpointing_changes_neither_outputs_nor_gradients() -> None:
    image = torch.randn(1, 3, 40, 40)
    gradients = []
    for checkpoint_blocks in (False, True):
        backbone = make_backbone(checkpoint_blocks=checkpoint_blocks).train()
        sum(output.square().mean() for output in backbone(image).values()).backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_stochastic_depth_grows_from_block_to_block() -> None:
    backbone = make_backbone(drop_path_rate=0.7)
    probabilities = [block.drop_path for stage in backbone.layers for block in stage.blocks]
    assert probabilities == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])


def test_stochastic_depth_drops_branches_of_whole_samples_in_training() -> None:
    block = make_backbone(drop_path_rate=0.75).layers[3].blocks[1]
    branch = torch.ones(4096, 2, 2, 1)
    assert torch.equal(block.eval()._maybe_drop(branch), branch)
    kept = block.train()._maybe_drop(branch).flatten(1)
    assert kept.unique().tolist() == [0.0, 4.0]
    assert torch.equal(kept.amin(dim=1), kept.amax(dim=1))
    assert kept.mean() == pytest.approx(1.0, abs=0.1)


def test_the_absolute_position_embedding_is_resized_to_the_map() -> None:
    backbone = make_backbone(absolute_position_size=32).eval()
    assert backbone.absolute_pos_embed.shape == (1, 8, 8, 8)
    image = torch.randn(1, 3, 48, 40)
    before = backbone(image)["res2"]
    with torch.no_grad():
        backbone.absolute_pos_embed.add_(torch.randn_like(backbone.absolute_pos_embed))
    assert (backbone(image)["res2"] - before).abs().max() > 0.1


def test_a_given_logit_scale_replaces_the_default_and_zero_means_default() -> None:
    default, explicit, zero = (make_backbone(logit_scale=scale) for scale in (None, 8**-0.5, 0.0))
    image = torch.randn(1, 3, 32, 32)
    expected = default(image)["res2"]
    assert torch.equal(explicit(image)["res2"], expected)
    assert torch.equal(zero(image)["res2"], expected)
    assert not torch.equal(make_backbone(logit_scale=3.0)(image)["res2"], expected)


def test_autocast_stays_close_to_float32() -> None:
    backbone, image = make_backbone().eval(), torch.randn(1, 3, 64, 64)
    exact = backbone(image)
    for gradients in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(gradients):
            rounded = backbone(image)
        for name, output in exact.items():
            torch.testing.assert_close(rounded[name].float(), output, atol=0.1, rtol=0.1)


def test_the_index_buffer_is_saved_and_the_shift_mask_is_not() -> None:
    backbone = make_backbone()
    backbone(torch.randn(1, 3, 32, 32))
    buffers = {name.rsplit(".", 1)[1] for name, _ in backbone.named_buffers()}
    assert buffers == {"relative_position_index"}
    assert backbone.state_dict()["layers.0.blocks.0.attn.relative_position_index"].dtype == torch.int64


def test_no_value_is_read_back_by_the_host() -> None:
    # Tensors on "meta" have no values: reading one raises.
    assert make_backbone().to("meta")(torch.empty(1, 3, 70, 101, device="meta"))["res5"].shape == (1, 64, 3, 4)


def test_a_config_selects_it() -> None:
    overrides = ["MODEL.SWIN.EMBED_DIM", "12", "MODEL.SWIN.APE", "True", "MODEL.SWIN.USE_CHECKPOINT", "True"]
    backbone = build_backbone(load_config(SWIN_TINY, overrides))
    assert isinstance(backbone, D2SwinTransformer)
    assert [len(stage.blocks) for stage in backbone.layers] == [2, 2, 6, 2]
    assert [block.shift for block in backbone.layers[2].blocks] == [0, 3] * 3
    assert backbone.layers[3].blocks[1].drop_path == pytest.approx(0.3)
    assert backbone.absolute_pos_embed.shape == (1, 12, 56, 56)
    assert all(stage.checkpoint_blocks for stage in backbone.layers)
    assert backbone.size_divisibility == 32


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.SWIN.OUT_FEATURES", "['res2', 'res6']"], "OUT_FEATURES"),
        (["MODEL.SWIN.DEPTHS", "[2, 2]"], "one entry for each of the 4 stages"),
        (["MODEL.SWIN.NUM_HEADS", "[5, 6, 12, 24]"], "width 96 cannot be split into 5 heads"),
    ],
)
def test_settings_that_cannot_be_built_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(load_config(SWIN_TINY, overrides))


def test_images_without_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        make_backbone()(torch.randn(3, 32, 32))
