"""The training of the small model: labels, windows, optimiser, and that each stage's losses fall on a few examples."""
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'ps3_sdk[export]'")

from ps3_sdk import _core
from ps3_sdk.errors import InputError
from ps3_sdk.training import nano
from ps3_sdk.training.closely import Closely
from ps3_sdk.training.examples import make_example, places
from ps3_sdk.training.frames import nothing_to_see
from ps3_sdk.training.looking import Looking
from ps3_sdk.training.optimiser import Optimiser, orthogonal, schedule
from ps3_sdk.training.places import ASIDE, CHANNELS, aim, explained, found_by, mark_places, prompt_of_a_place, teach_words
from ps3_sdk.training.pool import orders_of, words_of
from ps3_sdk.training.reading import CHARACTERS, GRID, IGNORED, Reader, augmented, patches_of, slot_labels, slot_loss, window_labels
from ps3_sdk.training.scenes import Scenes
from ps3_sdk.training.spell import Speller, among, window_around
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
        assert columns[0] * 3840 / GRID <= box[0] + 14.3 and (columns[-1] + 1) * 3840 / GRID >= box[2] - 14.3
        assert rows[0] * 2160 / GRID <= box[1] + 8.1 and (rows[-1] + 1) * 2160 / GRID >= box[3] - 8.1


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
    run, losses = Run(tmp_path / "run", reader, optimiser), []
    for _ in range(30):
        loss = slot_loss(reader(patches, reader.positions(ids)), labels)
        loss.backward()
        optimiser.step()
        run.step += 1
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    run.log(loss=losses[-1])
    run.save()
    other = Reader(nano.new_model(folder, seed=9).vision.vision_model)
    again = Run(tmp_path / "run", other, Optimiser(other))
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
    speller = Speller(model, Reader(model.vision.vision_model))
    ids = torch.from_numpy(np.stack([window_around((100, 100, 160, 120), (2160, 3840), None)] * 2).astype(np.int64))
    patches, labels = torch.randn(2, 108, 588), torch.zeros(2, 108, 2, 2, dtype=torch.int64)
    optimiser, losses = Optimiser(speller, muon_lr=0.02, adam_lr=1e-2), []
    for _ in range(25):
        _, answer, slots, right = speller(patches, ids, labels, [(0, np.array([0, 1]), "AB"), (1, np.array([2]), "7"), (1, np.array([3, 12]), "XY")], np.random.default_rng(0))
        answer.backward()
        optimiser.step()
        losses.append(float(answer.detach()))
    assert slots.shape == (2, 108, 2, len(CHARACTERS) + 10) and losses[-1] < 0.5 * losses[0] and len(right) == 3


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
        loss, measures = joint(example, np.random.default_rng(0))
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
        prob = looking.find(example).prob
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
        found = closely.find(example)
        seen, prob = found.seen, found.prob
        rows, place, _ = closely.look(example, seen, prob[0].topk(closely.places).indices.sort().values)
        ours = model.projector.told(rows, prob[0][place])
        vector = model.ask(model.chat.ids(model.chat.message([look, example.asked[0][0]])), [look]).vector[:1]
        picked = model.select(look, vector, replace(model.config.looks, rule="blocks"))      # as the SDK selects for a grid of whole blocks
        theirs = model.encode(look, picked.looks, picked.probs).rows
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()
    assert (rows - theirs).abs().max() > 0.01 * theirs.abs().max()


def test_a_look_at_right_places_shows_the_texts_of_several_questions(folder, scene):
    model = nano.new_model(folder)
    closely = Closely(model, Reader(model.vision.vision_model))
    example = make_example(scene, np.random.default_rng(0))
    truth = torch.stack([place for *_, place in example.asked]).float().flatten(1)
    lead = int(truth.sum(dim=1).argmax())
    chosen = closely.right_places(truth, lead, np.random.default_rng(0))
    assert truth[lead].sum() <= chosen.sum() <= closely.places and (chosen >= truth[lead]).all()
    picked = (chosen + 0.1 * torch.rand(729)).topk(closely.places).indices
    kept, answers = closely.told_there(example, truth, picked, lead, np.random.default_rng(0))
    absent = next(i for i, (_, answer, _) in enumerate(example.asked) if answer == nano.NOT_SEEN)
    for seed in range(5):
        assert absent in closely.told_there(example, truth, picked, absent, np.random.default_rng(seed))[0]
    assert lead in kept and all(answer in (example.asked[i][1], nano.NOT_SEEN) for i, answer in zip(kept, answers))


def test_marked_places_say_where_they_are_and_leave_the_details_alone(folder, scene):
    model = nano.new_model(folder)
    vision = model.vision.vision_model
    looking = Looking(model, Reader(vision))
    example = make_example(scene, np.random.default_rng(0))
    lows = [example.low, example.low.flip(1)]

    def positions(scale):
        grid = model.config.vision.grids[scale]
        return vision.position(scale, (grid, grid), torch.arange(grid * grid)).detach()

    with torch.no_grad():
        found, before = looking.find(example), [positions(scale) for scale in range(4)]
    frames = [*lows, example.low.roll(50, dims=1), example.low.roll(100, dims=1)]      # explained() judges by the last quarter, which was not marked with
    told = explained(vision, frames)
    mark_places(model, lows, found.prompts)
    assert explained(vision, frames) > max(0.9, (1 + told) / 2)
    assert (positions(0) - before[0]).abs().max() > 0.5
    assert all((positions(scale) - before[scale]).abs().max() < 1e-5 for scale in (1, 2, 3))
    with torch.no_grad():
        assert (looking.find(example).prompts[:, -CHANNELS:] == 0).all(), "what no prompt has learnt to say yet changes no order"


def test_a_prompt_aims_at_the_middle_of_its_places():
    truth = torch.zeros(3, 729)
    truth[0, [0, 2]] = 1            # upper left corner and two places beside it
    truth[1, 728] = 1               # lower right corner; the third has none
    prompts = torch.zeros(3, 16)
    prompts[:, 0] = 100.0           # so long that its channels do not change its length
    prompts[0, -CHANNELS:-CHANNELS + 2] = 0.4 * 100 * torch.tensor([-1.0, -1 + 1 / 13])
    prompts[1, -CHANNELS:-CHANNELS + 2] = 0.4 * 100
    assert aim(prompts, truth) < 0.05 and aim(prompts, truth.flip(0)[[1, 2, 0]]) > 0.5
    assert aim(prompts, truth * 0) == 0


def test_what_is_found_is_told_by_what_questions_name():
    place = torch.zeros(729, dtype=torch.bool)
    place[3] = True
    asked = [("read the red bus", "A", place), ("the leftmost bus", "B", place), ("the left red bus", "C", place), ("the bus", "D", place), ("the blue bus", "not visible", ~place & place)]
    truth, prob = torch.stack([place.float() for *_, place in asked]), torch.zeros(5, 729)
    prob[[0, 2], 3] = 1.0
    prob[[1, 3, 4], 4] = 1.0
    looking = SimpleNamespace(find=lambda example: SimpleNamespace(truth=truth, prob=prob))
    assert found_by(looking, [SimpleNamespace(asked=asked)]) == {"colour": [True], "place": [False], "colour and place": [True], "neither": [False]}


def test_prompts_that_name_a_place_say_where_it_is():
    rng, seen = np.random.default_rng(0), set()
    words = {(0, -ASIDE): "left", (0, ASIDE): "right", (-ASIDE, 0): "top|upper|highest", (ASIDE, 0): "bottom|lower|lowest"}
    for _ in range(300):
        prompt, at = prompt_of_a_place(rng)
        seen.add(at)
        named = [place for place, word in words.items() if re.search(rf"\b({word}|{word}most)\b", prompt)]
        assert named == ([at] if at != (0, 0) else []), prompt
    assert len(seen) == 5


def test_words_for_places_are_learnt_and_nothing_else_is_touched(folder, scene):
    model = nano.new_model(folder)
    looking = Looking(model, Reader(model.vision.vision_model))
    lows = [make_example(scene, np.random.default_rng(0)).low]
    before = {name: value.clone() for name, value in model.named_parameters()}
    first, last = (teach_words(looking, lows, steps, say=lambda *_, **__: None) for steps in (1, 120))
    changed = {name.split(".")[0] if name.startswith("llm") else name.rsplit(".", 1)[0] for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"llm", "projector.top_down_prompt_head"}
    assert last < 0.5 * first, (first, last)


def test_the_texts_of_a_frame_are_told_apart(folder):
    looking = Looking(nano.new_model(folder), None)
    truth = torch.tensor([[1.0, 0, 0], [0, 0, 0]])
    sure, unsure = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.1, 0.1]]), torch.full((2, 3), 0.5)
    assert all(a < 0.3 * b for a, b in zip(looking.among(sure, truth), looking.among(unsure, truth)))
    assert all(loss == 0 for loss in looking.among(sure[:, :0], truth[:, :0]))
    which, how_sure = looking.among(sure[1:], truth[1:])
    assert which == 0 and how_sure > 0


def test_training_begins_with_a_checkpoint_folder(folder, tmp_path):
    from ps3_sdk.training.answer import begin
    model, other = nano.new_model(folder, seed=1), nano.new_model(folder, seed=2)
    nano.save(model, folder, torch.float16)
    first, second = Reader(model.vision.vision_model), Reader(other.vision.vision_model)
    first.save_head(folder)
    begin(Looking(other, second), tmp_path, str(folder))
    assert torch.equal(first.head.weight, second.head.weight)
    assert all(torch.equal(a.half().float(), b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
    with pytest.raises(InputError, match="Train stage look first"):
        begin(Looking(other, second), tmp_path, "look")


def test_a_training_that_goes_on_keeps_the_words_of_its_checkpoint(folder, tmp_path):
    copy = nano.copy_folder(folder, tmp_path / "run/model")
    names = {path.relative_to(folder) for path in folder.rglob("*.json")}
    assert names == {path.relative_to(copy) for path in copy.rglob("*.json")} and all((copy / name).read_bytes() == (folder / name).read_bytes() for name in names)
    assert nano.copy_folder(folder, copy) == copy
    (copy / "llm/tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="tokenizer.json"):
        nano.copy_folder(folder, copy)


def test_where_there_is_nothing_to_see_nothing_is_asked_for(folder, scene):
    frames = [nothing_to_see(np.random.default_rng(seed), scene.frame) for seed in range(12)]
    assert {frame.shape for frame in frames} == {scene.frame.shape} and {frame.dtype for frame in frames} == {np.dtype(np.uint8)}
    assert len({bytes(frame[::97, ::89].tobytes()) for frame in frames}) > 6
    questions = [replace(question, answer="", item=None) for question in scene.questions]
    example = make_example(SimpleNamespace(frame=frames[0].copy(), items=[], questions=questions), np.random.default_rng(0))
    assert {answer for _, answer, *_ in example.asked} == {nano.NOT_SEEN} and not example.signs.any() and not example.slots.any()
    for kind in (Looking, Closely):
        model = nano.new_model(folder)
        loss, measures = kind(model, Reader(model.vision.vision_model))(example, np.random.default_rng(0))
        assert torch.isfinite(loss) and "recall4" not in measures


def _meet(options, rank):
    from ps3_sdk.training import machine
    weight = torch.nn.Parameter(torch.ones(3))
    if rank == 0:                       # the other has no gradient: zeros
        weight.grad = torch.tensor([2.0, 4.0, 6.0])
    machine.average([weight])
    stack = torch.arange(10.0).view(5, 2)
    assert torch.equal(machine.shared(stack, lambda part: part * 2), stack * 2)
    (options.folder / f"{rank}.json").write_text(json.dumps(weight.grad.tolist()))


def test_gradients_of_two_processes_become_their_mean(tmp_path):
    from ps3_sdk.training import machine
    machine.launch(_meet, SimpleNamespace(processes=2, folder=tmp_path, device="cpu"))
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [[1.0, 2.0, 3.0]] * 2


def test_curves_show_shares_and_the_later_of_a_step_logged_twice(tmp_path):
    from ps3_sdk.training.curves import curves
    entries = [{"step": 10, "seconds": 60, "exact": 0.1, "slot": 2.5, "dense_slot": 0.3}, {"step": 20, "seconds": 120, "exact": 0.2},
               {"step": 20, "seconds": 180, "exact": 0.4}, {"step": 20, "seconds": 180, "val_slot": 0.9, "val_exact": float("nan")}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert curves(tmp_path / "log.jsonl") == {"exact": ([1.0, 3.0], [0.1, 0.4]), "dense_slot": ([1.0], [0.3])}


def test_what_is_no_checkpoint_is_not_embedded(tmp_path):
    from ps3_sdk.errors import ExportError
    from ps3_sdk.export.default_bundle import write_default
    (tmp_path / "default.plan").write_bytes(b"as it was")
    with pytest.raises(ExportError, match="no VILA-HD checkpoint"):
        write_default(tmp_path, tmp_path / "default.plan")
    assert (tmp_path / "default.plan").read_bytes() == b"as it was"


def test_a_pool_that_is_missing_or_old_says_how_to_make_it(tmp_path):
    from ps3_sdk.training.reading import DensePool
    with pytest.raises(FileNotFoundError, match="python -m ps3_sdk.training.pool .* --split val"):
        DensePool(tmp_path, "val")
    (tmp_path / "dense_val").mkdir()
    np.save(tmp_path / "dense_val/00000.labels.npy", np.zeros((270, 540), np.uint8))
    with pytest.raises(FileNotFoundError, match="older version, 00000.labels.npy"):
        DensePool(tmp_path, "val")


def test_the_whole_recipe_is_one_command_whose_steps_take_their_options(tmp_path, monkeypatch, capsys):
    import importlib
    from ps3_sdk import cli
    from ps3_sdk.training import machine, nano
    assert cli.main(["train", str(tmp_path / "run"), "--processes", "2", "--share", "0.01", "--dry-run"]) == 0
    said = [line.split("python -m ", 1)[1].split() for line in capsys.readouterr().err.splitlines()]
    assert [line[0].rsplit(".", 1)[1] for line in said] == ["pool", "pool", "read", "answer", "places", "answer", "answer", "curves"] and not (tmp_path / "run").exists()
    taken = []
    monkeypatch.setattr(machine, "launch", lambda work, options: taken.append(options))
    monkeypatch.setattr(nano, "write_folder", lambda *arguments, **options: None)
    for name, *arguments in said:
        stage = importlib.import_module(name)
        if name.endswith(("read", "answer")):
            monkeypatch.setattr("sys.argv", [name, *arguments])
            stage.main()
    assert [options.steps for options in taken] == [32, 16, 4, 16] and all(options.processes == 2 and options.device == "cpu" for options in taken)
    assert taken[3].places == 4 and taken[2].still and Path(taken[2].begin) == tmp_path / "run/placed"


def test_training_on_from_a_folder_is_its_last_stage_alone(tmp_path, capsys):
    from ps3_sdk import cli
    assert cli.main(["train", str(tmp_path), "--begin", str(ROOT / "training/model"), "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "training.read" not in said and "look" not in said.replace("--looks", "") and f"--begin {ROOT / 'training/model'}" in said
    assert cli.main(["train", str(tmp_path), "--begin", str(tmp_path / "none")]) == 1 and "no config.json" in capsys.readouterr().err


def test_a_step_that_fails_ends_the_recipe_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    from ps3_sdk import cli
    from ps3_sdk.training import recipe
    monkeypatch.setattr(recipe, "commands", lambda options: [["ps3_sdk.training.curves", str(tmp_path)], ["ps3_sdk.training.curves", "--never"]])
    assert cli.main(["train", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "curves ended with 2" in said and "run the same command again" in said and "--never" not in said
