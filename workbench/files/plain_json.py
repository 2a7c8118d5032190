"""JSON without NaN: numpy and pandas values, paths and missing numbers become JSON's own types."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(document: object, *, indent: int | None = None) -> str:
    """A document as JSON text; NaN, infinity and missing values become null."""
    return json.dumps(plain(document), ensure_ascii=False, indent=indent)


def plain(value: Any) -> Any:
    """Turn numpy and pandas scalars, paths and tuples into JSON's types, and NaN, infinity and NA into None."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) else _missing_or_text(value)


def _missing_or_text(value: Any) -> str | None:
    return None if type(value).__name__ in ("NAType", "NaTType") else str(value)
