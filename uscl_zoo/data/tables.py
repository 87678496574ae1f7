"""What is a table to people: of pandas, of Polars, and of whatever takes Arrow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import MissingDependencyError

if TYPE_CHECKING:
    import pandas
    import polars


class Tabular:
    """Has columns, and so becomes a data frame of any library; none is needed for anything else.

    Polars, DuckDB, pandas and whatever else takes Arrow streams make one of it by themselves, e.g.
    `polars.DataFrame(x)` or `pyarrow.table(x)`.
    """

    def columns(self) -> dict[str, Any]:
        """Arrays and lists by name, of one length; what is not known is None or NaN in them."""
        raise NotImplementedError

    def to_pandas(self) -> pandas.DataFrame:
        """A data frame of pandas.

        Raises:
            MissingDependencyError: if pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise _missing("pandas") from error
        return pandas.DataFrame(self.columns())

    def to_polars(self) -> polars.DataFrame:
        """A data frame of Polars, in which an unknown number is null.

        Raises:
            MissingDependencyError: if Polars is not installed.
        """
        try:
            import polars
        except ImportError as error:
            raise _missing("polars") from error
        return polars.DataFrame(self.columns(), nan_to_null=True)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """What Arrow's PyCapsule interface asks for.

        Raises:
            MissingDependencyError: if pyarrow is not installed.
        """
        try:
            import pyarrow
        except ImportError as error:
            raise _missing("pyarrow") from error
        # unknown is null, as it is empty in a CSV
        columns = {
            name: pyarrow.array(values, from_pandas=True) for name, values in self.columns().items()
        }
        return pyarrow.table(columns).__arrow_c_stream__(requested_schema)


def _missing(library: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"this needs {library}; install it by: pip install 'uscl-zoo[tables]'"
    )
