"""Reads untrusted Parquet tables."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from par_agent.data import lerobot
from par_agent.errors import UserError, reader_faults
from par_agent.utils.files import check_file
from par_agent.utils.json_fields import check

ADVICE = "copy or download the dataset again"


class Table:
    """A table in memory.

    What is missing or damaged is a UserError that names the file, the column, what was found and what is expected.

    Args:
        path: the file.
        columns: names of the columns to read, which must be there; None: all but those of statistics.
        episode: reads the rows of this ``episode_index`` alone, in the order of their ``frame_index``.
        others: further files that hold such rows.
    """

    def __init__(
        self, path: Path, columns: list[str] | None = None, episode: int | None = None, others: Sequence[Path] = ()
    ) -> None:
        self.path = path
        arrow, parquet = lerobot.pyarrow_module(""), lerobot.pyarrow_module("parquet")
        filters = None if episode is None else [("episode_index", "==", episode)]
        parts = []
        for file in (path, *others):
            check_file(file)
            with self._named_faults():
                names = parquet.read_schema(file).names
                if columns is None:
                    columns = [name for name in names if not name.startswith("stats/")]
                if absent := [name for name in columns if name not in names]:
                    raise self.damaged(f"it lacks the column {absent[0]}")
                parts.append(
                    parquet.read_table(
                        file, columns=columns, filters=filters, partitioning=None, page_checksum_verification=True
                    )
                )
        with self._named_faults():
            self._table = arrow.concat_tables(parts)
            if episode is not None:
                self._table = self._table.sort_by("frame_index")

    def damaged(self, fault: str) -> UserError:
        """The error of a table with some fault."""
        return UserError(f"{self.path} is damaged ({fault}); {ADVICE}")

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __contains__(self, column: str) -> bool:
        return column in self._table.column_names

    def values(self, column: str, kind: Any, rows: np.ndarray | None = None) -> list[Any]:
        """A column, or some rows of it, as Python values of a kind that :mod:`par_agent.utils.json_fields` knows."""
        with self._named_faults(column):
            found = self._table[column]
            values: list[Any] = (found if rows is None else found.take(rows.tolist())).to_pylist()
        try:
            check(column, values, list[kind])
        except UserError as error:
            raise self.damaged(str(error)) from None
        return values

    def records(self) -> list[dict[str, Any]]:
        """All rows as objects."""
        with self._named_faults():
            rows: list[dict[str, Any]] = self._table.to_pylist()
        return rows

    def matrix(self, column: str, *, truths: bool = False) -> np.ndarray:
        """A column of numbers, or of lists of as many of them, as (rows, n) float32, all finite.

        Lists may be nested where only one dimension has more than one entry. ``truths`` takes true and false for 1 and
        0.
        """
        arrow, compute = lerobot.pyarrow_module(""), lerobot.pyarrow_module("compute")
        kinds = arrow.types
        with self._named_faults(column):
            flat, sizes = arrow.concat_arrays(self._table[column].chunks), list[int]()
            flat = flat.storage if isinstance(flat, arrow.ExtensionArray) else flat
            while kinds.is_list(flat.type) or kinds.is_large_list(flat.type) or kinds.is_fixed_size_list(flat.type):
                lengths = compute.unique(compute.list_value_length(flat)).to_pylist()
                if len(lengths) != 1 or not lengths[0]:
                    raise self.damaged(
                        f"rows of {column} hold {sorted(map(str, lengths))} numbers; expected as many in each"
                    )
                sizes += [size for size in lengths if size != 1]
                flat = flat.flatten()
            if truths and kinds.is_boolean(flat.type):
                flat = flat.cast(arrow.uint8())
            if len(sizes) > 1:
                raise self.damaged(f"each row of {column} has the shape {sizes}; expected one dimension")
            if flat.null_count or not (kinds.is_floating(flat.type) or kinds.is_integer(flat.type)):
                raise self.damaged(f"{column} holds {flat.type} with {flat.null_count} gaps; expected numbers")
            with np.errstate(over="ignore"):
                values = flat.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(self), -1)
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values).all(1)))
            raise self.damaged(f"row {row} of {column} holds NaN, infinity or a number too large for float32")
        return values

    def _named_faults(self, column: str = "") -> AbstractContextManager[None]:
        """Turns whatever pyarrow raises into a UserError."""
        return reader_faults(self.damaged, column, longest=200)
