"""Load profiles: what they want, and how a wrong one is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfusion.errors import BackendError
from tensorfusion_simulated.load import KEYS, parse_profile

GIB = 1 << 30
CARD = 100_000


def profile(text, seed="w"):
    return parse_profile(text, seed, 10_000, 4 * GIB)


def wanted(text, seconds, seed="w"):
    return profile(text, seed).at(seconds, CARD)


def test_constant_wants_the_same_at_any_time():
    assert wanted("constant,tflops=12,vram=3Gi", 0) == wanted("constant,tflops=12,vram=3Gi", 1e6)
    assert wanted("constant,tflops=12,vram=3Gi", 0).gflops == 12_000
    assert wanted("constant,tflops=12,vram=3Gi", 0).vram_bytes == 3 * GIB
    assert wanted("constant,compute=25%", 5).gflops == 25_000


def test_bursty_is_on_and_off():
    text = "bursty,idle=2%,burst=90%,on=10s,off=20s,vram=1Gi..2Gi"
    levels = [wanted(text, t).gflops for t in (0, 9.9, 10, 29.9, 30, 39.9, 40)]
    assert levels == pytest.approx([90_000, 90_000, 2_000, 2_000, 90_000, 90_000, 2_000])
    assert wanted(text, 0).vram_bytes == 2 * GIB
    assert wanted(text, 15).vram_bytes == GIB


def test_ramp_grows_and_stays():
    text = "ramp,from=10%,to=50%,over=2m,vram=1Gi..5Gi"
    assert [wanted(text, t).gflops for t in (0, 60, 120, 900)] == [10_000, 30_000, 50_000, 50_000]
    assert wanted(text, 60).vram_bytes == 3 * GIB


def test_sine_stays_between_its_bounds_and_repeats():
    text = "sine,min=2,max=18,period=20s"
    levels = [wanted(text, t / 4).gflops for t in range(160)]
    assert min(levels) == pytest.approx(2_000, abs=100)
    assert max(levels) == pytest.approx(18_000, abs=100)
    assert levels[:80] == pytest.approx(levels[80:])


def test_equal_workers_are_not_in_step():
    text = "sine,min=0%,max=100%"
    assert len({wanted(text, 0, f"worker-{n}").gflops for n in range(5)}) > 1


def test_worker_without_annotation_stays_within_its_request():
    levels = [wanted("", t) for t in range(0, 240, 5)]
    assert 3_000 <= min(w.gflops for w in levels) < max(w.gflops for w in levels) <= 9_000
    assert {w.vram_bytes for w in levels} == {4 * GIB * 6 // 10}


def test_csv_is_replayed_and_repeats(tmp_path):
    path = tmp_path / "load.csv"
    path.write_text("seconds,utilization,vram\n0,0.1,1Gi\n10,0.5,2Gi\n20,0,0\n")
    text = f"csv,file={path}"
    assert wanted(text, 0).gflops == 10_000
    assert wanted(text, 9.9).vram_bytes == GIB
    assert wanted(text, 15).gflops == 50_000
    assert wanted(text, 35) == wanted(text, 15)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("square", "unknown profile 'square'; allowed: constant, sine, bursty, ramp, csv"),
        ("sine,tflops=3", "unknown key 'tflops' of sine; allowed: min, max, period, vram"),
        ("constant,compute", "'compute' is not of the form key=value"),
        ("constant,compute=", "is not of the form key=value"),
        ("constant,compute=1,compute=2", "compute is given twice"),
        ("constant,compute=1,tflops=2", "give one"),
        ("constant,compute=x%", "must be TFLOPS or 0% to 1000% of a card, got 'x%'"),
        ("constant,compute=nan%", "got 'nan%'"),
        ("constant,compute=-5%", "got '-5%'"),
        ("constant,tflops=-5", "must not be negative, got '-5'"),
        ("constant,vram=many", "'many' is not a quantity"),
        ("constant,vram=-1Gi", "vram must not be negative"),
        ("sine,period=0s", "period must be longer than 0s, got '0s'"),
        ("ramp,over=-1m", "over must be longer than 0s"),
        ("bursty,off=0s", "off must be longer than 0s"),
        ("bursty,on=soon", "'soon' is not a duration"),
        ("csv", "csv needs file=PATH"),
        ("csv,file=/no/such/file.csv", "No such file"),
    ],
)
def test_wrong_profile_is_refused_with_what_is_allowed(text, says):
    with pytest.raises(BackendError) as error:
        profile(text)
    assert says in str(error.value)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "lacks the column 'seconds'; expected seconds, utilization, vram"),
        ("seconds,utilization\n0,1\n", "lacks the column 'vram'"),
        ("seconds,utilization,vram\n", "has no rows"),
        ("seconds,utilization,vram\n0,1\n", "line 2"),
        ("seconds,utilization,vram\n0,1,1Gi\nx,1,1Gi\n", "line 3"),
        ("seconds,utilization,vram\n0,-1,1Gi\n", "no value may be negative or infinite"),
        ("seconds,utilization,vram\n0,nan,1Gi\n", "no value may be negative or infinite"),
    ],
)
def test_wrong_csv_is_refused_with_the_line(tmp_path, content, says):
    path = tmp_path / "load.csv"
    path.write_text(content)
    with pytest.raises(BackendError) as error:
        profile(f"csv,file={path}")
    assert says in str(error.value)


amounts = st.sampled_from(["0%", "50%", "100%", "3", "0.5", "-1", "x", ""])
durations = st.sampled_from(["10s", "0s", "1h", "-1s", "x", ""])
values = st.one_of(amounts, durations, st.sampled_from(["1Gi", "1Gi..2Gi", "..", "1e400"]))


@settings(max_examples=300)
@given(
    kind=st.sampled_from([k for k in KEYS if k != "csv"]),
    parts=st.dictionaries(
        st.sampled_from(sorted({key for keys in KEYS.values() for key in keys})), values
    ),
    seconds=st.floats(-10, 1e7),
)
def test_any_text_is_refused_or_wants_something_finite(kind, parts, seconds):
    text = ",".join([kind, *(f"{key}={value}" for key, value in parts.items())])
    try:
        found = profile(text).at(seconds, CARD)
    except BackendError:
        return
    assert 0 <= found.gflops < float("inf")
    assert found.vram_bytes >= 0
