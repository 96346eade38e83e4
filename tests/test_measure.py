"""ps3 bench: plain figures as JSON, the same ones as a table, and every look counted."""
import json

import pytest

import ps3_sdk
from conftest import ROOT
from ps3_sdk import again, cli
from ps3_sdk.measure import bench

PANEL, PROMPT = ROOT / "examples/frames/panel_4k.jpg", "what is the word on the purple bar chart?"


def test_json_of_a_bench_is_figures_and_its_table_says_them(capsys):
    said = []
    for more in (["--json"], []):
        assert cli.main(["bench", "--runs", "1", "--tokens", "64", *more]) == 0
        said.append(capsys.readouterr().out)
    result = json.loads(said[0])
    assert set(result) == {"machine", "model", "ops_on", "frame", "prompt", "tokens", "patches", "looks", "runs", "ms"}
    assert result["frame"] == [2160, 3840] and 0 < result["patches"] <= 64 == result["tokens"] and result["looks"] == 1
    assert all(isinstance(value, float) for row in result["ms"].values() for value in row.values())
    lines = said[1].splitlines()
    assert lines[0] == result["machine"] and f"{result['patches']} high-res patches, 1 runs" in lines[1] and [line.split()[0] for line in lines[3:]] == list(result["ms"])


@pytest.mark.parametrize("least, looks", [(0.0, 1), (1.0, 2)])
def test_what_is_looked_at_twice_is_counted_twice_and_told(monkeypatch, least, looks):
    monkeypatch.setattr(again, "threshold", lambda *_: least)
    with ps3_sdk.Session() as session:
        result = bench(session, PANEL, PROMPT, runs=1)
    assert result["looks"] == looks and result["patches"] == 480 * looks and result["ms"]["ask"]["p50"] > 0
    assert (f"{480 * looks} high-res patches in 2 looks" in str(result)) == (looks == 2)
