"""Replays a golden case of VILA-HD through our model, stage by stage, and measures every number that the public model stored.

    errors = golden_vila.replay(model, golden_vila.Case("p1_single_after_prompt"))      # name -> largest relative error

Integers (ids, counts, positions) must be equal: AssertionError. Errors are the largest difference over the largest value.
"""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from ps3_sdk.export.reference.vila.config import LookOptions
from ps3_sdk.export.reference.vila.model import Seen, VilaHd

ROOT = Path(__file__).parent / "golden" / "vila_hd"
CASES = sorted(path.parent.name for path in ROOT.glob("p*/case.json"))
BOUND = 1e-4


class Case:
    def __init__(self, name: str):
        self.name, self.folder = name, ROOT / name
        self.json = json.loads((self.folder / "case.json").read_text())
        self.model = (self.folder / self.json["model"]).resolve()
        self.tensors = load_file(self.folder / "tensors.safetensors")

    @property
    def num_frames(self) -> int:
        return len(self.json["image_sizes_wh"])

    def parts(self, frames: list) -> list:
        """The prompt with <imageN> replaced by frames[N]."""
        return [frames[int(part[6:-1])] if part.startswith("<image") else part for part in self.json["prompt_parts"]]

    def options(self, default: LookOptions) -> LookOptions:
        """The public command line's environment variables as our arguments."""
        env, e = self.json["env"], self.json["effective"]
        given = {"num_looks": env.get("NUM_LOOK_CLOSE"), "num_tokens": env.get("NUM_TOKEN_LOOK_CLOSE")}
        per_look = tuple(map(int, env["SELECT_NUM_EACH_SCALE"].split("+"))) if "SELECT_NUM_EACH_SCALE" in env else None
        options = replace(default, **{key: int(value) for key, value in given.items() if value is not None}, per_look=per_look,
                          mode=env.get("LOOK_CLOSE_MODE", default.mode), smooth=env.get("SMOOTH_SELECTION_PROB") == "true")
        assert (options.mode, options.num_looks, options.num_tokens, options.smooth) == (
            e["look_close_mode"], e["num_look_close"], e["num_token_look_close"], e["smooth_selection_prob"])
        return options

    def step(self, look: int, scale: int, frame: int) -> torch.Tensor:
        """Ids that the public model picked."""
        dynamic = bool(self.json["generate_content_kwargs"])      # then a step is a frame
        key = f"step{frame if dynamic else look}.selection_index.scale{scale}.{0 if dynamic else frame}"
        return self.tensors.get(key, self.tensors[f"selection_index.scale{scale}.{frame}"]).long()

    def reports(self, frame: int) -> list[list[dict]]:
        """Per look and scale, what is known of ties."""
        steps = self.json["selection_steps"]
        if self.json["generate_content_kwargs"]:
            return [steps[frame]["per_image_per_scale"][0]]
        return [step["per_image_per_scale"][frame] for step in steps]


def load(name: str) -> VilaHd:
    """A golden checkpoint, with the settings its case overrides."""
    return VilaHd.from_checkpoint(Case(name).model)


def replay(model: VilaHd, case: Case) -> dict[str, float]:
    """Raises AssertionError where an integer, a count or a shape is not the stored one."""
    found, errors, used = case.tensors, {}, {key for key in case.tensors if "selection_index" in key}

    def close(what: str, ours: torch.Tensor, key: str) -> None:
        used.add(key)
        assert ours.shape == found[key].shape, f"{key}: {tuple(ours.shape)} is not {tuple(found[key].shape)}"
        if ours.numel():
            errors[what] = max(errors.get(what, 0.0), ((ours - found[key]).abs().max() / found[key].abs().max()).item())

    model.config = replace(model.config, dynamic_sizes=case.json["config_overrides"].get("ps3_dynamic_aspect_ratio", False))
    options = case.options(model.config.looks)
    seen = _look(model, case, close)
    ids = _ids(model, case, seen)
    asked = _ask(model, case, ids, seen, options, close)
    high = [_closely(model, case, i, s, asked.vector, options, close) for i, s in enumerate(seen)]
    _answer(model, case, model.embed(ids, seen, high), close)
    left = set(found) - used - {"top_down_prompt" if options.mode == "after_image" else ""}
    assert not left, f"stored and not compared: {sorted(left)}"
    return errors


def _look(model, case, close) -> list[Seen]:
    sizes = case.json["generate_content_kwargs"].get("original_image_sizes", [None] * case.num_frames)
    seen = [model.look(Image.open(case.folder / f"image{i}.png"), size and tuple(size)) for i, size in enumerate(sizes)]
    a, b, s = case.json["pixel_grid_start_step"]
    for i, one in enumerate(seen):
        close("pixels", one.pixels[0, :, a::s, b::s], f"pixel_grid.{i}")
        assert abs(one.pixels.mean().item() - case.json["pixel_values_mean"][i]) < 1e-5 and abs(one.pixels.std().item() - case.json["pixel_values_std"][i]) < 1e-5
        close("low rows", one.rows, f"low_res_projected.{i}")
    return seen


def _ids(model, case, seen) -> list[int]:
    message = model.chat.message(case.parts(seen))
    assert model.chat.text(message) == case.json["templated_text"]
    ids = model.chat.ids(message)
    assert ids == case.json["token_ids"]
    assert (model.chat.image_id, model.chat.newline_ids, model.chat.size, model.llm.vocabulary) == tuple(
        case.json[key] for key in ("image_token_id", "newline_token_ids", "tokenizer_len", "llm_vocab_after_resize"))
    assert model.chat.template.prompt_end == case.json["prompt_end_text"]
    return ids


def _ask(model, case, ids, seen, options, close):
    asked = model.ask(ids, seen, options.mode)
    assert (asked.position, asked.row) == (case.json["prompt_end_position"], case.json["look_close_position_in_embeds"])
    if asked.vector is not None:
        assert len(asked.known.names) == case.json["prompt_stage_embeds_len"]
        close("prompt hidden state", asked.hidden[None], "prompt_hidden_state")
        close("top-down prompt", asked.vector, "top_down_prompt")
        rows = model.embed(ids, seen, [model.encode(s, []) for s in seen])      # its text rows are the prompt pass's
        close("prompt rows", rows.embeds[rows.starts[asked.position]], "prompt_stage_inputs_embeds_last_row")
    return asked


def _closely(model, case, frame, seen, vector, options, close):
    """Compares what we pick, then encodes what the public model picked."""
    picked, every = model.select(seen, vector, options), "6x6" if options.smooth else "27x27"
    for k, prob in enumerate(picked.probs):
        step = prob.shape[0] // int(every.split("x")[0])
        close("probabilities", _batch(case, every, k, frame, prob[::step, ::step]), f"select_probs_{every}.scale{k}")
    assert len(picked.looks) == len(case.reports(frame)), "number of looks"
    total, same = [0] * len(picked.probs), [True] * len(picked.probs)
    for t, (look, reports) in enumerate(zip(picked.looks, case.reports(frame))):
        before = list(same)
        for k, ((ids,), report) in enumerate(zip(look, reports)):
            theirs, flat = case.step(t, k, frame), picked.probs[k].flatten()
            total[k] += len(ids)
            assert len(ids) == report["k"] == len(theirs), f"look {t}, high-res scale {k}: {len(ids)} patches, not {report['k']}"
            if not len(ids):
                continue
            ours, stored = flat[ids].sort().values, flat[theirs].sort().values
            assert ((ours - stored).abs() <= BOUND * stored.abs()).all(), f"look {t}, high-res scale {k}: other probabilities are picked"
            assert abs(ours[0].item() - report["kth_value"]) <= BOUND * report["kth_value"]
            same[k] &= len(theirs) == 0 or ids.equal(theirs)
            # patches are free in a tie; and when an earlier look chose otherwise, what is left for this one differs
            assert same[k] or not report["unambiguous"] or not before[k], f"look {t}, high-res scale {k}: other patches are picked"
    assert total == case.json["selected_per_scale"][frame]

    high = model.encode(seen, [[[case.step(t, k, frame)] for k in range(len(total))] for t in range(len(picked.looks))])
    low = seen.low.hidden[model.config.token_layer][0]
    union = [torch.sort(case.tensors[f"selection_index.scale{k}.{frame}"].long()).values for k in range(len(total))]
    assert all(ids.equal(stored) for ids, stored in zip(high.ids, union))
    if f"vision_features_low.{frame}" in case.tensors:
        close("low tokens", low, f"vision_features_low.{frame}")
        close("high tokens", high.tokens, f"vision_features_high.{frame}")
    else:
        close("low tokens", low[::9], f"vision_features_low_every9.{frame}")
        close("high tokens", high.tokens[::16], f"vision_features_high_every16.{frame}")
    close("token norms", torch.cat([low, high.tokens]).norm(dim=1), f"vision_feature_row_norms.{frame}")
    assert len(high.rows) == case.json["high_res_tokens"][frame]
    close("high rows", high.rows, f"high_res_projected.{frame}")
    return high


def _batch(case, every, scale, frame, ours):
    """The stored batch with our map in this frame's place."""
    maps = case.tensors[f"select_probs_{every}.scale{scale}"].clone()
    maps[frame] = ours
    return maps


def _answer(model, case, rows, close) -> None:
    x = rows.embeds
    assert len(x) == len(rows.names) == case.json["inputs_embeds_len"]
    places = [start for start, i in zip(rows.starts, case.json["token_ids"]) if i == model.chat.image_id]
    assert places == [layout["start"] for layout in case.json["layout"]]
    for layout in case.json["layout"]:
        newline = layout["start"] + layout["low"] + layout["high"]
        assert newline == layout["newline_at"] and x[newline].equal(model.llm.embed(torch.tensor(model.chat.newline_ids))[0])
    for name, part in (("", x), ("_every8", x[::8]), ("_last16", x[-16:]), ("_row_norms", x.norm(dim=1))):
        if f"inputs_embeds{name}" in case.tensors:
            close("rows", part, f"inputs_embeds{name}")
    assert abs(x.double().abs().sum().item() / case.json["inputs_embeds_abs_sum"] - 1) < BOUND
    from ps3_sdk.export.reference.vila.sequence import prefill
    known = prefill(model.llm, rows)
    tokens, gaps = model.decode(known), case.json["greedy_top2_gaps"]
    for n, (stored, gap) in enumerate(zip(case.json["greedy_ids"], gaps)):
        new, logits = next(tokens)
        if n == 0:
            close("last logits", logits, "last_logits")
            for i, value in case.json["top5"]:
                assert abs(logits[i].item() - value) <= BOUND * logits.abs().max().item()
        if gap < 2 * BOUND * logits.abs().max().item():
            break       # too close to call: either token is right
        assert new == stored, f"token {n} of the answer is {new}, not {stored}"
