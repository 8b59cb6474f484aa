"""Vendor names as people spell them, and what can be promised for each."""

from collections.abc import Iterable

VENDORS = (
    "NVIDIA", "AMD", "Intel", "Qualcomm", "AWSNeuron", "Google", "Cerebras", "Hygon", "MetaX",
    "MooreThreads", "Biren", "THead", "PPU", "Ascend", "Cambricon", "Enflame", "KunlunXin",
    "Horizon",
)  # fmt: skip
"""Canonical names; a ProviderConfig may add others."""

ALIASES = {"mthreads": "MooreThreads", "moore": "MooreThreads", "moorethreads": "MooreThreads"}

WITHOUT_SOFT_LIMITER = frozenset({"AMD", "Hygon", "MetaX"})
"""Vendors whose driver interface no limiter library wraps."""

LIMITER_LIBRARIES = {
    "Ascend": "libtensorfusion_ascend.so",
    "MooreThreads": "libtensorfusion_musa.so",
    "PPU": "libtensorfusion_ppu.so",
}
"""Limiter library by vendor; CUDA's for all others."""
CUDA_LIMITER = "libtensorfusion_cuda.so"


def canonical_vendor(text: str, more: Iterable[str] = ()) -> str | None:
    """Spell a vendor as the devices do; None when nobody knows it.

    Args:
        text: As a user wrote it, in any case.
        more: Vendors of the installed ProviderConfigs.
    """
    wanted = text.strip().casefold()
    if wanted in ALIASES:
        return ALIASES[wanted]
    for vendor in (*VENDORS, *more):
        if vendor.casefold() == wanted:
            return vendor
    return None


def limiter_library(vendor: str) -> str:
    """File name of the limiter that is preloaded into a vendor's applications."""
    return LIMITER_LIBRARIES.get(vendor, CUDA_LIMITER)
