"""How a struct says more about its fields than their Python type: the vocabulary of the schema.

A field is declared once, as ``name: Annotated[T | None, Doc("meaning", minimum=1)] = None``. The
schema, CRDs, validation, OpenAPI and reference pages are derived from that (`api.schema`).

Conventions that `api.schema` reads:

* ``None``, ``()`` and ``{}`` as Python default mean "absent"; anything else is a schema default.
  A schema default is declared with `defaulted`, so that printing an object never leaves it out.
* A field without Python default is required.
* ``dict[str, Any]`` is an object whose fields are kept as they are; ``Any`` is any value.
* ``int | str`` is an int-or-string, ``int | float | str`` a number or a string.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec

from tensorfusion.units import AMOUNT_PATTERN, QUANTITY_PATTERN

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Doc:
    """What the schema says about a field besides its type.

    Attributes:
        description: Meaning, unit and what absence means.
        minimum: Smallest number allowed.
        maximum: Largest number allowed.
        enum: The only values allowed.
        pattern: Regular expression (RE2 subset) that a string must match.
        min_length: Shortest string allowed.
        max_length: Longest string allowed.
        min_items: Fewest list elements allowed.
        max_items: Most list elements allowed.
        format: JSON-schema format, such as ``int32`` or ``date-time``.
        map_keys: The fields that identify an element of a list (server-side apply).
        merge_key: The field that identifies an element in strategic merge patches.
        is_set: The list holds distinct scalars.
        number_or_string: A number that may be quoted.
        form: What a value must look like, in words, for messages about ``pattern``.
        added: The field is ours, not in the reference's schema.
    """

    description: str = ""
    minimum: int | None = None
    maximum: int | None = None
    enum: tuple[str, ...] = ()
    pattern: str = ""
    min_length: int | None = None
    max_length: int | None = None
    min_items: int | None = None
    max_items: int | None = None
    format: str = ""
    map_keys: tuple[str, ...] = ()
    merge_key: str = ""
    is_set: bool = False
    number_or_string: bool = False
    form: str = ""
    added: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A CEL rule of an object (``x-kubernetes-validations``).

    Attributes:
        expression: CEL over ``self`` (and ``oldSelf`` for a rule about changes).
        message: What is wrong, when it is false.
        field_path: The field to blame, relative to the object, such as ``.replicas``.
    """

    expression: str
    message: str
    field_path: str = ""


_UPPER_WORDS = {
    "ip": "IP", "ips": "IPs", "ipc": "IPC", "pid": "PID", "cidr": "CIDR", "cidrs": "CIDRs",
    "gpu": "GPU", "gpus": "GPUs", "vram": "VRAM", "tflops": "TFlops", "ttl": "TTL", "url": "URL",
    "fqdn": "FQDN", "uuid": "UUID", "qos": "QoS", "id": "ID",
}  # fmt: skip


def wire_name(field_name: str) -> str:
    """Spell a field as the wire does: camelCase, with the API's abbreviations in capitals."""
    first, *others = field_name.rstrip("_").split("_")
    return first + "".join(_UPPER_WORDS.get(word, word.capitalize()) for word in others)


class Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename=wire_name):
    """Base of every struct of the data model: immutable, camelCase on the wire, sparse."""

    __rules__: ClassVar[tuple[Rule, ...]] = ()
    __atomic__: ClassVar[bool] = False


def defaulted(value: T, *, name: str | None = None) -> T:
    """Declare a schema default: the value an absent field has, always written when printed.

    msgspec omits a field that holds its default object; one from a factory is kept, and a merge
    patch made from a struct must not leave out ``phase: Pending``.
    """
    return msgspec.field(default_factory=lambda: value, name=name)


def named(name: str, default: Any = None) -> Any:
    """Declare an optional field whose wire name does not follow `wire_name`."""
    return msgspec.field(default=default, name=name)


_FORM = 'a quantity such as "10", "500m" or "4Gi"'

Int32 = Annotated[int, Doc(format="int32")]
Int64 = Annotated[int, Doc(format="int64")]
Port = Annotated[int, Doc(format="int32", minimum=1, maximum=65535)]
IntOrString = int | str
Amount = Annotated[
    int | str,
    Doc(pattern=AMOUNT_PATTERN, minimum=0, form=f"{_FORM}, not negative"),
]
"""A quantity that cannot be negative, as custom resources write it."""
Quantity = Annotated[int | str, Doc(pattern=QUANTITY_PATTERN, form=_FORM)]
"""Any quantity, as custom resources write it."""
CoreQuantity = Annotated[
    int | float | str, Doc(pattern=QUANTITY_PATTERN, form=_FORM, format="quantity")
]
"""Any quantity, as the core kinds write it: bare fractions too."""
Ratio = Annotated[
    int | float | str,
    Doc(
        pattern=r"^[0-9]+(\.[0-9]+)?$",
        form='a number such as 0.9 or "0.9"',
        minimum=0,
        number_or_string=True,
    ),
]
"""A number from zero up that may be quoted."""
Time = Annotated[str, Doc(format="date-time")]
MicroTime = Annotated[str, Doc(format="date-time")]
Duration = Annotated[
    str,
    Doc(
        pattern=r"^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$|^0$",
        form='a duration such as "30s", "5m" or "1h30m"',
    ),
]
"""A length of time as Go writes it."""
Raw = dict[str, Any]
"""An object that is kept as it is, such as a pod template."""
Labels = dict[str, str]


def mapping(name: str | None = None) -> Any:
    """Declare an optional object with free keys that is empty when absent."""
    return msgspec.field(default_factory=dict, name=name)
