"""VILA-HD's parts against the plainest way to write them, what the public model stops at, and bad calls."""
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install 'ps3-sdk[export]'")
import torch.nn.functional as F
from golden_vila import CASES, ROOT, Case
from PIL import Image
from safetensors.torch import load_file

from ps3_sdk.errors import BudgetError, InputError
from ps3_sdk.export.reference.fields import Fields
from ps3_sdk.export.reference.selection import select
from ps3_sdk.blocks import plan_blocks
from ps3_sdk.probability import pooled
from ps3_sdk.export.reference.selection import plan_looks
from ps3_sdk.export.reference.vila.blocks import cells_of, complete_blocks, select_blocks
from ps3_sdk.export.reference.vila.config import LlmConfig, LookOptions
from ps3_sdk.export.reference.vila.llm import Decoder, rotate
from ps3_sdk.export.reference.vila.model import VilaHd
from ps3_sdk.export.reference.vila.pixels import squash
from ps3_sdk.export.reference.vila.projector import low_blocks, pooling_weights
from ps3_sdk.export.reference.vila.sequence import assemble, prefill

QUESTION = "Where does the exit lead to?"


@pytest.fixture(scope="module")
def model():
    return VilaHd.from_checkpoint(ROOT / "models" / "pub_a")


@pytest.fixture(scope="module")
def frames():
    return [Image.open(path) for path in sorted(ROOT.glob("p*/image0.png"))[:3]]


@pytest.fixture(scope="module")
def seen(model, frames):
    return [model.look(frame) for frame in frames]


@pytest.fixture(autouse=True)
def inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


# -- projector and blocks ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("old,new", [(27, 14), (27, 9), (27, 27), (27, 54), (27, 18), (27, 36), (27, 90), (27, 135), (24, 12)])
def test_pooling_is_torch_s_adaptive_mean(old, new):
    table, weights = torch.randn(3, old, old), pooling_weights(old, new)
    wanted = F.adaptive_avg_pool2d(table, new)
    torch.testing.assert_close(weights @ table @ weights.T, wanted, atol=1e-6, rtol=1e-5)
    some = np.random.default_rng(0).permutation(new * new)[:100]
    np.testing.assert_allclose(pooled(table.reshape(3, -1).T.numpy(), new, some), wanted.reshape(3, -1).T.numpy()[some], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("grid,r", [(27, 2), (27, 3), (4, 2), (5, 3)])
def test_low_blocks_are_rows_of_cells(grid, r):
    tokens, m = torch.randn(grid * grid, 5), -(-grid // r)
    got = low_blocks(tokens, grid, r)
    for row, col in ((0, 0), (1, m - 1), (m - 1, m - 1)):
        cells = [(row * r + y, col * r + x) for y in range(r) for x in range(r)]
        want = torch.cat([tokens[y * grid + x] if y < grid and x < grid else torch.zeros(5) for y, x in cells])
        assert got[row * m + col].equal(want)


@pytest.mark.parametrize("name", ["pub_a", "pub_b", "pub_c"])
def test_gathering_first_is_projecting_whole_grids(name):
    """The public model's way: a full grid, zeros where nothing is seen, projected whole; then only complete blocks are kept."""
    whole = VilaHd.from_checkpoint(ROOT / "models" / name)
    projector, r, grid, width = whole.projector, whole.config.downsample, 54, whole.config.vision.width
    ids = torch.randperm(grid * grid)[:2000].sort().values
    tokens = torch.randn(len(ids), width)
    dense = torch.zeros(grid * grid, width)
    dense[ids] = tokens
    all_blocks = torch.arange((grid // r) ** 2)
    projected = projector(low_blocks(dense, grid, r), 1, all_blocks, grid // r)
    kept = F.avg_pool2d(torch.zeros(grid * grid).index_fill(0, ids, 1.0).reshape(1, grid, grid), r).flatten() == 1
    blocks, cells = complete_blocks(ids, grid, r)
    assert blocks.equal(torch.nonzero(kept)[:, 0]) and len(blocks) > 3
    torch.testing.assert_close(projector(tokens[cells].flatten(1), 1, blocks, grid // r), projected[kept], atol=2e-6, rtol=1e-5)


def test_no_block_is_complete_without_patches():
    blocks, cells = complete_blocks(torch.zeros(0, dtype=torch.int64), 54, 2)
    assert len(blocks) == 0 and cells.shape == (0, 4)


def _map(grid, coarse=27):
    return torch.rand(coarse, coarse).repeat_interleave(grid // coarse, 0).repeat_interleave(grid // coarse, 1)


@pytest.mark.parametrize("grid,count", [(54, 84), (108, 340), (270, 2132)])
def test_whole_blocks_are_a_tie_rule_where_cells_hold_them(grid, count):
    """r = 2: the same probabilities are picked as patch by patch, and every patch is of use."""
    prob = _map(grid)
    taken = [torch.zeros(grid * grid, dtype=torch.bool) for _ in range(2)]
    ours, patches = select_blocks(prob, count, taken[0], 2), select(prob, count, taken[1])
    assert prob.flatten()[ours].sort().values.equal(prob.flatten()[patches].sort().values)
    assert len(complete_blocks(ours, grid, 2)[0]) * 4 == count == len(ours) == int(taken[0].sum())
    assert ours.equal(ours.unique()) and len(complete_blocks(patches, grid, 2)[0]) <= count // 4


def test_blocks_across_cells_count_as_their_mean():
    prob, taken = _map(54), torch.zeros(54 * 54, dtype=torch.bool)
    ids = select_blocks(prob, 81, taken, 3)
    mean = F.avg_pool2d(prob[None].double(), 3).flatten()
    assert complete_blocks(ids, 54, 3)[0].tolist() == sorted(mean.argsort(descending=True)[:9].tolist())
    again = select_blocks(prob, 81, taken, 3)
    assert not set(again.tolist()) & set(ids.tolist()) and complete_blocks(again, 54, 3)[0].tolist() == sorted(mean.argsort(descending=True)[9:18].tolist())


def test_ties_of_blocks_go_to_the_lower_id():
    taken = torch.zeros(36, dtype=torch.bool)
    taken[cells_of(6, 2)[1]] = True
    assert complete_blocks(select_blocks(torch.ones(6, 6), 11, taken, 2), 6, 2)[0].tolist() == [0, 2]
    assert len(select_blocks(torch.ones(6, 6), 36, taken, 2)) == 24      # what is left


def test_a_plan_in_blocks_hands_on_what_does_not_fill_one():
    assert plan_blocks([[85, 341, 2133]], [2916, 11664, 72900], 4) == [[84, 340, 2132]]
    assert plan_blocks([[85, 341, 2133]], [2916, 11664, 72900], 9) == [[81, 342, 2133]]
    assert plan_blocks([[20, 0], [20, 0]], [32, 64], 4) == [[20, 0], [12, 8]]       # 8 of the second look's 20 move on
    assert plan_blocks([[0, 1]], [36, 144], 4) == []
    everything = plan_blocks(plan_looks([2916, 11664, 72900], [85, 341, 2133], num_looks="all"), [2916, 11664, 72900], 4)
    assert [sum(scale) for scale in zip(*everything)] == [2916, 11664, 72900]


def test_whole_blocks_waste_nothing(model, seen):
    options = replace(model.config.looks, rule="blocks", num_tokens=1000)
    for options in (options, replace(options, num_tokens=4000)):
        high = model.encode(seen[0], model.select(seen[0], options=options).looks)
        assert len(high.rows) * 4 == len(high.tokens) and options.num_tokens - len(high.tokens) < 4 * 2 * 2


def test_whole_blocks_are_the_public_choice_where_that_leaves_none(model):
    case = Case(CASES[0])
    frame = Image.open(case.folder / "image0.png")
    out = model.generate(case.parts([frame]), replace(model.config.looks, rule="blocks"), max_new_tokens=12)
    assert out.ids == case.json["greedy_ids"]


# -- the language model -----------------------------------------------------------------------------------------------

def llm_config(**change):
    values = {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
              "vocab_size": 50, "max_position_embeddings": 64, "rope_theta": 1000.0}
    return LlmConfig.parse(Fields({**values, **change}, "config.json"))


def decoder(config):
    made = Decoder(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


@pytest.mark.parametrize("change", [{}, {"tie_word_embeddings": True}, {"model_type": "llama", "head_dim": 6}, {"rope_scaling": {"type": "linear", "factor": 2.0}}],
                         ids=["qwen2", "tied", "llama", "linear"])
def test_rows_read_at_once_or_one_by_one(change):
    llm, rows = decoder(llm_config(**change)), torch.randn(2, 9, 32)
    whole, kv = llm(rows)
    part, past = llm(rows[:, :4])
    for i in range(4, 9):
        step, past = llm(rows[:, i:i + 1], past)
        part = torch.cat([part, step], dim=1)
    torch.testing.assert_close(part, whole, atol=2e-6, rtol=1e-5)
    for (key, value), (key1, value1) in zip(kv, past):
        torch.testing.assert_close((key1, value1), (key, value), atol=2e-6, rtol=1e-5)


def test_rotation_is_by_pairs_of_halves():
    x, theta = torch.randn(1, 1, 3, 8), 100.0
    got = rotate(x, torch.tensor([0, 5, 7]), theta)
    assert got[0, 0, 0].equal(x[0, 0, 0])
    for row, position in ((1, 5), (2, 7)):
        for i in range(4):
            turn = torch.polar(torch.tensor(1.0), torch.tensor(position * theta ** (-2 * i / 8)))
            want = torch.complex(x[0, 0, row, i], x[0, 0, row, i + 4]) * turn
            torch.testing.assert_close(torch.complex(got[0, 0, row, i], got[0, 0, row, i + 4]), want, atol=1e-6, rtol=1e-5)
    assert rotate(x, torch.tensor([0, 10, 14]), theta, factor=2.0).equal(got)


def test_attention_shares_keys_and_sees_no_later_row():
    llm, rows = decoder(llm_config(rope_theta=1e30)), torch.randn(1, 5, 32)
    attention, x = llm.model.layers[0].self_attn, torch.randn(1, 1, 32)
    got = attention(torch.cat([x, x]).transpose(0, 1).expand(1, 2, 32), None)[0]      # two equal rows see equal values
    value = attention.v_proj(x).unflatten(-1, (2, 8)).repeat_interleave(2, dim=2).flatten(2)
    torch.testing.assert_close(got[:, :1], attention.o_proj(value), atol=1e-6, rtol=1e-5)
    changed = rows.clone()
    changed[:, 4] += 1
    assert llm(rows)[0][:, :4].equal(llm(changed)[0][:, :4])


def test_vocabulary_is_cut_to_the_tokenizer_s():
    folder = ROOT / "models" / "pub_b"
    stored = load_file(folder / "llm" / "model.safetensors")["model.embed_tokens.weight"]
    model = VilaHd.from_checkpoint(folder)
    assert len(stored) == 421 and model.llm.vocabulary == 408 and model.llm.model.embed_tokens.weight.equal(stored[:408].float())
    assert model.llm.logits(torch.zeros(1, 64)).shape == (1, 408)


# -- whole answers ----------------------------------------------------------------------------------------------------

def test_rows_read_for_the_prompt_are_not_read_again(model, seen):
    """The answer pass takes over the prompt pass's rows up to the first high-res one; a second question those of the frame."""
    ids = model.chat.ids(model.chat.message([seen[0], QUESTION]))
    asked = model.ask(ids, seen[:1])
    high = model.encode(seen[0], model.select(seen[0], asked.vector).looks)
    rows = model.embed(ids, seen[:1], [high])
    fresh, shared = prefill(model.llm, rows), prefill(model.llm, rows, asked.known)
    low_end = model.config.low_grid ** 2 + ids.index(model.chat.image_id)
    assert (fresh.num_reused, shared.num_reused) == (0, low_end)
    torch.testing.assert_close(shared.hidden, fresh.hidden, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(shared.kv, fresh.kv):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)

    first = model.generate([seen[0], QUESTION], max_new_tokens=8)
    alone = model.generate([seen[0], "What is the small red sign?"], max_new_tokens=8)
    after = model.generate([seen[0], "What is the small red sign?"], max_new_tokens=8, known=first.known)
    assert after.ids == alone.ids and after.num_rows == alone.num_rows
    assert model.ask(ids, seen[:1], known=first.known).known.num_reused == low_end
    assert prefill(model.llm, rows, after.known).num_reused == low_end      # other questions share no more than the frame
    other = model.ask(model.chat.ids(model.chat.message([seen[1], QUESTION])), seen[1:2], known=first.known)
    assert other.known.num_reused == ids.index(model.chat.image_id)         # another frame: the system text


def test_a_frame_and_what_was_seen_of_it_are_the_same(model, frames, seen):
    assert model.generate([frames[1], QUESTION], max_new_tokens=6).ids == model.generate([seen[1], QUESTION], max_new_tokens=6).ids


def test_no_look_at_all(model, seen):
    """The public model stops with an error; what it would have done: one copy of the first low-res row."""
    for options in (replace(model.config.looks, num_looks=0), replace(model.config.looks, num_looks=0, num_tokens=500), replace(model.config.looks, num_tokens=0)):
        out = model.generate([seen[0], QUESTION], options, max_new_tokens=4)
        assert out.picked[0].looks == [] and out.high[0].rows.equal(seen[0].rows[:1]) and len(out.high[0].tokens) == 0
        assert len(out.ids) == 4 and out.num_rows == len(model.chat.ids(model.chat.message([seen[0], QUESTION]))) + 196 + 1


@pytest.mark.parametrize("rule", ["patches", "blocks"])
def test_a_budget_of_one_patch(model, seen, rule):
    out = model.generate([seen[0], QUESTION], replace(model.config.looks, num_tokens=1, rule=rule), max_new_tokens=4)
    assert out.picked[0].looks == [] and len(out.high[0].rows) == 1 and len(out.ids) == 4


def test_text_alone(model):
    for mode in ("after_prompt", "after_image"):
        out = model.generate([QUESTION], replace(model.config.looks, mode=mode), max_new_tokens=5)
        assert len(out.ids) == 5 and out.high == [] and out.num_rows == len(model.chat.ids(QUESTION))


def test_three_frames(model, seen):
    parts = [seen[0], "then ", seen[1], seen[2], " what changed?"]
    out = model.generate(parts, replace(model.config.looks, num_tokens=300), max_new_tokens=4)
    ids = model.chat.ids(model.chat.message(parts))
    assert len(out.high) == 3 and out.num_rows == len(ids) + sum(196 + len(h.rows) for h in out.high)
    rows = model.embed(ids, seen, out.high)
    starts = [start for start, i in zip(rows.starts, ids) if i == model.chat.image_id]
    for start, s, h in zip(starts, seen, out.high):
        assert rows.embeds[start:start + 196].equal(s.rows) and rows.embeds[start + 196:start + 196 + len(h.rows)].equal(h.rows)


def test_an_answer_ends_at_a_stop_token(model, seen, monkeypatch):
    out = model.generate([seen[0], QUESTION], max_new_tokens=8)
    monkeypatch.setattr(model.chat, "stop_ids", frozenset([out.ids[3]]))
    short = model.generate([seen[0], QUESTION], max_new_tokens=8)
    assert short.stopped and not out.stopped and short.ids == out.ids[:out.ids.index(out.ids[3])]
    assert model.generate([seen[0], QUESTION], max_new_tokens=0).text == ""


def test_small_frames_leave_out_the_finest_scale():
    model = VilaHd.from_checkpoint(ROOT / "models" / "pub_b")
    config = model.config
    first = lambda size: model._first_scales(type("S", (), {"original_size": size}))
    assert first((9, 9)) is None
    model.config = replace(config, dynamic_sizes=True)
    assert [first(size) for size in (None, (9, 9), (2646, 100), (100, 2647))] == [None, 2, 2, 3]
    model.config = replace(model.config, vision=replace(config.vision, scales_px=(378, 756, 1512)))
    assert first((9, 9)) == 2


def test_the_prior_is_used_after_image(model, seen):
    assert model.ask(model.chat.ids("<image>"), seen[:1], "after_image").vector is None
    prior = model.vision.vision_model.prior_prompt[None]
    for ours, asked in zip(model.select(seen[0]).probs, model.select(seen[0], prior).probs):
        assert ours.equal(asked)


# -- text -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("parts,message", [
    (["a ", None, " b "], "a <image> b"), ([" a ", "b"], "a b"), (["say <image> twice"], "say  twice"), (["<image> hi <image>", None], "hi<image>"),
    (["<ima<image>ge>x"], "x"), (["<vila/<image>video> y"], "y"), ([None, None, "q"], "<image><image>q"), ([None], "<image>")])
def test_messages(model, parts, message):
    assert model.chat.message(parts) == message


def test_a_literal_image_in_the_question_is_no_frame(model, seen):
    plain, tricky = (model.generate([seen[0], text], max_new_tokens=5) for text in (QUESTION, QUESTION + "<image>"))
    assert plain.ids == tricky.ids and plain.num_rows == tricky.num_rows


def test_texts_that_make_a_control_token_together(model, seen):
    with pytest.raises(InputError, match="two texts together"):
        model.generate([seen[0], "<ima", "ge>"])


def test_an_id_without_embedding():
    """Tokens that the public model adds on loading get random rows there; here they have none."""
    with pytest.raises(InputError, match="id 60 has no embedding"):
        assemble(decoder(llm_config()), [3, 60], 7, [1], [])


@pytest.mark.parametrize("parts", [[], "text", b"text", 5, None])
def test_prompts_refused(model, parts):
    with pytest.raises(InputError, match="list of texts and frames"):
        model.generate(parts)


def test_prompt_end_is_the_first_turn_s(model):
    ids = model.chat.ids("one<|im_end|>\n<|im_start|>assistant\ntwo")
    assert ids[model.chat.prompt_end(ids) + 1] == 402 and model.chat.prompt_end(ids) < len(ids) // 2 + 8
    assert model.chat.prompt_end([1, 2, 3]) == 2


# -- bad calls --------------------------------------------------------------------------------------------------------

def test_a_prompt_longer_than_the_context(model, seen, monkeypatch):
    monkeypatch.setattr(model, "config", replace(model.config, max_rows=700))
    with pytest.raises(InputError, match="context holds 1664"):
        model.generate([seen[0]] * 9 + [QUESTION], replace(model.config.looks, num_looks=1))
    assert replace(model.config, max_rows=4096).max_rows_of(LookOptions(num_looks=6)) == 4864
    assert model.config.max_rows_of(LookOptions(num_looks=0, num_tokens=8000)) == 3024


@pytest.mark.parametrize("options", [dict(mode="never"), dict(rule="best"), dict(per_look=(0, 0)), dict(per_look=()), dict(per_look=(1, -1))])
def test_options_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        LookOptions(**options)


def test_arguments_that_do_not_fit(model, seen):
    with pytest.raises(InputError, match="2 high-res scales"):
        model.select(seen[0], options=LookOptions(per_look=(1, 2, 3)))
    with pytest.raises(BudgetError, match="num_looks"):
        model.select(seen[0], options=LookOptions(num_looks=-1))
    with pytest.raises(InputError, match="1 frames and 0 are given"):
        model.embed(model.chat.ids("<image>"), [], [])
    with pytest.raises(InputError, match="max_new_tokens"):
        model.generate([QUESTION], max_new_tokens=-1)
    with pytest.raises(InputError, match="PIL picture"):
        model.generate([torch.zeros(3), QUESTION])
    with pytest.raises(InputError, match="original_size"):
        model.look(Image.new("RGB", (3, 3)), (0, 3))


def test_pixels_are_pillow_s_in_two_passes():
    frame = Image.effect_noise((90, 200), 80).convert("RGB")
    got = squash(frame, 64, (0.5,) * 3, (0.25,) * 3)
    want = frame.resize((64, 200), Image.Resampling.BICUBIC).resize((64, 64), Image.Resampling.BICUBIC)
    assert got.shape == (1, 3, 64, 64) and ((got * 0.25 + 0.5) * 255).round()[0].permute(1, 2, 0).byte().numpy().tobytes() == want.tobytes()
