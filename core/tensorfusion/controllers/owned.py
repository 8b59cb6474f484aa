"""Owner references, labels and names of objects that controllers make for others. Pure."""

import hashlib
from typing import Any

import msgspec

from tensorfusion.api.resource import JsonObject

ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""Letters and digits that spell no words, as Kubernetes uses for generated names."""


def owner_reference(obj: JsonObject) -> JsonObject:
    """Build the controller reference to an owner."""
    return {
        "apiVersion": obj["apiVersion"],
        "kind": obj["kind"],
        "name": obj["metadata"]["name"],
        "uid": obj["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def safe_hash(value: Any) -> str:
    """Hash decoded JSON to ten letters that fit into a name; equal values hash equally."""
    encoded = msgspec.json.encode(value, order="sorted")
    number = int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "big")
    letters = []
    for _ in range(10):
        number, rest = divmod(number, len(ALPHABET))
        letters.append(ALPHABET[rest])
    return "".join(letters)
