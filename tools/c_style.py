"""Formats and lints the C of the native part with the tools of the development group.

What clang-tidy had nothing to say about is remembered in the build folder, by the content of the file, of what it
includes and of the checks, and not asked again.

python tools/c_style.py --check    what `make check` does: clang-format and clang-tidy, nothing is written
python tools/c_style.py            what `make fix` does: clang-format writes
"""

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
NATIVE = ROOT / "native"
TOOLS = Path(sys.executable).parent
COMMANDS = ROOT / "build" / "native-tidy"
INCLUDE = re.compile(r'^\s*#\s*include\s*"(?:[^"\n]*/)?([^"/\n]+)"', re.MULTILINE)


def sources() -> list[Path]:
    """All that people write; generated headers have the generator's style."""
    found = [path for end in ("c", "h") for path in NATIVE.glob(f"*/*.{end}")]
    return sorted(path for path in found if path.parent.name != "generated")


def run(*command: str) -> str:
    """Run a tool; what it says when it is not content, or nothing."""
    done = subprocess.run(command, cwd=NATIVE, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip() if done.returncode else ""


def key(file: Path, command: str) -> str:
    """Name what clang-tidy's answer about a file depends on."""
    digest = hashlib.sha256((run_version() + command).encode())
    for part in (NATIVE / ".clang-tidy", *sorted(parts(file))):
        digest.update(part.read_bytes())
    return digest.hexdigest()


def parts(file: Path) -> set[Path]:
    """A file and all that it includes of ours; files of the same name in several folders all count."""
    found, left = set[Path](), [file]
    while left:
        part = left.pop()
        if part not in found:
            found.add(part)
            left += (other for name in included(part) for other in NATIVE.glob(f"*/{name}"))
    return found


@functools.cache
def included(file: Path) -> list[str]:
    """The names, without folders, that a file includes in quotes."""
    return INCLUDE.findall(file.read_text())


@functools.cache
def run_version() -> str:
    """Tell which clang-tidy this is."""
    return subprocess.check_output([TOOLS / "clang-tidy", "--version"], text=True)


def lint_one(file: Path, command: str) -> str:
    """Lint a file, unless it was found in order as it is."""
    known = COMMANDS / "in-order" / key(file, command)
    if known.exists():
        return ""
    said = run(str(TOOLS / "clang-tidy"), "-p", str(COMMANDS), "--quiet", str(file))
    if not said:
        known.parent.mkdir(exist_ok=True)
        known.touch()
    return said


def once_each() -> dict[str, str]:
    """Keep one command per file: some are part of several libraries, and are the same in each.

    Returns:
        How each file is compiled, by its path.
    """
    path = COMMANDS / "compile_commands.json"
    rows = {row["file"]: row for row in json.loads(path.read_text())}
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(list(rows.values())))
    part.replace(path)
    return {file: row["command"] for file, row in rows.items()}


def lint() -> list[str]:
    """Run clang-tidy on every C file, one per processor at a time."""
    path = os.pathsep.join((os.environ.get("PATH", ""), str(TOOLS)))
    missing = [tool for tool in ("cc", "cmake", "ninja") if shutil.which(tool, path=path) is None]
    if missing:
        print(
            f"clang-tidy is left out: it needs {', '.join(missing)} for how each file is compiled"
        )
        return []
    os.environ["PATH"] = path
    failed = run("cmake", "--preset", "dev", "-B", str(COMMANDS))
    if failed:
        return [failed]
    commands = once_each()
    files = [file for file in sources() if file.suffix == ".c"]
    # The longest first, so that no processor is left with one at the end.
    files.sort(key=lambda file: -file.stat().st_size)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        said = pool.map(lint_one, files, [commands.get(str(file), "") for file in files])
        return [text for text in said if text]


def main() -> int:
    """Check or format."""
    checking = "--check" in sys.argv[1:]
    write = ("--dry-run", "--Werror") if checking else ("-i",)
    failed = [run(str(TOOLS / "clang-format"), *write, *map(str, sources()))]
    if checking:
        failed += lint()
    said = "\n".join(text for text in failed if text)
    if said:
        print(said)
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
