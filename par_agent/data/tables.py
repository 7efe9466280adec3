"""Parquet tables of somebody else, read with nothing taken on trust."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from par_agent.data import lerobot
from par_agent.errors import UserError
from par_agent.files import check_file
from par_agent.json_fields import check

ADVICE = "copy or download the dataset again"


class Table:
    """A table in memory.

    Every method raises a UserError that names the file, the column, what was found and what is expected.

    Args:
        path: the file.
        columns: names of the columns to read, which must be there; None: all but those of statistics.
        episode: reads the rows of this ``episode_index`` alone, in the order of their ``frame_index``.

    Raises:
        UserError: the file is missing or damaged, lacks a column, or pyarrow is not installed.
    """

    def __init__(self, path: Path, columns: list[str] | None = None, episode: int | None = None) -> None:
        self.path = path
        check_file(path)
        parquet = lerobot.pyarrow_module("parquet")
        with self._named_faults():
            if columns is None:
                columns = [name for name in parquet.read_schema(path).names if not name.startswith("stats/")]
            filters = None if episode is None else [("episode_index", "==", episode)]
            self._table = parquet.read_table(
                path, columns=columns, filters=filters, partitioning=None, page_checksum_verification=True
            )
            if episode is not None:
                self._table = self._table.sort_by("frame_index")

    def damaged(self, fault: str) -> UserError:
        """What to tell the user of a table with some fault."""
        return UserError(f"{self.path} is damaged ({fault}); {ADVICE}")

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __contains__(self, column: str) -> bool:
        return column in self._table.column_names

    def values(self, column: str, kind: Any) -> list[Any]:
        """A column as Python has it, each value of a kind as :func:`par_agent.json_fields.check` knows them."""
        with self._named_faults(column):
            values: list[Any] = self._table[column].to_pylist()
        try:
            check(column, values, list[kind])
        except UserError as error:
            raise self.damaged(str(error)) from None
        return values

    def records(self, kind: Any) -> list[dict[str, Any]]:
        """All rows as objects, each of a kind as :func:`par_agent.json_fields.check` knows them."""
        with self._named_faults():
            rows: list[dict[str, Any]] = self._table.to_pylist()
        try:
            check("row", rows, list[kind])
        except UserError as error:
            raise self.damaged(str(error)) from None
        return rows

    def matrix(self, column: str) -> np.ndarray:
        """A column of numbers, or of lists of as many of them, as (K, n) float32, all finite."""
        arrow = lerobot.pyarrow_module("")
        with self._named_faults(column):
            flat, size = self._table[column].combine_chunks(), 1
            kinds = arrow.types
            if kinds.is_list(flat.type) or kinds.is_large_list(flat.type) or kinds.is_fixed_size_list(flat.type):
                sizes = set(lerobot.pyarrow_module("compute").list_value_length(flat).to_pylist())
                if len(sizes) != 1 or not (size := sizes.pop()):
                    raise self.damaged(
                        f"rows of {column} hold {sorted(map(str, sizes))} numbers; expected as many in each"
                    )
                flat = flat.flatten()
            if flat.null_count or not (kinds.is_floating(flat.type) or kinds.is_integer(flat.type)):
                raise self.damaged(f"{column} holds {flat.type} with {flat.null_count} gaps; expected numbers")
            values = np.asarray(flat, dtype=np.float32).reshape(len(self), size)
        if not np.isfinite(values).all():
            raise self.damaged(f"row {int(np.argmin(np.isfinite(values).all(1)))} of {column} holds NaN or infinity")
        return values

    @contextlib.contextmanager
    def _named_faults(self, column: str = "") -> Iterator[None]:
        """Turns whatever pyarrow raises into a UserError."""
        try:
            yield
        except UserError:
            raise
        except (OSError, RuntimeError, LookupError, TypeError, ValueError, ArithmeticError, MemoryError) as error:
            words = " ".join(str(error).split())[:200] or type(error).__name__
            raise self.damaged(f"{column}: {words}" if column else words) from None
