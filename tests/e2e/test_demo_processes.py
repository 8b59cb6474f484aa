"""The demo's second part: what it shows where the native part is built, and where it is not."""

import tempfile
from pathlib import Path

import pytest

from tensorfusion.cli.demo_processes import (
    Tenant,
    mean_shares,
    missing,
    show_processes,
    tenant_lines,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
SETTINGS = EXAMPLES / "processes" / "settings.yaml"


def tenant(name: str, used: float, limit: float, denials: int = 0) -> Tenant:
    return Tenant(name, used, limit, 1 << 30, 2 << 30, denials, 3.2)


def of_this_demo(folder: Path) -> list[Path]:
    """Processes whose environment names a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(path)
        except OSError:
            continue
    return found


@pytest.mark.timeout(120)
def test_tenants_are_measured_resized_and_stopped_and_nothing_is_left(
    tmp_path, monkeypatch, capsys
) -> None:
    why = missing(SETTINGS)
    if why:
        pytest.skip(why)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    complete = show_processes(EXAMPLES)
    text = capsys.readouterr().out

    assert complete, text
    lines = text.splitlines()
    held = lines.index("  ok   two pods, as processes, are held to 30 and 70 percent of a GPU")
    words = lines[held + 1].replace(",", "").replace("%", "").split()
    measured = dict(zip(words[-4::2], map(float, words[-3::2]), strict=True))
    assert measured == {"large": pytest.approx(70, abs=3), "small": pytest.approx(30, abs=3)}
    resized = lines.index("  ok   one is resized to 40 percent while it runs")
    assert "large 4" in lines[resized + 1] or "large 3" in lines[resized + 1]
    assert "allocation(s) refused at 2Gi" in text
    assert "wants 312 TFLOPS and 3Gi, holds 2Gi" in lines[-1]
    assert not list(tmp_path.glob("tensorfusion-demo-*"))
    assert of_this_demo(tmp_path / "tensorfusion-demo-") == []


def test_without_the_native_part_one_line_says_what_is_missing(
    tmp_path, monkeypatch, capsys
) -> None:
    pytest.importorskip("tensorfusion_simulated")
    monkeypatch.setenv("TENSORFUSION_NATIVE_BUILD", str(tmp_path))

    assert show_processes(EXAMPLES)

    [line] = capsys.readouterr().out.strip().splitlines()
    assert line.startswith("left out, pods as processes under the limiter: ")
    assert f"{tmp_path} has no complete build" in line


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ((68.0, 30.5), "measured over 2 s: large 70.0%, small 30.0%"),
        ((58.0, 30.5), ""),
        ((72.0, 40.0), ""),
    ],
    ids=["at their limits", "one below", "one above"],
)
def test_a_share_is_told_only_when_both_are_at_their_limits(second, told) -> None:
    readings = [
        [tenant("large", large, 70), tenant("small", small, 30)]
        for large, small in ((72.0, 29.5), second)
    ]
    assert mean_shares(readings) == told


def test_bars_are_of_the_whole_card() -> None:
    heading, row = tenant_lines([tenant("large", 50, 70, denials=4)])
    assert [word.strip() for word in heading.split("   ") if word] == [
        "POD", "OF THE GPU", "USED", "LIMIT", "VRAM", "OF LIMIT", "HELD BACK", "REFUSED",
    ]  # fmt: skip
    assert row.split() == [
        "large", "█" * 15 + "·" * 6 + "|" + "·" * 8, "50.0%", "70%", "1Gi", "2Gi", "3", "s", "4",
    ]  # fmt: skip
    assert tenant_lines([]) == ["no pod runs yet"]
