"""Pickles get plain containers and arrays; no program in them reaches NumPy's unchecked ways to make an array."""

from __future__ import annotations

import copy
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

from mask2former import pickles
from mask2former.modeling.unpickling import unpickle_torch
from mask2former.pickles import PlainUnpickler

ARRAYS = {
    "numbers": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "big endian": np.arange(4, dtype=">i2"),
    "texts": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "objects": np.array([["a", None], [3, {"b": 1}]], dtype=object),
    "nothing": np.zeros((0, 4), dtype=bool),
    "scalar": np.complex64(1j),
}


def _load(program: bytes) -> object:
    return PlainUnpickler(io.BytesIO(program), encoding="latin1").load()


def _load_with_torch(program: bytes) -> object:
    """The program in the place of `data.pkl` in a file of `torch.save`."""
    saved, changed = io.BytesIO(), io.BytesIO()
    torch.save({}, saved)
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            target.writestr(name, program if name.endswith("/data.pkl") else source.read(name))
    changed.seek(0)
    return unpickle_torch(changed)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_every_kind_and_protocol_are_read(name, protocol):
    read = _load(pickle.dumps(ARRAYS[name], protocol))
    assert read.dtype.newbyteorder("=") == ARRAYS[name].dtype.newbyteorder("=") and read.shape == ARRAYS[name].shape
    assert np.array_equal(read, ARRAYS[name])


def test_what_was_read_is_written_and_copied_as_an_ordinary_array():
    read = _load(pickle.dumps(ARRAYS["numbers"]))
    for again in (pickle.loads(pickle.dumps(read)), copy.deepcopy(read)):
        assert np.array_equal(again, ARRAYS["numbers"])
    assert type(pickle.loads(pickle.dumps(read))) is np.ndarray


def _pushed(value: object) -> bytes:
    """Opcodes that push a plain value."""
    return pickle.dumps(value, protocol=2)[2:-1]


_NDARRAY = b"cnumpy\nndarray\n"
_FLOAT = b"cnumpy\ndtype\n" + _pushed(("f8", False, True)) + b"R"
_EMPTY = b"cnumpy._core.multiarray\n_reconstruct\n(" + _NDARRAY + _pushed((0,)) + _pushed("b") + b"tR"


def _state(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"tb"


_OF_RECORDS = _FLOAT + _state(
    *map(_pushed, (3, "<", None, ("a",))),
    b"}" + _pushed("a") + b"(" + _FLOAT + _pushed(1 << 30) + b"ts",
    *map(_pushed, (-1, -1, 0)),
)
_OF_ARRAYS = _FLOAT + _state(
    *map(_pushed, (3, "<")), b"(" + _FLOAT + _pushed((1 << 20,)) + b"t", *map(_pushed, (None, None, -1, -1, 0))
)
_OF_OBJECTS = b"cnumpy\ndtype\n" + _pushed(("O", False, True)) + b"R"

ATTACKS = {
    # Read as two addresses of objects, which ends the process or worse.
    "bytes as objects": _NDARRAY + _pushed(((2,), "O", "A" * 16)) + b"R",
    "bytes as objects without a call": _NDARRAY + _pushed(((2,), "O", "A" * 16)) + b"\x81",
    # Types that reach beyond the memory of an array.
    "a field far away": _OF_RECORDS,
    "a number that is an array": _OF_ARRAYS,
    # NumPy reads as many objects from a list as the shape has places.
    "a short list": _EMPTY + _state(_pushed(1), _pushed((1000,)), _OF_OBJECTS, _pushed(False), _pushed([1])),
    "objects out of bytes": _EMPTY + _state(_pushed(1), _pushed((2,)), _OF_OBJECTS, _pushed(False), _pushed("A" * 16)),
    "short bytes": _EMPTY + _state(_pushed(1), _pushed((1000,)), _FLOAT, _pushed(False), _pushed("A" * 8)),
    "no type": _EMPTY + _state(_pushed(1), _pushed((2,)), _pushed({"names": ["a"]}), _pushed(False), _pushed("A" * 16)),
}


@pytest.mark.parametrize("load", [_load, _load_with_torch])
@pytest.mark.parametrize("name", ATTACKS)
def test_no_array_is_made_of_what_is_not_its_own(name, load):
    with pytest.raises((pickle.UnpicklingError, TypeError, ValueError)):
        load(b"\x80\x02" + ATTACKS[name] + b".")


@pytest.mark.parametrize("load", [_load, _load_with_torch])
def test_flags_that_say_a_number_is_an_object_change_nothing(load):
    """With the first of them NumPy would release what eight bytes point to."""
    flagged = _FLOAT + _state(*map(_pushed, (3, "<", None, None, None, -1, -1, 63)))
    content = np.arange(2.0).tobytes().decode("latin1")
    program = _EMPTY + _state(_pushed(1), _pushed((2,)), flagged, _pushed(False), _pushed(content))
    assert load(b"\x80\x02" + program + b".").tolist() == [0, 1]


def test_codecs_other_than_that_of_old_bytes_are_refused():
    with pytest.raises(pickle.UnpicklingError, match="it asks for text encoded as 'rot13'"):
        _load(b"c_codecs\nencode\n(Vtext\nVrot13\ntR.")


def test_a_pickle_cannot_change_what_it_is_given():
    given = {
        name: value for name, value in pickles.PLAIN.items() if getattr(value, "__module__", "") == pickles.__name__
    }
    before = {name: (getattr(value, "__defaults__", None), dict(vars(value))) for name, value in given.items()}
    assert len(given) > 5
    for module, name in given:
        # It, then a pair of no state and attributes to set: BUILD does that.
        program = f"c{module}\n{name}\n(N(dV__defaults__\n(I1\ntsVmark\nI1\nstb."
        if isinstance(given[module, name], type):
            with pytest.raises(TypeError):
                _load(program.encode())
        else:
            _load(program.encode())
    assert {name: (getattr(value, "__defaults__", None), dict(vars(value))) for name, value in given.items()} == before
