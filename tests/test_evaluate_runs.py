"""ps3 eval and the figures of benchmarks/resolution.py, whole: small runs with an encoder and with a tiny language model."""
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import ps3_sdk
from conftest import ROOT
from ps3_sdk import cli
from ps3_sdk.errors import InputError, RuntimeMissingError
from ps3_sdk.evaluate import Item, SceneItems, evaluate, plots, read_questions, read_vstar
from ps3_sdk.evaluate.items import ItemList
from ps3_sdk.evaluate.recall import coverage
from ps3_sdk.evaluate.summary import table
from test_evaluate import GOOD, folder, vstar, write  # noqa: F401  (fixtures)


class Interrupted(Exception):
    pass


def test_a_run_continues_where_it_was_stopped(session, folder):
    path = write(folder / "q.jsonl", *({**GOOD, "prompt": f"sign {i}", "choices": ["41", "42"], "box_px": [5, 5, 25, 15]} for i in range(4)))

    def stop(done, total, text):
        if done == 2:
            raise Interrupted
    with pytest.raises(Interrupted):
        evaluate(session, read_questions(path), tokens=16, folder=folder / "out", progress=stop)
    asked, seen = [], []
    items = ItemList(read_questions(path), "q", read_questions(path).settings)
    items[:] = [Item(**{**vars(item), "frame": lambda item=item: asked.append(item.key) or item.frame()}) for item in items]
    summary = evaluate(session, items, tokens=16, folder=folder / "out", progress=lambda done, total, _: seen.append((done, total)))
    assert asked == ["line 3", "line 4"] and seen == [(3, 4), (4, 4)]
    assert summary["n"] == summary["choice_accuracy_n"] == summary["selection_recall_n"] == 4 and summary["exact_match"] is None
    assert evaluate(session, read_questions(path), tokens=16, folder=folder / "out")["choice_accuracy"] == summary["choice_accuracy"]
    assert "q: 4 questions" in table(summary) and json.dumps(summary, allow_nan=False)


def test_a_damaged_frame_names_its_line(session, folder):
    (folder / "sub/b.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="line 2.*picture"):
        evaluate(session, read_questions(write(folder / "q.jsonl", GOOD, {**GOOD, "frame": "sub/b.png"})), tokens=8)


@pytest.fixture(scope="module")
def scenes():
    return SceneItems(3, unanswerable=5, domains=("driving", "ui"), frame_px=(540, 960), fallback=True)


def test_scenes_are_what_they_say(scenes):
    items = list(scenes)
    assert len(items) == len(scenes) == 16 and len({item.key for item in items}) == 16
    values = [item for item in items if item.kind == "value"]
    assert [sum(item.domain == domain for item in values) for domain in ("driving", "ui")] == [3, 3]
    assert all(item.answer and len(item.boxes_px) == 1 and 9 < item.cap_px < 30 for item in values)
    assert all(item.answer == "" and not item.boxes_px for item in items if item.kind != "value")
    assert {item.kind for item in items if item.key.startswith("odd")} == {"blank frame", "noise frame", "empty prompt", "other language"}
    assert [(item.key, item.prompt, item.answer) for item in scenes] == [(item.key, item.prompt, item.answer) for item in items]
    assert all(item.frame().shape == (540, 960, 3) for item in items[::5])


def test_portrait_and_panorama_frames_are_asked_about():
    items = list(SceneItems(1, unanswerable=15, domains=("gaming",), frame_px=(540, 960), fallback=True))
    shapes = {item.kind: item.frame().shape[:2] for item in items}
    assert shapes["portrait frame"] == (960, 540) and shapes["panorama frame"] == (360, 1440)


@pytest.mark.parametrize("wrong", [dict(questions=0), dict(unanswerable=-1), dict(seed=1.5), dict(domains=("sea",)), dict(split="all"), dict(frame_px=(10, 10))])
def test_scenes_that_cannot_be(wrong):
    with pytest.raises(InputError):
        SceneItems(**{"questions": 1, "fallback": True, **wrong})


def test_missing_fonts_are_told(monkeypatch):
    from ps3_sdk.training.scenes import fonts
    monkeypatch.setattr(fonts, "installed_files", lambda: {})
    with pytest.raises(InputError, match="Install the packages"):
        SceneItems(1)
    assert "Pillow" in SceneItems(1, fallback=True).notes[0]


def test_other_frames_are_other_questions_also_where_their_files_are_as_large(folder):
    path = write(folder / "same.jsonl", {**GOOD, "frame": "a.bmp"}, {**GOOD, "frame": "b.bmp"})
    made = []
    for colours in (("red", "blue"), ("red", "green"), ("blue", "red"), ("red", "blue")):
        for name, colour in zip("ab", colours):
            Image.new("RGB", (64, 64), colour).save(folder / f"{name}.bmp")
        made.append(read_questions(path).settings["contents"])
    assert len(set(made)) == 3 and made[0] == made[3]


class Own:
    """A language model that runs elsewhere."""

    def __init__(self, model):
        self.empty, self.prefill, self.generate = model.empty, model.prefill, model.generate


def test_a_language_model_of_the_users_own_has_results_of_its_own(folder, tmp_path):
    questions = read_questions(write(folder / "q.jsonl", {**GOOD, "answer": "42"}))
    with ps3_sdk.Session() as bundles, ps3_sdk.Session(language_model=Own(bundles.language.decoder)) as own:
        summaries = [evaluate(session, questions, tokens=8, folder=tmp_path / "out") for session in (bundles, own)]
    assert [summary["language_model"] for summary in summaries] == [None, "Own"] and "on cpu" in summaries[0]["ran_on"]
    assert summaries[0]["settings_hash"] != summaries[1]["settings_hash"]


def test_scenes_through_an_encoder(session, scenes, tmp_path):
    summary = evaluate(session, scenes, tokens=64, folder=tmp_path)
    assert summary["n"] == 6 and set(summary["selection_recall"]) == {"256", "512", "1024", "2048"}
    assert [summary[name] for name in ("exact_match", "exact_match_low_res_only", "refused", "nearly_right")] == [None] * 4, "it answers nothing in words, neither right nor wrong"
    assert summary["unanswerable"]["n"] == 10 and summary["unanswerable"]["answered"] is summary["unanswerable"]["answered_confidently"] is None
    assert all(row["right"] is row["refused"] is None for row in summary["by_seen"].values())
    everything = next(line.split() for line in table(summary).splitlines() if line.startswith("all "))
    assert everything[:4] == ["all", "6", "-", "-"] and everything[-1] == "%" and "refused" not in table(summary), "what was looked at is told"
    assert any("no language model" in note for note in summary["notes"]) and summary["bundle"]["name"] == "ps3-seeded" and len(summary["bundle"]["hash"]) == 16
    assert len((tmp_path / f"results-{summary['settings_hash']}.jsonl").read_text().splitlines()) == 17


def test_both_ways_of_picking_are_measured():
    questions = read_questions(ROOT / "examples/frames/panel_4k.jsonl")
    with ps3_sdk.Session() as session:      # which looks around the most probable place
        around, anywhere = (evaluate(session, questions, selection=selection) for selection in (None, "top_down"))
    assert around["selection"] is None and anywhere["selection"] == "top_down" and anywhere["selection_recall_anywhere"] == {}
    assert around["selection_recall_anywhere"] == anywhere["selection_recall"] != around["selection_recall"]
    for summary in (around, anywhere):
        assert sum(row["right_n"] for row in summary["by_seen"].values()) == summary["n"] and "looked at" in table(summary)
    assert "wherever" in table(around) and "wherever" not in table(anywhere)


def test_a_second_look_counts_its_patches_and_is_measured_where_it_was(scenes):
    """The default bundle is asked as users ask it, and whoever asks for one look gets one."""
    from ps3_sdk.evaluate import run
    items = [item for item in scenes if item.kind == "value"][:2]
    with ps3_sdk.Session() as session:
        once, twice = ([run._record(session, item, None, None, None, look_again, 32, False) for item in items] for look_again in (0, 1))
        for item, one, two in zip(items, once, twice):
            assert one["patches"] == 480 and not one["looked_again"] and two["patches"] == 960 and two["looked_again"] and two["recall"] == one["recall"]
            answer = session.ask(item.frame(), item.prompt, look_again=1)
            (x0, y0, x1, y1), (left, top, right, bottom) = item.boxes_px[0], answer.part_px or (0, 0, 960, 540)
            mask = np.zeros(270 * 270)
            mask[answer.picked[3780]] = 1
            rows, columns = ((np.linspace(low, high, 200) - start) * 270 / (end - start) for low, high, start, end in ((y0, y1, top, bottom), (x0, x1, left, right)))
            assert two["seen"] == pytest.approx(mask.reshape(270, 270)[np.ix_(rows.astype(int).clip(0, 269), columns.astype(int).clip(0, 269))].mean(), abs=0.02)
            assert two["confidence"] == pytest.approx(answer.confidence, abs=1e-6)


def test_the_command(capsys, seeded, folder):
    path = write(folder / "q.jsonl", {**GOOD, "choices": ["41", "42"], "box_px": [0, 0, 9, 9]}, {**GOOD, "answer": ""})
    assert cli.main(["eval", str(path), "--bundle", str(seeded), "--tokens", "8", "--json", "-o", str(folder / "out")]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary == json.loads((folder / "out/summary.json").read_text()) and "2/2" in err
    assert summary["seconds_per_question"]["open"] > 0 and summary["versions"]["ps3_sdk"] == ps3_sdk.__version__
    assert cli.main(["eval", str(folder / "missing.jsonl")]) == 1 and "missing.jsonl" in capsys.readouterr().err
    assert cli.main(["eval", "scenes", "--frame", "4k", "--fallback"]) == 1 and "3840x2160" in capsys.readouterr().err


def test_plots_name_their_extra(tmp_path, monkeypatch, session, folder):
    summary = evaluate(session, read_questions(write(folder / "q.jsonl", {**GOOD, "box_px": [0, 0, 9, 9]}, {**GOOD, "answer": ""})), tokens=8)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(RuntimeMissingError, match=r"ps3_sdk\[eval\]"):
            plots.plot(summary, tmp_path / "s.png")
    pytest.importorskip("matplotlib", reason="needs ps3_sdk[eval]")
    plots.plot(summary, tmp_path / "s.png")
    assert Image.open(tmp_path / "s.png").width > 1000


# -- with a language model -------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """A session of a tiny VILA-HD of random weights."""
    pytest.importorskip("torch", reason="needs ps3_sdk[export]")
    from ps3_sdk.export.llm_builder import check_packages
    try:
        check_packages()
    except RuntimeMissingError as error:
        pytest.skip(str(error))
    from ps3_sdk.export.make_vlm import make_vlm
    plan = tmp_path_factory.mktemp("speaker") / "engine.plan"
    make_vlm(str((ROOT / "tests/golden/vila_hd/p1_single_after_prompt" / json.loads((ROOT / "tests/golden/vila_hd/p1_single_after_prompt/case.json").read_text())["model"]).resolve()), plan)
    with ps3_sdk.Session(plan) as opened:
        yield opened


def test_a_language_model_gets_lettered_options_and_free_questions(speaker, vstar, folder):
    summary = evaluate(speaker, read_vstar(vstar), tokens=64, max_tokens=4)
    assert summary["choice_accuracy_n"] == 2 and summary["exact_match_n"] == 0
    said = speaker.ask(folder / "a.png", GOOD["prompt"], tokens=64, max_tokens=4).text
    summary = evaluate(speaker, read_questions(write(folder / "q.jsonl", {**GOOD, "answer": said.lower() + " "}, GOOD)), tokens=64, max_tokens=4)
    assert summary["exact_match"] == 0.5 and not any("no language model" in note for note in summary["notes"])


@pytest.fixture
def ways(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import ways_to_look
    return ways_to_look


@pytest.mark.parametrize("model", ["random", "embedded"])
def test_looking_top_down_in_the_benchmark_is_an_ask(request, model, ways):
    photo = np.asarray(Image.open(ROOT / "examples/frames/panel_4k.jpg"))
    if model == "random":
        check_is_an_ask(request.getfixturevalue("speaker"), photo, ways, "Where is it?")
    else:       # whose rows are told how probable their place is
        with ps3_sdk.Session() as session:
            assert "row_prob" in session._tables
            check_is_an_ask(session, photo, ways, "what is written on the purple search field?")


def check_is_an_ask(speaker, photo, ways, prompt):
    look = speaker.look(photo)
    aimed, prob, read = ways.top_down(speaker, look, prompt)
    seen = ways.closely(speaker, look, aimed, speaker.budget(tokens=700), read, told=prob)
    text, rows = ways.say(speaker, look, prompt, seen, 8)
    answer = speaker.ask(photo, prompt, tokens=700, max_tokens=8)
    assert text == answer.text and rows > len(look.rows)
    assert all(np.array_equal(seen.picked[px], ids) for px, ids in answer.picked.items()) and seen.patches == sum(map(len, answer.picked.values()))


def test_more_than_a_glance_is_asked_as_the_session_asks(ways):
    import resolution
    options, point = SimpleNamespace(constant=1024, max_tokens=8), dict(figure="patches", series="top-down", resolution_px=3780, number=1024)
    with ps3_sdk.Session() as session:
        assert resolution.in_glances(session, point, options) and not resolution.in_glances(session, point | {"number": 512}, options)
        assert not resolution.in_glances(session, point | {"series": "random"}, options)
        look, prompt = session.look(ROOT / "examples/frames/panel_4k.jpg"), "what is on the blue gauge?"
        said, rows, seen = ways.asked(look, prompt, tokens=1024, max_tokens=8)
        answer = look.ask(prompt, tokens=1024)
        assert said == answer.text == "not visible" and seen.patches == sum(map(len, answer.picked.values())) > 900
        assert rows > len(look.rows) + seen.patches // 4


def test_rows_that_do_not_fit_are_those_of_the_least_probable(speaker, photo, ways):
    look = speaker.look(photo)
    prob = ways.top_down(speaker, look, "Where is it?")[0]
    everything = ways.closely(speaker, look, prob, speaker.budget(looks="all", scales=1))
    some = ways.closely(speaker, look, prob, speaker.budget(looks="all", scales=1), room=50)
    assert some.patches == everything.patches and len(some.blocks[0][1]) <= 50 < len(everything.blocks[0][1])


def test_a_window_holds_every_patch_of_the_places_of_a_box(speaker, photo, ways):
    look = speaker.look(photo)
    px = speaker.geometry["scales_px"][1]
    (window,), certain = ways.window(speaker, look, (0, 0, 10, 10), px)
    side = px // speaker.geometry["scales_px"][0]
    assert len(window[px]) == side * side and all(len(ids) == 0 for other, ids in window.items() if other > px)
    assert coverage((0, 0, 10, 10), window[px], px // speaker.patch_px, (2160, 3840)) == 1
    assert ways.encoded(speaker, look, [window], certain).patches == side * side
    g = round(len(look.tokens) ** 0.5)
    assert certain.shape == (g, g) and (certain > 0.5).sum() == 1 and certain[0, 0] > 0.5


def test_tiles_are_encoded_as_frames_and_scales_as_tiles(speaker, photo, ways):
    look = speaker.look(photo)
    one = ways.any_res(speaker, look, photo, 1, 1)
    assert np.array_equal(one.blocks[0][1], look.rows), "one tile is the frame itself"
    assert len(ways.any_res(speaker, look, photo, 1, 2).blocks) == 2 and one.patches == len(look.tokens)
    stacked = ways.s2(speaker, look, 1)
    n = speaker.geometry["scales_px"][1] // speaker.geometry["scales_px"][0]
    assert stacked.patches == n * n * len(look.tokens) and stacked.blocks[0][1].shape == look.rows.shape
    assert ways.say(speaker, look, "What?", stacked, 2)[1] > 2 * len(look.rows)


def test_the_benchmark_refuses_a_bundle_that_says_nothing(seeded, tmp_path):
    result = subprocess.run([sys.executable, ROOT / "benchmarks/resolution.py", "--bundle", seeded, "--questions", "1", "--fallback", "-o", tmp_path], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1 and "no language model" in result.stderr and "Traceback" not in result.stderr


# -- figures of resolution.py from records made by hand ----------------------------------------------------------------

def record(question, figure, point, right, cap_px=12):
    return {"question": question, "point": point, "right": right, "cap_px": cap_px, "patches": 100, "rows": 20, "seconds": 0.5, "recall": 0.25, "figure": figure}


def test_the_minimum_resolution_is_where_it_stays_right(ways):
    import resolution
    right = {"a": (False, True, False, True), "b": (True, True, True, True), "c": (False, False, True, True), "d": (True, True, True, False)}
    records = [record(name, "reader", f"reader reader {px}", each, cap_px) for (name, rights), cap_px in zip(right.items(), (11, 11, 20, 26))
               for px, each in zip((378, 756, 1512, 3780), rights)]
    found = resolution.minimum_resolution(records, (378, 756, 1512, 3780))
    assert {name: each["minimum_px"] for name, each in found["questions"].items()} == {"a": 3780, "b": 378, "c": 1512, "d": None}
    assert found["all"] == {"378": 1, "756": 0, "1512": 1, "3780": 1, "none": 1}
    assert found["by_cap_px"]["10-13"] == {"378": 1, "756": 0, "1512": 0, "3780": 1, "none": 0} and found["by_cap_px"]["24-28"]["none"] == 1


def test_the_figures_are_drawn(ways, tmp_path, speaker):
    pytest.importorskip("matplotlib", reason="needs ps3_sdk[eval]")
    import argparse
    import resolution
    import resolution_plots
    points = resolution.points(speaker, argparse.Namespace(constant=1024, patches=[128, 256], s2_scales=1, only=resolution.FIGURES))
    summed = [resolution.summed(point, [record("a", point["figure"], resolution.name_of(point), True), record("b", point["figure"], resolution.name_of(point), False)]) for point in points]
    assert {point["series"] for point in summed} >= {"all patches", "top-down", "bottom-up", "random", "AnyRes", "S2"} and all(point["accuracy"] == 0.5 and point["n"] == 2 for point in summed)
    result = {"points": summed, "bundle": {"name": "b", "hash": "0"}, "machine": {"cpu": "c", "cores": 2}, "notes": []}
    plots.save(resolution_plots.draw(result), tmp_path / "r.png")
    assert Image.open(tmp_path / "r.png").width > 1000
