"""Session: an open bundle and the stages it runs. Session().ask(frame, prompt) is the main job."""
from __future__ import annotations

import importlib
import threading
import warnings
from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from . import _core, budget
from .answer import Answer, Choice, Timing
from .ask import ask_together
from .blocks import select_blocks
from .bundle import Bundle
from .datasheet import int8_caution
from .errors import BundleError, ClosedError, InputError
from .encoding import Encoding, check_batch
from .frame import Frame
from .look import Look
from .prompt import Prompt, PromptTokenizer

DEFAULT_BUNDLE = Path(__file__).parent / "assets" / "default.plan"
RUNTIMES = {"onnxruntime": "ps3_sdk.runtimes.ort"}      # manifest's word -> adapter module, imported when needed
PASSING = ("score_features", "encode_prompt")           # run once per frame or text: large ones are in memory only while they run
TABLES = "tables.safetensors"
LICENCE_NOTE = "licence of the weights: "
LARGE_BYTES = 64 << 20      # of tables, from where their pages are worth giving back
PROMPTS_KEPT = 256
TEXTS_A_RUN = 32        # through the text tower together


class Session:
    """An engine.plan, ready to be asked.

    Args:
        bundle: path of an engine.plan; default: the one embedded in the package.
        threads: CPU threads for networks and ops; 0 takes all cores.
        verify: compare every byte with the hashes in the manifest first (about one second for 1.6 GB).
        language_model: of a vision-language bundle, used instead of its own network, which is not loaded then; see language_model.py.
    Raises:
        BundleError: the file is missing, damaged or not a bundle. RuntimeMissingError: its runtime is not installed.

    A session may be used from several threads at once. Close it, or use it in a `with` block. Opening weights that are for
    non-commercial use alone says so in a UserWarning; `notes`, which every answer carries, say it too.
    """

    def __init__(self, bundle: str | Path | None = None, *, threads: int = 0, verify: bool = True, language_model=None):
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 0:
            raise InputError(f"[session] threads is {threads!r}; it must be a whole number of at least 0 (0: all cores).")
        self.threads = threads
        self.bundle = Bundle.open(bundle if bundle is not None else DEFAULT_BUNDLE, verify=verify)
        try:
            manifest = self.bundle.manifest
            self.geometry = manifest["geometry"]
            self.patch_px, self.base_px = self.geometry["patch_px"], self.geometry["scales_px"][-1]
            self.notes = _notes(manifest)
            self._tables = self.bundle.tensors(TABLES)
            self._large_tables = self.bundle.members[TABLES] > LARGE_BYTES
            elsewhere = {"decode"} if language_model is not None else set()
            self._networks = {name: self._load(name, entry["runtime"]) for name, entry in manifest["networks"].items() if name not in elsewhere}
            self._tokenizer = PromptTokenizer(self.bundle) if manifest["text"] else None
            self.language = self._open_language(language_model)
        except BaseException:
            self.bundle.close()
            raise
        self._prompts: OrderedDict[str, Prompt] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        for note in self.notes:
            if note.startswith(LICENCE_NOTE):
                warnings.warn(f"{Path(self.bundle.path).name}: {note}", stacklevel=2)     # Python shows an equal warning from one place once

    # -- what users call ------------------------------------------------------------------------------------------

    def ask(self, frame, prompt: str = "", *, prompt_embedding=None, tokens: int | None = None, looks: int | str | None = None,
            scales: int | None = None, choices: list[str] | None = None, rule: str | None = None, selection: str | None = None, smooth: bool = False,
            max_tokens: int | None = None, sampling=None, cancel=None, on_text=None, format: str | None = None) -> Answer:
        """Look at a frame and answer one question about it.

        Args:
            frame: whatever Frame.of takes: uint8 array, PIL image, path, encoded bytes, DLPack tensor, Frame.
            prompt: what to look for; empty means bottom-up, by saliency alone.
            prompt_embedding: (width,) f32 instead of a text, e.g. for bundles without a text tower.
            tokens: high-res patches to encode; 0 is the low-res pass alone, more than there are is clamped and noted.
            looks: instead of tokens, how many full looks (default 1), or "all".
            scales: look only at the first high-res scales.
            choices: texts to rank by contrast with what was seen (encoder bundles).
            rule: "patches" selects one by one, as PS3 does; "blocks" only whole blocks that a language model reads. Default:
                blocks where that is but a choice among equally probable patches, else patches. Encoder bundles know patches only.
            selection: "top_down" picks patches by the prompt, "bottom_up" by saliency, whatever the prompt (the public model's
                look_close_mode after_prompt and after_image). Default: by the prompt, by saliency where it is empty or the model knows no other way.
            smooth: average the probabilities over 6 x 6 areas of the frame before picking (the public model's smooth_selection_prob).
            max_tokens, sampling, cancel, on_text: of the answer's text (vision-language bundles): tokens at most; a
                ps3_sdk.Sampling, default greedy; a threading.Event or function that stops it; a function that is given each
                piece of text as soon as it is certain.
            format: pixel format of an array, e.g. "BGR" for OpenCV frames, "NV12" or "YUYV" for cameras.
        Returns:
            Answer: ranked regions in frame pixels, what was picked, milliseconds per stage, choices when given.
        Raises:
            InputError for a frame, prompt or budget that can't be used; ClosedError after close().
        """
        return self.look(frame, format=format).ask(prompt, prompt_embedding=prompt_embedding, tokens=tokens, looks=looks, scales=scales, choices=choices, rule=rule,
                                                   selection=selection, smooth=smooth, max_tokens=max_tokens, sampling=sampling, cancel=cancel, on_text=on_text)

    def ask_frames(self, frames: list, prompt: str = "", *, format: str | None = None, batch: int = 1, **options) -> list[Answer]:
        """One question about several frames, answers in their order; options as in ask(), batch as in look_many().

        A vision-language bundle reads all frames in this order, then the prompt, and gives one text that every answer carries; an
        encoder is asked about each frame by itself. Frames may be Looks of this session. Budgets are per frame.
        """
        if not isinstance(frames, (list, tuple)) or not frames:
            raise InputError(f"[ask] frames is {type(frames).__name__}; a list of at least one frame is needed. For one frame use ask().")
        if any(isinstance(frame, Look) and frame.session is not self for frame in frames):
            raise InputError("[ask] a look was made by another session; its keys and values fit that model only. Pass the frame itself.")
        made = iter(self.look_many(new, format=format, batch=batch) if (new := [frame for frame in frames if not isinstance(frame, Look)]) else [])
        return ask_together([frame if isinstance(frame, Look) else next(made) for frame in frames], prompt, batch=batch, **options)

    def encode(self, frame, prompt: str = "", *, prompt_embedding=None, tokens=None, looks=None, scales=None, selection=None, smooth=False, format=None) -> Encoding:
        """PS3's own output: tokens, probability map, picked patches, feature maps. Arguments as in ask()."""
        return self.look(frame, format=format).encode(prompt, prompt_embedding=prompt_embedding, tokens=tokens, looks=looks, scales=scales,
                                                      selection=selection, smooth=smooth)

    def look(self, frame, *, format: str | None = None) -> Look:
        """encode_low once; ask the Look that comes back many questions."""
        return self.look_many([frame], format=format)[0]

    def look_many(self, frames: list, *, format: str | None = None, batch: int = 1) -> list[Look]:
        """Looks at several frames, as look() would one by one, to rounding.

        batch: frames in one run of the network. On a CPU more than 1 helps small models only (benchmarks/batching.py says how much) and takes
        memory for each; it is meant for devices that one frame does not fill. A look's encode_low time is its share of the run's.
        """
        self._open()
        check_batch(batch)
        if not isinstance(frames, (list, tuple)) or not frames:
            raise InputError(f"[look] frames is {type(frames).__name__}; a list of at least one frame is needed. For one frame use look().")
        frames, found = [Frame.of(frame, format=format) for frame in frames], []
        for group in (frames[start:start + batch] for start in range(0, len(frames), batch)):
            timing = Timing()
            with timing.stage("encode_low"):
                seen = self._encode_low(group)
                features = self._score_features(group, np.concatenate([each[2] for each in seen]))
                rows = [self.language.low_rows(tokens) if self.language else None for tokens, _, _ in seen]
            share = timing.total_ms / len(group)
            found += [Look(self, frame, tokens, kv, *scored, Timing({"encode_low": share}), row)
                      for frame, (tokens, kv, _), scored, row in zip(group, seen, features, rows)]
        return found

    def encode_text(self, texts: str | list[str]) -> np.ndarray:
        """Contrastive features of texts, to compare with those of frames or with each other: (n, pooled_width) f32, length 1.

        Raises InputError: a bundle without a text tower, or anything but texts.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise InputError(f"[encode_prompt] texts is {texts!r}; a text or a list of texts is needed, none of them empty.")
        return np.stack([unit(prompt.pooled) for prompt in self.encode_prompts(texts)])

    def encode_frame(self, frame, prompt: str = "", *, tokens=None, looks=None, scales=None, format=None) -> np.ndarray:
        """The contrastive feature of what a prompt makes the model look at: (pooled_width,) f32, length 1. tokens=0: of the whole frame."""
        return self.pool(self.encode(frame, prompt, tokens=tokens, looks=looks, scales=scales, format=format))

    def close(self) -> None:
        """Free networks and unmap the bundle. A second call does nothing."""
        if not self._closed:
            self._closed = True
            self._networks, self._tables = {}, {}
            self.bundle.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Session({str(self.bundle.path)!r}, model={self.bundle.manifest['model']['name']!r}{', closed' if self._closed else ''})"

    # -- the stages -----------------------------------------------------------------------------------------------

    def encode_low(self, frame: Frame) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        """The whole frame at the lowest scale.

        Returns tokens (low-res tokens, width), K/V by input name of the next pass, features (1, low-res tokens, feature_width).
        """
        return self._encode_low([frame])[0]

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
        return Prompt(text, np.asarray(self._tables["prior_prompt"]), None, (note,))

    def score(self, look: Look, prompt: Prompt) -> np.ndarray:
        """(g, g) f32 in (0, 1): how much the prompt cares about each place of the frame."""
        self._open()
        return _core.score(look.low_features, look.view_features, prompt.vector, self._tables.get("view_prompt_weight"), self._tables.get("view_prompt_bias"))

    def select(self, prob: np.ndarray, scale_px: int, count: int, taken: np.ndarray, r: int = 1) -> np.ndarray:
        """The `count` best free patches of a scale as ascending int32 ids; ties go to the lower id; marks them taken. r > 1: whole r x r blocks."""
        n = scale_px // self.patch_px
        if r > 1:
            return select_blocks(prob, n, count, taken, r)
        return _core.select(prob, n, n, count, taken)

    def gather(self, frame: Frame, picks: dict[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Cut picked patches of all scales out of the frame: patches (n, 3 * patch * patch), position rows (n, width)."""
        self._open()
        patches = np.empty((sum(map(len, picks.values())), 3 * self.patch_px ** 2), np.float32)
        start = 0
        for px, ids in picks.items():
            self._patches(frame, px, self.patch_px, ids, patches[start:start + len(ids)])
            start += len(ids)
        position = np.concatenate([self._position(px, ids) for px, ids in picks.items()])
        if self._large_tables:
            self.bundle.release(TABLES)
        return patches, position

    def encode_high(self, patches: np.ndarray, position: np.ndarray, kv: dict[str, np.ndarray]) -> np.ndarray:
        """(n, width) f32 tokens of picked patches, which attend to the low-res keys and values and to each other."""
        return self.encode_high_many([patches], [position], [kv])[0]

    def encode_high_many(self, patches: list[np.ndarray], position: list[np.ndarray], kvs: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
        """encode_high of several, in one run where they have equally many patches."""
        if len({len(each) for each in patches}) > 1:
            return [self.encode_high(*one) for one in zip(patches, position, kvs)]
        if not len(patches[0]):
            return [np.empty((0, self.geometry["width"]), np.float32) for _ in patches]
        kv = kvs[0] if len(kvs) == 1 else {key: np.concatenate([each[key] for each in kvs]) for key in kvs[0]}
        return list(self._run("encode", self._encode_inputs(patches, position, kv, 0), ["tokens"])["tokens"])

    def pool(self, encoding: Encoding | np.ndarray) -> np.ndarray:
        """(pooled_width,) f32, length 1: attention pooling of tokens, (n, width), or of an encoding's high-res ones, its low-res ones where there are none."""
        if "pool" not in self._networks:
            raise InputError(f"[decode] {self.bundle.path} is a vision-language bundle, which has no pooled feature. Export a PS3 encoder for that.")
        seen = encoding
        if isinstance(encoding, Encoding):
            seen = encoding.high_tokens if len(encoding.high_tokens) else encoding.tokens
        return unit(self._run("pool", {"tokens": seen[None]}, ["pooled"])["pooled"][0])

    def rank(self, choices: list[str], encoding: Encoding, timing: Timing) -> list[Choice]:
        """Choices by cosine between their text feature and the pooled feature of what was seen."""
        if self._tokenizer is None:
            raise InputError(f"[decode] {self.bundle.path} has no text tower, so choices cannot be compared. Export the full PS3 checkpoint, not its vision part.")
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
        """What a budget comes to, per look and high-res scale. Default: one look, or what a vision-language bundle says."""
        if self.language and tokens is None and looks is None:
            tokens, looks = self.language.spec["num_tokens"], self.language.spec["num_looks"]
            looks = looks if tokens is None else None
        return budget.plan(self.geometry, tokens, looks, scales)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _load(self, name: str, runtime: str):
        if runtime not in RUNTIMES:
            raise BundleError(f"[session] {name} of {self.bundle.path} was built for the runtime {runtime!r}; this version runs {', '.join(RUNTIMES)}. Upgrade ps3_sdk.")
        return importlib.import_module(RUNTIMES[runtime]).load(self.bundle, name, self.threads, keep=name not in PASSING)

    def _open_language(self, model):
        if not self.bundle.manifest.get("language"):
            if model is not None:
                raise InputError(f"[session] {self.bundle.path} is an encoder, which needs no language_model. Export a VILA-HD checkpoint for answers in words.")
            return None
        from .language import Language     # here, because encoder bundles never need it
        from .language_model import checked
        return Language(self.bundle, self._networks, self._tables, None if model is None else checked(model))

    def _open(self) -> None:
        if self._closed:
            raise ClosedError(f"[session] the session of {self.bundle.path} is closed; open a new one: ps3_sdk.Session(...).")

    def _run(self, name: str, inputs, outputs):
        self._open()
        return self._networks[name].run(inputs, outputs)

    def _patches(self, frame: Frame, size_px: int, patch_px: int, ids: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        return _core.gather(frame.core, self.base_px, size_px, patch_px, ids, self.geometry["mean"], self.geometry["std"], self.threads, out)

    def _position(self, size_px: int, ids: np.ndarray) -> np.ndarray:
        g = self.geometry["position_grid"]
        return _core.position_rows(self._tables["position"], g, size_px // self.patch_px, ids, self._tables.get(f"position_residual_{size_px}"),
                                   self.geometry["position"] == "crop", self.threads)

    def _encode_low(self, frames: list[Frame]) -> list[tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]]:
        """What encode_low gives, for frames in one run."""
        px, depth, num = self.geometry["scales_px"][0], self.geometry["depth"], len(frames)
        ids = np.arange((px // self.patch_px) ** 2, dtype=np.int32)
        patches = [self._patches(frame, px, self.patch_px, ids) for frame in frames]
        inputs = self._encode_inputs(patches, [self._position(px, ids)] * num, self._no_past(num), len(ids))
        keys = [f"{kind}_{i}" for kind in ("key", "value") for i in range(depth)]
        out = self._run("encode", inputs, ["tokens", "features", *keys])
        part = lambda name, i: out[name] if num == 1 else out[name][i:i + 1].copy()     # a copy, so that one look does not keep the others' memory
        return [(part("tokens", i)[0], {f"past_{key}": part(key, i) for key in keys}, part("features", i)) for i in range(num)]

    def _no_past(self, batch: int = 1) -> dict[str, np.ndarray]:
        empty = np.empty((batch, self.geometry["heads"], 0, self.geometry["width"] // self.geometry["heads"]), np.float32)
        return {f"past_{kind}_{i}": empty for kind in ("key", "value") for i in range(self.geometry["depth"])}

    @staticmethod
    def _encode_inputs(patches, position, past, keep: int) -> dict[str, np.ndarray]:
        rows = {"patches": patches, "position": position}
        return {key: each[0][None] if len(each) == 1 else np.stack(each) for key, each in rows.items()} | {"keep": np.array([keep], np.int64), **past}

    def _score_features(self, frames: list[Frame], features: np.ndarray) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """What score() compares prompts with, for each frame: low_features, view_features. features: (frames, low-res tokens, feature_width)."""
        view_px, patch = self.geometry["view_px"], self.geometry["view_patch_px"]
        if view_px is None:
            return [(low, None) for low in self._run("score_features", {"features": features}, ["low_features"])["low_features"]]
        ids = np.arange((view_px // patch) ** 2, dtype=np.int32)
        view = [self._patches(frame, view_px, patch, ids) for frame in frames]
        out = self._run("score_features", {"features": features, "view": view[0][None] if len(view) == 1 else np.stack(view)}, ["low_features", "view_features"])
        return list(zip(out["low_features"], out["view_features"]))

    def _encode_texts(self, texts: list[str]) -> list[Prompt]:
        """Texts through the text tower, TEXTS_A_RUN at a time; they are kept."""
        if texts and self._tokenizer is None:
            raise InputError(f"[encode_prompt] {self.bundle.path} has no text tower, so it cannot read {texts[0][:40]!r}. "
                             f"Pass prompt_embedding=, a vector of {self.geometry['width']} floats, or an empty prompt for bottom-up.")
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
        return vector


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector at length 1."""
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def _notes(manifest: dict) -> tuple[str, ...]:
    """What every answer of a bundle says about its weights."""
    model, notes = manifest["model"], []
    if model["weights"] == "random":
        notes.append("this bundle's weights are random: what it picks and ranks means nothing")
    elif "non-commercial" in (model["licence"] or ""):
        notes.append(f"{LICENCE_NOTE}{model['licence']}")
    if caution := int8_caution(manifest):
        notes.append(caution)
    return tuple(notes)
