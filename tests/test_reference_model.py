"""The reference model's parts against the plainest way to write them, its stages against its own passes, and bad input."""
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install 'ps3-sdk[export]'")
import torch.nn.functional as F
import tiny_models

from ps3_sdk.errors import ExportError, InputError
from ps3_sdk.export.reference.geometry import cut, grid_size, position_rows, resize, scale_size_px
from ps3_sdk.export.reference.layers import position_weights
from ps3_sdk.export.reference.model import Ps3Model
from ps3_sdk.export.reference.scoring import probability
from ps3_sdk.export.reference.stages import Encode, EncodePrompt, stages

SIZES = dict(batch=2, tokens=11, past=7, kept=5)


@pytest.fixture(scope="module", params=tiny_models.FAMILIES)
def model(request, tmp_path_factory):
    return Ps3Model.from_checkpoint(tiny_models.write(tmp_path_factory.mktemp("tiny"), tiny_models.config(request.param)))


@pytest.fixture(autouse=True)
def inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def picture(model, batch=1):
    return torch.randn(batch, 3, *[model.config.vision.scales_px[-1]] * 2)


# -- parts --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("old,new", [(27, 54), (27, 108), (27, 270), (24, 48), (27, 13), (27, 27)])
def test_position_rows_are_torch_s_own_resampling(old, new):
    table = torch.randn(1, old * old, 8)
    whole = F.interpolate(table.reshape(1, old, old, 8).permute(0, 3, 1, 2), size=(new, new), mode="bicubic", antialias=True)
    rows, cols = torch.meshgrid(torch.arange(new), torch.arange(new), indexing="ij")
    got = position_rows(table, new, rows.flatten(), cols.flatten(), crop=False)
    torch.testing.assert_close(got, whole[0].flatten(1).T, atol=2e-6, rtol=0)
    torch.testing.assert_close(position_weights(old, new).sum(dim=1), torch.ones(new))


def test_cropped_position_rows_are_the_table_s_top_left():
    table = torch.randn(1, 64, 3)
    got = position_rows(table, 4, torch.tensor([0, 3]), torch.tensor([2, 1]), crop=True)
    assert got.equal(table.reshape(8, 8, 3)[[0, 3], [2, 1]])


def test_cutting_patches_is_unfolding():
    image = torch.randn(2, 3, 28, 42)
    whole = F.unfold(image, 14, stride=14).transpose(1, 2)
    assert cut(image, 14).equal(whole)
    ids = torch.tensor([[5, 0], [1, 1]])
    assert cut(image, 14, ids).equal(torch.stack([whole[0, ids[0]], whole[1, ids[1]]]))
    assert cut(torch.randn(1, 3, 31, 15), 14).shape == (1, 2, 588)      # what is left of a patch is not seen


def test_sizes_of_wide_and_tall_pictures(model):
    config = model.config.vision
    low, patch = config.scales_px[0], config.trunk.patch_px
    assert scale_size_px(config, 0, 100, 900) == (low, low)
    assert scale_size_px(config, 2, 1000, 500) == (4 * low, low // 2 // patch * patch * 4)
    assert scale_size_px(config, 1, 5, 1000) == (2 * patch, 2 * low)      # never less than one low-res patch
    assert grid_size(config, 1, 700, 700) == (config.grids[1],) * 2


def test_equal_sizes_are_not_resampled():
    image = torch.randn(1, 3, 5, 7)
    assert resize(image, (5, 7)) is image


def test_windows_overlap_where_grids_do_not_divide():
    """C-RADIO: a view of 54 places over a grid of 24; place i covers floor(i v / g) to ceil((i + 1) v / g)."""
    low, view = torch.randn(1, 24 * 24, 8), torch.randn(1, 54 * 54, 6)
    prompt, view_prompt = torch.randn(1, 8), torch.randn(1, 6)
    got = probability(low, prompt, view, view_prompt)
    fine = F.cosine_similarity(view, view_prompt[:, None], dim=-1).reshape(54, 54)
    coarse = F.cosine_similarity(low, prompt[:, None], dim=-1).reshape(24, 24)
    for r, c in ((0, 0), (3, 7), (23, 11)):
        window = fine[r * 54 // 24:-(-(r + 1) * 54 // 24), c * 54 // 24:-(-(c + 1) * 54 // 24)]
        assert got[0, r, c].item() == pytest.approx(torch.sigmoid(5 * (coarse[r, c] + window.max()) / 2).item(), abs=1e-6)


# -- passes -------------------------------------------------------------------------------------------------------

def test_no_look_is_the_low_res_pass(model):
    pixels = picture(model)
    low = model.encode_low(pixels)
    for budget in (dict(num_looks=0), dict(num_tokens=0), dict(num_tokens=1)):
        out = model(pixels, **budget)
        assert out.tokens.equal(low.tokens) and not any(m.any() for m in out.maps) and out.looks == []


def test_one_frame_many_prompts(model):
    """encode_low once, then any prompt: the same answer as from the start."""
    pixels, prompt = picture(model, 2), torch.randn(2, model.config.vision.width)
    low = model.encode_low(pixels)
    assert model(pixels, prompt=prompt, low=low, num_tokens=40).tokens.equal(model(pixels, prompt=prompt, num_tokens=40).tokens)


def test_batches_do_not_mix(model):
    pixels = picture(model, 2)
    both, second = model(pixels, num_tokens=100), model(pixels[1:], num_tokens=100)
    assert both.maps[1][1].equal(second.maps[1][0])
    torch.testing.assert_close(both.tokens[1], second.tokens[0], atol=2e-5, rtol=1e-5)


def test_feature_maps_put_tokens_back(model):
    pixels = picture(model)
    out = model(pixels, num_tokens=50)
    maps = model.feature_maps(out.tokens, out.maps)
    low, places = model.config.vision.grids[0] ** 2, [m.sum().item() for m in out.maps]
    assert maps[0].flatten(2).transpose(1, 2).equal(out.tokens[:, :low])
    start = low
    for m, picked, count in zip(maps[1:], out.maps, places):
        assert m[0][:, picked[0]].T.equal(out.tokens[0, start:start + count]) and (m[0][:, ~picked[0]] == 0).all()
        start += count


# -- stages: what is exported -------------------------------------------------------------------------------------

def test_stages_keep_their_word(model):
    for stage in stages(model).values():
        inputs = stage.example(SIZES)
        for spec, value in zip(stage.inputs, inputs, strict=True):
            assert tuple(value.shape) == tuple(SIZES.get(n, n) for n in spec.shape) and str(value.dtype) == f"torch.{spec.dtype}", spec
        for spec, value in zip(stage.outputs, stage(*inputs), strict=True):
            assert tuple(value.shape) == tuple(SIZES.get(n, n) for n in spec.shape) and str(value.dtype) == f"torch.{spec.dtype}", spec


def test_one_network_is_both_passes(model):
    """encode with an empty past is encode_low, with the low-res keys and values it is encode_high."""
    config, network, pixels = model.config.vision, Encode(model), picture(model)
    low, grid = model.encode_low(pixels), config.grids[0]
    ids = torch.arange(grid * grid)
    patches = cut(resize(pixels, (config.scales_px[0],) * 2), config.trunk.patch_px)
    position = model.vision_model.position(0, (grid, grid), ids)[None]
    empty = [torch.zeros(1, config.trunk.num_heads, 0, config.trunk.head_width)] * (2 * config.trunk.depth)
    tokens, features, *kv = network(patches, position, torch.tensor([grid * grid]), *empty)
    assert tokens.equal(low.tokens) and features.equal(low.features)
    assert all(a.equal(b) for a, b in zip(kv, (part for pair in low.kv for part in pair)))
    out = model(pixels, num_tokens=30, low=low)
    high, _, *none = network(*model.gather(pixels, out.looks[0]), torch.tensor([0]), *kv)
    assert high.equal(out.tokens[:, grid * grid:]) and all(part.shape[2] == 0 for part in none)
    low_features, *view = stages(model)["score_features"](features, cut(resize(pixels, (1512, 1512)), config.view_patch_px))
    assert low_features.equal(low.score_features) and view[0].equal(low.view_features)


def test_a_token_layer_stops_early(model):
    full, short = Encode(model), Encode(model, token_layer=-2)
    assert short.num_blocks == full.num_blocks      # the selection features need the last block
    inputs = full.example(SIZES)
    hidden = model.vision_model.trunk(*inputs[:2], list(zip(inputs[3::2], inputs[4::2]))).hidden
    assert short(*inputs)[0].equal(hidden[-2]) and full(*inputs)[0].equal(hidden[-1])


def test_no_prompt_network_without_a_text_tower(tmp_path):
    model = Ps3Model.from_checkpoint(tiny_models.write(tmp_path, tiny_models.config(text=False)))
    assert sorted(stages(model)) == ["encode", "pool", "score_features"]
    with pytest.raises(ExportError, match="no text tower"):
        EncodePrompt(model)
    with pytest.raises(InputError, match="no text tower"):
        model.encode_prompt(torch.zeros(1, 3, dtype=torch.int64))


# -- bad input ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("pixels", [torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 0, 8), torch.zeros(0, 3, 8, 8)],
                         ids=["rank", "channels", "bytes", "empty", "no-batch"])
def test_pixels_refused(model, pixels):
    for call in (model, model.encode_low, model.forward_pooled):
        with pytest.raises(InputError, match="batch, 3, height, width"):
            call(pixels)


def test_arguments_that_do_not_fit(model):
    pixels, width = picture(model, 2), model.config.vision.width
    with pytest.raises(InputError, match="prompt is"):
        model(pixels, prompt=torch.zeros(1, width))
    with pytest.raises(InputError, match="first_scales has 3 entries"):
        model(pixels, first_scales=[1, 1, 2])
    with pytest.raises(InputError, match="pool_given_only"):
        model.forward_pooled(pixels, pool_given_only=True)
    uneven = [torch.zeros(2, *size) for size in model.sizes(pixels)]
    uneven[0][0, 0, 0] = 1
    with pytest.raises(InputError, match="different numbers of patches"):
        model(pixels, looks=[uneven])
    out = model(pixels, num_tokens=10)
    with pytest.raises(InputError, match="maps that came with these tokens"):
        model.feature_maps(out.tokens[:, 1:], out.maps)
