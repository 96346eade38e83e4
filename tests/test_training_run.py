"""A training as it is run: where it begins, its processes, its commands and curves, and what is said where something is missing."""
import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'ps3_sdk[export]'")

from ps3_sdk.errors import InputError
from ps3_sdk.training import machine, nano
from ps3_sdk.training.examples import Cutter
from ps3_sdk.training.looking import Looking
from ps3_sdk.training.optimiser import Optimiser
from ps3_sdk.training.reading import Reader
from ps3_sdk.training.state import HEADS, Run, save_heads
from test_training import folder     # noqa: F401, a fixture


def test_training_begins_with_a_checkpoint_folder(folder, tmp_path):
    from ps3_sdk.training.answer import begin
    model, other = nano.new_model(folder, seed=1), nano.new_model(folder, seed=2)
    nano.save(model, folder, torch.float16)
    first, second = Reader(model.vision.vision_model), Reader(other.vision.vision_model)
    source, goes_on = Looking(model, first), Looking(other, second)
    save_heads(folder, **source.heads)
    assert not torch.equal(source.captions.seen.weight, goes_on.captions.seen.weight)
    begin(goes_on, tmp_path, str(folder))
    assert torch.equal(first.head.weight, second.head.weight)
    for (name, value), (_, theirs) in zip([*goes_on.captions.named_parameters(), *goes_on.things.named_parameters()], [*source.captions.named_parameters(), *source.things.named_parameters()]):
        assert torch.equal(value, theirs), name
    assert all(torch.equal(a.half().float(), b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
    with pytest.raises(InputError, match="Train stage look first"):
        begin(Looking(other, second), tmp_path, "look")
    stage, means = Looking(model, first), Looking(other, second)
    run = Run(tmp_path / "look", stage, Optimiser(stage), mean_over=10)
    mean = {name: parameter.detach() + 1 for name, parameter in stage.named_parameters()}
    for name, weights in run.mean.weights.items():
        weights.copy_(mean[name])
    run.save()
    begin(means, tmp_path, "look")          # the mean of its last steps, as in the checkpoint that it wrote
    assert all(torch.equal(parameter, mean[name]) for name, parameter in means.named_parameters())
    assert not any(torch.equal(parameter, mean[name]) for name, parameter in stage.named_parameters()), "what is trained is left as it is"


def test_a_training_that_goes_on_keeps_the_words_of_its_checkpoint(folder, tmp_path):
    copy = nano.copy_folder(folder, tmp_path / "run/model")
    names = {path.relative_to(folder) for path in folder.rglob("*.json")}
    assert names == {path.relative_to(copy) for path in copy.rglob("*.json")} and all((copy / name).read_bytes() == (folder / name).read_bytes() for name in names)
    assert nano.copy_folder(folder, copy) == copy
    (copy / "llm/tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="tokenizer.json"):
        nano.copy_folder(folder, copy)


def _meet(options, rank):
    weight = torch.nn.Parameter(torch.ones(3))
    if rank == 0:                       # the other has no gradient: zeros
        weight.grad = torch.tensor([2.0, 4.0, 6.0])
    machine.average([weight])
    apart = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(apart.weight, float(rank + 1))
    Optimiser(apart)
    assert (apart.weight == 1).all(), "all begin with what the first one has"
    stack = torch.arange(10.0).view(5, 2)
    assert torch.equal(machine.shared(stack, lambda part: part * 2), stack * 2)
    (options.folder / f"{rank}.json").write_text(json.dumps(weight.grad.tolist()))


def test_gradients_of_two_processes_become_their_mean(tmp_path):
    machine.launch(_meet, SimpleNamespace(processes=2, folder=tmp_path, device="cpu"))
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [[1.0, 2.0, 3.0]] * 2


def test_short_products_leave_attention_whole(monkeypatch):
    from torch.nn.functional import scaled_dot_product_attention
    query, key, value, weight = torch.randn(1, 2, 8, 16, requires_grad=True), torch.randn(1, 2, 8, 16), torch.randn(1, 2, 8, 16), torch.randn(16, 16)
    expected = scaled_dot_product_attention(query, key, value)
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(machine, "multiplies_bfloat16", lambda device: fast)
        with machine.half(SimpleNamespace(device="cpu")):
            attended = scaled_dot_product_attention(query.to(dtype), key, value.to(dtype), attn_mask=None)
            assert (key @ weight).dtype == dtype and attended.dtype == torch.float32
        assert torch.allclose(attended, expected, atol=0.03 if fast else 0)
    attended.sum().backward()
    assert query.grad.any() and (key @ weight).dtype == torch.float32
    with pytest.raises(ValueError, match="as it came"), machine.half(SimpleNamespace(device="cpu")):
        raise ValueError("as it came")


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


class Copying(Cutter):
    """As on a GPU, where frames are copied once and memory shared with the workers is free again at once."""

    def __init__(self):
        super().__init__()
        self.cuda = "a GPU"

    def room(self, count, frame_px):
        return [np.zeros((*frame_px, 3), np.uint8) for _ in range(count)]

    def pin(self, array):
        assert array.dtype == np.uint8

    def frame(self, pixels, into=None):
        into[:] = pixels
        return Cutter().frame(into)

    def patches(self, frame, parts):
        return Cutter().patches(frame, parts)


@pytest.mark.parametrize("cutter, memory", [(Cutter(), 3), (Copying(), 2)])
def test_scenes_are_used_so_often_and_then_new_ones_come(cutter, memory):
    from ps3_sdk.training import frames
    ring = frames.Ring("train", 0, size=3, uses=2, workers=1, frame_px=(540, 960), cutter=cutter, memory=memory, fallback=True)
    try:
        seen, end = {}, time.monotonic() + 120      # scenes are used on while their makers have no new one yet, however slow these are
        while len(seen) < 4 and time.monotonic() < end:
            for example in ring.next(2, questions=3):
                assert example.low.shape == (729, 588) and example.view.shape == (2916, 2352) and example.slots.shape == (2, 270, 540)
                assert 0 < len(example.asked) <= 3 and example.where.shape == (len(example.asked), 729) and (example.signs | ~example.where.any(dim=0)).all()
                assert example.boxes.shape == (len(example.captions), 729) and (len(example.captions) > 0) == bool(example.signs.any())
                seen[example.slots.tobytes()] = seen.get(example.slots.tobytes(), 0) + 1
        held = [slot.slots.tobytes() for slot in ring._slots]
        assert len(held) <= 3 and len(seen) >= 4 and all(uses >= 2 for scene, uses in seen.items() if scene not in held), seen.values()
    finally:
        ring.close()


def test_a_third_of_the_scenes_are_in_small_print(monkeypatch):
    from queue import SimpleQueue
    from ps3_sdk.training import frames
    from ps3_sdk.training.scenes import scenes

    class Seen(Exception):
        pass

    class Stub:
        def __init__(self, **_):
            pass

        def __getitem__(self, index):
            raise Seen(self.cap_px)

    monkeypatch.setattr(scenes, "Scenes", Stub)
    drawn = []
    for index in range(300):
        free = SimpleQueue()
        free.put(0)
        with pytest.raises(Seen) as seen:
            frames._work([], free, None, "train", 0, index, 1, (540, 960), 1, {})
        drawn.append(seen.value.args[0])
    assert set(drawn) == {frames.SMALL_PX, scenes.CAP_PX} and abs(drawn.count(frames.SMALL_PX) / 300 - frames.SMALL_PRINT) < 0.1


def test_words_come_from_other_processes_without_end(tmp_path):
    from ps3_sdk.training.spell import Words
    (tmp_path / "dense_train").mkdir()
    rng, side = np.random.default_rng(0), np.arange(8)
    boxes = np.stack([side * 400 + 50, side * 400 + 60, side * 400 + 120, side * 400 + 80], axis=1).astype(np.float32)
    arrays = {"patches": rng.integers(0, 256, (270, 270, 588), np.uint8), "heights": np.zeros((270, 270), np.uint8), "orders": np.zeros((270, 540), np.uint8),
              "words": np.array([(b"WORD", box) for box in boxes], np.dtype([("text", "S8"), ("box", "<f4", (4,))])), "labels": np.zeros((270, 540), np.uint8)}
    for name, array in arrays.items():
        np.save(tmp_path / f"dense_train/00000.{name}.npy", array)
    batches = Words(tmp_path, [1], 3, 5).batches(1)
    first, second = next(batches), next(batches)
    for patches, ids, labels, words in (first, second):
        assert patches.shape == (3, 108, 588) and patches.dtype == torch.uint8 and ids.shape == (3, 108) and labels.shape == (3, 108, 2, 2) and 0 < len(words) <= 5
    assert not torch.equal(first[0], second[0])


def test_words_to_train_on_are_taken_by_their_height(tmp_path, monkeypatch):
    from ps3_sdk.training import spell
    given = []
    monkeypatch.setattr(spell, "DensePool", lambda folder, split: split)
    monkeypatch.setattr(spell, "words_batch", lambda *arguments: given.append(arguments) or (None, None, None, []))
    next(iter(spell.Words(tmp_path, [1], 3, 5)))
    assert given[0][0] == "train" and given[0][2:] == (3, 4, spell.TALL, spell.PLAIN) and spell.TALL > 0 and spell.PLAIN < 1


def test_stage_score_begins_with_what_answering_left(folder, tmp_path):
    from ps3_sdk.training.answer import BEFORE, begin
    from ps3_sdk.training.closely import Closely
    model, other = nano.new_model(folder, seed=1), nano.new_model(folder, seed=2)
    answering, scoring = Closely(model, Reader(model.vision.vision_model)), Looking(other, Reader(other.vision.vision_model))
    Run(tmp_path / "answer", answering, Optimiser(answering)).save()
    assert begin(scoring, tmp_path, BEFORE["score"]) == set()
    assert all(torch.equal(value, answering.state_dict()[name]) for name, value in scoring.state_dict().items())


def test_stage_answer_begins_with_what_looking_left_and_a_new_head(folder, tmp_path):
    from ps3_sdk.training.answer import BEFORE, begin
    from ps3_sdk.training.closely import Closely
    model, other = nano.new_model(folder, seed=1), nano.new_model(folder, seed=2)
    looking, answering = Looking(model, Reader(model.vision.vision_model)), Closely(other, Reader(other.vision.vision_model))
    run = Run(tmp_path / BEFORE["answer"], looking, Optimiser(looking))
    run.save()
    assert begin(answering, tmp_path, BEFORE["answer"]) == {"high_things"}
    assert all(torch.equal(value, answering.state_dict()[name]) for name, value in looking.state_dict().items())
    state = torch.load(tmp_path / "look_on/state.pt", weights_only=True)
    weights = "mean" if "mean" in state else "model"
    state[weights] = {name: value for name, value in state[weights].items() if "patch_embed" not in name}
    torch.save(state, tmp_path / "look_on/state.pt")
    with pytest.raises(InputError, match="of another model"):
        begin(answering, tmp_path, BEFORE["answer"])


def test_a_grown_model_says_what_its_checkpoint_says_and_has_more_to_learn_in(folder, tmp_path):
    from ps3_sdk.training.grow import grow
    model = nano.new_model(folder, seed=1)
    nano.save(model, folder)
    save_heads(folder, reading=Reader(model.vision.vision_model).own)
    grow(folder, tmp_path / "grown", trunk=[0, 1], language=[1])
    deeper = nano.new_model(tmp_path / "grown", seed=2)
    nano.load(deeper, tmp_path / "grown")
    trunks, configs = [each.vision.vision_model.trunk for each in (model, deeper)], [each.config for each in (model, deeper)]
    assert [len(trunk.blocks) for trunk in trunks] == [2, 4] and [config.llm.depth for config in configs] == [2, 3]
    assert (tmp_path / "grown" / HEADS).read_bytes() == (folder / HEADS).read_bytes()
    frame, prompt, said = np.random.default_rng(0).integers(0, 256, (540, 960, 3), np.uint8), "what is on the blue gauge?", []
    for each in (model, deeper):
        seen = each.look(frame)
        answer = each.generate([seen, prompt], each.config.looks, max_new_tokens=6)
        said.append((answer.text, answer.logprob, answer.picked[0].probs[0]))
    assert said[0][0] == said[1][0] and said[0][1] == pytest.approx(said[1][1], abs=1e-5)
    assert torch.allclose(torch.as_tensor(said[0][2]), torch.as_tensor(said[1][2]), atol=1e-5), "selection sees the same blocks"
    patches, rows = torch.randn(1, 9, 588), torch.randn(1, 9, 32)
    trunks[1](patches, rows).hidden[-1].square().sum().backward()
    assert trunks[1].blocks[1].attn.proj.weight.grad.abs().max() > 0 and not trunks[1].blocks[1].attn.proj.weight.any()
    with pytest.raises(InputError, match="--trunk 2: there is no such block; this trunk has blocks 0..1"):
        grow(folder, tmp_path / "other", trunk=[2])
    with pytest.raises(InputError, match="is not what"):
        grow(folder, tmp_path / "grown", trunk=[0])


def test_the_mean_of_two_checkpoints_is_a_checkpoint(folder, tmp_path):
    from ps3_sdk.training.average import average
    models = []
    for seed in (1, 2):
        models.append(nano.new_model(folder, seed=seed))
        nano.copy_folder(folder, tmp_path / str(seed))
        nano.save(models[-1], tmp_path / str(seed))
        save_heads(tmp_path / str(seed), reading=Reader(models[-1].vision.vision_model).own)
    average([tmp_path / "1", tmp_path / "2"], tmp_path / "mean")
    mean = nano.new_model(tmp_path / "mean", seed=3)
    nano.load(mean, tmp_path / "mean")
    for name, value in mean.state_dict().items():
        assert torch.allclose(value, (models[0].state_dict()[name] + models[1].state_dict()[name]) / 2, atol=1e-6), name
    (tmp_path / "2/llm/model.safetensors").unlink()
    with pytest.raises(InputError, match="has no llm/model.safetensors"):
        average([tmp_path / "1", tmp_path / "2"], tmp_path / "mean")
    with pytest.raises(InputError, match="holds no weights"):
        average([tmp_path / "none", tmp_path / "1"], tmp_path / "other")


def test_a_part_that_was_made_larger_is_left_out_of_a_mean(folder, tmp_path):
    from safetensors.torch import load_file
    from ps3_sdk.training import view
    from ps3_sdk.training.average import average
    old, name = nano.copy_folder(folder, tmp_path / "old"), "vision_tower/model.safetensors"
    view.begin_folder(old, tmp_path / "new", 2)
    for seed, each in enumerate((old, tmp_path / "new")):
        nano.save(nano.new_model(each, seed=seed), each)
    save_heads(tmp_path / "new", more=torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="is not what"):
        average([old, tmp_path / "new"], tmp_path / "mean")
    average([old, tmp_path / "new"], tmp_path / "but", but=view.NAME)
    first, second, mean = (load_file(each / name) for each in (old, tmp_path / "new", tmp_path / "but"))
    for key, value in mean.items():
        assert torch.allclose(value, second[key] if view.NAME in key else (first[key] + second[key]) / 2, atol=1e-6), key
    assert (tmp_path / "but/vision_tower/config.json").read_bytes() == (tmp_path / "new/vision_tower/config.json").read_bytes()
    assert (tmp_path / "but" / HEADS).read_bytes() == (tmp_path / "new" / HEADS).read_bytes()
    with pytest.raises(InputError, match="not the same names and shapes"):
        average([old, tmp_path / "new"], tmp_path / "other", but="no such part")
    (old / "llm/tokenizer.json").write_bytes(b"{}")
    with pytest.raises(InputError, match="other token ids"):
        average([old, tmp_path / "new"], tmp_path / "another", but=view.NAME)


@pytest.mark.parametrize("count", (1, 5), ids=("fewer than are skipped", "more"))
def test_a_profile_says_where_the_time_of_some_steps_goes(capsys, count):
    def slept():
        time.sleep(0.001)
    profile = machine.Profile(3, count)
    for _ in range(12):
        slept(), torch.ones(8, 8) @ torch.ones(8, 8)
        profile.step()
    out = capsys.readouterr().out
    assert out.count("(slept)") == 2 and out.count("aten::mm") >= 1
    assert all(line.split()[0] == str(min(count, 2)) for line in out.splitlines() if "(slept)" in line), "of as many steps, of those there are"
