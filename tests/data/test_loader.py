"""Loaders: the order of training is a function of seed and position, and nothing else."""

import gc
import logging
import random
import shutil
import traceback
import tracemalloc
from itertools import islice
from types import FunctionType, ModuleType

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from mask2former.config import load_config
from mask2former.data import BrokenSampleError, build_train_loader
from mask2former.data.loader import (
    Orientations,
    SampleOrder,
    StepSampler,
    TrainDataset,
    TrainLoader,
    seeded,
)
from mask2former.registry import DATASET_MAPPER_REGISTRY


def make_config(*overrides: str):
    small = ["SOLVER.IMS_PER_BATCH", "4", "DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TRAIN", "(32, 48, 64)"]
    return load_config("configs/digits/panoptic.yaml", [*small, *overrides])


def make_loader(*overrides: str, seed: int = 5, **options) -> TrainLoader:
    cfg = make_config(*overrides)
    mapper = DATASET_MAPPER_REGISTRY.get(cfg.INPUT.DATASET_MAPPER_NAME)(cfg, True)
    return build_train_loader(cfg, mapper, seed=seed, **options)


def contents(batches) -> list:
    """Everything that a sample consists of, comparable."""
    return [
        [
            (sample["image_id"], sample["image"].numpy().tobytes(), sample["instances"].gt_masks.bits.numpy().tobytes())
            for sample in b
        ]
        for b in batches
    ]


def ids(batches) -> list[list[int]]:
    return [[sample["image_id"] for sample in batch] for batch in batches]


class EchoMapper:
    """Says which record it was given and what the generators draw; fails for some."""

    def __init__(self, broken: set[int] = frozenset()) -> None:
        self.broken = broken

    def __call__(self, record: dict) -> dict:
        if record["number"] in self.broken:
            raise BrokenSampleError(f"{record['file_name']} is broken")
        return {**record, "draw": (random.random(), np.random.uniform(), torch.rand(()).item())}


def echo_loader(num_records: int = 10, *, broken: set[int] = frozenset(), skip: bool = False, num_workers: int = 0):
    records = [{"number": number, "file_name": f"{number}.png"} for number in range(num_records)]
    sampler = StepSampler(SampleOrder(num_records, seed=1), step_size=4)
    dataset = TrainDataset(records, EchoMapper(broken), seed=1, skip_broken=skip, num_workers=num_workers)
    return TrainLoader(dataset, sampler, num_workers)


def test_samples_do_not_depend_on_the_number_of_workers(digits_root) -> None:
    alone, helped = (
        contents(islice(make_loader("DATALOADER.NUM_WORKERS", str(num_workers)), 5)) for num_workers in (0, 2)
    )
    assert alone == helped


@pytest.mark.parametrize("num_workers", [0, 1])
def test_masks_come_from_the_loader_at_one_bit_per_pixel(digits_root, num_workers) -> None:
    loader = make_loader("DATALOADER.NUM_WORKERS", str(num_workers))
    sample = next(iter(loader))[0]
    (index,) = (i for i in range(len(loader.dataset)) if loader.dataset.records[i]["image_id"] == sample["image_id"])
    with seeded(5, 0, 0):
        expected = loader.dataset.mapper(loader.dataset.records[index])["instances"].gt_masks
    packed = sample["instances"].gt_masks
    assert torch.equal(packed.unpack(), expected)
    assert packed.bits.untyped_storage().nbytes() == len(expected) * expected.shape[1] * -(-expected.shape[2] // 8)


def num_objects_behind(start: object) -> int:
    """Python objects that are reachable, without those that belong to the program and not to its data."""
    seen, waiting = {id(start)}, [start]
    while waiting:
        for referent in gc.get_referents(waiting.pop()):
            if id(referent) not in seen and not isinstance(referent, (type, ModuleType, FunctionType)):
                seen.add(id(referent))
                waiting.append(referent)
    return len(seen)


def test_records_are_no_python_objects_that_workers_would_copy_one_by_one() -> None:
    """Counting references writes to an object, and so copies its page: memory would grow during the first epochs."""
    assert num_objects_behind(echo_loader(2000).dataset) == num_objects_behind(echo_loader(5).dataset)


def test_epochs_leave_nothing_behind(digits_root) -> None:
    batches = iter(make_loader())
    num_batches = len(DatasetCatalog.get("digits_panoptic_train")) // 4
    memory = []
    tracemalloc.start()
    try:
        for _ in range(4):
            for _ in range(num_batches):
                next(batches)
            gc.collect()
            memory.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert memory[-1] - memory[1] < 20_000  # a sample has 100,000 bytes


def test_samples_without_masks_of_their_own_pass_the_loader_unchanged() -> None:
    (sample, *_) = next(iter(echo_loader()))
    assert set(sample) == {"number", "file_name", "draw"}


def test_another_seed_gives_other_samples(digits_root) -> None:
    assert contents(islice(make_loader(seed=5), 2)) != contents(islice(make_loader(seed=6), 2))


@pytest.mark.parametrize("is_grouped", ["True", "False"])
def test_starting_later_equals_having_run_until_then(digits_root, is_grouped) -> None:
    grouping = ("DATALOADER.ASPECT_RATIO_GROUPING", is_grouped, "INPUT.SIZE_DIVISIBILITY", "-1")
    whole = contents(islice(make_loader(*grouping), 7))
    assert contents(islice(make_loader(*grouping, start_iteration=4), 3)) == whole[4:]


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (1, 2), (2, 2)])
def test_ranks_and_accumulation_steps_share_out_the_joined_batch(digits_root, world_size, accumulation) -> None:
    joined = contents(islice(make_loader(), 3))
    parts = [
        contents(
            islice(
                make_loader("SOLVER.ACCUMULATION_STEPS", str(accumulation), rank=rank, world_size=world_size),
                3 * accumulation,
            )
        )
        for rank in range(world_size)
    ]
    for step, batch in enumerate(joined):
        shared_out = [
            sample
            for rank in range(world_size)
            for part in parts[rank][step * accumulation : (step + 1) * accumulation]
            for sample in part
        ]
        assert shared_out == batch


def test_every_epoch_shows_every_picture_once_in_another_order() -> None:
    order = SampleOrder(10, seed=3)
    epochs = list(islice(order.from_sample(0), 30))
    first, second, third = epochs[:10], epochs[10:20], epochs[20:]
    assert sorted(first) == sorted(second) == sorted(third) == list(range(10))
    assert first != second != third


@pytest.mark.parametrize("start", [0, 3, 10, 27])
def test_the_order_can_be_entered_anywhere(start) -> None:
    for factors in (None, np.linspace(0.5, 2.5, 10)):
        order = SampleOrder(10, seed=3, repeat_factors=factors)
        assert list(islice(order.from_sample(start), 12)) == list(islice(order.from_sample(0), start + 12))[start:]


def test_repeat_factors_are_kept_on_average() -> None:
    factors = np.array([1.0, 1.25, 3.0])
    order = SampleOrder(3, seed=0, repeat_factors=factors)
    counts = np.bincount(np.concatenate([order.epoch(number) for number in range(400)])) / 400
    assert np.abs(counts - factors).max() < 0.1


def test_each_step_has_pictures_of_one_orientation() -> None:
    is_wide = [number % 3 == 0 for number in range(12)]
    steps = list(islice(StepSampler(SampleOrder(12, seed=0), step_size=4, is_wide=is_wide.__getitem__), 30))
    assert all(len({is_wide[place.record] for place in step}) == 1 for step in steps)
    assert {is_wide[step[0].record] for step in steps} == {True, False}


def test_positions_count_up_without_gaps() -> None:
    for is_wide in (None, lambda index: index % 2 == 0):
        steps = islice(StepSampler(SampleOrder(9, seed=0), step_size=3, is_wide=is_wide), 6)
        assert [place.position for step in steps for place in step] == list(range(18))


def test_samples_of_fixed_size_are_not_grouped(digits_root) -> None:
    assert make_loader().sampler.is_wide is None
    assert make_loader("INPUT.SIZE_DIVISIBILITY", "-1").sampler.is_wide is not None
    assert make_loader("INPUT.DATASET_MAPPER_NAME", "coco_panoptic_lsj").sampler.is_wide is None


def test_orientation_comes_from_the_record_or_else_from_the_file(tmp_path) -> None:
    Image.fromarray(np.zeros((4, 9, 3), dtype=np.uint8)).save(tmp_path / "wide.png")
    records = [
        {"file_name": "unused.png", "height": 9, "width": 4},
        {"file_name": str(tmp_path / "wide.png")},
        {"file_name": str(tmp_path / "absent.png")},
    ]
    is_wide = Orientations(records)
    assert [is_wide(index) for index in (0, 1, 2, 1)] == [False, True, False, True]


def test_each_position_draws_its_own_numbers_and_repeats_them() -> None:
    first, second = ([sample["draw"] for batch in islice(echo_loader(), 4) for sample in batch] for _ in range(2))
    assert first == second
    assert len(set(first)) == 16


def test_loading_leaves_the_random_numbers_of_training_alone() -> None:
    def after(load: bool) -> list:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        if load:
            next(iter(echo_loader()))
        return [random.random(), np.random.uniform(), torch.rand(()).item()]

    assert after(load=True) == after(load=False)


def test_random_numbers_come_back_after_an_error() -> None:
    torch.manual_seed(4)
    expected = torch.rand(())
    torch.manual_seed(4)
    with pytest.raises(RuntimeError, match="inside"), seeded(1, 2):
        raise RuntimeError("inside")
    assert torch.equal(torch.rand(()), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_sample_is_an_error_with_its_file(num_workers) -> None:
    with pytest.raises(BrokenSampleError, match=r"3\.png is broken .*set DATALOADER\.SKIP_BROKEN") as caught:
        list(islice(echo_loader(broken={3}, num_workers=num_workers), 4))
    # The traceback keeps the loader's iterator alive, and ending its workers in a later test takes ten seconds.
    traceback.clear_frames(caught.tb)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_sample_is_replaced_named_and_counted_on_demand(num_workers, caplog, monkeypatch) -> None:
    # A run that set up its logs before leaves a logger that does not pass on to the root, where caplog listens.
    monkeypatch.setattr(logging.getLogger("mask2former"), "propagate", True)
    loader = echo_loader(broken={3}, skip=True, num_workers=num_workers)
    batches = list(islice(loader, 5))
    assert all(len(batch) == 4 and all(sample["number"] != 3 for sample in batch) for batch in batches)
    assert loader.num_skipped >= 2
    if num_workers == 0:
        assert "3.png is broken" in caplog.text and "DATALOADER.SKIP_BROKEN" in caplog.text
    healthy = [[sample["number"] for sample in batch] for batch in islice(echo_loader(), 5)]
    replaced = [[sample["number"] for sample in batch] for batch in batches]
    for before, after in zip(sum(healthy, []), sum(replaced, []), strict=True):
        assert before in (3, after)


def test_the_replacement_is_the_same_in_every_run() -> None:
    runs = [
        [[sample["number"] for sample in batch] for batch in islice(echo_loader(broken={3, 4}, skip=True), 5)]
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_a_data_set_that_is_broken_altogether_is_an_error_even_when_skipping() -> None:
    with pytest.raises(BrokenSampleError, match=r"20 samples in a row cannot be read, the last is \d\.png"):
        next(iter(echo_loader(broken=set(range(10)), skip=True)))


def test_a_wrong_class_is_never_skipped(digits_root) -> None:
    loader = make_loader("DATALOADER.SKIP_BROKEN", "True", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3")
    with pytest.raises(ValueError, match=r"allowed are 0\.\.2"):
        next(iter(loader))


@pytest.mark.parametrize("skips", [False, True])
def test_a_cut_off_file_of_a_real_data_set_stops_or_is_skipped(digits_root, tmp_path, monkeypatch, skips) -> None:
    shutil.copytree(digits_root / "digits", tmp_path / "digits")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    damaged = tmp_path / "digits" / "panoptic_train" / "000002.png"
    damaged.write_bytes(damaged.read_bytes()[:50])
    loader = make_loader("DATALOADER.SKIP_BROKEN", str(skips))
    if not skips:
        with pytest.raises(BrokenSampleError, match=r"panoptic_train/000002\.png"):
            list(islice(loader, 4))
        return
    batches = list(islice(loader, 4))
    assert 2 not in sum(ids(batches), []) and loader.num_skipped == 2  # four steps are two epochs


@pytest.mark.parametrize(("size", "world_size", "accumulation"), [("4", 3, 1), ("4", 1, 3), ("6", 2, 2)])
def test_a_batch_that_cannot_be_shared_out_is_refused(digits_root, size, world_size, accumulation) -> None:
    with pytest.raises(ValueError, match=rf"SOLVER\.IMS_PER_BATCH={size} must be a multiple .*ACCUMULATION_STEPS"):
        make_loader(
            "SOLVER.IMS_PER_BATCH", size, "SOLVER.ACCUMULATION_STEPS", str(accumulation), rank=0, world_size=world_size
        )


def test_an_unknown_sampler_is_told_the_known_ones(digits_root) -> None:
    with pytest.raises(ValueError, match=r"DATALOADER\.SAMPLER_TRAIN='Random' is unknown; choose from \['TrainingSa"):
        make_loader("DATALOADER.SAMPLER_TRAIN", "Random")


def test_rare_classes_can_be_repeated(digits_root) -> None:
    loader = make_loader(
        "DATALOADER.SAMPLER_TRAIN",
        "RepeatFactorTrainingSampler",
        "DATALOADER.REPEAT_THRESHOLD",
        "0.9",
        "DATASETS.TRAIN",
        "('digits_instance_train',)",
        "INPUT.DATASET_MAPPER_NAME",
        "mask_former_instance",
    )
    assert loader.sampler.order.repeat_factors.max() > 1
    assert len(next(iter(loader))) == 4
