"""VILA-HD checkpoints of random weights, in the published layout: bf16, in shards; exported and asked."""
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs ps3_sdk[export]")
pytest.importorskip("onnx", reason="needs ps3_sdk[export]")

import ps3_sdk
from ps3_sdk.errors import RuntimeMissingError
from ps3_sdk.export.llm_builder import check_packages
from ps3_sdk.export.random_vila import write_random_vila
from ps3_sdk.export.reference.vila.model import VilaHd
from ps3_sdk.export.weights import Checkpoint

VISION = dict(model_name="vit_random", hidden_size=48, select_based_on_layer=[0, 1, 2], ps3_scales=[378, 756, 1512],
              golden_trunk=dict(patch_size=14, embed_dim=48, depth=3, num_heads=3, mlp_ratio=3.0, pos_embed_grid=27),
              highres_selection_module_hidden_dim=24, highres_selection_module_out_dim=24, highres_selection_module_depth=1)
LLM = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=320, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, said = tmp_path_factory.mktemp("random") / "checkpoint", []
    num_bytes = write_random_vila(folder, VISION, LLM, num_ids=300, shard_bytes=100_000, progress=said.append)
    assert num_bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) and any("llm: wrote model-00002" in line for line in said)
    return folder


def test_the_layout_is_read_and_has_the_sizes_asked_for(folder):
    model = VilaHd.from_checkpoint(folder)
    assert model.llm.vocabulary == model.chat.size == 300 and model.config.vision.scales_px == (378, 756, 1512)
    llm = Checkpoint.open(folder / "llm")
    assert {llm.dtype(key) for key in llm.keys()} == {"BF16"} and llm.shape("lm_head.weight") == (320, 64)
    key = "model.layers.1.mlp.up_proj.weight"
    assert abs(llm.array(key).std() * 64 ** 0.5 - 1) < 0.05
    assert np.array_equal(np.concatenate(list(llm.rows(key, 7))), llm.array(key))
    assert np.array_equal((llm.stored(key, 5).astype(np.uint32) << 16).view(np.float32), llm.array(key)[:5])


def test_its_bundle_answers_as_the_reference(folder, tmp_path):
    try:
        check_packages()
    except RuntimeMissingError as error:
        pytest.skip(str(error))
    from ps3_sdk.export.make_vlm import make_vlm
    make_vlm(str(folder), tmp_path / "engine.plan")
    frame = np.random.default_rng(0).integers(0, 256, (270, 480, 3), np.uint8)
    with ps3_sdk.Session(tmp_path / "engine.plan") as session:
        assert session.bundle.tensors("tables.safetensors")["token_embedding"].dtype == np.uint16
        text = session.ask(frame, "What is this?", rule="patches", max_tokens=6).text
    assert text == VilaHd.from_checkpoint(folder).generate([frame, "What is this?"], max_new_tokens=6).text and text
