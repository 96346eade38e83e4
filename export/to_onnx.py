"""The networks of a vision encoder as ONNX graphs; shapes and names are the manifest's.

| network        | inputs                                    | outputs                                   | stage                      |
|----------------|-------------------------------------------|-------------------------------------------|----------------------------|
| encode         | patches position keep past_key_i/value_i  | tokens features key_i/value_i             | encode_low and encode_high |
| score_features | features view                             | low_features view_features                | encode_low                 |
| encode_prompt  | ids                                       | pooled prompt                             | encode_prompt              |
| pool           | tokens                                    | pooled                                    | decode                     |
| project        | blocks                                    | rows                                      | encode_low, encode_high    |
| prompt_head    | hidden                                    | prompt                                    | encode_prompt              |

Symbolic dimensions: batch, tokens, past (0 in encode_low, the low-res tokens in encode_high), kept (= the value of `keep`).
Layer order, epsilons and the rows that matter: PS3, arXiv 2503.19903, NVlabs/PS3 @ f7e3fd4.
"""
from __future__ import annotations

import numpy as np

from ps3_sdk.errors import ExportError

from .graph import Graph

TRUNK = "vision_model.trunk"
TEXT = "text_model"
TRUNK_EPSILON = 1e-6     # blocks, final norm, attention pool, view network
MLP_EPSILON = 1e-5       # the norm inside the two prompt-side MLPs
END = 2 ** 31            # "to the end" of a slice
HEADS_AT_ONCE = 2        # of an attention operator


def encode(source, vision, precision: str = "fp32", token_layer: int = -1) -> Graph:
    """The trunk on any tokens: patches of any scale in, K/V of earlier tokens attended to but not recomputed.

    token_layer: the block whose output is `tokens` (VILA-HD: -2); blocks behind it are left out unless selection reads them.
    """
    g = Graph("encode", source, precision)
    trunk, width = vision.trunk, vision.trunk.width
    heads, head_width = trunk.num_heads, trunk.width // trunk.num_heads
    patches = g.input("patches", ["batch", "tokens", 3 * trunk.patch_px ** 2])
    position = g.input("position", ["batch", "tokens", width])
    keep = g.input("keep", [1], "int64")
    x = g.op("Add", g.linear(patches, f"{TRUNK}.patch_embed.proj"), position)
    selected = []
    num_blocks = max(token_layer % trunk.depth, *vision.select_based_on_layer) + 1
    for i in range(num_blocks):
        x = _block(g, x, f"{TRUNK}.blocks.{i}", i, heads, head_width, keep)
        if i == token_layer % trunk.depth:
            g.output("tokens", x, ["batch", "tokens", width])
        if i in vision.select_based_on_layer:
            selected.append((i, g.slice(x, g.constant([0]), keep, 1)))
    features = dict(selected)
    concat = g.op("Concat", *[features[i] for i in vision.select_based_on_layer], axis=-1)
    g.output("features", concat, ["batch", "kept", width * len(vision.select_based_on_layer)])
    for kind in ("key", "value"):
        for i in range(num_blocks):
            g.output(f"{kind}_{i}", f"{kind}_{i}", ["batch", heads, "kept", head_width])
    return g


def _block(g: Graph, x: str, key: str, index: int, heads: int, head_width: int, keep: str) -> str:
    width = heads * head_width
    y = g.layer_norm(x, f"{key}.norm1", TRUNK_EPSILON)
    query, new_key, new_value = (g.linear(y, f"{key}.attn.qkv", slice(j * width, (j + 1) * width), label=f".{part}", quantise=True)
                                 for j, part in enumerate(("query", "key", "value")))
    seen = []
    for kind, value in (("key", new_key), ("value", new_value)):
        past = g.input(f"past_{kind}_{index}", ["batch", heads, "past", head_width])
        value = g.heads(value, heads, head_width)
        # The kept head of K/V is cut here and joined again, although Concat(past, value) would do: a runtime may put off
        # work that only an output needs, and would then hold the K/V of all blocks (0.6 GB at 2559 tokens of SO400M).
        kept = g.slice(value, g.constant([0]), keep, 2, name=f"{kind}_{index}")
        rest = g.slice(value, keep, g.constant([END]), 2)
        seen.append(g.op("Concat", past, kept, rest, axis=2))
    x = g.op("Add", x, g.linear(_attention(g, query, *seen, heads, head_width), f"{key}.attn.proj", quantise=True))
    y = g.gelu(g.linear(g.layer_norm(x, f"{key}.norm2", TRUNK_EPSILON), f"{key}.mlp.fc1", quantise=True))
    return g.op("Add", x, g.linear(y, f"{key}.mlp.fc2", quantise=True))


def _attention(g: Graph, query: str, key: str, value: str, heads: int, head_width: int) -> str:
    """softmax(q k / sqrt(head_width)) v; query (batch, tokens, width), key and value (batch, heads, all, head_width).

    Heads go through two by two: the operator holds heads x tokens x all probabilities (0.54 GB at once for all 16 of SO400M).
    """
    groups = heads // HEADS_AT_ONCE if heads % HEADS_AT_ONCE == 0 and heads > 4 else 1
    attend = lambda q, k, v: g.op("MultiHeadAttention", q, k, v, domain="com.microsoft", num_heads=heads // groups)
    if groups == 1:
        return attend(query, key, value)
    split = lambda x, axis: g.op("Split", x, axis=axis, num_outputs=groups, outputs=groups)
    return g.op("Concat", *map(attend, split(query, -1), split(key, 1), split(value, 1)), axis=-1)


def score_features(source, vision) -> Graph:
    """What score() compares a prompt with: per low-res place, and per place of the 1512 px view when the model has one."""
    g = Graph("score_features", source)
    width, grid = vision.trunk.width, vision.scales_px[0] // vision.trunk.patch_px
    features = g.input("features", ["batch", grid * grid, width * len(vision.select_based_on_layer)])
    key = "vision_model.selection_feature_proj"
    y = g.layer_norm(g.gelu(g.linear(features, f"{key}.fc1")), f"{key}.norm", MLP_EPSILON)
    # only the first high-res scale's map is ever used; the rest of fc2's rows stay behind
    g.output("low_features", g.linear(y, f"{key}.fc2", slice(0, width)), ["batch", grid * grid, width])
    if vision.highres_selection_feature:
        _view_features(g, vision)
    return g


def _view_features(g: Graph, vision) -> None:
    key, hidden = "vision_model.highres_selection_feature_module", vision.view_hidden_width
    side = vision.view_px // vision.view_patch_px
    view = g.input("view", ["batch", side * side, 3 * vision.view_patch_px ** 2])
    x = g.layer_norm(g.linear(view, f"{key}.stem.0"), f"{key}.stem.1", TRUNK_EPSILON)
    for i in range(vision.view_depth):
        block = f"{key}.blocks.{i}"
        image = g.reshape(g.op("Transpose", x, perm=[0, 2, 1]), [0, hidden, side, side])
        y = g.op("Conv", image, g.weight(f"{block}.conv_dw.weight"), g.weight(f"{block}.conv_dw.bias"), group=hidden, pads=[3] * 4, kernel_shape=[7, 7])
        y = g.op("Transpose", g.reshape(y, [0, hidden, side * side]), perm=[0, 2, 1])
        y = g.gelu(g.linear(g.layer_norm(y, f"{block}.norm", TRUNK_EPSILON), f"{block}.mlp.fc1"))
        x = g.op("Add", x, g.op("Mul", g.linear(y, f"{block}.mlp.fc2"), g.weight(f"{block}.weight")))
    g.output("view_features", g.linear(x, f"{key}.out_proj"), ["batch", side * side, vision.view_width])


def encode_prompt(source, text) -> Graph:
    """Token ids -> the contrastive text feature and the prompt vector that score() takes."""
    if text.embed_cls:
        raise ExportError("[export] text_config.embed_cls is true; text towers with an appended class token are not exported. "
                          "Pass prompts as embeddings, made with export.reference.")
    g = Graph("encode_prompt", source)
    ids = g.input("ids", ["batch", text.context_length], "int64")
    width, heads = text.width, text.heads
    epsilon, tanh = text.norm_kwargs.get("eps", 1e-5), text.act_kwargs.get("approximate") == "tanh"
    x = g.op("Gather", g.weight(f"{TEXT}.token_embedding.weight"), ids)
    x = g.op("Add", x, g.weight(f"{TEXT}.positional_embedding", lambda p: p[:text.context_length]))
    mask = None if text.no_causal_mask else g.constant(np.triu(np.full((text.context_length,) * 2, -np.inf), 1), np.float32)
    for i in range(text.layers):
        x = _text_block(g, x, f"{TEXT}.transformer.resblocks.{i}", width, heads, epsilon, tanh, mask, text.ls_init_value is not None)
    x = g.layer_norm(x, f"{TEXT}.ln_final", epsilon)
    pooled = _text_pool(g, x, ids, text)
    if text.proj_bias:
        pooled = g.linear(pooled, f"{TEXT}.text_projection")
    else:
        pooled = g.op("MatMul", pooled, g.weight(f"{TEXT}.text_projection"))
    g.output("pooled", pooled, ["batch", text.output_dim])
    norm = g.op("Max", g.op("ReduceL2", pooled, g.constant([-1]), keepdims=1), g.constant(1e-12, np.float32))
    key = f"{TEXT}.prompt_proj"
    y = g.layer_norm(g.gelu(g.linear(g.op("Div", pooled, norm), f"{key}.fc1")), f"{key}.norm", MLP_EPSILON)
    g.output("prompt", g.linear(y, f"{key}.fc2"), ["batch", text.prompt_proj_dim])
    return g


def _text_block(g, x, key, width, heads, epsilon, tanh, mask, layer_scale) -> str:
    scaled = lambda y, name: g.op("Mul", y, g.weight(f"{key}.{name}.gamma")) if layer_scale else y
    y = g.layer_norm(x, f"{key}.ln_1", epsilon)
    cut = lambda j, label: g.op("Add", g.op("MatMul", y, g.weight(f"{key}.attn.in_proj_weight", lambda w: w[j * width:(j + 1) * width].T, label)),
                                g.weight(f"{key}.attn.in_proj_bias", lambda b: b[j * width:(j + 1) * width], label))
    query, keys, values = (g.heads(cut(j, f".{part}"), heads, width // heads) for j, part in enumerate(("query", "key", "value")))
    y = _small_attention(g, query, keys, values, heads, width // heads, mask)
    x = g.op("Add", x, scaled(g.linear(y, f"{key}.attn.out_proj"), "ls_1"))
    y = g.gelu(g.linear(g.layer_norm(x, f"{key}.ln_2", epsilon), f"{key}.mlp.c_fc"), tanh)
    return g.op("Add", x, scaled(g.linear(y, f"{key}.mlp.c_proj"), "ls_2"))


def _small_attention(g, query, key, value, heads, head_width, mask=None) -> str:
    """The same attention from basic operators, for few tokens; all of (batch or 1, heads, tokens, head_width)."""
    scores = g.op("MatMul", g.op("Mul", query, g.constant(head_width ** -0.5, np.float32)), g.op("Transpose", key, perm=[0, 1, 3, 2]))
    if mask is not None:
        scores = g.op("Add", scores, mask)
    y = g.op("MatMul", g.op("Softmax", scores, axis=-1), value)
    return g.reshape(g.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, heads * head_width])


def _text_pool(g, x, ids, text) -> str:
    if text.pool_type in ("first", "last"):
        return g.op("Gather", x, g.constant(0 if text.pool_type == "first" else text.context_length - 1), axis=1)
    if text.pool_type == "argmax":
        best = g.op("ArgMax", ids, axis=1, keepdims=1)                                         # (batch, 1)
        return g.op("GatherND", x, best, batch_dims=1)
    raise ExportError(f"[export] text_config.pool_type is {text.pool_type!r}; a prompt needs one vector: 'first', 'last' or 'argmax'.")


def pool(source, vision) -> Graph:
    """Attention pooling of tokens: the feature that is compared with a text feature."""
    g = Graph("pool", source)
    tokens = g.input("tokens", ["batch", "tokens", vision.trunk.width])
    x, key = tokens, f"{TRUNK}.attn_pool"
    if not vision.radio or vision.final_norm:
        x = g.layer_norm(x, f"{TRUNK}.norm", TRUNK_EPSILON)
    if vision.radio:
        x = _radio_adapter(g, x, vision)
    width, heads = source.shape(f"{key}.proj.weight")[0], vision.pool_heads
    split = lambda label, j: g.heads(g.linear(x, f"{key}.kv", slice(j * width, (j + 1) * width), label=label), heads, width // heads)
    query = g.heads(g.linear(g.weight(f"{key}.latent"), f"{key}.q"), heads, width // heads)
    y = g.linear(_small_attention(g, query, split(".key", 0), split(".value", 1), heads, width // heads), f"{key}.proj")
    z = g.gelu(g.linear(g.layer_norm(y, f"{key}.norm", TRUNK_EPSILON), f"{key}.mlp.fc1"))
    y = g.op("Add", y, g.linear(z, f"{key}.mlp.fc2"))
    g.output("pooled", g.op("Gather", y, g.constant(0), axis=1), ["batch", width])
    return g


def _radio_adapter(g, x, vision) -> str:
    """C-RADIO's head from its own width to SigLIP's; version v1 ends in ReLU steps, v2 in GELU steps with residuals."""
    key = f"{TRUNK}.siglip_proj"
    x = g.linear(x, f"{key}.fc1")
    if vision.radio_adapter_mlp_version == "v1":
        x = g.op("Relu", g.layer_norm(x, f"{key}.norm", MLP_EPSILON))
        for i in range(vision.radio_adapter_mlp_num_inner):
            x = g.op("Relu", g.layer_norm(g.linear(x, f"{key}.inner.{3 * i}"), f"{key}.inner.{3 * i + 1}", MLP_EPSILON))
        return g.linear(x, f"{key}.fc2")
    for i in range(vision.radio_adapter_mlp_num_inner):
        y = g.gelu(g.layer_norm(x, f"{key}.blocks.{i}.0", MLP_EPSILON))
        x = g.op("Add", x, g.linear(y, f"{key}.blocks.{i}.2"))
    return g.linear(g.gelu(g.layer_norm(x, f"{key}.final.0", MLP_EPSILON)), f"{key}.final.2")


def project(source, config) -> Graph:
    """VILA-HD's projector: blocks of r x r vision tokens -> rows of the language model, without their position."""
    g, r, width, out = Graph("project", source), config.downsample, config.vision.width, config.llm.width
    blocks = g.input("blocks", ["batch", "blocks", r * r * width])
    x = g.gelu(g.linear(g.layer_norm(blocks, "layers.1", MLP_EPSILON), "layers.2"))
    if r == 3:
        x = g.gelu(g.linear(g.layer_norm(x, "layers.4", MLP_EPSILON), "layers.5"))
    g.output("rows", g.linear(x, "layers.7" if r == 3 else "layers.4"), ["batch", "blocks", out])
    return g


def prompt_head(source, config) -> Graph:
    """The language model's state behind a question -> the vector that score() compares places with."""
    g, key = Graph("prompt_head", source), "top_down_prompt_head"
    x = g.input("hidden", ["batch", config.llm.width])
    if config.prompt_head == "mlp":
        x = g.linear(g.layer_norm(g.gelu(g.linear(x, f"{key}.fc1")), f"{key}.norm", MLP_EPSILON), f"{key}.fc2")
    else:
        x = g.linear(x, key)
    g.output("prompt", x, ["batch", config.vision.width])
    return g
