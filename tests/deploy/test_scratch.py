"""Arrays in memory and in files: zeros at first, within the limit, and nothing left behind."""

from __future__ import annotations

import numpy as np

from mask2former.deploy.scratch import ArrayStore


def test_memory_is_granted_until_it_is_used_up(tmp_path):
    store = ArrayStore(1000, tmp_path)
    assert store.grants(600) and not store.grants(600) and store.grants(400) and not store.grants(1)
    assert ArrayStore().grants(10**15)


def test_arrays_beyond_the_limit_lie_in_files_and_behave_like_others(tmp_path):
    store = ArrayStore(100, tmp_path)
    small, large = store.zeros((5, 5), np.float32), store.zeros((300, 700), np.int32)
    assert small.sum() == 0 and large.sum() == 0 and large.flags.writeable
    values = np.arange(300 * 700).reshape(300, 700)
    large[:] = values
    store.release()
    store.release()
    assert np.array_equal(large, values)
    large[7:9, 3] = -1
    store.release()
    assert (large[7:9, 3] == -1).all() and large[9, 3] == values[9, 3]


def test_files_vanish_and_arrays_outlive_their_store(tmp_path):
    array = ArrayStore(0, tmp_path).zeros((100, 100), np.uint8)
    array += 3
    assert list(tmp_path.iterdir()) == [] and array.sum() == 30_000


def test_an_array_without_elements_needs_no_file(tmp_path):
    assert ArrayStore(0, tmp_path / "absent").zeros((0, 7), np.float32, on_disk=True).shape == (0, 7)
