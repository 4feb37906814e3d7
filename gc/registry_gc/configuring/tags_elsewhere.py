"""Whether a config is that of a registry whose tags are in a database, and not in its storage.

Harbor and OpenShift have such registries. Both write names of their own into every config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

_HARBOR: Mapping[tuple[str, ...], str] = {
    ("auth", "htpasswd", "realm"): "harbor-registry-basic-realm",
    ("auth", "token", "issuer"): "harbor-token-issuer",
    ("auth", "token", "service"): "harbor-registry",
}
_OPENSHIFT = "openshift"


class TagsElsewhere(msgspec.Struct, frozen=True):
    """Whose database has the tags, and the key of the config that says so."""

    owner: str
    key: str


def tags_elsewhere(values: Mapping[str, Any]) -> TagsElsewhere | None:
    """What the config *values* say of a database with the tags; None where they say nothing.

    Sections that are no mappings say nothing either: nobody else reads them here.
    """
    for path, name in _HARBOR.items():
        if _at(values, path) == name:
            return TagsElsewhere("Harbor", ".".join(path))
    for path in ((_OPENSHIFT,), ("auth", _OPENSHIFT)):
        if path[-1] in _mapping(_at(values, path[:-1])):
            return TagsElsewhere("OpenShift", ".".join(path))
    for kind in ("registry", "repository", "storage"):
        used = _at(values, ("middleware", kind))
        if isinstance(used, list) and any(_mapping(one).get("name") == _OPENSHIFT for one in used):
            return TagsElsewhere("OpenShift", f"middleware.{kind}")
    return None


def _at(values: object, path: tuple[str, ...]) -> object:
    for key in path:
        values = _mapping(values).get(key)
    return values


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, dict) else {}
