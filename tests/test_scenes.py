"""training.scenes: the same frame for the same number, nothing shared by two splits, boxes around ink, prompts that fit one thing."""
import re

import numpy as np
import pytest

from ps3_sdk.training.scenes import Scenes
from ps3_sdk.training.scenes.draw import Look, bend
from ps3_sdk.training.scenes.fonts import CHARS, Glyphs, load_faces
from ps3_sdk.training.scenes.kinds import DOMAINS, KINDS
from ps3_sdk.training.scenes.prompts import SIDES, TEMPLATES
from ps3_sdk.training.scenes.splits import SPLITS, split_of
from ps3_sdk.training.scenes.words import VALUES, load_words, make_value

SMALL = (1080, 1920)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SIDE_WORDS = {"left": "left", "right": "right", "top": "top", "upper": "top", "bottom": "bottom", "lower": "bottom"}
MOST_WORDS = {"leftmost": "left", "rightmost": "right", "highest": "top", "lowest": "bottom"}


@pytest.fixture(scope="module")
def scenes():
    return Scenes(seed=5, frame_px=SMALL, fallback=True)


@pytest.fixture(scope="module")
def made(scenes):
    return [scenes[i] for i in range(32)]


def installed():
    try:
        return [load_faces(split) for split in SPLITS], [load_words(split) for split in SPLITS]
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


def test_same_number_same_scene(scenes, made):
    again = Scenes(seed=5, frame_px=SMALL, fallback=True)
    for i in (9, 2):                                     # in another order than before
        scene = again[i]
        assert np.array_equal(scene.frame, made[i].frame) and scene.questions == made[i].questions
    assert not np.array_equal(made[1].frame, Scenes(seed=6, frame_px=SMALL, fallback=True)[1].frame)
    first, second = scenes.dense(3), again.dense(3)
    assert all(np.array_equal(a, b) for a, b in zip(first, second))


def test_frames_are_frames(made):
    for i, scene in enumerate(made):
        assert scene.frame.shape == (*SMALL, 3) and scene.frame.dtype == np.uint8 and scene.frame.flags.c_contiguous
        assert scene.domain == DOMAINS[i % 4]
        assert 4 <= len(scene.items) <= 9
        answered = [q for q in scene.questions if q.item is not None]
        assert 4 <= len(answered) <= 8 and 1 <= len(scene.questions) - len(answered) <= 2
        assert len({q.item for q in answered}) == len(answered)


@pytest.mark.parametrize("frame_px", [(3840, 2160), (1000, 4000), (720, 1280), (378, 378)])
def test_any_size(frame_px):
    scene = Scenes("val", frame_px=frame_px, fallback=True)[2]
    assert scene.frame.shape == (*frame_px, 3) and scene.questions


def test_boxes_lie_in_the_frame_and_in_one_another(made):
    for scene in made:
        for item in scene.items:
            x0, y0, x1, y1 = item.box_px
            assert 0 <= x0 < x1 <= SMALL[1] and 0 <= y0 < y1 <= SMALL[0]
            u0, v0, u1, v1 = item.text_box_px
            assert x0 - 1 <= u0 < u1 <= x1 + 1 and y0 - 1 <= v0 < v1 <= y1 + 1
            chars = item.char_boxes_px
            assert chars.shape == (len(item.text), 4)
            assert (chars[:, :2] >= np.array([u0, v0]) - 1).all() and (chars[:, 2:] <= np.array([u1, v1]) + 1).all()
            assert (np.diff(chars[:, 0]) > 0).all()                   # read from left to right
        boxes = [item.box_px for item in scene.items]
        for a in range(len(boxes)):
            for b in range(a):
                assert boxes[a][0] > boxes[b][2] or boxes[b][0] > boxes[a][2] or boxes[a][1] > boxes[b][3] or boxes[b][1] > boxes[a][3]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_text_box_is_where_the_ink_is(scenes, kind):
    """Drawn with and without its text, a bent thing differs inside the text box and nowhere else."""
    line = scenes.faces[0].line("H8:40", 22)
    cuts = []
    for mask in (line.mask, np.zeros_like(line.mask)):
        rng = np.random.default_rng(3)
        plate = kind.draw(rng, kind.colours[0], type(line)(line.text, mask, line.boxes, line.cap_px), 1.0)
        cuts.append(bend(plate, np.random.default_rng(4), Look(bend=0.06, turn_degrees=4)))
    change = np.abs(np.asarray(cuts[0].picture).astype(int) - np.asarray(cuts[1].picture)).max(2) > 25
    rows, columns = np.flatnonzero(change.any(1)), np.flatnonzero(change.any(0))
    ink = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    box = cuts[0].text_box
    assert (ink[:2] >= box[:2] - 1.5).all() and (ink[2:] <= box[2:] + 1.5).all()
    assert (np.abs(ink - box) < 6).all()                              # a turned box is a little larger than its ink
    assert abs(cuts[0].text_scale - 1) < 0.12


def test_capitals_have_the_height_that_is_said(scenes):
    for face in scenes.faces[:40]:
        for cap in (10, 19, 28):
            assert abs(face.line("H", cap).mask.shape[0] - cap) <= 2
    full = Scenes(frame_px=(2160, 3840), fallback=True)[0]
    assert all(9 <= item.cap_px <= 29.5 for item in full.items)


def test_answers(made):
    for scene in made:
        texts = [item.text for item in scene.items]
        assert len(set(texts)) == len(texts)
        for question in scene.questions:
            if question.item is None:
                assert question.answer == "" and question.box_px is None and question.kind.startswith("absent")
                continue
            item = scene.items[question.item]
            assert question.answer == item.text and question.box_px == item.box_px and question.cap_px == item.cap_px
            assert 1 <= len(question.answer) <= 8 and set(question.answer) <= set(CHARS)


def test_a_prompt_names_what_a_low_resolution_view_shows(made):
    """Its words are those of the templates, kinds, colours and places; never the answer, nor any other text of the frame."""
    words = {word for kind in KINDS for text in (*kind.nouns, *kind.asks) for word in re.findall("[a-z-]+", text)}
    words |= {word for forms in TEMPLATES.values() for form in forms for word in re.findall("[a-z]+", form)}
    words |= {*COLOURS, *SIDE_WORDS, *MOST_WORDS, "on", "to", "at", "near", "the", "word", *(noun for noun, _ in VALUES.values())}
    for scene in made:
        for question in scene.questions:
            said = re.findall("[a-z-]+|[^a-z -]", question.prompt)
            assert len(question.prompt.split()) <= 12 and set(said) <= words | {"?", ","}
            assert not {item.text.lower() for item in scene.items} & set(said)


def matches(prompt, kind, scene):
    """The things of a kind that a prompt's colour and place words fit: another reading of the prompt than that which made it"""
    said = re.findall("[a-z]+", prompt)
    colour = next((word for word in said if word in COLOURS), None)
    found = [item for item in scene.items if item.kind == kind and colour in (None, item.colour)]
    for word in said:
        side = SIDE_WORDS.get(word) or MOST_WORDS.get(word)
        if side:
            axis, sign = SIDES[side]
            place = [sign * (item.box_px[axis] + item.box_px[axis + 2]) / 2 / SMALL[1 - axis] for item in found]
            found = [item for item, p in zip(found, place) if (p > sign * 0.5 if word in SIDE_WORDS else p == max(place))]
    return found


def test_a_prompt_fits_one_thing(made):
    nouns = {noun.replace("{c} ", ""): kind.name for kind in KINDS for noun in kind.nouns}
    for scene in made:
        for question in scene.questions:
            if question.item is not None:
                assert matches(question.prompt, scene.items[question.item].kind, scene) == [scene.items[question.item]], question.prompt
            elif question.kind == "absent kind":
                plain = " ".join(word for word in re.findall("[a-z-]+", question.prompt) if word not in COLOURS)
                named = {kind for noun, kind in nouns.items() if re.search(rf"\b{noun}\b", plain)}
                assert named and not any(item.kind in named and item.kind == max(named, key=len) for item in scene.items)


def test_absent_things_are_not_there(scenes, made):
    for scene in made:
        for question in scene.questions:
            if question.kind in ("absent colour", "absent place"):
                kinds = {item.kind for item in scene.items}
                plain = " ".join(word for word in re.findall("[a-z-]+", question.prompt) if word not in COLOURS)
                meant = [kind.name for kind in KINDS if kind.name in kinds and any(n.replace("{c} ", "") in plain for n in kind.nouns)]
                assert meant and not matches(question.prompt, max(meant, key=len), scene), question.prompt


def test_wording():
    for kind in KINDS:
        assert len(set(TEMPLATES["train"] + kind.asks)) >= 8 and all("{c}" in noun for noun in kind.nouns)
    forms = [form for split in SPLITS for form in TEMPLATES[split]]
    assert len(set(forms)) == len(forms)
    for domain in DOMAINS:
        nouns = [noun for kind in KINDS if kind.domain == domain for noun in kind.nouns]
        assert len(set(nouns)) == len(nouns)


def test_values_are_readable():
    rng = np.random.default_rng(0)
    for name in VALUES:
        texts = {make_value(rng, name, ["WORD"]) for _ in range(200)}
        assert all(1 <= len(text) <= 8 and set(text) <= set(CHARS) for text in texts) and len(texts) > 20
        assert not any(set(text) & set("IO") for text in texts)


def test_splits_share_nothing():
    faces, words = installed()
    for kind_of_thing in ([{face.group for face in part} for part in faces], [{face.family for face in part} for part in faces], [set(part) for part in words]):
        assert not (kind_of_thing[0] & kind_of_thing[1] or kind_of_thing[0] & kind_of_thing[2] or kind_of_thing[1] & kind_of_thing[2])
    assert len({face.family for part in faces for face in part}) >= 140 and sum(map(len, words)) >= 20000
    photos = [set(Scenes(split).photos) for split in SPLITS]
    assert not (photos[0] & photos[1] or photos[0] & photos[2] or photos[1] & photos[2])
    assert split_of("photo", "Altai") == split_of("photo", "Altai") in SPLITS


def test_dense_boxes_hold_the_ink(scenes):
    frame, codes, boxes, words = scenes.dense(0)
    assert len(words) == len(codes) and (np.diff(words) >= 0).all() and len(set(words)) > len(words) / 12
    assert frame.shape == (540, 960, 3) and frame.dtype == np.uint8 and codes.dtype == np.uint8 and boxes.shape == (len(codes), 4)
    assert len(codes) > 200 and set(map(chr, codes)) <= set(CHARS)
    assert (boxes[:, 0] >= 0).all() and (boxes[:, 1] >= 0).all() and (boxes[:, 2] <= 960).all() and (boxes[:, 3] <= 540).all()
    light = frame.astype(int).mean(2)
    spread = [np.ptp(light[int(y0):int(y1), max(int(x0) - 1, 0):int(x1) + 1]) for x0, y0, x1, y1 in boxes]
    assert np.mean(np.array(spread) > 15) > 0.97


def test_a_glyph_is_cut_to_its_ink(scenes):
    glyphs = scenes.faces[0].glyphs(20)
    assert isinstance(glyphs, Glyphs)
    for char in CHARS:
        mask = glyphs.glyph(char)[0]
        assert mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any()


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="split"):
        Scenes("all")
    with pytest.raises(ValueError, match="domains"):
        Scenes(domains=("space",), fallback=True)
    with pytest.raises(ValueError, match="pixels a side"):
        Scenes(frame_px=(20, 20), fallback=True)
    with pytest.raises(IndexError):
        Scenes(frame_px=SMALL, fallback=True)[-1]


def test_a_code_tells_its_zeros_from_letters():
    rng = np.random.default_rng(0)
    codes = [VALUES["code"][1](rng) for _ in range(4000)]
    assert not any(set(code) & set("OI") for code in codes)
    assert all(set(code) & set("123456789") for code in codes if "0" in code) and any("0" in code for code in codes)
