"""Session: an open bundle and the stages it runs. Session().ask(frame, prompt) is the main job."""
from __future__ import annotations

import importlib
import os
import threading
import warnings
import weakref
from collections import OrderedDict
from pathlib import Path

import numpy as np

from .answer import Answer, Timing
from .ask import ask_together
from .bundle import Bundle
from .datasheet import int8_caution
from .encoding import Encoding, check_batch
from .errors import BundleError, InputError, RuntimeFailedError, RuntimeMissingError
from .frame import Frame
from .look import Look
from .manifest import ENGINES, TABLES
from .ops import DeviceOps, HostOps
from .prompt import Prompt, PromptTokenizer
from .stages import Stages, unit

DEFAULT_BUNDLE = Path(__file__).parent / "assets" / "default.plan"
RUNTIMES = {"onnxruntime": "ps3_sdk.runtimes.ort", "tensorrt": "ps3_sdk.runtimes.trt",      # manifest's word -> adapter module, imported when needed
            "tensorrt-rtx": "ps3_sdk.runtimes.trt_rtx"}
MOST_THREADS = 1024     # of each network: far beyond what helps, and short of what a system gives
DEVICES, ON_GPU = ("cpu", "cuda"), "ps3_sdk.runtimes.ort_cuda"
_INHERITED: list = []      # networks of sessions that a forked process got from its parent: their threads are not there, and the end of a network would wait for them
PASSING = ("score_features", "encode_prompt")           # run once per frame or text: large ones are in memory only while they run
LICENCE_NOTE = "licence of the weights: "
LARGE_BYTES = 64 << 20      # of tables, from where their pages are worth giving back


class Session(Stages):
    """An engine.plan, ready to be asked.

    Args:
        bundle: path of an engine.plan; default: the one embedded in the package.
        threads: CPU threads for networks and ops; 0 takes all cores.
        verify: compare every byte with the hashes in the manifest first (about one second for 1.6 GB).
        device: of ONNX bundles, "cpu" (default) or "cuda", which needs onnxruntime-gpu in place of onnxruntime (README); TensorRT engines run on a GPU anyway. Where networks run on a
            GPU, score and gather do so too if the core has kernels (`ops.where` says "cuda"); frames of the GPU are then read in place.
        stream: of networks on a GPU, the CUDA stream to run on, as an integer handle (torch.cuda.Stream().cuda_stream); default: one of its own.
        kernel_cache: of TensorRT-RTX engines, a folder where kernels that were finished on this GPU are kept when the session is closed or the process ends by itself, so that
            the next one need not finish them. They are code that the GPU runs: choose a folder that only you can write.
        language_model: of a vision-language bundle, used instead of its own network, which is not loaded then; see language_model.py.
    Raises:
        BundleError: the file is missing, damaged or not a bundle. RuntimeMissingError: its runtime is not installed.

    A session may be used from several threads at once. Close it, or use it in a `with` block. Opening weights that are for
    non-commercial use alone says so in a UserWarning; `notes`, which every answer carries, say it too.
    """

    def __init__(self, bundle: str | Path | None = None, *, threads: int = 0, verify: bool = True, device: str | None = None, stream: int | None = None, kernel_cache: str | Path | None = None,
                 language_model=None):
        if isinstance(threads, bool) or not isinstance(threads, int) or not 0 <= threads <= MOST_THREADS:
            raise InputError(f"[session] threads is {threads!r}; it must be a whole number, 0 (all cores) to {MOST_THREADS}.")
        if device not in (None, *DEVICES):
            raise InputError(f"[session] device is {device!r}; {' or '.join(map(repr, DEVICES))} is needed.")
        self.threads, self._device, self._stream, self._kernel_cache = threads, device, stream, kernel_cache
        self._networks, self._tables, self.ops, self._pid = {}, {}, None, os.getpid()
        self.bundle = Bundle.open(bundle if bundle is not None else DEFAULT_BUNDLE, verify=verify)
        try:
            manifest = self.bundle.manifest
            engines = [name for name, entry in manifest["networks"].items() if entry["runtime"] in ENGINES]
            if stream is not None and not engines and device != "cuda":
                raise InputError(f"[session] a stream was given; {self.bundle.path} has no engine that runs on one. Leave it out, pass device=\"cuda\", or build one: ps3 build.")
            if device == "cpu" and engines:
                raise InputError(f"[session] device is 'cpu'; {engines[0]} of {self.bundle.path} is a TensorRT engine, which runs on a GPU alone. Open an ONNX bundle.")
            if kernel_cache is not None and not any(manifest["networks"][name]["runtime"] == "tensorrt-rtx" for name in engines):
                raise InputError(f"[session] kernel_cache was given; {self.bundle.path} has no engine of TensorRT-RTX, which alone finishes kernels where it runs. Leave it out.")
            self.geometry = manifest["geometry"]
            self.patch_px, self.base_px = self.geometry["patch_px"], self.geometry["scales_px"][-1]
            self.notes = _notes(manifest)
            self._tables = self.bundle.tensors(TABLES)
            self._large_tables = self.bundle.members[TABLES] > LARGE_BYTES
            self.ops = self._choose_ops()
            elsewhere = {"decode"} if language_model is not None else set()
            for name, entry in manifest["networks"].items():
                if name not in elsewhere:
                    self._networks[name] = self._load(name, entry["runtime"])
            self._tokenizer = PromptTokenizer(self.bundle) if manifest["text"] else None
            self.language = self._open_language(language_model)
        except BaseException:
            self._let_go()
            raise
        self._prompts: OrderedDict[str, Prompt] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        # memory of a GPU is given back, and kernels are kept, also when nobody closes the session
        self._forgotten = weakref.finalize(self, _end, self._pid, [*self._networks.values(), self.ops])
        for note in self.notes:
            if note.startswith(LICENCE_NOTE):
                warnings.warn(f"{Path(self.bundle.path).name}: {note}", stacklevel=2)     # Python shows an equal warning from one place once

    # -- what users call ------------------------------------------------------------------------------------------

    def ask(self, frame, prompt: str = "", *, prompt_embedding=None, tokens: int | None = None, looks: int | str | None = None,
            scales: int | None = None, choices: list[str] | None = None, rule: str | None = None, selection: str | None = None, smooth: bool = False,
            look_again: float | None = None, max_tokens: int | None = None, sampling=None, cancel=None, on_text=None, format: str | None = None) -> Answer:
        """Look at a frame and answer one question about it.

        Args:
            frame: whatever Frame.of takes: uint8 array, PIL image, path, encoded bytes, DLPack tensor, Frame.
            prompt: what to look for; of an encoder, empty means bottom-up, by saliency alone. A language model reads an empty prompt as it is.
            prompt_embedding: (width,) f32 instead of a text, e.g. for bundles without a text tower.
            tokens: high-res patches to encode; 0 is the low-res pass alone, more than there are is clamped and noted. Default: what the bundle says
                (`ps3 info`), of encoders one look. A bundle that looks around the most probable place spends twice its default and more on further
                places, one after another, until it finds what was asked; so most answers cost no more, and "all" is
                not every patch (with selection="top_down" it is).
            looks: instead of tokens, how many full looks of the model, or "all".
            scales: look only at the first high-res scales.
            choices: texts to rank by contrast with what was seen (encoder bundles).
            rule: "patches" selects one by one, as PS3 does; "blocks" only whole blocks that a language model reads. Default:
                blocks where that is but a choice among equally probable patches, else patches. Encoder bundles know patches only.
            selection: "top_down" picks patches by the prompt, "bottom_up" by saliency, whatever the prompt (the public model's
                look_close_mode after_prompt and after_image). Default: by the prompt, by saliency where an encoder's is empty or the model knows no other
                way; and around the most probable place first where the bundle was trained so (language.look_around), as the embedded one is.
            smooth: average the probabilities over 6 x 6 areas of the frame before picking (the public model's smooth_selection_prob).
            look_again: an answer less sure than this is looked for again, in the frame without a few rows and columns at its edges, where characters lie otherwise in
                patches. What is answered then is given if it is a value with more confidence, the other answer is its `other`, and on_text gets the text when both are known. 0: never, 1: always.
                Default: what the bundle says of its own language model (the embedded one: 0.8), never where tokens, looks, scales, selection, choices or sampling is given.
            max_tokens, sampling, cancel, on_text: of the answer's text (vision-language bundles; of others a note says that none comes): tokens at most, default what the bundle says; a
                ps3_sdk.Sampling, default greedy; a threading.Event or function that stops it; a function that is given each
                piece of text as soon as it is certain.
            format: pixel format of an array, e.g. "BGR" for OpenCV frames, "NV12" or "YUYV" for cameras.
        Returns:
            Answer: ranked regions in frame pixels, what was picked, milliseconds per stage, choices when given.
        Raises:
            InputError for a frame, prompt or budget that can't be used; ClosedError after close().
        """
        return self.look(frame, format=format).ask(prompt, prompt_embedding=prompt_embedding, tokens=tokens, looks=looks, scales=scales, choices=choices, rule=rule,
                                                   selection=selection, smooth=smooth, look_again=look_again, max_tokens=max_tokens, sampling=sampling, cancel=cancel, on_text=on_text)

    def ask_frames(self, frames: list, prompt: str = "", *, format: str | None = None, batch: int = 1, **options) -> list[Answer]:
        """One question about several frames, answers in their order; options as in ask(), batch as in look_many().

        A vision-language bundle reads all frames in this order, then the prompt, and gives one text that every answer carries; an
        encoder is asked about each frame by itself. Frames may be Looks of this session. Budgets are per frame. Several frames are not looked at again (look_again).
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

        batch: frames in one run of the network. On two CPU cores 2 to 4 gained a tenth to a third (benchmarks/batching.py measures it) and
        take memory for each; it is meant for devices that one frame does not fill. A look's encode_low time is its share of the run's.
        """
        with self.running():
            check_batch(batch)
            if not isinstance(frames, (list, tuple)) or not frames:
                raise InputError(f"[look] frames is {type(frames).__name__}; a list of at least one frame is needed. For one frame use look().")
            frames, found = [Frame.of(frame, format=format) for frame in frames], []
            for group in (frames[start:start + batch] for start in range(0, len(frames), batch)):
                timing = Timing()
                with timing.stage("encode_low"):
                    placed = self.ops.placed(group)
                    patches, *view = self._whole(placed)
                    seen, features = self._encode_low(patches)
                    scores = self._score_features(features, *view)
                    rows = [self.language.low_rows(tokens) if self.language else None for tokens, _ in seen]
                share = timing.total_ms / len(group)
                found += [Look(self, frame, tokens, kv, *scored, Timing({"encode_low": share}), row, placed=there)
                          for frame, there, (tokens, kv), scored, row in zip(group, placed, seen, scores, rows)]
            return found

    def encode_text(self, texts: str | list[str]) -> np.ndarray:
        """Contrastive features of texts, to compare with those of frames or with each other: (n, pooled_width) f32, length 1.

        Raises InputError: a bundle without a text tower, or anything but texts.
        """
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise InputError(f"[encode_prompt] texts is {texts!r}; a text or a list of texts is needed, none of them empty.")
        return np.stack([unit(prompt.pooled) for prompt in self.encode_prompts(texts)])

    def encode_frame(self, frame, prompt: str = "", *, tokens=None, looks=None, scales=None, format=None) -> np.ndarray:
        """The contrastive feature of what a prompt makes the model look at: (pooled_width,) f32, length 1. tokens=0: of the whole frame."""
        self.check_pooled(self.budget(tokens, looks, scales).num_patches)
        return self.pool(self.encode(frame, prompt, tokens=tokens, looks=looks, scales=scales, format=format))

    def close(self) -> None:
        """Free networks and unmap the bundle. A second call does nothing."""
        if not self._closed:
            self._closed = True
            self._forgotten.detach()
            if self._pid == os.getpid():
                self._let_go()
            else:
                _INHERITED.append(self._networks)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Session({str(self.bundle.path)!r}, model={self.bundle.manifest['model']['name']!r}{', closed' if self._closed else ''})"

    # -- inside ---------------------------------------------------------------------------------------------------

    def _load(self, name: str, runtime: str):
        if runtime not in RUNTIMES:
            raise BundleError(f"[session] {name} of {self.bundle.path} was built for the runtime {runtime!r}; this version runs {', '.join(RUNTIMES)}. Upgrade ps3_sdk.")
        adapter = ON_GPU if runtime not in ENGINES and self._device == "cuda" else RUNTIMES[runtime]
        options = {"stream": self._stream, "stays": self.ops.stays.get(name, ())} if runtime in ENGINES or adapter == ON_GPU else {}
        if self._kernel_cache is not None and runtime == "tensorrt-rtx":
            options["kernel_cache"] = self._kernel_cache
        return importlib.import_module(adapter).load(self.bundle, name, self.threads, keep=name not in PASSING, **options)

    def _choose_ops(self) -> HostOps | DeviceOps:
        """On the GPU where the networks run there and the core has kernels; their own adapter says what is missing for the networks."""
        if self._device != "cuda" and self.bundle.manifest["networks"]["encode"]["runtime"] not in ENGINES:
            return HostOps(self.geometry, self._tables, self.threads)
        try:
            made = DeviceOps(self.geometry, self._tables, self._stream, self.threads)
        except (RuntimeMissingError, RuntimeFailedError) as error:
            return HostOps(self.geometry, self._tables, self.threads, f"kernels cannot be used ({error})")
        if self._large_tables:
            self.bundle.release(TABLES)
            self._large_tables = False
        return made

    def _let_go(self) -> None:
        try:
            _close_each([*self._networks.values(), self.ops])       # memory of a device is given back now, not when it is forgotten
        finally:
            if getattr(self, "language", None) is not None:
                self.language.close()
            self._networks, self._tables = {}, {}
            self.bundle.close()

    def _open_language(self, model):
        if not self.bundle.manifest.get("language"):
            if model is not None:
                raise InputError(f"[session] {self.bundle.path} is an encoder, which needs no language_model. Export a VILA-HD checkpoint for answers in words.")
            return None
        from .language import Language     # here, because encoder bundles never need it
        from .language_model import checked
        return Language(self.bundle, self._networks, self._tables, None if model is None else checked(model))


def _end(pid: int, parts: list) -> None:
    """Close the parts of a session of process `pid`."""
    if pid == os.getpid():
        _close_each(parts)
    else:
        _INHERITED.append(parts)


def _close_each(parts: list) -> None:
    """Close all of them, then raise what the first that failed did."""
    if parts:
        try:
            getattr(parts[0], "close", lambda: None)()
        finally:
            _close_each(parts[1:])


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
