"""The line on the console."""

from __future__ import annotations

import logging

from detectron2.utils.events import EventStorage

from mask2former.engine.writers import ProgressWriter, peak_memory_mib


def _line(caplog, storage_iter=9, max_iter=30, **scalars):
    caplog.clear()
    with EventStorage(storage_iter) as storage, caplog.at_level(logging.INFO):
        storage.put_scalars(**scalars)
        ProgressWriter(max_iter).write()
    return caplog.messages[0] if caplog.messages else None


def test_losses_of_a_kind_are_added_up_over_the_layers(caplog):
    losses = {"loss_ce": 1.0, "loss_ce_0": 2.0, "loss_mask": 0.5, "loss_mask_0": 0.25, "loss_dice": 4.0}
    line = _line(caplog, data_time=0.1, total_loss=7.75, time=2.0, **losses)
    assert line.startswith("step 10/30  loss 7.750 (ce 3.000 mask 0.750 dice 4.000)  2.000 s/step (data 0.100)")
    assert "eta 0:00:40" in line


def test_skipped_steps_and_broken_samples_are_shown(caplog):
    line = _line(caplog, data_time=0.1, skipped_steps=3.0, broken_samples=2.0)
    assert line.endswith("steps skipped 3  broken samples 2")


def test_nothing_is_printed_after_the_last_step(caplog):
    assert _line(caplog, storage_iter=30, data_time=0.1) is None


def test_resident_memory_is_counted_in_mebibytes():
    assert 50 < peak_memory_mib() < 100_000
