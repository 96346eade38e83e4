"""Every exported network in ONNX Runtime beside its PyTorch module: all families, any batch, any number of past tokens."""
import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs ps3_sdk[export]")
onnx = pytest.importorskip("onnx", reason="needs ps3_sdk[export]")
import onnxruntime

from ps3_sdk.errors import ExportError
from ps3_sdk.export import to_onnx
from ps3_sdk.export.check import LIMIT, relative_error
from ps3_sdk.export.random_checkpoint import RandomCheckpoint
from ps3_sdk.export.reference.config import Ps3Config
from ps3_sdk.export.reference.model import Ps3Model
from ps3_sdk.export.reference.stages import stages
from ps3_sdk.export.weights import load_into

SIGLIP = {
    "model_type": "ps3",
    "vision_config": {
        "model_name": "tiny", "golden_trunk": {"patch_size": 14, "embed_dim": 64, "depth": 3, "num_heads": 8, "mlp_ratio": 3.7, "pos_embed_grid": 27},
        "hidden_size": 64, "pool": "map", "ps3_scales": [378, 756, 1512], "select_based_on_layer": [0, 2], "max_select_num": 256,
        "highres_selection_module_hidden_dim": 32, "highres_selection_module_out_dim": 24, "highres_selection_module_depth": 2},
    "text_config": {"width": 48, "heads": 4, "layers": 2, "vocab_size": 300, "context_length": 64, "output_dim": 64, "prompt_proj_dim": 64,
                    "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
}


def changed(vision=None, trunk=None, text=None):
    config = copy.deepcopy(SIGLIP)
    config["vision_config"].update(vision or {})
    config["vision_config"]["golden_trunk"].update(trunk or {})
    config["text_config"].update(text or {})
    return config


def radio(version):
    vision = {"radio": True, "ps3_scales": [384, 768, 1536], "select_based_on_layer": [2, 0, 1], "radio_adapter_mlp_version": version,
              "radio_adapter_mlp_num_inner": 2, "radio_adapter_mlp_hidden_dim": 40, "radio_adapter_mlp_input_dim": 64, "radio_adapter_mlp_output_dim": 48}
    return changed(vision, {"patch_size": 16, "pos_embed_grid": 120, "pool_embed_dim": 48, "pool_num_heads": 3}, {"output_dim": 48})


CONFIGS = {
    "siglip": SIGLIP,
    "siglip2": changed(text={"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}}),
    "c-radio v1": radio("v1"),
    "c-radio v2": radio("v2"),
    "causal, first, no view": changed({"highres_selection_feature": False}, {"num_heads": 1}, {"no_causal_mask": False, "pool_type": "first", "proj_bias": False}),
    "argmax, layer scale": changed(text={"pool_type": "argmax", "ls_init_value": 0.1}),
}
SIZES = [dict(batch=1, tokens=50, past=0, kept=50), dict(batch=2, tokens=33, past=70, kept=0), dict(batch=3, tokens=1, past=7, kept=1),
         dict(batch=1, tokens=40, past=0, kept=13)]


def in_memory(graph):
    """The graph with its weights inside, checked by onnx, opened by ONNX Runtime."""
    model = onnx.ModelProto.FromString(graph.to_onnx("unused", dict.fromkeys(graph.weights, 0)))
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            array = graph.weights[tensor.name].load()
            assert list(tensor.dims) == list(array.shape), tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.checker.check_model(model, full_check=not any(node.domain for node in model.graph.node))
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def exported(request):
    config = Ps3Config.from_dict(request.param)
    source = RandomCheckpoint(config, seed=1)
    with torch.device("meta"):
        model = Ps3Model(config)
    load_into(model, source)
    graphs = [to_onnx.encode(source, config.vision), to_onnx.score_features(source, config.vision), to_onnx.pool(source, config.vision),
              to_onnx.encode_prompt(source, config.text)]
    return stages(model.eval()), {graph.name: graph for graph in graphs}


def test_ports_are_the_reference_stages_ports(exported):
    modules, graphs = exported
    for name, stage in modules.items():
        for ours, theirs in ((graphs[name].inputs, stage.inputs), (graphs[name].outputs, stage.outputs)):
            assert sorted((port.name, port.dtype, port.shape) for port in ours) == sorted(map(tuple, theirs))


@pytest.mark.parametrize("name", ["encode", "score_features", "pool", "encode_prompt"])
def test_networks_equal_pytorch(exported, name):
    modules, graphs = exported
    stage, network = modules[name], in_memory(graphs[name])
    for sizes in SIZES:
        inputs = stage.example(sizes)
        with torch.inference_mode():
            wanted = stage(*inputs)
        names = [spec.name for spec in stage.outputs]
        got = network.run(names, {spec.name: tensor.numpy() for spec, tensor in zip(stage.inputs, inputs)})
        for label, ours, theirs in zip(names, got, wanted):
            assert relative_error(ours, theirs.numpy()) <= LIMIT, (label, sizes)


def test_weights_nobody_uses_stay_behind(exported):
    modules, graphs = exported
    width = graphs["score_features"].outputs[0].shape[-1]
    fc2 = graphs["score_features"].weights["vision_model.selection_feature_proj.fc2.weight"]
    assert fc2.shape[1] == width, "fc2 has rows for every scale; only the first scale's are exported"


def test_a_text_tower_with_an_appended_class_token_is_refused():
    config = Ps3Config.from_dict(changed(text={"embed_cls": True}))
    with pytest.raises(ExportError, match="embed_cls"):
        to_onnx.encode_prompt(RandomCheckpoint(config), config.text)


def test_relative_error_sees_what_is_wrong():
    want = np.array([1.0, -4.0], np.float32)
    assert relative_error(want + np.float32(0.4), want) == pytest.approx(0.1)
    assert relative_error(np.array([1.0, np.nan], np.float32), want) == float("inf")
    with pytest.raises(ExportError, match="shape"):
        relative_error(want[:1], want)
