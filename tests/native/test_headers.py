"""The tables of driver calls and our own type declarations, held against the vendor's headers."""

import csv
import re
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
from native.machine import ROOT
from rig.cuda_headers import CUDA_PACKAGES, NVML_PACKAGES, HeadersMissingError, include_folder

DATA = ROOT / "native" / "data"
INCLUDE = ROOT / "native" / "include"
VERSION = r"(_v\d+)?(_pt[sd][sz])?$"
STRUCT = re.compile(r"typedef struct \{([^}]*)\} (\w+);")
OWN = {"CU_STREAM_LEGACY_VALUE", "CU_STREAM_PER_THREAD_VALUE", "CU_GET_PROC_ADDRESS_PER_THREAD"}
"""Constants that the header has as macros of other names."""
POOL_FIELDS = {"CUmemPoolProps.usage", "CUmemPoolProps.reserved"}
"""Cut, before 12.9, out of what the headers declare as reserved; the size stays."""
SINCE_12 = {
    "CUmemPoolProps.maxSize",
    # Two fields more than before.
    "CUDA_KERNEL_NODE_PARAMS",
    "CUDA_KERNEL_NODE_PARAMS.kern",
    "CUDA_KERNEL_NODE_PARAMS.ctx",
    "CU_GET_PROC_ADDRESS_SUCCESS",
    "CU_MEM_LOCATION_TYPE_HOST_NUMA",
    "CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND",
    "CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT",
}
"""What the headers before 12.0 lack."""
NODE_FIELDS = (
    "type",
    "kernel.kern",
    "alloc.poolProps",
    "alloc.bytesize",
    "alloc.dptr",
    "reserved2",
)
"""Fields of a graph node's parameters, which are a union."""

TAKES_MEMORY_OR_TIME = re.compile(
    r"cu(Mem(Alloc|Create|Map|Import|Pool(Create|Import)|Host(Alloc|Register))\w*"
    r"|(Mipmapped)?Array(3D)?Create|Mipmapped\w*Create|Launch\w*|Graph\w*Launch|GraphUpload"
    r"|GraphInstantiate\w*|GraphAdd\w*(Mem|Node)\w*|CtxCreate|\w*CtxCreate|DevicePrimaryCtxRetain"
    r"|IpcOpenMem\w*|ImportExternalMemory|ExternalMemory\w*|MulticastCreate"
    r"|(Module|Library|Func)Load\w*|StreamBeginCapture\w*|CtxFromGreenCtx)"
    + VERSION
)  # fmt: skip
"""Functions that may take device memory or device time, or change what a launch means."""

NOT_ROWS = {
    "before CUDA 3.2: 32-bit addresses and sizes, which 64-bit programs do not use": """
        cuCtxCreate cuMemAlloc cuMemAllocPitch cuMemAllocHost cuArrayCreate cuArray3DCreate
        cuMemHostRegister""",
    "for several devices at once, deprecated since 11.3; not charged": """
        cuLaunchCooperativeKernelMultiDevice""",
    "the memory belongs to who exported it, and is charged there": """
        cuMemPoolImportFromShareableHandle cuMemPoolImportPointer cuImportExternalMemory
        cuExternalMemoryGetMappedBuffer
        cuExternalMemoryGetMappedMipmappedArray""",
    "host memory": "cuMemHostRegister_v2",
    "maps memory that was charged when it was made": "cuMemMapArrayAsync cuMemMapArrayAsync_ptsz",
    "binds memory that was charged when it was made": "cuMulticastCreate",
    "code and its variables: the driver's own use, of which only contexts are counted": """
        cuModuleLoadFatBinary cuLibraryLoadData cuLibraryLoadFromFile cuFuncLoad""",
    "a share of a context that was charged when it was made": "cuGreenCtxCreate cuCtxFromGreenCtx",
    "before CUDA 10.1: without a mode; nothing newer asks for it": """
        cuStreamBeginCapture cuStreamBeginCapture_ptsz""",
    "before CUDA 11.0: the same call as cuGraphInstantiate_v2 under its old name": """
        cuGraphInstantiate""",
    "the node is charged with the graph that it is in": """
        cuGraphAddMemcpyNode cuGraphAddMemsetNode cuGraphAddMemFreeNode cuGraphAddHostNode
        cuGraphAddChildGraphNode cuGraphAddEmptyNode cuGraphAddEventRecordNode
        cuGraphAddEventWaitNode cuGraphAddExternalSemaphoresSignalNode
        cuGraphAddExternalSemaphoresWaitNode cuGraphAddBatchMemOpNode""",
    "moves a graph's launch forward, which is charged when it comes": """
        cuGraphUpload cuGraphUpload_ptsz""",
}  # fmt: skip
"""Why a function that the pattern above finds is not in the table."""


def table():
    """Symbol to (base, first CUDA version, stream variant, parameters)."""
    rows = {}
    with (DATA / "driver_calls.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for version in row["versions"].split(";"):
                suffix, _, since = version.partition("@")
                if row["class"] == "alias":
                    continue
                symbol = row["base"] + suffix
                for name, stream in ((symbol, ""), (f"{symbol}_{row['streams']}", row["streams"])):
                    rows[name] = (row["base"], int(since), stream, row["arguments"])
    return {name: row for name, row in rows.items() if not name.endswith("_")}


def types(parameters):
    """The types of a parameter list, without the parameters' names."""
    if parameters.strip() in ("", "void"):
        return []
    found = []
    for parameter in parameters.split(","):
        kind, _, array = re.match(r"\s*(.*?)(\w+)\s*(\[\w*\])?\s*$", parameter).groups()
        found.append(kind.strip() + (" *" if array else ""))
    return found


def measure(folder, include, lines):
    """What a C program prints: the sizes and classes that ``lines`` ask for, by name."""
    source = folder / "probe.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n"
        + include
        + "\n#define TYPE(name, ...) printf(name \" %zu %d\\n\", sizeof(__VA_ARGS__),"
        " __builtin_classify_type(*(__VA_ARGS__ *)0))\n"
        '#define NUMBER(name, value) printf(name " %lld\\n", (long long)(value))\n'
        "int main(void) {\n" + "\n".join(lines) + "\nreturn 0;\n}\n"
    )  # fmt: skip
    program = folder / "probe"
    built = subprocess.run(
        ["cc", "-w", "-O0", "-o", str(program), str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    out = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    return dict(line.split(" ", 1) for line in out.splitlines())


def type_lines(prototypes):
    return [
        f'TYPE("{symbol}/{index}", {kind});'
        for symbol, parameters in prototypes.items()
        for index, kind in enumerate(types(parameters))
    ]


def declared(text):
    """Own structs with their fields, and own constants, of one of our headers."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    fields = {
        name: [
            field.strip(" *").split("[")[0]
            for line in body.split(";")
            for field in re.sub(r"^.*?(\w+(\[\w+\])?\s*(,|$))", r"\1", line.strip()).split(",")
            if field.strip()
        ]
        for body, name in STRUCT.findall(text)
    }
    return fields, re.findall(r"\b((?:CUDA|CU|NVML)_[A-Z0-9_]+) = ", text)


@dataclass
class Header:
    """A vendor's header: its version, how a program includes it, and what it declares."""

    version: int
    include: str
    text: str
    prototypes: dict
    typedefs: str = ""


def preprocessed(path, *definitions):
    command = ["cc", "-E", "-P", *(f"-D{name}" for name in definitions), str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def folder_of(package, header):
    try:
        return include_folder(package, header)
    except HeadersMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=CUDA_PACKAGES)
def cuda(request):
    path = folder_of(CUDA_PACKAGES[request.param], "cuda.h") / "cuda.h"
    text = path.read_text()
    out = preprocessed(path, "__CUDA_API_VERSION_INTERNAL")
    return Header(
        int(re.search(r"#define CUDA_VERSION (\d+)", text)[1]),
        f'#define __CUDA_API_VERSION_INTERNAL\n#include "{path}"',
        text,
        dict(re.findall(r"CUresult\s+(cu\w+)\(([^)]*)\)", out)),
        (path.parent / "cudaTypedefs.h").read_text(),
    )


def test_every_row_is_declared_with_the_same_parameters(cuda, tmp_path):
    rows = {name: row for name, row in table().items() if row[1] <= cuda.version}
    assert len(rows) > 100
    assert [name for name in rows if name not in cuda.prototypes] == []

    theirs = measure(tmp_path, cuda.include, type_lines({n: cuda.prototypes[n] for n in rows}))
    ours = measure(
        tmp_path,
        f'#include "{INCLUDE}/tf_cuda.h"',
        type_lines({name: row[3] for name, row in rows.items()}),
    )

    assert ours == theirs


def test_every_row_comes_with_the_version_that_it_says(cuda):
    versions = defaultdict(set)
    for base, version, stream in re.findall(
        r"\(CUDAAPI \*PFN_(cu\w+?)_v(\d+)(?:_(pt[sd][sz]))?\)", cuda.typedefs
    ):
        versions[base, stream].add(int(version))

    wrong = {
        name: (since, versions[base, ""])
        for name, (base, since, stream, _) in table().items()
        if since <= cuda.version and not stream and since not in versions[base, ""]
    }
    assert wrong == {}


def test_what_the_header_maps_a_name_to_is_a_row(cuda):
    known = table()
    bases = {base for base, *_ in known.values()}
    mapped = re.findall(r"#define (cu\w+)\s+(?:__CUDA_API_(PTDS|PTSZ)\()?(cu\w+)", cuda.text)
    wanted = set()
    for base, stream, symbol in mapped:
        # cuGetProcAddress_ptsz is a function of the header, not of the library.
        if base in bases and not symbol.endswith(("_ptsz", "_ptds")):
            wanted |= {symbol, f"{symbol}_{stream.lower()}"} if stream else {symbol}

    assert len(wanted) > 50
    assert wanted - set(known) == set()


def test_a_name_that_means_another_function_is_an_alias(cuda):
    known = table()
    bases = {base for base, *_ in known.values()}
    mapped = re.findall(r"#define (cu[A-Z]\w+)\s+(?:__CUDA_API_PTS?[DZ]S?\()?(cu\w+)", cuda.text)
    with (DATA / "driver_calls.csv").open(newline="") as file:
        aliases = {
            (row["base"], row["base"] + row["versions"].partition("@")[0])
            for row in csv.DictReader(file)
            if row["class"] == "alias" and int(row["versions"].partition("@")[2]) <= cuda.version
        }

    others = {
        (base, symbol)
        for base, symbol in mapped
        if base in bases and not re.fullmatch(re.escape(base) + VERSION, symbol)
    }
    assert others == aliases


def test_what_takes_memory_or_time_is_a_row_or_has_a_reason(cuda):
    reasons = {name for names in NOT_ROWS.values() for name in names.split()}
    found = {name for name in cuda.prototypes if TAKES_MEMORY_OR_TIME.match(name)}

    assert {"cuMemAlloc_v2", "cuLaunchKernel_ptsz", "cuGraphLaunch", "cuMemCreate"} <= found
    assert found - set(table()) - reasons == set()
    assert reasons & set(table()) == set()


def compare_declarations(tmp_path, own, include, skipped=(), more=()):
    structs, constants = declared(own.read_text())
    assert structs
    assert constants
    wanted = {name: f"sizeof({name})" for name in structs} | {name: name for name in constants}
    for name, fields in structs.items():
        wanted |= {f"{name}.{field}": f"offsetof({name}, {field})" for field in fields}
    wanted |= {f"{name}.{field}": f"offsetof({name}, {field})" for name, field in more}
    lines = [f'NUMBER("{key}", {value});' for key, value in wanted.items() if key not in skipped]

    ours = measure(tmp_path, f'#include "{own}"', lines)
    assert ours == measure(tmp_path, include, lines)


def test_our_structs_and_constants_are_the_drivers(cuda, tmp_path):
    skipped = OWN | (SINCE_12 if cuda.version < 12000 else set())
    skipped |= POOL_FIELDS if cuda.version < 12090 else set()
    more = [("CUgraphNodeParams", field) for field in NODE_FIELDS] if cuda.version > 12020 else []
    compare_declarations(tmp_path, INCLUDE / "tf_cuda.h", cuda.include, skipped, more)


@pytest.mark.parametrize("version", NVML_PACKAGES)
def test_rows_structs_and_constants_of_the_management_library(version, tmp_path):
    path = folder_of(NVML_PACKAGES[version], "nvml.h") / "nvml.h"
    include = f'#define NVML_NO_UNVERSIONED_FUNC_DEFS\n#include "{path}"'
    out = preprocessed(path, "NVML_NO_UNVERSIONED_FUNC_DEFS")
    prototypes = dict(re.findall(r"nvmlReturn_t\s+(nvml\w+)\(([^)]*)\)", out))
    with (DATA / "management_calls.csv").open(newline="") as file:
        rows = {row["name"]: row["arguments"] for row in csv.DictReader(file)}
    assert [name for name in rows if name not in prototypes] == []

    theirs = measure(tmp_path, include, type_lines({name: prototypes[name] for name in rows}))
    own = f'#include "{INCLUDE}/tf_nvml.h"'
    assert measure(tmp_path, own, type_lines(rows)) == theirs
    compare_declarations(tmp_path, Path(INCLUDE / "tf_nvml.h"), include)
