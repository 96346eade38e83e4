"""VILA-HD as the public code computes it, step by step, for benchmarks/vila.py. Runs in the environment of `make peer`.

The vision tower is ps3-torch's, the language model and its generation transformers'; what VILA puts between them is written here
from tests/golden/vila_hd/README.md (2.3 to 2.8): the low-res pass twice a question, whole grids projected and incomplete blocks
dropped after, prompt pass and answer pass each read from the first row. f32.

    vila_public.py CHECKPOINT FRAME.npy THREADS MAX_TOKENS      then one JSON request a line on stdin, one JSON answer a line on stdout
"""
from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import peer_torchvision  # noqa: F401  (before ps3)
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from ps3 import PS3ImageProcessor, PS3VisionModel
from safetensors.torch import load_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import Qwen2ForCausalLM, StoppingCriteria
from transformers.utils import logging

warnings.filterwarnings("ignore")
logging.set_verbosity_error()


def register_trunk(name: str, shape: dict) -> None:
    def build(pretrained=False, **options):
        options = {key: value for key, value in options.items() if not key.startswith(("pretrained", "cache_dir")) and value is not None}
        return VisionTransformer(**{"img_size": shape["pos_embed_grid"] * shape["patch_size"], "class_token": False, "patch_size": shape["patch_size"],
                                    "embed_dim": shape["embed_dim"], "depth": shape["depth"], "num_heads": shape["num_heads"], "mlp_ratio": shape["mlp_ratio"], **options})
    build.__name__, build.__module__ = name, __name__
    register_model(build)


class Clock(StoppingCriteria):
    """When each token was there; never stops."""

    def __init__(self):
        self.times = []

    def __call__(self, ids, scores, **_):
        self.times.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool)


class Public:
    def __init__(self, folder: Path):
        self.config = json.loads((folder / "config.json").read_text())
        vision = json.loads((folder / "vision_tower" / "config.json").read_text())
        if "golden_trunk" in vision:
            register_trunk(vision["model_name"], vision["golden_trunk"])
        self.tower = PS3VisionModel.from_pretrained(folder / "vision_tower", torch_dtype=torch.float32).eval()
        self.tower.vision_model.num_hidden_layers_to_return = 2      # as VILA sets it
        self.llm = Qwen2ForCausalLM.from_pretrained(folder / "llm", torch_dtype=torch.float32).eval()
        self.r = 3 if "3x3" in json.loads((folder / "mm_projector" / "config.json").read_text())["mm_projector_type"] else 2
        weights = {key: value.float() for key, value in load_file(folder / "mm_projector" / "model.safetensors").items()}
        linear = [(weights[f"layers.{i}.weight"], weights[f"layers.{i}.bias"]) for i in (1, 2, 4)]
        self.layers = nn.Sequential(nn.LayerNorm(linear[0][0].shape), nn.Linear(*linear[1][0].shape[::-1]), nn.GELU(), nn.Linear(*linear[2][0].shape[::-1]))
        for module, (weight, bias) in zip((self.layers[0], self.layers[1], self.layers[3]), linear):
            module.weight, module.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.head = weights["top_down_prompt_head.weight"], weights["top_down_prompt_head.bias"]
        self.position = weights["high_res_pos_embed"]
        self.scale = [weights[f"high_res_scale_embed.{k}"] for k in range(len(vision["ps3_scales"]))]
        size = vision["ps3_scales"][-1]
        self.processor = PS3ImageProcessor(size, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")
        self.layer = self.config["mm_vision_select_layer"]

    def cut_vocabulary(self, num_ids: int) -> None:
        self.llm.resize_token_embeddings(num_ids)

    def rows(self, tokens: Tensor, k: int) -> Tensor:
        """A whole grid (n, n, C) -> (m * m, D)"""
        n, r = len(tokens), self.r
        pad = -n % r
        grid = F.pad(tokens, (0, 0, 0, pad, 0, pad))
        m = len(grid) // r
        rows = self.layers(grid.reshape(m, r, m, r, -1).transpose(1, 2).reshape(m * m, -1))
        side = round(self.position.shape[1] ** 0.5)
        position = F.adaptive_avg_pool2d(self.position[0].T.reshape(1, -1, side, side), (m, m)).flatten(2)[0].T
        return rows + position + self.scale[k][0]

    def embed(self, ids: list[int], image_id: int, newline: list[int], image: Tensor) -> Tensor:
        at, table = ids.index(image_id), self.llm.get_input_embeddings()
        look = lambda ids: table(torch.tensor(ids))
        return torch.cat([look(ids[:at]), image, look(newline), look(ids[at + 1:])])[None]

    @torch.inference_mode()
    def ask(self, frame: Image.Image, request: dict) -> dict:
        start, steps = time.perf_counter(), {}

        def lap(name: str) -> None:
            steps[name] = time.perf_counter() - start - sum(steps.values())

        pixels = self.processor(frame)["pixel_values"][0][None]
        lap("preprocess")
        ids, image_id, newline = request["ids"], request["image_id"], request["newline_ids"]
        low = self.tower(pixels, num_look_close=0, output_hidden_states=True).hidden_states[self.layer][0]
        side = round(len(low) ** 0.5)
        low_rows = self.rows(low.reshape(side, side, -1), 0)
        lap("first low-res pass")
        embeds = self.embed(ids, image_id, newline, low_rows)
        out = self.llm(inputs_embeds=embeds[:, :len(low_rows) + request["prompt_end"] + len(newline)], output_hidden_states=True)
        prompt = F.linear(out.hidden_states[-1][:, -1], *self.head)
        lap("prompt pass")
        seen = self.tower(pixels, prompt=prompt, num_look_close=request["looks"], output_hidden_states=True)
        tokens = seen.hidden_states[self.layer]
        lap("vision")
        maps = self.tower.vision_model.format_features_into_feature_maps(tokens, seen.selection_maps)
        rows = [self.rows(each[0].permute(1, 2, 0), k) for k, each in enumerate(maps)]
        kept = [F.avg_pool2d(m[None].float(), self.r)[0].flatten() == 1 for m in seen.selection_maps]
        high = torch.cat([each[keep] for each, keep in zip(rows[1:], kept)])
        image = torch.cat([rows[0], high if len(high) else rows[0][:1]])
        embeds = self.embed(ids, image_id, newline, image)
        lap("projector")
        clock = Clock()
        out = self.llm.generate(inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64), do_sample=False, max_new_tokens=request["max_tokens"],
                                eos_token_id=request["stop_ids"], pad_token_id=0, stopping_criteria=[clock], return_dict_in_generate=True, output_scores=request["gaps"])
        done = time.perf_counter()
        found = {"s": done - start, "first_s": clock.times[0] - start, "last_s": clock.times[-1] - start, "steps_s": steps, "rows": embeds.shape[1], "num": len(clock.times)}
        found["tokens"] = [i for i in out.sequences[0].tolist() if i not in request["stop_ids"]]
        if request["gaps"]:
            top = [score[0].topk(2).values for score in out.scores]
            found["gaps"] = [(a - b).item() for a, b in top]
        return found


def lower_id_topk(values: Tensor, k: int, dim: int = -1):
    """torch.topk with ties to the lower id, a rule that topk leaves open; for comparing answers."""
    found = torch.sort(values, dim=dim, descending=True, stable=True)
    return type(found)((found.values[..., :k], found.indices[..., :k]))


def peak_gb() -> float:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6


def main() -> None:
    folder, frame, threads = Path(sys.argv[1]), Image.fromarray(np.load(sys.argv[2])), int(sys.argv[3])
    torch.set_num_threads(threads)
    answers, sys.stdout = sys.stdout, sys.stderr
    model = Public(folder)
    print(json.dumps({"ready": True, "peak_gb": peak_gb()}), file=answers, flush=True)
    topk = torch.Tensor.topk
    for line in sys.stdin:
        request = json.loads(line)
        model.cut_vocabulary(request["num_ids"])
        torch.Tensor.topk = lower_id_topk if request["lower_id"] else topk
        print(json.dumps({**model.ask(frame, request), "peak_gb": peak_gb()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
