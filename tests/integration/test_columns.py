"""A query's result as arrays: every type, any number of rows, and no null taken for a number."""

from __future__ import annotations

import numpy as np
import pytest
from psycopg import sql

from cp_resources.columns import Number, read_columns
from cp_resources.database import Database

ALL = {
    "small": Number(sql.SQL("n % 1000 - 500"), "int16"),
    "large": Number(sql.SQL("n * 5000000000"), "int64"),
    "share": Number(sql.SQL("n / 8.0"), "float64"),
    "even": Number(sql.SQL("n % 2 = 0"), "bool"),
}


@pytest.mark.parametrize("rows", [0, 1, 49_999, 50_000, 50_001, 120_000])
def test_columns_hold_what_the_query_gives_whatever_its_length(database: Database, rows: int):
    with database.transaction() as connection:
        found = read_columns(
            connection, sql.SQL("FROM generate_series(1::bigint, {}) AS n").format(rows), ALL
        )
    n = np.arange(1, rows + 1)
    expected = {"small": n % 1000 - 500, "large": n * 5_000_000_000, "share": n / 8, "even": n % 2 == 0}
    for name, column in ALL.items():
        assert found[name].dtype == column.dtype
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("rows", [1, 60_000])
def test_a_null_is_refused(database: Database, rows: int):
    source = sql.SQL("FROM generate_series(1, {}) AS n").format(rows)
    columns = {**ALL, "broken": Number(sql.SQL("nullif(n, 1)"), "int64")}
    with pytest.raises(ValueError, match="null"), database.transaction() as connection:
        read_columns(connection, source, columns)
