"""A checkpoint's weights: safetensors in one file or in shards, read one tensor at a time.

Parameter names are the checkpoint's own, so the one table of keys and shapes is the model itself, built without storage
from the configuration (`expected_shapes`). Every key that is missing, unknown or misshapen is reported, by name, at once.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Iterator, Sequence

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ps3_sdk.errors import ExportError
from ps3_sdk.tensors import from_bfloat16

from .reference.config import Ps3Config

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = ("F32", "F16", "BF16")
READ_AS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}     # numpy has no bfloat16
_PIECE = 1 << 22         # values read at a time, so that a half-precision tensor is never there twice
OPTIONAL = {"logit_scale": (), "logit_bias": ()}
"""Keys a checkpoint may add: temperature (as its logarithm) and bias of the contrast between picture and text."""
_HUB_FILES = ["*.json", "*.safetensors", "*.md", "LICENSE*", "*.model", "*.txt"]


class Checkpoint:
    """Names, shapes and lazily read tensors of a checkpoint folder.

    folder: where its files are | source: what was opened, folder or hub id | revision: the hub commit, None for folders.
    """

    def __init__(self, folder: Path, source: str, revision: str | None = None):
        """Raises ExportError: see open."""
        self.folder, self.source, self.revision = folder, source, revision
        self._places: dict[str, tuple[Path, int]] = {}      # key -> file, first byte in it
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        listed = _shards(folder)
        for path in sorted(set(listed.values())) if listed else [folder / SINGLE]:
            self._add(path)
        if listed:
            self._compare_with_index(listed)

    @classmethod
    def open(cls, path: str | Path, revision: str | None = None) -> "Checkpoint":
        """A folder as Hugging Face lays it out, or a hub id such as nvidia/PS3-4K-SigLIP2 (needs huggingface_hub).

        model.safetensors is preferred to shards when both are there. Reads headers only.
        Raises ExportError: no such folder, no or missing or broken safetensors files, a dtype other than f32, f16, bf16,
            or the hub refuses.
        """
        return cls(*locate(path, revision))

    def keys(self) -> list[str]:
        return sorted(self._shapes)

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        self._known(name)
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        """F32, F16 or BF16."""
        self._known(name)
        return self._dtypes[name]

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`, read now, as f32."""
        return torch.from_numpy(self.array(name))

    def array(self, name: str) -> np.ndarray:
        """The same as a numpy array. It is read into memory of its own, not mapped, so that its memory ends with it."""
        self._known(name)
        out = np.empty(self._shapes[name], np.float32)
        flat = out.reshape(-1)
        for at in range(0, out.size, _PIECE):
            flat[at:at + _PIECE] = widened(self._read(name, at, min(_PIECE, out.size - at)))
        return out

    def rows(self, name: str, num_rows: int) -> Iterator[np.ndarray]:
        """A tensor from its first row to its last, num_rows (the last time fewer) at a time, as f32."""
        self._known(name)
        (total, *rest), width = self._shapes[name], int(np.prod(self._shapes[name][1:]))
        for at in range(0, total, num_rows):
            count = min(num_rows, total - at)
            yield np.asarray(widened(self._read(name, at * width, count * width)), np.float32).reshape(count, *rest)

    def stored(self, name: str, num_rows: int) -> np.ndarray:
        """The first rows as they are in the file: float32, float16, or bfloat16 by its bits as uint16."""
        self._known(name)
        shape = num_rows, *self._shapes[name][1:]
        return self._read(name, 0, int(np.prod(shape))).reshape(shape)

    def _read(self, name: str, start: int, count: int) -> np.ndarray:
        (path, first), dtype = self._places[name], READ_AS[self._dtypes[name]]
        try:
            found = np.fromfile(path, dtype, count, offset=first + start * dtype.itemsize)
            if len(found) < count:
                raise OSError("the file ends early")
        except OSError as error:
            raise ExportError(f"[weights] {name} of {path} cannot be read ({error}); the file was there a moment ago. Check the disk.") from error
        return found

    def check(self, expected: dict[str, tuple[int, ...]], optional: dict[str, tuple[int, ...]] | None = None) -> None:
        """Raises ExportError naming every key that is missing, unknown or of another shape than expected."""
        optional = OPTIONAL if optional is None else optional
        allowed = {**optional, **expected}
        problems = [f"{key} is missing" for key in sorted(set(expected) - set(self._shapes))]
        problems += [f"{key} is unknown" for key in sorted(set(self._shapes) - set(allowed))]
        problems += [f"{key} has shape {list(self._shapes[key])} and must have {list(shape)}" for key, shape in sorted(allowed.items())
                     if key in self._shapes and self._shapes[key] != shape and not (shape == () and self._shapes[key] == (1,))]
        if problems:
            lines = "\n  ".join(problems)
            raise ExportError(f"[weights] {self.source}: {len(problems)} keys do not fit the model that config.json describes:\n  {lines}\n"
                              "Use the config.json that came with these weights, or download both again.")

    def _known(self, name: str) -> None:
        if name not in self._shapes:
            raise ExportError(f"[weights] {self.source} has no tensor {name}; its keys are listed by Checkpoint.keys(). Check the name.")

    def _add(self, path: Path) -> None:
        if not path.is_file():
            other = " It holds pytorch_model.bin, which can run code when read; convert it with safetensors." if (path.parent / "pytorch_model.bin").exists() else ""
            raise ExportError(f"[weights] {path} does not exist; {SINGLE} or {INDEX} with its shards is needed.{other} Pass the checkpoint's folder.")
        try:
            with safe_open(path, framework="numpy") as file:        # checks that header and size fit together
                found = {key: (tuple((view := file.get_slice(key)).get_shape()), view.get_dtype()) for key in file.keys()}
            with open(path, "rb") as raw:
                length = int.from_bytes(raw.read(8), "little")
                header = json.loads(raw.read(length))
        except (SafetensorError, OSError) as error:
            raise ExportError(f"[weights] {path} is not a safetensors file ({error}); the file as published is needed. "
                              "Download it again (a Git LFS pointer is not the file).") from error
        for key, (shape, dtype) in found.items():
            if key in self._shapes:
                raise ExportError(f"[weights] {key} is in {path.name} and in another shard; each key belongs in one. Download the shards again.")
            self._places[key] = path, 8 + length + header[key]["data_offsets"][0]
            self._shapes[key], self._dtypes[key] = shape, dtype
            if self._dtypes[key] not in DTYPES:
                raise ExportError(f"[weights] {key} of {path.name} is {self._dtypes[key]}; {', '.join(DTYPES)} can be read. Use unquantised weights.")

    def _compare_with_index(self, listed: dict[str, Path]) -> None:
        problems = [f"{key} is listed and in no shard" for key in sorted(set(listed) - set(self._shapes))]
        problems += [f"{key} is in a shard and not listed" for key in sorted(set(self._shapes) - set(listed))]
        if problems:
            lines = "\n  ".join(problems)
            raise ExportError(f"[weights] {INDEX} of {self.source} does not fit its shards:\n  {lines}\nDownload the index and the shards again.")


def widened(values: np.ndarray) -> np.ndarray:
    """f32 of f32, f16, or bfloat16 given by its bits as uint16: those are the upper half of f32's."""
    return from_bfloat16(values) if values.dtype == np.uint16 else values


def expected_shapes(config: Ps3Config) -> dict[str, tuple[int, ...]]:
    """Every key a checkpoint of this configuration has, and its shape."""
    from .reference.model import Ps3Model
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in Ps3Model(config).state_dict().items()}


def load_into(model: nn.Module, checkpoint: Checkpoint, optional: dict[str, tuple[int, ...]] | None = None) -> None:
    """Make the checkpoint's tensors the parameters of a model (usually built on torch's meta device), after checking all keys.

    optional: keys the checkpoint may hold besides, default OPTIONAL; they are not read.
    """
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    checkpoint.check(expected, optional)
    model.load_state_dict({key: checkpoint.tensor(key) for key in expected}, assign=True)


def locate(path: str | Path, revision: str | None = None, files: Sequence[str] = _HUB_FILES) -> tuple[Path, str, str | None]:
    """A checkpoint's folder, what to call it, and the hub commit (None for folders). files: patterns of what is fetched of a hub id.

    Raises ExportError: a revision of a folder; and see Checkpoint.open.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ExportError(f"[weights] the revision {revision} was given, and {path} is a folder, which has none; a hub id owner/name has. Leave it out.")
        return folder, str(path), None
    parts = str(path).split("/")
    if len(parts) != 2 or not all(parts) or str(path).startswith((".", "~")):
        raise ExportError(f"[weights] {path} is no file or folder here; an engine.plan, a checkpoint folder or a hub id owner/name is needed. Check the path.")
    return _download(str(path), revision, files)


def _shards(folder: Path) -> dict[str, Path]:
    """key -> file as the index lists them; empty for a checkpoint of one file."""
    index = folder / INDEX
    if (folder / SINGLE).exists() or not index.exists():
        return {}
    try:
        listed = json.loads(index.read_text("utf-8"))["weight_map"]
        names = set(listed.values())
        inside = all(isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors") for name in names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise ExportError(f"[weights] {index} cannot be read ({type(error).__name__}: {error}); a JSON object with weight_map is needed. Download it again.") from error
    if not inside or not names:
        raise ExportError(f"[weights] weight_map of {index} names files that are not .safetensors of its own folder; plain file names are needed. Download it again.")
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise ExportError(f"[weights] {folder} lacks {', '.join(missing)}, listed in {INDEX}; every shard is needed. Download the missing files.")
    return {key: folder / name for key, name in listed.items()}


def _download(name: str, revision: str | None, files: Sequence[str]) -> tuple[Path, str, str]:
    """Fetch files of a hub repository into the local cache: folder, name, commit."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
    except ImportError as error:
        raise ExportError(f"[weights] {name} is no folder here, so it is taken for a hub id, which needs huggingface_hub. "
                          "Install it: pip install 'ps3-sdk[export]', or pass a folder.") from error
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except GatedRepoError as error:
        raise ExportError(f"[weights] {name} asks for consent to its licence; an account that has given it is needed. "
                          f"Accept it at https://huggingface.co/{name}, then log in: hf auth login.") from error
    except RevisionNotFoundError as error:
        raise ExportError(f"[weights] {name} has no revision {revision}; a branch, tag or commit is needed. Check it at https://huggingface.co/{name}.") from error
    except RepositoryNotFoundError as error:
        raise ExportError(f"[weights] {name} is neither a folder here nor a repository you can see on the hub. Check the name, or log in: hf auth login.") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise ExportError(f"[weights] {name} cannot be fetched from the hub ({error}); a network or a local copy is needed. "
                          "Download it elsewhere and pass the folder.") from error
    return folder, name, folder.name
