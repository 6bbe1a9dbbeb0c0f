"""Read a user's CSV or Parquet table, wherever it lies."""

import pyarrow as pa
from pyarrow import csv, parquet

from pipeline.storage import Location

SUFFIXES = (".csv", ".parquet")


def is_table(uri: str) -> bool:
    """Whether its name says table."""
    return uri.lower().endswith(SUFFIXES)


def read_table(place: Location, *, text_columns: tuple[str, ...]) -> pa.Table:
    """The rows of a table; `text_columns` stay text even when they look like numbers ("007").

    Numbers of a Parquet table become text as people write them: 1, also where it is held as 1.0.
    """
    if not is_table(place.path):
        raise ValueError(f"{place}: a table is a .csv or a .parquet file")
    try:
        with place.reader() as source:
            # Arrow's threads would hold Python objects, and abort a process that ends meanwhile
            if place.path.lower().endswith(".parquet"):
                table = parquet.ParquetFile(pa.BufferReader(source.read())).read(use_threads=False)
            else:
                table = csv.read_csv(
                    source,
                    read_options=csv.ReadOptions(use_threads=False),
                    convert_options=csv.ConvertOptions(
                        column_types=dict.fromkeys(text_columns, pa.string()),
                        strings_can_be_null=True,
                        null_values=[""],
                    ),
                )
    except pa.ArrowInvalid as error:
        cause = " ".join(str(error).split())[:200]
        raise ValueError(f"{place}: cannot be read as a table ({cause})") from error
    if table.num_rows == 0:
        raise ValueError(f"{place}: the table has no row")
    for name in set(text_columns) & set(table.column_names):
        index = table.column_names.index(name)
        table = table.set_column(index, name, table.column(name).cast(pa.string()))
    return table
