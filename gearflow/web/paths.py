"""Paths of the dashboard: names in them, and the prefix of a proxy or of the application that mounts it.

The name of a function may be any bytes, ``/`` and ``..`` among them. So a path is split before it is decoded,
and each segment is one name.
"""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, unquote, urlencode

_DOTS: Final = (".", "..")
"""Segments that browsers remove, also in their encoded forms."""

_MARK: Final = "%00"
"""Comes before a name that is only dots. No name on the wire has a NUL."""


def segment(name: str) -> str:
    """A name as one segment of a path."""
    quoted = quote(name, safe="", errors="surrogateescape")
    return _MARK + quoted if name in _DOTS else quoted


def name_of(segment: str) -> str:
    """The name in a segment of a path."""
    return unquote(segment, errors="surrogateescape").removeprefix("\0")


def query(values: Mapping[str, object]) -> str:
    """``?name=value``, without those that are None or empty. Empty if there are none."""
    given = {name: str(value) for name, value in values.items() if value is not None and value != ""}
    return f"?{urlencode(given, errors='surrogateescape')}" if given else ""


def route_of(scope: Mapping[str, Any], prefix: str) -> tuple[str, str]:
    """The prefix of a request and the rest of its path, both as they were sent, not decoded.

    Args:
        scope: The request. Its ``root_path`` is that of the application that mounts the dashboard. The part
            of it that is the ``app_root_path`` of Starlette and FastAPI may be missing from the path.
        prefix: The path at which a proxy has the dashboard. It does not matter whether the proxy removes it.
    """
    raw: bytes | None = scope.get("raw_path")
    path = raw.decode("latin-1") if raw is not None else quote(scope["path"])
    root = quote(str(scope.get("root_path", "")).rstrip("/"))
    mounted = root.removeprefix(quote(str(scope.get("app_root_path", "")).rstrip("/")))
    path = _below(path, root if path == root or path.startswith(f"{root}/") else mounted)
    path = _below(path, prefix)
    return root + prefix if not root.endswith(prefix) else root, path or "/"


def _below(path: str, root: str) -> str:
    if root and (path == root or path.startswith(f"{root}/")):
        return path[len(root) :]
    return path


def match(pattern: str, path: str) -> dict[str, str] | None:
    """The names in a path of the form ``pattern``, such as ``/functions/{name}``. None for other paths."""
    wanted, given = pattern.split("/"), path.split("/")
    if len(wanted) != len(given):
        return None
    names: dict[str, str] = {}
    for want, part in zip(wanted, given, strict=True):
        if want.startswith("{"):
            if not part:
                return None
            names[want[1:-1]] = name_of(part)
        elif want != part:
            return None
    return names
