"""The training of the small model: labels, windows, optimiser, and that each stage's losses fall on a few examples."""
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'ps3_sdk[export]'")

from ps3_sdk import _core
from ps3_sdk.training import nano
from ps3_sdk.training.closely import Closely, Look
from ps3_sdk.training.examples import make_example, places
from ps3_sdk.training.frames import nothing_to_see
from ps3_sdk.training.looking import Looking
from ps3_sdk.training.optimiser import Optimiser, orthogonal, schedule
from ps3_sdk.training.pool import orders_of, words_of
from ps3_sdk.training.reading import CHARACTERS, GRID, IGNORED, Reader, Rows, augmented, patches_of, slot_labels, slot_loss, window_labels
from ps3_sdk.training.scenes import Scenes
from ps3_sdk.training.spell import Speller, among, among_others, window_around, words_batch
from ps3_sdk.training.state import Run

SMALL = nano.Sizes(vision_width=32, vision_depth=2, vision_heads=2, view_hidden=16, view_width=16, language_width=32, language_depth=2, language_heads=2, language_mlp=64)


@pytest.fixture
def folder(tmp_path):
    return nano.write_folder(tmp_path / "model", SMALL)


@pytest.fixture(scope="module")
def scene():
    return Scenes(split="train", seed=5, fallback=True)[1]


def test_patches_are_those_that_gather_cuts():
    frame = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    ids = np.array([0, 5, GRID * GRID - 1], np.int32)
    wanted = _core.gather(_core.Frame("RGB", [frame], 90, 160), 3780, 3780, 14, ids, (0.0,) * 3, (1.0,) * 3) * 255
    assert np.abs(patches_of(frame, ids) - np.clip(wanted, 0, 255)).max() <= 0.51


def test_slots_name_the_character_they_show():
    a, seven = CHARACTERS.index("A") + 1, CHARACTERS.index("7") + 1
    boxes = np.array([[28, 28, 35, 56], [35, 28, 49, 56]], np.float32)        # half a patch wide; then a whole one
    labels = slot_labels(np.array([a, seven]), boxes, (3780, 3780))
    assert (labels[2:4, 4] == a).all() and (labels[2:4, 5:7] == seven).all() and labels.astype(bool).sum() == 6
    half = slot_labels(np.array([a]), boxes[:1] / [1, 2, 1, 2], (1890, 3780))
    assert np.array_equal(half, slot_labels(np.array([a]), boxes[:1], (3780, 3780)))


def test_every_character_has_a_half_even_a_thin_one_beside_broad_ones():
    """A point two pixels wide on the edge of two halves, each mostly another character's, and of two rows of patches."""
    boxes = np.array([[0, 0, 12, 40], [13, 26, 15, 30], [16, 0, 35, 40]], np.float32)
    labels = slot_labels(np.array([5, 6, 7]), boxes, (3780, 3780))
    assert [(labels == code).sum() for code in (5, 6, 7)] == [5, 1, 9] and labels[2, 1] == 6
    crowded = np.array([[0, 0, 7, 14], [6, 0, 8, 14], [7, 0, 14, 14]], np.float32)      # each neighbour has one half alone, and keeps it
    assert slot_labels(np.array([5, 6, 7]), crowded, (3780, 3780))[0, :2].tolist() == [5, 7]


def test_words_are_characters_of_one_number():
    characters = np.frombuffer(b"ABCXY", np.uint8)
    boxes = np.arange(20, dtype=np.float32).reshape(5, 4)
    words = words_of(characters, boxes, np.array([3, 3, 3, 7, 7]))
    assert words["text"].tolist() == [b"ABC", b"XY"] and words["box"][0].tolist() == [0, 1, 10, 11]


def test_orders_count_the_characters_of_a_word_and_are_unknown_where_its_beginning_is_cut_off():
    assert orders_of(np.array([3, 3, 3, 7, 7, 9])).tolist() == [1, 2, 3, 1, 2, 1]
    assert orders_of(np.zeros(10, int)).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]
    orders = np.array([[[2, 3, 0, 1, 1, 0, 2, 3], [0, 1, 0, 2, 0, 0, 1, 2]]], np.uint8)
    labels = window_labels(orders + 10, orders)
    assert labels.shape == (1, 8, 2, 2) and np.array_equal(labels[..., 0].reshape(1, 2, 8), orders + 10)
    assert labels[..., 1].reshape(2, 8).tolist() == [[IGNORED, IGNORED, 0, 1, 1, 0, 2, 3], [0, 1, 0, 2, 0, 0, 1, 2]]


def test_windows_hold_their_box_and_are_whole_blocks():
    rng = np.random.default_rng(1)
    for _ in range(200):
        x, y = rng.uniform(0, 3840 - 200), rng.uniform(0, 2160 - 40)
        box = (x, y, x + rng.uniform(5, 180), y + rng.uniform(5, 30))
        ids = window_around(box, (2160, 3840), rng)
        rows, columns = ids // GRID, ids % GRID
        assert rows[0] % 2 == 0 and columns[0] % 2 == 0 and len(np.unique(ids)) == 108 and ids.max() < GRID * GRID
        assert columns[0] * 3840 / GRID <= box[0] + 1e-6 and (columns[-1] + 1) * 3840 / GRID >= box[2] - 1e-6
        assert rows[0] * 2160 / GRID <= box[1] + 1e-6 and (rows[-1] + 1) * 2160 / GRID >= box[3] - 1e-6


def test_places_are_where_the_box_is():
    assert np.argwhere(places((0, 0, 10, 10), (270, 270))).tolist() == [[0, 0]]
    assert places((0, 0, 20, 10), (270, 270)).sum() == 2 and places((269.9, 269.9, 270, 270), (270, 270))[26, 26]


def test_orthogonal_takes_singular_values_to_about_one():
    matrices = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0))
    for turned in (matrices, matrices.transpose(1, 2)):
        values = torch.linalg.svdvals(orthogonal(turned))
        assert values.min() > 0.6 and values.max() < 1.3


def test_the_schedule_rises_stays_and_falls():
    assert schedule(0) < 0.02 and schedule(0.3) == 1 and schedule(1) == pytest.approx(0.02) and schedule(0.8) == pytest.approx(0.51) and schedule(1, least=0.3) == 0.3 and schedule(0, least=0.3) < 0.02


def test_augmented_windows_keep_their_range_and_their_edges():
    patches = torch.rand(4, 48, 588) * 2 - 1
    changed = augmented(patches.clone(), np.random.default_rng(0))
    assert changed.shape == patches.shape and changed.abs().max() <= 1 and not torch.equal(changed, patches)


def test_a_new_model_is_a_checkpoint_that_can_be_read_again(folder):
    from ps3_sdk.export.reference.vila.model import VilaHd
    model = nano.new_model(folder, seed=1)
    nano.save(model, folder)
    again = VilaHd.from_checkpoint(folder)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    assert again.config.not_seen == nano.NOT_SEEN and again.chat.newline_ids and len(again.chat._encode("12:45")) == 5
    assert json.loads((folder / "vision_tower/config.json").read_text())["factored_pos_emb"]


def test_reading_learns_a_batch_and_goes_on_where_it_stopped(folder, tmp_path):
    model = nano.new_model(folder)
    reader = Reader(model.vision.vision_model)
    rng = np.random.default_rng(0)
    patches, ids = torch.from_numpy(rng.uniform(-1, 1, (4, 48, 588)).astype(np.float32)), torch.from_numpy(rng.integers(0, GRID * GRID, (4, 48)))
    labels = torch.from_numpy(rng.integers(0, 9, (4, 48, 2, 2)))
    nano.first_patch_embedding(model, patches.flatten(0, 1))
    optimiser = Optimiser(reader)
    run, losses, weights = Run(tmp_path / "run", reader, optimiser, mean_over=10), [], []
    for _ in range(30):
        loss = slot_loss(reader(patches, reader.positions(ids)), labels)
        loss.backward()
        optimiser.step()
        run.stepped()
        losses.append(float(loss.detach()))
        weights.append(reader.head.weight.detach().clone())
    assert losses[-1] < 0.8 * losses[0]
    mean = torch.zeros_like(weights[0])
    for n, weight in enumerate(weights, 1):
        mean += (weight - mean) / min(n, 10)
    with run.mean.inside():
        assert torch.allclose(reader.head.weight, mean, atol=1e-6) and not torch.equal(mean, weights[-1])
    assert torch.equal(reader.head.weight, weights[-1])
    run.log(loss=losses[-1])
    run.save()
    other = Reader(nano.new_model(folder, seed=9).vision.vision_model)
    again = Run(tmp_path / "run", other, Optimiser(other), mean_over=10)
    assert torch.equal(again.mean.weights["head.weight"], run.mean.weights["head.weight"])
    assert again.step == 30 and all(torch.equal(a, b) for a, b in zip(reader.state_dict().values(), other.state_dict().values()))
    assert json.loads((tmp_path / "run/log.jsonl").read_text())["step"] == 30


def test_a_step_without_a_finite_gradient_is_left_out(folder):
    model = nano.new_model(folder)
    optimiser = Optimiser(model)
    before = [p.clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_spelling_reads_the_blocks_it_is_given(folder):
    model = nano.new_model(folder)
    speller = Speller(Looking(model, Reader(model.vision.vision_model)))
    ids = torch.from_numpy(np.stack([window_around((100, 100, 160, 120), (2160, 3840), None)] * 2).astype(np.int64))
    patches, labels = torch.randn(2, 108, 588), torch.zeros(2, 108, 2, 2, dtype=torch.int64)
    optimiser, losses = Optimiser(speller, muon_lr=0.02, adam_lr=1e-2), []
    words = among_others([(0, np.array([0, 1]), "AB"), (1, np.array([2]), "7"), (1, np.array([3, 12]), "XY")], np.random.default_rng(0))
    for _ in range(25):
        _, answer, slots, right = speller(patches, ids, labels, words)
        answer.backward()
        optimiser.step()
        losses.append(float(answer.detach()))
    given = [(n, place, text) for n, place, _, _, text in words]
    before = speller.check((patches.clamp(-1, 1) * 127 + 128).byte(), ids, labels, given)
    speller.reader.smooth = torch.full_like(speller.reader.smooth, 9.0)        # of weights that it had before
    assert speller.check((patches.clamp(-1, 1) * 127 + 128).byte(), ids, labels, given)["spelt"] == before["spelt"] and speller.reader.smooth.max() < 9
    assert slots.shape == (2, 108, 2, len(CHARACTERS) + 10) and losses[-1] < 0.5 * losses[0] and len(right) == 3
    learns = []
    for through in (False, True):       # the trunk, from what is spelt alone
        speller.through, weight = through, model.vision.vision_model.trunk.blocks[0].mlp.fc1.weight
        speller(patches, ids, labels, words)[1].backward()
        learns.append(weight.grad is not None and bool(weight.grad.any()))
        speller.zero_grad()
    assert learns == [False, True]


def test_a_words_own_blocks_are_said_to_be_the_most_probable():
    rng, alone, own = np.random.default_rng(0), 0, np.array([3, 4, 12, 13])
    for _ in range(200):
        blocks, told = among(own, 27, rng)
        mine = np.isin(blocks, own)
        assert mine.sum() == 4 and (np.diff(blocks) > 0).all() and blocks.max() < 27 and told.dtype == np.float32
        alone += mine.all()
        assert mine.all() or told[mine].min() > told[~mine].max() + 0.1
    assert 30 < alone < 100


@pytest.mark.parametrize("kind", [Looking, Closely])
def test_a_scene_is_learnt_the_whole_way(folder, scene, kind):
    model = nano.new_model(folder)
    joint = kind(model, Reader(model.vision.vision_model))
    example = make_example(scene, np.random.default_rng(0))
    optimiser, losses = Optimiser(joint, muon_lr=0.01, adam_lr=3e-3), []
    for _ in range(8):
        loss, measures = joint([example], np.random.default_rng(0))
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0] and 0 <= measures["recall6"] <= 1 and ("exact" in measures) == (kind is Closely)
    assert model.projector.top_down_prompt_head.weight.grad is None


def test_a_question_in_training_is_the_references(folder, scene):
    """What training computes for a question is what VilaHd.ask computes: how probable each place is."""
    model = nano.new_model(folder).eval()
    looking = Looking(model, Reader(model.vision.vision_model))
    example = make_example(scene, np.random.default_rng(0), questions=3)
    look = model.look(scene.frame)
    with torch.no_grad():
        prob = looking.find([example]).prob
        for (prompt, *_), ours in zip(example.asked, prob):
            asked = model.ask(model.chat.ids(model.chat.message([look, prompt])), [look])
            theirs = model.select(look, asked.vector[:1], model.config.looks).probs[0].squeeze()      # at 756 px
            assert (ours.view(27, 27).repeat_interleave(2, 0).repeat_interleave(2, 1) - theirs).abs().max() < 1e-4


def test_a_close_look_in_training_is_the_references(folder, scene):
    """The rows that a question's answer is trained on are those that VilaHd makes for it: same places, scales, order, and what they are told."""
    model = nano.new_model(folder).eval()
    closely = Closely(model, Reader(model.vision.vision_model))
    example = make_example(scene, np.random.default_rng(0), questions=1)
    look = model.look(scene.frame)
    with torch.no_grad():
        found = closely.find([example])
        rows, place, *_ = closely.look([example], found, [Look(0, closely.cells(closely.near(found.prob[0].numpy(), False)), [], [])])
        rows, place = rows[0], place[0]
        ours = model.projector.told(rows, found.prob[0][place])
        vector = model.ask(model.chat.ids(model.chat.message([look, example.asked[0][0]])), [look]).vector[:1]
        picked = model.select(look, vector, replace(model.config.looks, rule="blocks"))      # as the SDK selects for a grid of whole blocks
        theirs = model.encode(look, picked.looks, picked.probs).rows
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()
    assert (rows - theirs).abs().max() > 0.01 * theirs.abs().max()


def test_a_close_look_is_at_neighbours(folder):
    closely, wanted = Closely(model := nano.new_model(folder), Reader(model.vision.vision_model)), np.full((27, 27), 0.1, np.float32)
    wanted[3, 3], wanted[4, 4], wanted[3, 20], wanted[2, 21], wanted[10, 10] = 0.9, 0.2, 0.8, 0.15, 0.7
    best = lambda found, count: {divmod(int(i), 27) for i in np.argsort(-found)[:count]}
    assert best(closely.near(wanted.ravel(), False), 2) == {(3, 3), (4, 4)} and best(closely.near(wanted.ravel(), False), 10) >= {(3, 20)}
    assert best(closely.near(wanted.ravel(), True), 2) == {(3, 20), (2, 21)}


def test_a_look_at_right_places_shows_the_texts_of_several_questions(folder, scene):
    model = nano.new_model(folder)
    closely = Closely(model, Reader(model.vision.vision_model))
    example = make_example(scene, np.random.default_rng(0))
    truth = example.where.numpy().astype(np.float32)
    lead = int(truth.sum(axis=1).argmax())
    chosen = closely.right_places(truth, lead, np.random.default_rng(0))
    assert truth[lead].sum() <= chosen.sum() <= closely.places and (chosen >= truth[lead]).all()
    picked = np.argsort(-chosen - 0.1 * np.random.default_rng(0).random(729))[:closely.places]
    kept, answers = closely.told_there(example, truth, picked, lead, np.random.default_rng(0))
    absent = next(i for i, (_, answer) in enumerate(example.asked) if answer == nano.NOT_SEEN)
    for seed in range(5):
        assert absent in closely.told_there(example, truth, picked, absent, np.random.default_rng(seed))[0]
    assert lead in kept and all(answer in (example.asked[i][1], nano.NOT_SEEN) for i, answer in zip(kept, answers))


def test_the_texts_of_a_frame_are_told_apart(folder):
    looking = Looking(nano.new_model(folder), None)
    truth, signs = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]), torch.tensor([[True, True, True, False]] * 2)
    sure, unsure = torch.tensor([[0.9, 0.1, 0.1, 0.99], [0.1, 0.1, 0.1, 0.99]]), torch.full((2, 4), 0.5)
    assert all(a < 0.3 * b for a, b in zip(looking.among(sure, truth, signs), looking.among(unsure, truth, signs)))
    assert all(loss == 0 for loss in looking.among(sure, truth * 0, signs & False))
    which, how_sure = looking.among(sure[1:], truth[1:], signs[1:])
    assert which == 0 and how_sure > 0


def test_scenes_together_are_the_scenes_alone(folder, scene):
    """Places, rows of close looks and losses do not depend on what else goes through the networks."""
    closely = Closely(nano.new_model(folder), None)
    closely.reader = Reader(closely.model.vision.vision_model)
    other = Scenes(split="train", seed=6, fallback=True)[0]
    examples = [make_example(each, np.random.default_rng(0), questions) for each, questions in ((scene, 5), (other, 3))]
    looks = [Look(n, np.sort(np.random.default_rng(n).permutation(729)[:4]), [], []) for n in (0, 1, 1)]
    with torch.no_grad():
        together, alone = closely.find(examples), [closely.find([example]) for example in examples]
        rows, place, losses, _ = closely.look(examples, together, looks)
        apart = [closely.look([examples[look.scene]], alone[look.scene], [look._replace(scene=0)]) for look in looks]
        whole, _ = closely(examples, np.random.default_rng(0))
    assert together.of.tolist() == [0] * 5 + [1] * 3
    assert (together.prob - torch.cat([each.prob for each in alone])).abs().max() < 1e-5
    for name, shares in (("where", (5, 3)), ("rivals", [(each.truth.sum(dim=1) > 0).sum() for each in alone])):
        mean = sum(each.losses[name] * share for each, share in zip(alone, shares)) / sum(shares)
        assert name == "where" or abs(together.losses[name] - mean) < 1e-4
    assert (rows - torch.cat([each[0] for each in apart])).abs().max() < 1e-4 and torch.equal(place, torch.cat([each[1] for each in apart]))
    assert torch.isfinite(whole) and losses["slot"] > 0
    for name in ("slot", "rows", "high_things"):
        assert torch.isfinite(losses[name]) and losses[name] > 0, name


def test_rows_are_told_what_their_own_patches_show(folder, scene):
    """The labels of a row are those of the four patches that it is made of, in a close look and in a window of dense text."""
    looking = Closely(nano.new_model(folder), None)
    looking.reader, given = Reader(looking.model.vision.vision_model), []
    looking.rows.forward = lambda rows, labels: given.append((rows, labels)) or rows.sum() * 0
    example = make_example(scene, np.random.default_rng(0), 2)
    text = next(item for item in scene.items if len(item.text) > 2)
    x0, y0, _, _ = (text.text_box_px / np.array([3840, 2160] * 2) * 270).astype(int)
    cells = np.sort(np.unique([(y0 // 10 + down) * 27 + x0 // 10 + across for down in (0, 1) for across in (0, 1)]))[:4]
    with torch.no_grad():
        looking.look([example], looking.find([example]), [Look(0, cells, [], [])])
        labels = torch.stack([torch.arange(2 * 108 * 2).view(2, 108, 2) % 43, torch.zeros(2, 108, 2, dtype=torch.int64)], dim=-1)
        Speller(looking)(torch.randn(2, 108, 588), torch.from_numpy(np.stack([window_around((100, 100, 160, 120), (2160, 3840), None)] * 2).astype(np.int64)), labels, [(1, np.array([10]), np.array([0.9], np.float32), 0, "AB")])
    (rows, shown), (_, of_window) = given
    assert shown.shape == (*rows.shape[:2], 8)
    slots = example.slots[0].reshape(270, 270, 2)
    blocks = [(down, across) for down in range(135) for across in range(135) if (down // 5) * 27 + across // 5 in cells]
    wanted = [slots[2 * down:2 * down + 2, 2 * across:2 * across + 2].ravel().tolist() for down, across in blocks]
    assert shown[0].tolist() == wanted and any(any(row) for row in wanted)
    grid = labels[1, :, :, 0].view(6, 18, 2)
    assert of_window[0].tolist() == grid[2:4, 2:4].flatten().tolist(), "block 10 of 9 a row"


def test_rows_that_show_characters_come_to_be_read():
    torch.manual_seed(0)
    rows, labels = Rows(16), torch.zeros(64, 8, dtype=torch.int64)
    labels[:, 2] = torch.arange(64) % 3
    features = torch.randn(3, 16)[labels[:, 2]]
    optimiser, losses = torch.optim.Adam(rows.parameters(), 3e-2), []
    for _ in range(60):
        loss = rows(features, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.05 * losses[0]


def test_where_there_is_nothing_to_see_nothing_is_asked_for(folder, scene):
    frames = [nothing_to_see(np.random.default_rng(seed), scene.frame) for seed in range(12)]
    assert {frame.shape for frame in frames} == {scene.frame.shape} and {frame.dtype for frame in frames} == {np.dtype(np.uint8)}
    assert len({bytes(frame[::97, ::89].tobytes()) for frame in frames}) > 6
    questions = [replace(question, answer="", item=None) for question in scene.questions]
    example = make_example(SimpleNamespace(frame=frames[0].copy(), items=[], questions=questions), np.random.default_rng(0))
    assert {answer for _, answer in example.asked} == {nano.NOT_SEEN} and not example.signs.any() and not example.slots.any()
    for kind in (Looking, Closely):
        model = nano.new_model(folder)
        loss, measures = kind(model, Reader(model.vision.vision_model))([example], np.random.default_rng(0))
        assert torch.isfinite(loss) and torch.isnan(measures["recall4"])


def test_windows_are_taken_around_tall_words_more_often_than_there_are():
    places = [(36 * column + 10, 12 * row + 3) for row in range(20) for column in range(7)]          # in patches, no two in one window
    made = [(b"TALL" if n % 4 == 0 else b"LOW", (14 * x, 14 * y, 14 * x + 40, 14 * y + (49 if n % 4 == 0 else 24.5))) for n, (x, y) in enumerate(places)]

    class Pool(SimpleNamespace):
        def __len__(self):
            return 1

    pool = Pool(words=[np.array(made, np.dtype([("text", "S8"), ("box", "<f4", (4,))]))], patches=[np.zeros((270, 270, 588), np.uint8)], labels=np.zeros((1, 270, 540), np.uint8),
                orders=np.zeros((1, 270, 540), np.uint8))
    share = lambda tall: np.mean([text == "TALL" for *_, text in words_batch(pool, np.random.default_rng(0), 400, 1, tall)[3]])
    plain = np.mean([text == "TALL" for *_, text in words_batch(pool, np.random.default_rng(0), 400, 1, 0, 0.5)[3]])
    assert abs(plain - share(0)) < 0.08, "neither word has a thin character"
    pool.words[0]["text"][pool.words[0]["text"] == b"TALL"] = b"T.LL"
    points = np.mean([text == "T.LL" for *_, text in words_batch(pool, np.random.default_rng(0), 400, 1, 0, 0.5)[3]])
    assert abs(points - 0.4) < 0.08, "twice as often: 2/5"
    pool.words[0]["text"][pool.words[0]["text"] == b"T.LL"] = b"TALL"
    assert abs(share(0) - 0.25) < 0.08 and abs(share(1) - 0.4) < 0.08 and abs(share(2) - 0.57) < 0.08      # 1, 2 and 4 times as often: 1/4, 2/5, 4/7
