"""Settings of which some are wrong: what is right can be looked at still, so that all problems are found at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from recbole_prunerec.errors import Broken
from recbole_prunerec.settings import Group, Settings
from recbole_prunerec.validation.sentences import GROUPS, STEPS


class Partial:
    """The settings of `group` in `values`, each read for itself, by the names that the group gives them. A wrong one raises `Broken`."""

    def __init__(self, group: type[Group], values: Mapping[str, Any]) -> None:
        self._group, self._values = group, values
        self.default = group.default

    def __getattr__(self, key: str) -> Any:
        field, value = self._group.model_fields.get(key), self._values.get(key)
        if field is None:
            raise Broken(key)
        if key not in self._values and not field.is_required():
            return field.get_default()
        try:
            return TypeAdapter(field.rebuild_annotation()).validate_python(value)
        except ValidationError:
            if self._group is Settings and key == "steps" and isinstance(value, list):
                return [_step(step) for step in value]
            if key in GROUPS and isinstance(value, dict):
                return Partial(GROUPS[key], value)
            raise Broken(key) from None


def _step(value: Any) -> Group | Partial:
    """A step, whole where it is right."""
    kind = value.get("do") if isinstance(value, dict) else None
    if kind not in STEPS:
        return Partial(Group, {})  # has no key that could be looked at
    group = GROUPS[kind]
    try:
        return group.model_validate(value)
    except ValidationError:
        return Partial(group, value)
