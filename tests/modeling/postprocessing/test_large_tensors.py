"""Tensors in memory of their own."""

from __future__ import annotations

import pytest
import torch

from mask2former.modeling.postprocessing.large_tensors import SMALLEST, empty


@pytest.mark.parametrize("num_bytes", [0, 12, SMALLEST, SMALLEST + 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_large_and_small_tensors_behave_alike(num_bytes: int, dtype: torch.dtype) -> None:
    size = (2, num_bytes // (2 * dtype.itemsize))
    tensor = empty(size, dtype, torch.device("cpu"))
    assert tensor.shape == size and tensor.dtype == dtype and tensor.is_contiguous()
    tensor.zero_()[1] = 1
    rest = tensor[1:]
    del tensor
    assert rest.bool().all()
    assert torch.equal(rest.clone(), rest)
