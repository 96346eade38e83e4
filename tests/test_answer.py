"""What an answer says: regions, timings, text, JSON, and the overlay picture."""
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ps3_sdk import draw
from ps3_sdk.answer import Answer, Choice, Region, regions_from_map
from ps3_sdk.errors import InputError
from ps3_sdk.frame import Frame
from ps3_sdk.timing import STAGES, Timing, Timings

PATCH = 2       # scales 6, 12 and 24 px: grids of 3, 6 and 12
RANDOM = "this bundle's weights are random: what it picks and ranks means nothing"


def ids(*cells, n):
    return np.array([row * n + col for row, col in cells], np.int32)


# -- regions ------------------------------------------------------------------------------------------------------

def test_a_region_is_tight_around_its_patches_and_counts_all_scales():
    prob = np.full((3, 3), 0.1, np.float32)
    prob[0, 1] = 0.75
    picked = {12: ids((0, 2), (0, 3), n=6), 24: ids((1, 5), n=12)}
    assert regions_from_map(prob, picked, (120, 240), patch_px=PATCH) == [Region((80, 0, 160, 20), 0.75, 24, 3)]


def test_cells_that_touch_at_a_corner_are_one_region_and_others_are_not():
    prob = np.zeros((4, 4), np.float32)
    picked = {8: ids((0, 0), (1, 1), (3, 3), (0, 3), n=4)}
    boxes = {region.box_px for region in regions_from_map(prob, picked, (40, 40), patch_px=PATCH)}
    assert boxes == {(0, 0, 20, 20), (30, 30, 40, 40), (30, 0, 40, 10)}


def test_the_right_edge_does_not_touch_the_left_edge_of_the_next_row():
    picked = {8: ids((0, 3), (1, 0), n=4)}
    assert len(regions_from_map(np.zeros((4, 4), np.float32), picked, (40, 40), patch_px=PATCH)) == 2


def test_regions_are_ranked_by_best_then_mass_then_place():
    prob = np.zeros((1, 9), np.float32)
    prob[0] = [0.5, 0, 0.5, 0.5, 0, 0.9, 0, 0.5, 0]
    picked = {18: ids((4, 0), (4, 2), (4, 3), (4, 5), (4, 7), n=9)}
    found = [region.box_px[0] for region in regions_from_map(prob, picked, (9, 90), patch_px=PATCH, limit=9)]
    assert found == [50, 20, 0, 70]
    assert len(regions_from_map(prob, picked, (9, 90), patch_px=PATCH, limit=2)) == 2


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (2160, 3840), (333, 10)])
def test_boxes_lie_inside_the_frame_and_are_never_empty(size):
    rng = np.random.default_rng(0)
    for n in (3, 6, 12):
        picked = {n * PATCH: np.flatnonzero(rng.random(n * n) < 0.3).astype(np.int32)}
        for region in regions_from_map(rng.random((3, 3)).astype(np.float32), picked, size, patch_px=PATCH):
            x0, y0, x1, y1 = region.box_px
            assert 0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]


def test_every_patch_is_counted_once_and_all_patches_are_one_region():
    rng = np.random.default_rng(1)
    picked = {px: np.flatnonzero(rng.random((px // PATCH) ** 2) < 0.4).astype(np.int32) for px in (12, 24)}
    regions = regions_from_map(rng.random((3, 3)).astype(np.float32), picked, (50, 50), patch_px=PATCH, limit=99)
    assert sum(region.num_patches for region in regions) == sum(map(len, picked.values()))
    everything = {12: np.arange(36, dtype=np.int32)}
    assert [r.box_px for r in regions_from_map(np.zeros((3, 3), np.float32), everything, (50, 70), patch_px=PATCH)] == [(0, 0, 70, 50)]


def test_nothing_picked_is_no_region():
    assert regions_from_map(np.zeros((3, 3), np.float32), {12: np.zeros(0, np.int32)}, (50, 50), patch_px=PATCH) == []


# -- timing -------------------------------------------------------------------------------------------------------

def test_stages_add_up_in_the_order_of_the_stages():
    timing = Timing({"gather": 2.0}) + Timing({"encode_low": 5.0, "gather": 1.5})
    with timing.stage("decode"):
        pass
    assert list(timing.stages_ms) == ["encode_low", "gather", "decode"]
    assert timing.stages_ms["gather"] == 3.5 and timing.total_ms == pytest.approx(8.5, abs=0.5)


def test_a_stage_that_raises_is_timed_too():
    timing = Timing()
    with pytest.raises(KeyError), timing.stage("score"):
        raise KeyError
    assert "score" in timing.stages_ms


@pytest.mark.parametrize("name, ms", [("encode", 1), ("gather", -1), ("gather", float("nan")), ("gather", float("inf"))])
def test_a_wrong_stage_or_time_is_refused(name, ms):
    with pytest.raises(InputError, match="timing"):
        Timing({name: ms})


def test_timings_over_runs_have_mean_and_deviation_however_they_are_added():
    values = np.random.default_rng(2).uniform(1e6, 1e6 + 5, 100)
    one = Timings()
    for value in values:
        one += Timing({"gather": value, "score": 1.0})
    halves = sum((Timing({"gather": v, "score": 1.0}) for v in values[:30]), Timings()) + sum(
        (Timing({"gather": v, "score": 1.0}) for v in values[30:]), Timings())
    for timings in (one, halves):
        assert timings.num_runs == 100
        assert timings.mean_ms["gather"] == pytest.approx(values.mean()) and timings.deviation_ms["gather"] == pytest.approx(values.std(ddof=1), rel=1e-6)
        assert timings.mean_ms["total"] == pytest.approx(values.mean() + 1) and list(timings.mean_ms) == ["score", "gather", "total"]
    assert (Timings() + Timing({"score": 3.0})).deviation_ms == {"score": 0.0, "total": 0.0}
    assert "100 runs" in str(one) and "gather" in str(one)


# -- text and JSON ------------------------------------------------------------------------------------------------

def answer(height=480, width=640, prompt="What does the exit sign say?", choices=True, notes=(RANDOM,), picked=None, frame=True, prob=None):
    rng = np.random.default_rng(3)
    prob = rng.random((3, 3)).astype(np.float32) if prob is None else prob
    picked = {12: ids((0, 0), (0, 1), (5, 5), n=6), 24: ids((0, 0), (1, 1), (11, 11), n=12)} if picked is None else picked
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    ranked = [Choice("exit", 0.31, 0.9), Choice("way out", 0.2, 0.4)] if choices else []
    return Answer(prompt=prompt, text=ranked[0].text if ranked else None, choices=ranked,
                  regions=regions_from_map(prob, picked, (height, width), patch_px=PATCH), picked=picked, prob=prob,
                  timing=Timing({name: 10.0 * i + 1 / 3 for i, name in enumerate(STAGES)}), frame_size=(height, width), patch_px=PATCH, notes=notes,
                  frame=Frame.of(pixels) if frame else None)


def test_text_is_a_short_summary_that_ends_with_the_notes():
    lines = str(answer()).splitlines()
    assert 3 <= len(lines) <= 6 and max(map(len, lines)) < 140
    assert lines[0] == "prompt   What does the exit sign say?" and "exit 0.90" in lines[1] and "640x480" in lines[3] and RANDOM in lines[-1]
    bare = str(answer(prompt="", choices=False, notes=(), picked={12: ids(n=6)})).splitlines()
    assert len(bare) == 4 and bare[0].endswith("(none)") and "low-res only" in bare[1]
    assert "(none: by saliency)" in str(answer(prompt="", notes=("empty prompt: patches are picked bottom-up, by saliency",))).splitlines()[0]
    missing = replace(answer(choices=False), text="not visible", confidence=0.02, found=False)
    assert "answer   not visible (confidence 0.98)" in str(missing)


def test_the_headline_says_what_where_and_that_weights_are_random():
    text = answer().headline()
    assert text.startswith("exit: (") and "prob" in text and text.endswith("[random weights]") and "\n" not in text
    assert "random" not in answer(notes=()).headline()
    assert "no high-res patch" in answer(picked={}).headline()


def test_a_huge_prompt_does_not_make_a_huge_summary():
    text = str(answer(prompt="word " * 10_000))
    assert len(text) < 600 and "..." in text


def test_json_has_fixed_keys_and_plain_values():
    document = json.loads(answer().to_json())
    assert list(document) == ["prompt", "text", "confidence", "found", "choices", "regions", "frame_size", "patch_px", "picked", "prob", "timing_ms", "notes", "part_px", "other"]
    assert list(document["timing_ms"]) == [*STAGES, "total"] and document["timing_ms"]["total"] == pytest.approx(212.333, abs=0.01)
    assert document["picked"] == {"12": [0, 1, 35], "24": [0, 13, 143]} and document["frame_size"] == [480, 640]
    assert document["choices"][0] == {"text": "exit", "similarity": 0.31, "prob": 0.9}
    assert np.allclose(document["prob"], answer().prob, rtol=1e-6)
    assert set(document["regions"][0]) == {"box_px", "prob", "scale_px", "num_patches"}
    assert answer().to_json() == answer().to_json() and "\n" in answer().to_json(indent=1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_json_never_holds_nan(value):
    with pytest.raises(InputError, match="finite"):
        answer(prob=np.full((3, 3), value, np.float32)).to_json()


# -- overlay ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("suffix", sorted(draw.SUFFIXES))
def test_every_known_suffix_is_written(suffix, tmp_path):
    path = tmp_path / f"seen{suffix.upper()}"
    answer().save_overlay(path)
    with Image.open(path) as picture:
        assert picture.format == draw.SUFFIXES[suffix] and picture.width == 640 and picture.height > 480
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("height, width", [(1, 1), (1, 3000), (3000, 1), (17, 33), (2160, 3840)])
def test_frames_of_any_shape_can_be_drawn(height, width):
    picture = draw.overlay(answer(height, width))
    assert picture.width >= 480 and picture.height > height


@pytest.mark.parametrize("options", [dict(picked={}), dict(prob=np.full((3, 3), 0.5, np.float32)), dict(prompt="", choices=False, notes=()),
                                     dict(prompt="word " * 10_000), dict(prompt="line\nbreak\t\x00 \U0001f6aa 出口"),
                                     dict(picked={12: np.arange(36, dtype=np.int32)}), dict(notes=("a", "b" * 500, "c", "d"))], ids=str)
def test_odd_answers_can_be_drawn(options):
    assert draw.overlay(answer(**options)).width == 640


def test_the_frame_is_shown_whole_marked_where_it_was_picked_and_dimmed_elsewhere():
    grey = Frame.of(np.full((480, 640, 3), 128, np.uint8))
    seen = answer(prob=np.full((3, 3), 0.5, np.float32), picked={24: ids((5, 5), (5, 6), (6, 5), (6, 6), n=12)})
    pixels = np.asarray(draw.overlay(seen, grey))
    assert tuple(pixels[240, 320]) == (128, 128, 128)                      # the middle of the picked patches
    assert pixels[100, 100].max() < 100                                     # elsewhere
    assert tuple(pixels[200, 320]) == (0x3f, 0xd0, 0xff)                    # the outline, on their first row
    assert pixels.shape[0] > 480 and (pixels[480:] > 200).any()             # the caption below the frame


def test_the_strip_says_that_weights_are_random():
    assert draw.overlay(answer()).height > draw.overlay(answer(notes=())).height


def test_the_overlay_leaves_frame_and_answer_as_they_were():
    seen = answer()
    before, text = np.asarray(seen.frame.picture()).copy(), seen.to_json()
    draw.overlay(seen)
    assert np.array_equal(np.asarray(seen.frame.picture()), before) and seen.to_json() == text


@pytest.mark.parametrize("name, says", [("seen.gifv", "known are .jpg"), ("seen", "no suffix"), ("none/seen.png", "cannot be written: there is no folder"),
                                        ("folder.png", "is a folder; what is written is one file")])
def test_a_place_that_cannot_be_written_is_refused(name, says, tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=says):
        answer().save_overlay(tmp_path / name)
    assert os.listdir(tmp_path) == ["folder.png"]


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "seen.png"
    path.write_bytes(b"what was there")

    def full(self, file, **options):
        with open(file, "wb") as out:
            out.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(InputError, match="No space left"):
        answer().save_overlay(path)
    assert path.read_bytes() == b"what was there" and os.listdir(tmp_path) == ["seen.png"]


def test_a_missing_or_different_frame_is_refused(tmp_path):
    with pytest.raises(InputError, match="kept no frame"):
        answer(frame=False).save_overlay(tmp_path / "seen.png")
    with pytest.raises(InputError, match="the frame is 10 x 20, the answer is about 480 x 640"):
        answer().save_overlay(tmp_path / "seen.png", np.zeros((10, 20, 3), np.uint8))
    with pytest.raises(InputError, match="float64"):
        answer().save_overlay(tmp_path / "seen.png", np.zeros((480, 640, 3)))


# -- kept and sent elsewhere ------------------------------------------------------------------------------------------

def test_an_answer_is_pickled_without_its_frame_and_drawn_on_one_that_is_given(tmp_path):
    import copy
    import pickle
    whole = answer(choices=False)
    whole = replace(whole, text="EXIT", confidence=0.97, other=replace(whole, text="EXIL", confidence=0.4))
    for kept in (pickle.loads(pickle.dumps(whole)), copy.deepcopy(whole), whole.without_frame()):
        assert kept.frame is None and kept.other.frame is None and kept.to_dict() == whole.to_dict()
        with pytest.raises(InputError, match="kept no frame"):
            kept.save_overlay(tmp_path / "a.png")
        kept.save_overlay(tmp_path / "a.png", np.zeros((480, 640, 3), np.uint8))
    assert whole.frame is not None and len(pickle.dumps(whole)) < 50_000


def test_a_repr_is_one_line_and_what_is_said_is_said_with_how_sure_it_is():
    read = replace(answer(choices=False), text="EXIT", confidence=0.97)
    assert repr(read) == f"Answer('EXIT', confidence=0.97, found=True, {len(read.regions)} regions, 6 patches, {read.timing.total_ms:.0f} ms)"
    assert read.said() == "EXIT (confidence 0.97)" and read.headline().startswith("EXIT (confidence 0.97): (") and "prob" not in read.headline()
    assert replace(read, text="not visible", found=False, confidence=0.02).said() == "not visible (confidence 0.98)"
    assert answer().said() == "exit 0.90, way out 0.40" and replace(read, confidence=None).said() == "EXIT" and answer(choices=False).said() == ""
    assert replace(answer(), choices=[Choice("exit", 0.2414)]).said() == "exit cosine 0.241"


def test_patches_of_both_looks_are_told():
    first = replace(answer(choices=False), text="EXIT", confidence=0.4)
    assert "and at 6 in a second look" in str(replace(first, other=first)) and "and at 6 in the first look" in str(replace(first, other=first, part_px=(0, 0, 630, 470)))


def test_the_overlay_tells_the_answer():
    read = replace(answer(choices=False), text="EXIT", confidence=0.97)
    without = replace(read, text=None, confidence=None)
    assert draw.overlay(read).height > draw.overlay(without).height
