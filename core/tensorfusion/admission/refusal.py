"""How admission says no: the field, the value, and what is allowed, as data and as a sentence."""

import json
from typing import Self

from tensorfusion import names
from tensorfusion.errors import ApiError, Cause, Forbidden, Invalid

LONGEST_VALUE = 120


class Refused(ApiError):
    """Admission refuses an object.

    Attributes:
        field: JSON path of the field to blame, such as
            ``spec.gpuCount``.
        value: What it holds, as text.
        allowed: What would be accepted, or why nothing is.
    """

    cause_reason = "FieldValueInvalid"

    def __init__(
        self,
        field: str,
        value: str,
        allowed: str,
        *,
        kind: str = "",
        group: str = "",
        name: str = "",
    ) -> None:
        self.field, self.value, self.allowed = field, value, allowed
        self.kind, self.group, self.name = kind, group, name
        details = {"group": group, "kind": kind, "name": name}
        super().__init__(
            self.sentence(),
            causes=[Cause(field, self.cause_reason, self.finding())],
            details={key: text for key, text in details.items() if text},
        )

    def finding(self) -> str:
        """What is wrong with the field, without naming it."""
        shown = (
            self.value if len(self.value) <= LONGEST_VALUE else self.value[:LONGEST_VALUE] + "..."
        )
        return f"Invalid value: {json.dumps(shown, ensure_ascii=False)}: {self.allowed}"

    def sentence(self) -> str:
        """The whole message."""
        text = f"{self.field}: {self.finding()}"
        if not self.kind:
            return text
        kind = f"{self.kind}.{self.group}" if self.group else self.kind
        return f'{kind} "{self.name}" is invalid: {text}'

    def about(self, kind: str, name: str, *, group: str = "", prefix: str = "") -> Self:
        """Return the refusal with the object it is about and a prefix for the field."""
        field = (
            f"{prefix}{self.field}" if self.field.startswith(("metadata.", "spec.")) else self.field
        )
        return type(self)(field, self.value, self.allowed, kind=kind, group=group, name=name)


class RefusedValue(Refused, Invalid):
    """A value that cannot be read, contradicts another, or is not available here."""


class QuotaExceeded(Refused, Forbidden):
    """The namespace has not enough quota left."""

    cause_reason = "QuotaExceeded"

    def finding(self) -> str:
        """The quota's own words: requested, used and limit."""
        return self.allowed

    def sentence(self) -> str:
        """The whole message."""
        return (
            f'{self.kind} "{self.name}" is forbidden: {self.allowed}' if self.kind else self.allowed
        )


def annotation_field(key: str) -> str:
    """JSON path of an annotation."""
    return f"metadata.annotations[{key}]"


def label_field(key: str) -> str:
    """JSON path of a label."""
    return f"metadata.labels[{key}]"


def short(key: str) -> str:
    """A key without our domain, for the middle of a sentence."""
    return key.removeprefix(names.PREFIX)
