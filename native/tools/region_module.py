"""Write the C source of the Python module that owners reach a worker's files through.

    python native/tools/region_module.py OUTPUT.c

The build runs it. The structs are those of ``generated/region.cdef``, the functions those of ``owner/owner.h``; cffi has
the C compiler compare the former with ``generated/region.h``.
"""

import sys
from pathlib import Path

import cffi

NATIVE = Path(__file__).resolve().parents[1]
MODULE = "_region"


def declarations() -> str:
    """What Python sees: structs and constants, and the header without its preprocessor lines."""
    header = (NATIVE / "owner" / "owner.h").read_text().splitlines()
    functions = "\n".join(line for line in header if not line.startswith("#"))
    return (NATIVE / "generated" / "region.cdef").read_text() + functions


def main() -> int:
    """Write the source."""
    builder = cffi.FFI()
    builder.cdef(declarations())
    builder.set_source(MODULE, '#include "owner.h"', py_limited_api=True, compiler_verbose=False)
    builder.emit_c_code(sys.argv[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
