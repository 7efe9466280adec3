"""HDF5 files of others and damaged ones: every fault is one error, and no other file is opened."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from par_agent.errors import UserError
from par_agent.utils.hdf5 import FLOATS, HDF5Reader

ROWS = np.arange(12, dtype=np.float32).reshape(6, 2)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as made:
        made["group/rows"] = ROWS
        made.create_dataset("packed", data=np.zeros((4, 8, 8, 3), np.uint8), chunks=(1, 8, 8, 3), compression="gzip")
        made["flags"] = np.array([True, False])
        made["none"] = np.zeros((0, 8), np.float32)
        made.attrs.update({"text": "ü", "seed": 3, "rate": 0.5, "done": True})
    return path


def change(path: Path, name: str, **how) -> None:
    with h5py.File(path, "a") as made:
        if name in made:
            del made[name]
        made.create_dataset(name, **how)


def test_arrays_are_read_as_they_are(file):
    with HDF5Reader(file) as reader:
        assert reader.names() == ["flags", "group", "none", "packed"] and reader.names("group") == ["rows"]
        assert "group/rows" in reader and "group/nothing" not in reader and "group/rows/deeper" not in reader
        assert np.array_equal(reader.array("group/rows", FLOATS, (None, 2)), ROWS)
        assert (
            reader.array("group/rows", np.float32, (None, 2), rows=np.array([1, 5])).tolist() == ROWS[[1, 5]].tolist()
        )
        assert reader.array("packed", np.uint8, (4, None, None, 3), rows=np.array([2])).shape == (1, 8, 8, 3)
        assert reader.array("flags", bool, (2,)).tolist() == [True, False]
        assert reader.array("none", np.float32, (None, 8)).shape == (0, 8)
        assert reader.check("packed", np.uint8, (None, 8, 8, 3)) == (4, 8, 8, 3)
        assert reader.attributes() == {"text": "ü", "seed": 3, "rate": 0.5, "done": True}


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "fault"),
    [
        ("group/rows", np.float64, (None, 2), "group/rows is stored as float32; expected float64"),
        ("group/rows", (np.int32, bool), (None, 2), "is stored as float32; expected int32 or bool"),
        ("group/rows", np.float32, (None, 8), r"group/rows has the shape \(6, 2\); expected \(any, 8\)"),
        ("group/rows", np.float32, (None,), r"expected \(any\)"),
        ("group", np.float32, (None,), "group is no array"),
        ("nothing", np.float32, (None,), "nothing is missing"),
        ("group/rows/deeper", np.float32, (None,), "group/rows/deeper is missing"),
    ],
)
def test_other_types_and_shapes_are_refused_by_name(file, name, dtype, shape, fault):
    with HDF5Reader(file, "ask for another") as reader, pytest.raises(UserError, match=fault) as raised:
        reader.array(name, dtype, shape)
    assert str(raised.value).startswith(f"{file} is damaged (") and str(raised.value).endswith("; ask for another")


def test_rows_that_are_not_there_are_refused(file):
    with HDF5Reader(file) as reader, pytest.raises(UserError, match="rows has 6 entries; entry 6 was expected"):
        reader.array("group/rows", np.float32, (None, 2), rows=np.array([0, 6]))


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_numbers_that_are_not_finite_are_refused(file, value):
    change(file, "group/rows", data=np.array([[0, value]], np.float32))
    with HDF5Reader(file) as reader:
        with pytest.raises(UserError, match="group/rows hold NaN or infinity"):
            reader.array("group/rows", np.float32, (None, 2))
        assert not np.isfinite(reader.array("group/rows", np.float32, (None, 2), finite=False)).all()


@pytest.mark.parametrize(
    "how",
    [
        {"shape": (10**13, 2), "dtype": "f4"},
        {"shape": (10**13, 2), "dtype": "f4", "chunks": (1000, 2)},
        {"shape": (2**62, 2), "dtype": "f4", "chunks": (1000, 2)},
        {"shape": (6, 2), "dtype": "f4"},
        {"shape": (6, 2), "dtype": "f4", "chunks": (1, 2)},
    ],
)
def test_an_array_that_was_never_written_is_refused_before_it_is_read(file, how):
    change(file, "group/rows", **how)
    with (
        HDF5Reader(file) as reader,
        pytest.raises(UserError, match=r"rows (is incomplete|claims [0-9,]+ bytes, of wh)"),
    ):
        reader.array("group/rows", np.float32, (None, 2))


def test_an_array_of_which_a_part_was_never_written_is_refused(file):
    change(file, "group/rows", shape=(6, 2), dtype="f4", chunks=(1, 2))
    with h5py.File(file, "a") as made:
        made["group/rows"][:5] = 1
    with HDF5Reader(file) as reader, pytest.raises(UserError, match="group/rows is incomplete"):
        reader.array("group/rows", np.float32, (None, 2))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Another file of the user's, which holds what is asked for."""
    path = tmp_path / "secret.h5"
    with h5py.File(path, "w") as made:
        made["group/rows"] = ROWS
    return path


def point_elsewhere(path: Path, secret: Path, how: str) -> None:
    with h5py.File(path, "a") as made:
        del made["group"]
        if how == "link":
            made["group/rows"] = h5py.ExternalLink(str(secret), "group/rows")
        elif how == "linked group":
            made["group"] = h5py.ExternalLink(str(secret), "group")
        elif how == "soft link":
            made["there"] = h5py.ExternalLink(str(secret), "group")
            made["group"] = h5py.SoftLink("/there")
        elif how == "storage":
            made.create_dataset("group/rows", shape=(6, 2), dtype="f4", external=[(str(secret), 0, 48)])
        else:
            layout = h5py.VirtualLayout(shape=(6, 2), dtype="f4")
            layout[:] = h5py.VirtualSource(str(secret), "group/rows", shape=(6, 2))
            made.create_virtual_dataset("group/rows", layout)


@pytest.mark.parametrize("how", ["link", "linked group", "soft link", "storage", "virtual"])
def test_no_other_file_is_read(file, secret, how):
    point_elsewhere(file, secret, how)
    with h5py.File(file) as plain:
        assert plain["group/rows"].shape == (6, 2), "h5py itself follows it"
    with HDF5Reader(file) as reader, pytest.raises(UserError, match="only what is in the file itself is read"):
        reader.array("group/rows", np.float32, (None, 2))


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(3),
        np.bytes_(b"a"),
        h5py.Empty("f4"),
        1 + 2j,
        np.array([["a"]], h5py.string_dtype()),
    ],
)
def test_attributes_are_texts_numbers_and_several_texts(file, value):
    with h5py.File(file, "a") as made:
        made.attrs["more"] = np.array(["a", "ü"], h5py.string_dtype())
    with HDF5Reader(file) as reader:
        assert reader.attributes()["more"] == ("a", "ü")
    with h5py.File(file, "a") as made:
        made.attrs["text"] = value
    with HDF5Reader(file) as reader, pytest.raises(UserError, match=r"attribute text is .*; expected a text, a number"):
        reader.attributes()


def test_a_heap_of_texts_that_its_entries_do_not_fill_is_refused_instead_of_read_for_ever(file):
    content = bytearray(file.read_bytes())
    begin = content.index(b"GCOL")
    free = content.index(bytes(8) + (4096 - 16 - 16 - 8).to_bytes(8, "little"), begin)  # after "ü"
    content[free + 8] -= 64
    file.write_bytes(content)
    with HDF5Reader(file) as reader, pytest.raises(UserError, match="its texts"):
        reader.attributes()


def test_an_attribute_that_claims_more_than_the_file_holds_is_refused(file):
    with h5py.File(file, "a") as made:
        made.attrs.create("text", np.zeros(8000))
    content = file.read_bytes()
    file.write_bytes(content.replace((8000).to_bytes(8, "little"), (2**40).to_bytes(8, "little")))
    with HDF5Reader(file) as reader, pytest.raises(UserError, match=r"attribute text claims|its attributes: "):
        reader.attributes()


def test_what_is_no_hdf5_file_is_refused(tmp_path, file):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("text")
    (tmp_path / "short").write_bytes(file.read_bytes()[:1000])
    for name, fault in {"pipe": "expected a file", "text": "damaged", "short": "damaged", "absent": "exist"}.items():
        with pytest.raises(UserError, match=fault):
            HDF5Reader(tmp_path / name)
