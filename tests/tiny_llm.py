"""A tiny random Qwen2 or Llama in the layout of the published ones, and its arithmetic in plain numpy, written twice on purpose.

tiny_llm.onnx is config() and tensors() of this file as onnxruntime-genai's builder writes them (fp32, weights inside), so that the
token loop is tested on a real graph without the builder. Made by: python tests/tiny_llm.py tests/tiny_llm.onnx
"""
from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

VOCABULARY = 261        # the byte tokenizer's 258 ids and three that VILA adds; the stored tables have more rows
ONNX = Path(__file__).with_name("tiny_llm.onnx")


def config(model_type: str = "qwen2", **changed) -> dict:
    architecture = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}[model_type]
    return {"model_type": model_type, "architectures": [architecture], "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 264, "max_position_embeddings": 96,
            "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": None,
            "bos_token_id": 0, "eos_token_id": 1, **changed}


def tensors(c: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """f32, the same on every machine; sizes as a trained model's, so that logits differ clearly."""
    rng = np.random.Generator(np.random.PCG64(seed))
    width, mlp, head = c["hidden_size"], c["intermediate_size"], c["hidden_size"] // c["num_attention_heads"]
    matrix = lambda rows, cols: (rng.standard_normal((rows, cols)) * 1.5 / cols ** 0.5).astype(np.float32)
    gain = lambda: (1 + 0.2 * rng.standard_normal(width)).astype(np.float32)
    found = {"model.embed_tokens.weight": rng.standard_normal((c["vocab_size"], width)).astype(np.float32), "model.norm.weight": gain()}
    if not c["tie_word_embeddings"]:
        found["lm_head.weight"] = 2 * matrix(c["vocab_size"], width)
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        found |= {layer + "input_layernorm.weight": gain(), layer + "post_attention_layernorm.weight": gain()}
        for name, heads in (("q", c["num_attention_heads"]), ("k", c["num_key_value_heads"]), ("v", c["num_key_value_heads"])):
            found[f"{layer}self_attn.{name}_proj.weight"] = matrix(heads * head, width)
            if c["model_type"] == "qwen2":
                found[f"{layer}self_attn.{name}_proj.bias"] = rng.standard_normal(heads * head).astype(np.float32)
        found[layer + "self_attn.o_proj.weight"] = matrix(width, width)
        found |= {f"{layer}mlp.{name}_proj.weight": matrix(*shape) for name, shape in (("gate", (mlp, width)), ("up", (mlp, width)), ("down", (width, mlp)))}
    return found


def write(folder: Path, c: dict | None = None, *, seed: int = 0, dtype: str = "f32", shards: int = 1, values: dict[str, np.ndarray] | None = None) -> Path:
    """The llm/ folder of a checkpoint: config.json, weights, tokenizer. dtype: f32, f16 or bf16."""
    import torch
    from safetensors.torch import save_file

    from ps3_sdk.export.seeded_bundle import byte_tokenizer
    c = c or config()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(c))
    (folder / "tokenizer.json").write_bytes(byte_tokenizer())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 96}))
    kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    all_tensors = {name: torch.from_numpy(array).to(kind) for name, array in (values or tensors(c, seed)).items()}
    if shards == 1:
        save_file(all_tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    names, weight_map = sorted(all_tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: all_tensors[name] for name in names[i::shards]}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names[i::shards], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


class NumpyNetwork:
    """The same model as a runtimes Network, step by step in float64. `runs` counts the rows of each run."""

    def __init__(self, c: dict, weights: dict[str, np.ndarray]):
        self.c, self.weights, self.runs = c, {name: array.astype(np.float64) for name, array in weights.items()}, []

    def run(self, inputs, outputs):
        c, past = self.c, inputs["past_key_values.0.key"].shape[2]
        x = inputs["inputs_embeds"].astype(np.float64)[0]
        assert inputs["attention_mask"].shape == (1, past + len(x)) and inputs["attention_mask"].all()
        self.runs.append(len(x))
        out, at = {}, past + np.arange(len(x))
        for i in range(c["num_hidden_layers"]):
            layer = f"model.layers.{i}."
            update, out[f"present.{i}.key"], out[f"present.{i}.value"] = self._attend(
                self._norm(x, layer + "input_layernorm"), layer + "self_attn.", at, inputs[f"past_key_values.{i}.key"][0], inputs[f"past_key_values.{i}.value"][0])
            x = x + update
            y = self._norm(x, layer + "post_attention_layernorm")
            gate = self._linear(y, layer + "mlp.gate_proj")
            x = x + self._linear(gate / (1 + np.exp(-gate)) * self._linear(y, layer + "mlp.up_proj"), layer + "mlp.down_proj")
        hidden = self._norm(x, "model.norm")
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        out |= {"hidden_states": hidden[None], "logits": (hidden[-1:] @ head.T)[None]}
        return {name: out[name].astype(np.float32) for name in outputs}

    def _attend(self, x, key, at, past_key, past_value):
        heads, groups = self.c["num_attention_heads"], self.c["num_key_value_heads"]
        split = lambda y, n: y.reshape(len(x), n, -1).transpose(1, 0, 2)
        query, new = self._turn(split(self._linear(x, key + "q_proj"), heads), at), self._turn(split(self._linear(x, key + "k_proj"), groups), at)
        keys, values = np.concatenate([past_key, new], 1), np.concatenate([past_value, split(self._linear(x, key + "v_proj"), groups)], 1)
        score = query @ np.repeat(keys, heads // groups, 0).transpose(0, 2, 1) / query.shape[-1] ** 0.5
        score = np.where(np.arange(keys.shape[1]) <= at[:, None], score, -np.inf)
        weight = np.exp(score - score.max(-1, keepdims=True))
        mixed = weight / weight.sum(-1, keepdims=True) @ np.repeat(values, heads // groups, 0)
        return self._linear(mixed.transpose(1, 0, 2).reshape(len(x), -1), key + "o_proj"), keys[None], values[None]

    def _turn(self, x, at):
        half = x.shape[-1] // 2
        angle = at[:, None] * self.c["rope_theta"] ** -(np.arange(half) / half)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)

    def _norm(self, x, key):
        return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + self.c["rms_norm_eps"]) * self.weights[key + ".weight"]

    def _linear(self, x, key):
        return x @ self.weights[key + ".weight"].T + self.weights.get(key + ".bias", 0)


class OrtNetwork:
    """A model, bytes or path, as a runtimes Network."""

    def __init__(self, model):
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(self, inputs, outputs):
        return dict(zip(outputs, self.session.run(list(outputs), dict(inputs))))


def main(output: str) -> None:
    import tempfile

    from ps3_sdk.export.llm import build_llm
    with tempfile.TemporaryDirectory() as place:
        llm = build_llm(write(Path(place) / "llm"), Path(place) / "work", "fp32")
        Path(output).write_bytes(llm.in_memory())


if __name__ == "__main__":
    main(sys.argv[1])
