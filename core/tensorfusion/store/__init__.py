"""The resource store as the rest of the program sees it: one Protocol, watch events, informers."""

from tensorfusion.store.interface import (
    EventType,
    ObjectList,
    PatchType,
    Store,
    Watch,
    WatchEvent,
)

__all__ = ["EventType", "ObjectList", "PatchType", "Store", "Watch", "WatchEvent"]
