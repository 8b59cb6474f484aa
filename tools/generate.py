"""Write every generated file of the tree, or check that the committed ones are up to date.

``python tools/generate.py`` writes; ``--check`` compares and exits 1 with the names of stale files.
"""

import argparse
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GENERATORS = (
    ("tensorfusion.api.crd", "crd_files", "core/tensorfusion/deploy/crds"),
    ("tensorfusion.api.reference", "reference_files", "docs/reference/generated"),
    ("tensorfusion.admission.annotations", "annotation_reference", "docs/reference/generated"),
    ("reference_pages", "pages", "docs/reference/generated"),
    ("placement_rules", "pages", "docs/reference/generated"),
    ("limiter_checks", "pages", "docs/reference"),
    ("tensorfusion_dashboards.fleet", "generate", "."),
    ("tensorfusion_dashboards.rule_file", "generate", "."),
)
"""Module, function that returns file name to text, and the folder of the names."""


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    stale = []
    for module, function, folder in GENERATORS:
        files: dict[str, str] = getattr(importlib.import_module(module), function)()
        for name, text in files.items():
            path = ROOT / folder / name
            if path.exists() and path.read_text() == text:
                continue
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    verb = "stale" if check else "wrote"
    print("\n".join(f"{verb}: {name}" for name in stale) or "generated files are up to date")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
