"""The stages of a bundle's model, one method each. Session is these and what users call."""
from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import contextmanager, nullcontext

import numpy as np

from . import _core, budget
from .answer import Choice, Timing
from .blocks import select_blocks
from .bundle import Bundle
from .encoding import Encoding
from .errors import ClosedError, InputError, Ps3Error
from .frame import Frame
from .manifest import TABLES, most_in_a_run
from .ops import DeviceOps, HostOps
from .probability import around
from .prompt import Prompt

PROMPTS_KEPT = 256
TEXTS_A_RUN = 32        # through the text tower together
LARGEST = 1e15          # of a prompt vector, whose squares are summed in float32


class Stages:
    """bundle, geometry: what was opened | threads: CPU threads | ops: where score and gather run | language: what reads and answers, None in encoders."""
    bundle: Bundle
    geometry: dict
    threads: int
    ops: HostOps | DeviceOps
    language: object
    patch_px: int
    base_px: int
    _networks: dict
    _tables: dict
    _large_tables: bool
    _tokenizer: object
    _prompts: "OrderedDict[str, Prompt]"
    _lock: threading.Lock
    _closed: bool

    def encode_low(self, frame: Frame) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        """The whole frame at the lowest scale.

        Returns tokens (low-res tokens, width), K/V by input name of the next pass, features (1, low-res tokens, feature_width).
        """
        (seen,), features = self._encode_low(self._whole([frame], view=False)[0])
        return *seen, features

    def encode_prompt(self, text: str = "", embedding=None, timing: Timing | None = None) -> Prompt:
        """A text, a vector or nothing (the model's prior) -> the prompt vector. Texts are encoded once and kept."""
        self._open()
        with timing.stage("encode_prompt") if timing else nullcontext():
            if embedding is not None:
                return Prompt(text if isinstance(text, str) else "", self._vector(embedding), None)
            if not isinstance(text, str):
                raise InputError(f"[encode_prompt] the prompt is {type(text).__name__}; it must be a str. Pass vectors as prompt_embedding=.")
            if not text.strip():
                return self.prior()
            with self._lock:
                known = self._prompts.get(text)
            return known if known is not None else self._encode_texts([text])[0]

    def encode_prompts(self, texts: list[str], timings: list[Timing] | None = None) -> list[Prompt]:
        """Texts as encode_prompt() makes them, to rounding; those that are new go through the text tower together. timings: one a text."""
        self._open()
        timing = Timing()
        with timing.stage("encode_prompt"):
            with self._lock:
                known = dict(self._prompts)
            new = [text for text in dict.fromkeys(text for text in texts if isinstance(text, str) and text.strip()) if text not in known]
            known |= zip(new, self._encode_texts(new))
        for each in timings or []:
            each.add("encode_prompt", timing.total_ms / len(texts))
        return [known[text] if isinstance(text, str) and text in known else self.encode_prompt(text) for text in texts]

    def prior(self, text: str = "", note: str = "empty prompt: patches are picked bottom-up, by saliency") -> Prompt:
        """The model's own prompt, for saliency."""
        return Prompt(text, np.asarray(self._tables["prior_prompt"]), None, (note,), anywhere=True)

    def score(self, look: "Look", prompt: Prompt) -> np.ndarray:      # noqa: F821  (look.py imports what imports this module)
        """(g, g) f32 in (0, 1): how much the prompt cares about each place of the frame."""
        self._open()
        return self.ops.score(look.low_features, look.view_features, prompt.vector)

    def aimed(self, prob: np.ndarray, anywhere: bool, passed: int = 0) -> np.ndarray:
        """The map that patches are picked by: score's own, or for models that look around the best place (language.look_around) one that ranks its
        neighbours first. anywhere: these, too, as Prompt says | passed: so many glances were elsewhere before."""
        radius = None if self.language is None or anywhere else self.language.spec.get("look_around")
        return prob if radius is None else around(prob, radius, passed)

    def glances(self, plan: budget.Budget, anywhere: bool) -> list[budget.Budget]:
        """A budget in the parts that are looked at and answered one after another, until something is found: of models that look around the best place, which
        are trained for so many patches in one place; no more of them than there are neighbourhoods. anywhere: as in aimed()."""
        spec = {} if self.language is None or anywhere else self.language.spec
        if not spec.get("look_around") or not spec["num_tokens"]:
            return [plan]
        places = self.geometry["scales_px"][0] // self.patch_px
        return budget.parts(self._sizes, plan, spec["num_tokens"], most=(-(-places // (2 * spec["look_around"] + 1))) ** 2)

    def check_smooth(self, anywhere: bool) -> None:
        """Raises InputError: the model looks around one place, which a smoothed map has not."""
        if not anywhere and self.language is not None and self.language.spec.get("look_around") is not None:
            raise InputError(f"[select] smooth is True; {self.bundle.path} looks around the most probable place, and averaged over areas no place is the most probable one. Leave smooth "
                             "out, or pass selection=\"top_down\" to look at whole areas.")

    def select(self, prob: np.ndarray, scale_px: int, count: int, taken: np.ndarray, r: int = 1) -> np.ndarray:
        """The `count` best free patches of a scale as ascending int32 ids; ties go to the lower id; marks them taken. r > 1: whole r x r blocks."""
        n = scale_px // self.patch_px
        if r > 1:
            return select_blocks(prob, n, count, taken, r)
        return _core.select(prob, n, n, count, taken)

    def gather(self, frame: Frame, picks: dict[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Cut picked patches of all scales out of the frame: patches (n, 3 * patch * patch), position rows (n, width).

        f32 arrays, tensors of the GPU (runtimes.device_memory) where ops run there.
        """
        patches, position = self.gather_many([frame], [picks])
        return patches[0], position[0]

    def gather_many(self, frames: list[Frame], picks: list[dict[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """gather of several with equally many patches: (frames, n, 3 * patch * patch) and (frames, n, width)."""
        self._open()
        return self.ops.patches(frames, picks, self.patch_px), self._positions(picks)

    def encode_high(self, patches: np.ndarray, position: np.ndarray, kv: dict[str, np.ndarray]) -> np.ndarray:
        """(n, width) f32 tokens of picked patches, which attend to the low-res keys and values and to each other."""
        return self.encode_high_many(patches[None], position[None], [kv])[0]

    def encode_high_many(self, patches: np.ndarray, position: np.ndarray, kvs: list[dict[str, np.ndarray]], into: np.ndarray | None = None) -> list[np.ndarray]:
        """encode_high of several, as gather_many() gives them, in one run. into: (n, width) f32 for the tokens of the first and only one."""
        if not patches.shape[1]:
            return [np.empty((0, self.geometry["width"]), np.float32) for _ in kvs]
        kv = {key: joined([each[key] for each in kvs]) for key in kvs[0]}
        inputs = {"patches": patches, "position": position, "keep": np.array([0], np.int64), **kv}
        if into is None:
            return list(self._run("encode", inputs, ["tokens"])["tokens"])
        if hasattr(self._networks["encode"], "run_into"):
            self._open()
            self._networks["encode"].run_into(inputs, {"tokens": into[None]})
        else:
            into[...] = self._run("encode", inputs, ["tokens"])["tokens"][0]
        return [into]

    def pool(self, encoding: Encoding | np.ndarray) -> np.ndarray:
        """(pooled_width,) f32, length 1: attention pooling of tokens, (n, width), or of an encoding's high-res ones, its low-res ones where there are none."""
        if "pool" not in self._networks:
            raise InputError(f"[decode] {self.bundle.path} is a vision-language bundle, which has no pooled feature. Export a PS3 encoder for that.")
        seen = encoding
        if isinstance(encoding, Encoding):
            seen = encoding.high_tokens if len(encoding.high_tokens) else encoding.tokens
        self.check_pooled(len(seen))
        return unit(self._run("pool", {"tokens": seen[None]}, ["pooled"])["pooled"][0])

    def check_pooled(self, num_tokens: int) -> None:
        """Raises InputError: the engine that pools was built for fewer tokens."""
        most = most_in_a_run(self.bundle.manifest, "pool", "tokens")
        if most is not None and num_tokens > most:
            raise InputError(f"[decode] {num_tokens} patches are to be pooled into one feature, as choices and encode_frame do in one run; the engine of {self.bundle.path} was built for "
                             f"{most}. Ask for at most {most} tokens, or open an ONNX bundle.")

    def rank(self, choices: list[str], encoding: Encoding, timing: Timing) -> list[Choice]:
        """Choices by cosine between their text feature and the pooled feature of what was seen."""
        choice_timing = [Timing() for _ in choices]
        texts = [prompt.pooled for prompt in self.encode_prompts(choices, choice_timing)]
        timing.add("encode_prompt", sum(each.total_ms for each in choice_timing))
        with timing.stage("decode"):
            pooled = self.pool(encoding)
            contrast = self.bundle.manifest["contrast"]     # SigLIP's temperature and bias, when the checkpoint has them
            prob = lambda cosine: None if contrast is None else float(1 / (1 + np.exp(-(contrast["scale"] * cosine + contrast["bias"]))))
            cosines = [float(unit(text) @ pooled) for text in texts]
            return sorted((Choice(text, cosine, prob(cosine)) for text, cosine in zip(choices, cosines)), key=lambda choice: -choice.similarity)

    def budget(self, tokens=None, looks=None, scales=None) -> budget.Budget:
        """What a budget comes to, per look and high-res scale. Default: one look, or what a vision-language bundle says. Looks are as large as the engines take."""
        if self.language and tokens is None and looks is None:
            tokens, looks = self.language.spec["num_tokens"], self.language.spec["num_looks"]
            looks = looks if tokens is None else None
        return budget.plan(self._sizes, tokens, looks, scales)

    @property
    def _sizes(self) -> dict:
        """The geometry with looks that this bundle's engine takes; whole blocks carry up to r * r - 1 patches from one look to the next."""
        most = most_in_a_run(self.bundle.manifest, "encode", "tokens")
        return budget.fitting(self.geometry, most if most is None or self.language is None else max(most - self.language.r ** 2 + 1, 1))

    def needs_text_tower(self, why: str) -> None:
        """Raises InputError in a bundle that cannot make vectors of texts; `why` names what for."""
        if self._tokenizer is None and self.language is not None:
            raise InputError(f"[encode_prompt] {self.bundle.path} is a vision-language bundle without a text tower, so {why}. Ask in words, or open a bundle of a PS3 encoder.")
        if self._tokenizer is None:
            raise InputError(f"[encode_prompt] {self.bundle.path} has no text tower, so {why}. Export the full PS3 checkpoint, not its vision part. To look "
                             f"for something, prompt_embedding= takes a vector of {self.geometry['width']} floats; an empty prompt looks by saliency.")

    # -- inside ---------------------------------------------------------------------------------------------------

    @contextmanager
    def running(self):
        """Work that another thread may close the session under: what then fails is that it is closed."""
        self._open()
        try:
            yield
        except Ps3Error:
            raise
        except Exception:
            self._open()
            raise

    def _open(self) -> None:
        if self._closed:
            raise ClosedError(f"[session] the session of {self.bundle.path} is closed; open a new one: ps3_sdk.Session(...).")

    def _run(self, name: str, inputs, outputs):
        self._open()
        return self._networks[name].run(inputs, outputs)

    def _whole(self, frames: list[Frame], view: bool = True) -> list[np.ndarray]:
        """All patches of whole frames, (frames, n, 3 * patch * patch): of the lowest scale and, if view, those that score_features sees where the model has a view."""
        self._open()
        g, every = self.geometry, lambda px, patch: ([{px: np.arange((px // patch) ** 2, dtype=np.int32)}] * len(frames), patch)
        views = [] if g["view_px"] is None or not view else [every(g["view_px"], g["view_patch_px"])]
        return self.ops.together(frames, [every(g["scales_px"][0], self.patch_px), *views])

    def _encode_low(self, patches: np.ndarray) -> tuple[list[tuple[np.ndarray, dict[str, np.ndarray]]], np.ndarray]:
        """What encode_low gives, for patches (frames, low-res tokens, 3 * patch * patch) in one run: tokens and K/V of each, features of all."""
        depth, (num, tokens, _) = self.geometry["depth"], patches.shape
        position = self._positions([{self.geometry["scales_px"][0]: np.arange(tokens, dtype=np.int32)}] * num)
        inputs = {"patches": patches, "position": position, "keep": np.array([tokens], np.int64), **self._no_past(num)}
        keys = [f"{kind}_{i}" for kind in ("key", "value") for i in range(depth)]
        out = self._run("encode", inputs, ["tokens", "features", *keys])
        part = lambda name, i: out[name] if num == 1 else out[name][i:i + 1].copy()     # a copy, so that one look does not keep the others' memory
        return [(part("tokens", i)[0], {f"past_{key}": part(key, i) for key in keys}) for i in range(num)], out["features"]

    def _positions(self, picks: list[dict[int, np.ndarray]]) -> np.ndarray:
        found = self.ops.positions(picks)
        if self._large_tables:
            self.bundle.release(TABLES)
        return found

    def _no_past(self, batch: int = 1) -> dict[str, np.ndarray]:
        ports = [port for port in self.bundle.manifest["networks"]["encode"]["inputs"] if port["name"].startswith("past_")]
        dtype = "uint16" if ports[0]["dtype"] == "bfloat16" else ports[0]["dtype"]      # numpy has no bfloat16; these hold nothing
        empty = np.empty((batch, self.geometry["heads"], 0, self.geometry["width"] // self.geometry["heads"]), dtype)
        return {port["name"]: empty for port in ports}

    def _score_features(self, features: np.ndarray, *view: np.ndarray) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """What score() compares prompts with, for each frame: low_features, view_features. features: (frames, low-res tokens, feature_width) | view: as _whole() gives it."""
        inputs, outputs = {"features": features}, ["low_features"]
        if view:
            (inputs["view"],), outputs = view, ["low_features", "view_features"]
        out = self._run("score_features", inputs, outputs)
        return [tuple(out[name][i] if name in out else None for name in ("low_features", "view_features")) for i in range(features.shape[0])]

    def _encode_texts(self, texts: list[str]) -> list[Prompt]:
        """Texts through the text tower, TEXTS_A_RUN at a time; they are kept."""
        if texts:
            self.needs_text_tower(f"{texts[0][:40]!r} cannot be read")
        found = []
        for start in range(0, len(texts), TEXTS_A_RUN):
            group = texts[start:start + TEXTS_A_RUN]
            ids, notes = zip(*map(self._tokenizer, group))
            out = self._run("encode_prompt", {"ids": np.concatenate(ids)}, ["pooled", "prompt"])
            found += [Prompt(text, vector.copy(), pooled.copy(), tuple(each)) for text, vector, pooled, each in zip(group, out["prompt"], out["pooled"], notes)]
        with self._lock:
            self._prompts |= zip(texts, found)
            while len(self._prompts) > PROMPTS_KEPT:
                self._prompts.popitem(last=False)
        return found

    def _vector(self, embedding) -> np.ndarray:
        width = self.geometry["width"]
        vector = np.asarray(embedding)
        if vector.dtype.kind != "f" or vector.size != width or vector.shape not in ((width,), (1, width)):
            raise InputError(f"[encode_prompt] prompt_embedding is {vector.dtype} {vector.shape}; this model takes ({width},) float32.")
        vector = np.ascontiguousarray(vector.reshape(width), np.float32)
        if not np.isfinite(vector).all():
            raise InputError(f"[encode_prompt] prompt_embedding holds {int((~np.isfinite(vector)).sum())} NaN or infinite values. Check what made it.")
        if np.abs(vector).max() > LARGEST:
            raise InputError(f"[encode_prompt] prompt_embedding reaches {np.abs(vector).max():.3g}; numbers of at most {LARGEST:.0e} are needed. Only its direction counts: scale it to length 1.")
        return vector


def joined(parts: list):
    """Arrays, or tensors that a runtime keeps on its device, one after the other along the first dimension."""
    if len(parts) == 1:
        return parts[0]
    return parts[0].joined(parts) if hasattr(parts[0], "joined") else np.concatenate(parts)


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector at length 1."""
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
