"""Six stored answers of the public VILA-HD, reproduced to 1e-4 in every stage; and mistakes that must not go unseen."""
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install 'ps3-sdk[export]'")
import golden_vila
from golden_vila import BOUND, CASES, Case

from ps3_sdk.export.reference.vila import blocks, model as vila, outputs, projector
from ps3_sdk.export.reference.vila.chat import Chat


@pytest.fixture(scope="module")
def models():
    """checkpoint folder -> model, loaded when first asked for."""
    class Models(dict):
        def __missing__(self, folder):
            self[folder] = vila.VilaHd.from_checkpoint(folder)
            return self[folder]
    return Models()


@pytest.fixture
def replayed(models, record_property):
    """replayed(case name) -> largest relative error of each stage."""
    def run(name):
        case = Case(name)
        errors = golden_vila.replay(models[case.model], case)
        for what, error in errors.items():
            record_property(what, error)
        return errors
    return run


def test_the_golden_cases_are_there():
    assert len(CASES) == 6


@pytest.mark.parametrize("name", CASES)
def test_the_answer_is_the_public_model_s(replayed, name):
    errors = replayed(name)
    assert {"pixels", "low rows", "probabilities", "high rows", "rows", "last logits"} <= set(errors)
    for what, error in errors.items():
        assert error <= BOUND, f"{what} differs by {error:.2e} of its largest value; at most {BOUND:.0e} is allowed"


@pytest.mark.parametrize("name", CASES)
def test_generate_takes_the_same_steps(models, name):
    """The whole call gives the stored answer where the choice of patches is the only one (p1) or of no consequence (p6), an answer everywhere else."""
    case = Case(name)
    model = models[case.model]
    frames = [golden_vila.Image.open(case.folder / f"image{i}.png") for i in range(case.num_frames)]
    out = model.generate(case.parts(frames), case.options(model.config.looks), max_new_tokens=len(case.json["greedy_ids"]))
    if name[:2] in ("p1", "p6"):
        assert out.ids == case.json["greedy_ids"] and out.text == case.json["response"].strip() and out.num_rows == case.json["inputs_embeds_len"]
    assert len(out.ids) == 12 or out.stopped


# -- each of these must be seen by the comparison above --------------------------------------------------------------

def _transposed(grid, r, device=None):
    return TRUE_CELLS(grid, r, device).unflatten(1, (r, r)).transpose(1, 2).flatten(1)


def _floor_windows(old, new, device=None):
    i, j = torch.arange(new)[:, None], torch.arange(old)
    inside = (j >= i * old // new) & (j < torch.maximum((i + 1) * old // new, i * old // new + 1))
    return inside.float() / inside.sum(dim=1, keepdim=True)


TRUE_CELLS, TRUE_END = blocks.cells_of, Chat.prompt_end
MISTAKES = {
    "blocks column by column": ("p1", lambda patch: patch.setattr(blocks, "cells_of", _transposed)),
    "pooling windows rounded down": ("p3", lambda patch: patch.setattr(projector, "pooling_weights", _floor_windows)),
    "prompt read one token later": ("p1", lambda patch: patch.setattr(Chat, "prompt_end", lambda self, ids: TRUE_END(self, ids) + 1)),
    "no line break after a frame": ("p4", lambda patch: patch.setattr(vila, "assemble", lambda *a: TRUE_ASSEMBLE(*a[:3], [], a[4]))),
    "high-res rows first": ("p1", lambda patch: patch.setattr(vila, "assemble", lambda *a: TRUE_ASSEMBLE(*a[:4], [blocks[::-1] for blocks in a[4]]))),
    "no low-res keys and values": ("p1", lambda patch: patch.setattr(vila.VilaHd, "encode", _blind)),
    "the prior instead of the question": ("p1", lambda patch: patch.setattr(vila.VilaHd, "select", lambda self, seen, vector, *rest: TRUE_SELECT(self, seen, None, *rest))),
}
TRUE_ASSEMBLE, TRUE_ENCODE, TRUE_SELECT = vila.assemble, vila.VilaHd.encode, vila.VilaHd.select


def _blind(self, seen, looks):
    low = outputs.Low(seen.low.tokens, seen.low.features, [(key[:, :, :0], value[:, :, :0]) for key, value in seen.low.kv], None, None, seen.low.hidden)
    return TRUE_ENCODE(self, outputs.Seen(seen.pixels, low, seen.rows), looks)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_seen(models, monkeypatch, mistake):
    start, make = MISTAKES[mistake]
    case = Case(next(name for name in CASES if name.startswith(start)))
    model = models[case.model]
    make(monkeypatch)
    try:
        errors = golden_vila.replay(model, case)
    except AssertionError:
        return
    assert max(errors.values()) > BOUND, f"nobody noticed: {mistake}"


@pytest.mark.parametrize("change", [dict(token_layer=-1), dict(position_embedding=False)], ids=["last layer", "no position embedding"])
def test_a_misread_setting_is_seen(models, monkeypatch, change):
    case = Case(CASES[0])
    model = models[case.model]
    true = model.config
    monkeypatch.setattr(model, "config", golden_vila.replace(true, **change))
    if "position_embedding" in change:
        monkeypatch.setattr(model.projector, "high_res_pos_embed", None)
    try:
        errors = golden_vila.replay(model, case)
    except AssertionError:
        errors = {"structure": 1.0}
    finally:
        model.config = true
    assert max(errors.values()) > BOUND
