"""The environment of a worker's process."""

from collections.abc import Mapping

PATH_LISTS = ("LD_PRELOAD", "LD_LIBRARY_PATH")
"""Lists of the dynamic loader (ld.so(8)), which are added to and not replaced."""


def process_environment(base: Mapping[str, str], added: Mapping[str, str]) -> dict[str, str]:
    """Return ``base`` with what a backend gives its workers; of path lists its entries go first."""
    result = {**base, **added}
    for name in PATH_LISTS:
        entries = [source[name] for source in (added, base) if source.get(name)]
        if entries:
            result[name] = ":".join(dict.fromkeys(entries))
    return result
