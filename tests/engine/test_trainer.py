"""Runs of the tiny model: resuming, refusing, evaluating."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import hooks

from mask2former.engine import Trainer, setup_run
from mask2former.engine import trainer as trainer_module
from mask2former.engine.checks import check_class_count, check_output_folder
from tests.engine.tiny import PLAIN_SGD, same_points, tiny_config

pytestmark = pytest.mark.usefixtures("digits_root")


@pytest.fixture
def own_dataset():
    """Names a dataset that has nothing but metadata, and forgets it afterwards."""
    name = "nothing_but_metadata"

    def make(**metadata):
        MetadataCatalog.get(name).set(**metadata)
        return name

    yield make
    MetadataCatalog.remove(name)


class Killed(Exception):
    pass


def _kill_after(step):
    def after_step(trainer):
        if trainer.iter + 1 == step:
            raise Killed

    return hooks.CallbackHook(after_step=after_step)


def _run(cfg, *, resume=False, killed_after=None):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    if killed_after:
        trainer.register_hooks([_kill_after(killed_after)])
        with pytest.raises(Killed):
            trainer.train()
    else:
        trainer.train()
    return trainer


def _assert_equal(one, other):
    """Equal to the last bit, through nested containers."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            _assert_equal(left, right)
    elif torch.is_tensor(one):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize("seed", [5, -1])
def test_20_steps_equal_10_steps_a_kill_and_10_resumed_steps_bit_for_bit(tmp_path, seed, monkeypatch):
    monkeypatch.setattr(os, "urandom", lambda size: b"\x07" * size)  # the random seed of SEED -1, for both runs
    settings = {"SEED": seed, "SOLVER__MAX_ITER": 20, "SOLVER__CHECKPOINT_PERIOD": 10, "DATASETS__TEST": ()}
    straight = _run(tiny_config(tmp_path / "straight", **settings))
    _run(tiny_config(tmp_path / "killed", **settings), killed_after=13)
    monkeypatch.setattr(os, "urandom", lambda size: b"\x01" * size)  # a resumed run must not draw a new one
    resumed = _run(tiny_config(tmp_path / "killed", **settings), resume=True)
    assert (straight.start_iter, resumed.start_iter) == (0, 10)
    _assert_equal(straight.model.state_dict(), resumed.model.state_dict())
    _assert_equal(straight.state_dict(), resumed.state_dict())


def test_a_checkpoint_cut_off_while_resuming_is_an_error_that_names_it(tmp_path):
    cfg = tiny_config(tmp_path, SOLVER__MAX_ITER=2, DATASETS__TEST=())
    _run(cfg)
    path = tmp_path / "model_final.pth"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model_final.pth' .* cannot be read: it is cut off"):
        Trainer(cfg).resume_or_load(resume=True)


def test_a_new_run_refuses_the_folder_of_another_run(tmp_path):
    cfg = tiny_config(tmp_path, SOLVER__MAX_ITER=1, DATASETS__TEST=())
    _run(cfg)
    with pytest.raises(FileExistsError, match=r"holds the checkpoints of a run: add --resume"):
        Trainer(cfg).resume_or_load(resume=False)


def test_weights_alone_cannot_be_resumed(tmp_path):
    cfg = tiny_config(tmp_path)
    trainer = Trainer(cfg)
    torch.save({"model": trainer.model.state_dict()}, tmp_path / "weights.pth")
    (tmp_path / "last_checkpoint").write_text("weights.pth")
    with pytest.raises(ValueError, match="no training state of this project"):
        trainer.resume_or_load(resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"INPUT__DATASET_MAPPER_NAME": "coco_lsj"},
            r"INPUT.DATASET_MAPPER_NAME='coco_lsj' is unknown; choose from: .*mask_former_semantic",
        ),
        (
            {"MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME": "FPN"},
            r"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME='FPN' is unknown; choose from: .*MSDeformAttnPixelDecoder",
        ),
        (
            {"MODEL__MASK_FORMER__TRANSFORMER_DECODER_NAME": "Masked"},
            r"TRANSFORMER_DECODER_NAME='Masked' is unknown; choose from: .*MultiScaleMaskedTransformerDecoder",
        ),
        ({"MODEL__META_ARCHITECTURE": "Mask3Former"}, r"META_ARCHITECTURE='Mask3Former' is unknown; .*MaskFormer"),
        ({"SOLVER__OPTIMIZER": "ADAM"}, r"SOLVER.OPTIMIZER='ADAM' is unknown; choose from: ADAMW, SGD"),
        ({"SOLVER__AMP__PRECISION": "fp8"}, r"SOLVER.AMP.PRECISION='fp8' is unknown; choose from: fp16, bf16"),
        ({"SOLVER__ACCUMULATION_STEPS": 0}, "SOLVER.ACCUMULATION_STEPS=0 must be at least 1"),
        ({"DATASETS__TRAIN": ("digits_train",)}, r"DATASETS.TRAIN names 'digits_train', .*digits_panoptic_train"),
        ({"DATASETS__TRAIN": ("mine",)}, r"DATASETS.TRAIN names 'mine', .*choose from: .*digits_panoptic_train"),
        ({"DATASETS__TRAIN": ()}, "DATASETS.TRAIN is empty"),
        ({"SOLVER__LR_SCHEDULER_NAME": "Poly"}, r"SOLVER.LR_SCHEDULER_NAME='Poly'.*choose from: WarmupPolyLR"),
        (
            {"MODEL__SEM_SEG_HEAD__NUM_CLASSES": 10},
            r"NUM_CLASSES=10, but dataset 'digits_panoptic_train' \(DATASETS.TRAIN\) has 13 classes",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_in_the_config_is_reported_before_the_first_step(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Trainer(tiny_config(tmp_path, **changes))


@pytest.mark.parametrize(("ignore_label", "num_classes"), [(255, 3), (2, 2), (0, 3)])
def test_an_unlabeled_class_at_the_end_of_the_list_is_not_counted(own_dataset, ignore_label, num_classes):
    name = own_dataset(evaluator_type="sem_seg", stuff_classes=["a", "b", "c"], ignore_label=ignore_label)
    cfg = tiny_config(Path("nowhere"), MODEL__SEM_SEG_HEAD__NUM_CLASSES=num_classes)
    check_class_count(cfg, name, "DATASETS.TRAIN")
    cfg = tiny_config(Path("nowhere"), MODEL__SEM_SEG_HEAD__NUM_CLASSES=num_classes + 1)
    with pytest.raises(ValueError, match=f"has {num_classes} classes"):
        check_class_count(cfg, name, "DATASETS.TRAIN")


def test_augmented_evaluation_of_several_datasets_overwrites_no_file(tmp_path):
    cfg = tiny_config(
        tmp_path,
        "semantic",
        DATASETS__TEST=("digits_semantic_val", "digits_panoptic_val"),
        TEST__AUG__MIN_SIZES=(64,),
        TEST__AUG__FLIP=False,
    )
    Trainer.test_with_TTA(cfg, Trainer.build_model(cfg))
    written = (tmp_path / "inference_TTA").glob("*/sem_seg_predictions.json")
    assert sorted(path.parent.name for path in written) == ["digits_panoptic_val", "digits_semantic_val"]


def test_a_test_dataset_with_other_classes_is_refused(tmp_path):
    cfg = tiny_config(tmp_path, DATASETS__TEST=("digits_instance_val",))
    with pytest.raises(ValueError, match=r"'digits_instance_val' \(DATASETS.TEST\) has 10 classes"):
        Trainer.test(cfg, torch.nn.Identity())


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("annotations/panoptic_val.json", r"panoptic_val\.json"),
        ("annotations/instances_val.json", r"instances_val\.json"),
        (None, r"'digits_instance_val' \(DATASETS.TEST\) has 10 classes"),
    ],
)
def test_evaluation_that_cannot_work_stops_the_run_before_its_first_step(
    digits_root, tmp_path, monkeypatch, file, message
):
    shutil.copytree(digits_root, tmp_path / "data")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    if file:
        (tmp_path / "data" / "digits" / file).unlink()
    test = "digits_panoptic_val" if file else "digits_instance_val"
    trainer = Trainer(tiny_config(tmp_path / "run", DATASETS__TEST=(test,)))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        trainer.train()
    assert not list((tmp_path / "run").glob("*.pth"))


def test_a_file_in_place_of_the_output_folder_is_named(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"OUTPUT_DIR='.*run' is a file"):
        check_output_folder(str(tmp_path / "run"))


def test_batches_that_cannot_be_divided_are_refused(tmp_path):
    cfg = tiny_config(tmp_path, SOLVER__IMS_PER_BATCH=3, SOLVER__ACCUMULATION_STEPS=2)
    with pytest.raises(ValueError, match=r"SOLVER.IMS_PER_BATCH=3 must be a multiple"):
        Trainer(cfg).train()


def test_accumulated_steps_equal_steps_of_the_joined_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "rand", same_points)
    settings = {"SOLVER__IMS_PER_BATCH": 4, "SOLVER__MAX_ITER": 2, "DATASETS__TEST": (), **PLAIN_SGD}
    joined = _run(tiny_config(tmp_path / "joined", **settings))
    accumulated = _run(tiny_config(tmp_path / "accumulated", **settings, SOLVER__ACCUMULATION_STEPS=2))
    torch.testing.assert_close(dict(accumulated.model.named_parameters()), dict(joined.model.named_parameters()))
    losses = [trainer.storage.latest()["total_loss"][0] for trainer in (accumulated, joined)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(("precision", "cpu_has_it"), [("fp16", True), ("bf16", True), ("bf16", False)])
def test_published_recipes_with_mixed_precision_train_on_cpu(tmp_path, caplog, monkeypatch, precision, cpu_has_it):
    monkeypatch.setattr("mask2former.engine.trainer.cpu_has_bfloat16", lambda: cpu_has_it)
    cfg = tiny_config(
        tmp_path, SOLVER__MAX_ITER=2, DATASETS__TEST=(), SOLVER__AMP__ENABLED=True, SOLVER__AMP__PRECISION=precision
    )
    with caplog.at_level(logging.WARNING):
        trainer = _run(cfg)
    assert trainer.storage.latest()["total_loss"][0] < 1000 and trainer._trainer.num_skipped == 0
    uses_it = precision == "bf16" and cpu_has_it
    assert trainer._trainer._autocast_dtype is (torch.bfloat16 if uses_it else None)
    assert (f"{precision} needs a GPU" in caplog.text) != uses_it


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_every_task_leaves_example_pictures_for_tensorboard(tmp_path, task, monkeypatch):
    monkeypatch.setattr(trainer_module, "_PICTURE_PERIOD", 1)
    trainer = Trainer(tiny_config(tmp_path, task, SOLVER__MAX_ITER=1, DATASETS__TEST=()))
    pictures = {}
    keep = hooks.CallbackHook(
        after_step=lambda trainer: pictures.update({name: image for name, image, _ in trainer.storage._vis_data})
    )
    trainer._hooks.insert(-1, keep)  # before the writers, which clear the pictures
    keep.trainer = trainer
    trainer.train()
    assert sorted(pictures) == ["example_0", "example_1"]
    for picture in pictures.values():
        assert picture.dtype == torch.uint8 and picture.shape[0] == 3
        assert picture.shape[2] > 2.5 * 64, "image, truth and prediction stand side by side"
    assert trainer.model.training


def test_evaluation_does_not_touch_the_config_of_the_run(tmp_path):
    from mask2former.engine import argument_parser

    cfg = tiny_config(tmp_path)
    setup_run(cfg, argument_parser().parse_args([]))
    written = (tmp_path / "config.yaml").read_text()
    setup_run(tiny_config(tmp_path, SEED=9), argument_parser().parse_args(["--eval-only"]))
    assert (tmp_path / "config.yaml").read_text() == written
    assert "SEED: 9" in (tmp_path / "inference" / "config.yaml").read_text()
