"""Milliseconds per generated token behind many rows, with keys and values copied at every token and with those that grow in place.

    python benchmarks/token_loop.py [--rows 4096] [--tokens 48] [--repeat 3] [--work-dir DIR]       # needs ps3_sdk[vlm]

The language model is random: 28 layers with the keys and values of Qwen2-7B (4 heads of 128: 115 kB a row), but only 512 wide with an
MLP of 512, so that what a token costs is attention and its keys and values, not weights. Both ways answer the same state turn by
turn; their tokens must be the same, and their logits equal to the bit. The last line is one JSON object.
"""
from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import machine, median
from safetensors.numpy import save_file

from ps3_sdk.decode import Decoder, TokenEmbedding
from ps3_sdk.export.llm import build_llm, token_embedding
from ps3_sdk.runtimes.ort import OrtNetwork

CONFIG = {"model_type": "qwen2", "hidden_act": "silu", "hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 28, "num_attention_heads": 4,
          "num_key_value_heads": 4, "vocab_size": 264, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True}


def write_checkpoint(folder: Path, seed: int = 0) -> Path:
    rng = np.random.Generator(np.random.PCG64(seed))
    width, mlp = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    matrix = lambda rows, cols: (rng.standard_normal((rows, cols), np.float32) / cols ** 0.5).astype(np.float32)
    tensors = {"model.embed_tokens.weight": rng.standard_normal((CONFIG["vocab_size"], width), np.float32), "model.norm.weight": np.ones(width, np.float32)}
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        tensors |= {f"{layer}{name}_layernorm.weight": np.ones(width, np.float32) for name in ("input", "post_attention")}
        tensors |= {f"{layer}self_attn.{name}_proj.weight": matrix(width, width) for name in "qkvo"}
        tensors |= {f"{layer}self_attn.{name}_proj.bias": rng.standard_normal(width, np.float32) for name in "qkv"}
        tensors |= {f"{layer}mlp.{name}_proj.weight": matrix(*shape) for name, shape in (("gate", (mlp, width)), ("up", (mlp, width)), ("down", (width, mlp)))}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


class Copying:
    """A network without `bound`: what comes out goes in again, and the operator copies all of it."""

    def __init__(self, network):
        self.run = network.run


def answer(decoder, state, embed, count: int) -> tuple[list[int], np.ndarray, float]:
    """Ids, the last logits, milliseconds per token after the first."""
    generation = decoder.generate(state, embed, stop_ids=(), max_tokens=count)
    ids = [next(generation).id]
    start = time.perf_counter()
    ids += [token.id for token in generation]
    return ids, generation.state.logits, (time.perf_counter() - start) * 1e3 / (count - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--work-dir", help="the model is built here, and found again the next time")
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(options.work_dir or temporary)
        llm = build_llm(write_checkpoint(place / "llm"), place / "work", "fp32", vocabulary=CONFIG["vocab_size"])
        embed = TokenEmbedding(token_embedding(place / "llm", CONFIG["vocab_size"]).load())
        network = _load(llm, options.threads)
    decoders = {"copied": Decoder(Copying(network), llm.spec), "in place": Decoder(network, llm.spec)}
    rows, rng = [], np.random.Generator(np.random.PCG64(1))
    for count in options.rows:
        read = embed(rng.integers(0, llm.vocabulary, count))
        row = {"rows": count, "kv_mb": round(count * 28 * 4 * 128 * 2 * 4 / 1e6)}
        states = {}
        for name, decoder in decoders.items():
            start = time.perf_counter()
            states[name] = decoder.prefill(read)
            row[f"prefill {name} ms"] = round((time.perf_counter() - start) * 1e3)
        times = {name: [] for name in decoders}
        for _ in range(options.repeat):
            found = {}
            for name, decoder in decoders.items():
                *found[name], ms = answer(decoder, states[name], embed, options.tokens)
                times[name].append(ms)
            (ids, logits), (other_ids, other_logits) = found.values()
            row["same tokens"], row["same bits"] = ids == other_ids, bool((logits == other_logits).all())
        row |= {f"{name} ms/token": [round(min(each), 2), round(median(each), 2), round(max(each), 2)] for name, each in times.items()}
        print(row)
        rows.append(row)
    print(json.dumps({"machine": machine(), "rows": rows}))


def _load(llm, threads: int) -> OrtNetwork:
    import onnxruntime
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    session_options.enable_mem_pattern = False
    session = onnxruntime.InferenceSession(llm.in_memory(), session_options, providers=["CPUExecutionProvider"])
    return OrtNetwork(session, "decode", onnxruntime.RunOptions())


if __name__ == "__main__":
    main()
