"""How sure an answer is: a bundle's calibration, where it comes from, and what is refused."""
import json
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install 'ps3-sdk[export]'")
from conftest import ROOT
from ps3_sdk.errors import ExportError
from ps3_sdk.export.reference.vila.config import CONFIDENCE, VilaConfig
from ps3_sdk.export.reference.vila.model import VilaHd
from ps3_sdk.probability import calibrated
from ps3_sdk.training import confidence, nano


def test_a_calibration_weighs_text_and_place():
    assert calibrated(0.9, 0.6, {"bias": 0, "text": 1, "place": 0}) == pytest.approx(0.9)
    assert calibrated(0.9, 0.6, {"bias": 0, "text": 0, "place": 2}) == pytest.approx(0.6 ** 2 / (0.6 ** 2 + 0.4 ** 2))
    for text in (0.0, 1.0):         # nothing is certain, and nothing overflows
        assert 0 <= calibrated(text, text, {"bias": 1000, "text": -1000, "place": 1000}) <= 1


def test_a_fit_finds_what_made_the_answers():
    rng, weights = np.random.default_rng(0), {"bias": -0.5, "text": 0.7, "place": 1.5}
    both = rng.uniform(0.05, 0.95, (20_000, 2))
    right = rng.random(len(both)) < [calibrated(*each, weights) for each in both]
    found = confidence.fitted(np.column_stack([both, right]))
    assert all(abs(found[key] - weights[key]) < 0.1 for key in weights)
    lines = confidence.told(np.column_stack([both, right]), found)
    assert len(lines) == 5 and "% right" in lines[0]


def test_a_checkpoint_keeps_its_own_calibration(tmp_path):
    folder = nano.write_folder(tmp_path / "model")
    assert VilaConfig.read(folder).confidence is None
    weights = {"bias": -0.5, "text": 0.7, "place": 1.5}
    (folder / CONFIDENCE).write_text(json.dumps(weights), "utf-8")
    assert VilaConfig.read(folder).confidence == weights
    assert not (nano.copy_folder(folder, tmp_path / "other") / CONFIDENCE).exists()       # other weights are sure of other things
    (folder / CONFIDENCE).write_text(json.dumps(weights | {"unseen": 0.7}), "utf-8")
    assert VilaConfig.read(folder).confidence == weights | {"unseen": 0.7}
    (folder / CONFIDENCE).write_text(json.dumps(weights | {"again": 0.8}), "utf-8")
    assert VilaConfig.read(folder).confidence == weights | {"again": 0.8}
    for wrong, needed in (({"bias": 1, "text": 1}, "place"), (weights | {"more": 1}, "more"), (weights | {"text": "1"}, "text"), (weights | {"unseen": 1.5}, "unseen"), (weights | {"bias": math.inf}, "bias"), (weights | {"bias": 1000}, "below 1000")):
        (folder / CONFIDENCE).write_text(json.dumps(wrong), "utf-8")
        with pytest.raises(ExportError, match=needed):
            VilaConfig.read(folder)


@pytest.fixture(scope="module")
def scene():
    from ps3_sdk.training.scenes import Scenes
    return Scenes(split="val", seed=3, domains=("ui",), frame_px=(1080, 1920), fallback=True)[0]


def test_answers_are_measured_as_they_are_given(scene):
    """Of each value that the embedded model gives: its text's probability and its place's, and whether it is right, as a session says without a calibration."""
    import ps3_sdk
    questions = confidence.asked(VilaHd.from_checkpoint(ROOT / "training/model"), scene)
    measured = confidence.answered(questions, 0.0)
    with ps3_sdk.Session() as session:
        session.language.spec.pop("confidence")
        look, answers = session.look(scene.frame), []
        for question in scene.questions:
            answer = look.ask(question.prompt)
            if answer.found:
                answers.append((answer.confidence, answer.prob.max(), answer.text == question.answer))
        session.language.spec["confidence"] = {"bias": 0, "text": 1, "place": 0, "unseen": 1.0}        # whatever is asked, a value is given
        forced = [look.ask(question.prompt) for question in scene.questions]
    assert len(measured) == len(answers) > 0
    for ours, theirs in zip(measured, answers):
        assert ours[:2] == pytest.approx(theirs[:2], rel=1e-2) and ours[2] == theirs[2]
    assert all(answer.found for answer in forced) and len(forced) == len(questions)
    for answer, question, each in zip(forced, scene.questions, questions):
        assert (answer.text == question.answer) == each.right and answer.confidence == pytest.approx(each.text, rel=0.05, abs=1e-3)


def test_how_seldom_something_is_said_not_to_be_visible_is_what_is_right_most_often():
    of = lambda unseen, right, there: confidence.Asked(unseen, 0.9, 0.9, right, there)
    questions = [of(0.0, True, True), of(0.6, True, True), of(0.65, True, True), of(0.72, False, False), of(0.9, False, False), of(0.9, True, True)]
    assert [confidence.good(questions, threshold) for threshold in (0.0, 0.62, 0.7, 0.8, 0.95)] == [3, 4, 5, 4, 4]
    assert confidence.threshold_of(questions) == 0.7
    assert confidence.threshold_of([of(0.0, True, True)] * 500 + [of(0.6, False, False), of(0.9, True, True)]) == 0.95, "the highest of those that are nearly as good"
    assert len(confidence.answered(questions, 0.0)) == 1 and len(confidence.answered(questions, 0.7)) == 3


def test_the_surer_of_two_looks_is_given():
    even = {"bias": 0, "text": 1, "place": 0, "unseen": 0.6}
    of = lambda text, unseen=0.0, again=None: confidence.Asked(unseen, text, 0.5, True, True, again)
    for first, second, given in ((of(0.9), of(0.99), 0.9), (of(0.7), of(0.75), 0.75), (of(0.7), of(0.6), 0.7), (of(0.7), of(0.9, unseen=0.7), 0.7), (of(0.2, unseen=0.7), of(0.35), 0.35), (of(0.2, unseen=0.7), of(0.25), 0.2),
                                 (of(0.2, unseen=0.85), of(0.9), 0.2), (of(0.5, unseen=0.55), of(0.6), 0.6), (of(0.7), None, 0.7)):
        assert first._replace(again=second).given(even).text == given, (first, second)


def test_a_scene_is_asked_part_of_a_patch_further_on_too(scene):
    """As the SDK does it: the second look's answers are those of a session."""
    import ps3_sdk
    with ps3_sdk.Session() as session:
        session.language.spec["confidence"] = {"bias": 0, "text": 1, "place": 0, "unseen": 1.0}
        look = session.look(scene.frame)
        for question, each in zip(scene.questions, confidence.asked(VilaHd.from_checkpoint(ROOT / "training/model"), scene)):
            second = next(answer for answer in (look.ask(question.prompt, look_again=1),) for answer in (answer, answer.other) if answer.part_px is not None)
            assert each.again.again is None and each.again.text == pytest.approx(second.confidence, rel=0.05, abs=1e-3)


def test_too_few_answers_give_no_calibration(scene, tmp_path, monkeypatch, capsys):
    import shutil
    from ps3_sdk.training import scenes
    folder = shutil.copytree(ROOT / "training/model", tmp_path / "model")
    monkeypatch.setattr(scenes, "Scenes", lambda **options: [scene])
    monkeypatch.setattr("sys.argv", ["confidence", str(folder), "--scenes", "1"])
    confidence.main()
    out, err = capsys.readouterr()
    assert "train longer" in out and not (folder / CONFIDENCE).exists()
    assert err.startswith("1/1 scenes") and err.endswith("left\n") and "\r" not in err, "lines, where no terminal is"


def test_other_weights_forget_it(tmp_path):
    folder = nano.write_folder(tmp_path / "model")
    model = nano.new_model(folder)
    (folder / CONFIDENCE).write_text("{}", "utf-8")
    nano.save(model, folder)
    assert not (folder / CONFIDENCE).exists()
