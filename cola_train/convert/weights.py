"""The files of weights in a folder, read one tensor at a time. No code in them runs.

safetensors, one file or several with an index; or what torch.save wrote, read with `weights_only`.
Files are mapped into memory: a tensor takes memory when it is read.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cola_train.checkpoint import tensor_file
from cola_train.errors import UserError
from cola_train.files import read_json

SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"  # beside several files: its weight_map says which has which tensor
DTYPES = {name: dtype for name, dtype in tensor_file.DTYPES.items() if dtype.is_floating_point}
AGAIN = "copy it anew"


@dataclass(frozen=True)
class Stored:
    """A tensor, by its file's header. dtype: its name, if it is none of DTYPES."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str


class File(Protocol):
    tensors: dict[str, Stored]

    def read(self, name: str) -> Tensor: ...


class SafetensorsFile:
    """Raises UserError if it is not whole."""

    def __init__(self, path: Path) -> None:
        _check_readable(path)
        try:
            self._file = safe_open(path, framework="pt")
            self.tensors = {name: self._stored(name) for name in self._file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path}: not whole, or not safetensors ({error}); {AGAIN}") from None

    def _stored(self, name: str) -> Stored:
        said = self._file.get_slice(name)
        return Stored(tuple(said.get_shape()), DTYPES.get(said.get_dtype(), said.get_dtype()))

    def read(self, name: str) -> Tensor:
        found: Tensor = self._file.get_tensor(name)
        return found


class TorchFile:
    """Raises UserError if it is not whole, or holds more than tensors."""

    def __init__(self, path: Path) -> None:
        _check_readable(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception:  # of zip files, of pickle, of torch, whose advice is to run what is there
            raise UserError(
                f"{path}: not whole, of a torch before 1.6, or more than weights, which is not "
                f"read: it could run code; {AGAIN}, or save its tensors as safetensors"
            ) from None
        if not isinstance(content, Mapping):
            raise UserError(f"{path}: holds no tensors by name; save the model's state_dict()")
        for name, value in content.items():
            plain = isinstance(value, Tensor) and value.layout == torch.strided
            if not isinstance(name, str) or not plain or value.is_meta:
                what = f"{path}: {name} is no plain tensor"
                raise UserError(f"{what}; save the model's state_dict() alone")
        self._content = content
        self.tensors = {name: self._stored(value) for name, value in content.items()}

    def _stored(self, value: Tensor) -> Stored:
        known = value.dtype in DTYPES.values()
        return Stored(tuple(value.shape), value.dtype if known else str(value.dtype))

    def read(self, name: str) -> Tensor:
        found: Tensor = self._content[name].detach()
        return found


class Weights:
    """All tensors of a folder by their names there; paths: the file of each."""

    def __init__(self, folder: Path) -> None:
        """Raises:
        UserError: there are none, or a file of them is missing, not whole or not safe.
        """
        self._files: dict[Path, File] = {}
        self.paths: dict[str, Path] = {}
        self.tensors: dict[str, Stored] = {}
        for path, names in _files(folder):
            file = self._files[path] = _open(path)
            if lacking := sorted(names - file.tensors.keys()):
                what = f"{path}: has no {lacking[0]}, which the index says that it has"
                raise UserError(f"{what}; {AGAIN}")
            for name, stored in file.tensors.items():
                if name in self.paths:
                    raise UserError(f"{path}: has {name}, and so has {self.paths[name]}; {AGAIN}")
                self.paths[name], self.tensors[name] = path, stored

    def read(self, name: str) -> Tensor:
        """A copy, or a view of the mapped file: not to be changed.

        Raises:
            UserError: it cannot be read.
        """
        path = self.paths[name]
        try:
            return self._files[path].read(name)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{path}: {name} cannot be read ({error}); {AGAIN}") from None


def _check_readable(path: Path) -> None:
    """safetensors and torch say of a file that may not be read that it is not there, or broken."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _open(path: Path) -> File:
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)


def _files(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """Files of weights, and the names that an index says each has."""
    for whole in (SAFETENSORS, TORCH):
        if (index := folder / f"{whole}{INDEX}").is_file():
            yield from _indexed(index)
            return
        if (folder / whole).is_file():
            yield folder / whole, set()
            return
    looked = f"{SAFETENSORS}, {TORCH} or one of them with {INDEX}"
    raise UserError(f"{folder}: no weights there; looked for {looked}")


def _indexed(index: Path) -> Iterator[tuple[Path, set[str]]]:
    files: dict[str, set[str]] = {}
    try:
        for name, file in read_json(index)["weight_map"].items():
            if not isinstance(file, str) or Path(file).name != file:
                raise ValueError(f"{file!r} is no file beside it")
            files.setdefault(file, set()).add(name)
    except OSError as error:
        raise UserError(f"{index}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: broken ({error!r}); {AGAIN}") from None
    for file, names in sorted(files.items()):
        path = index.parent / file
        if not os.path.isfile(path):  # nor if its name is none
            what = f"{path}: missing, with {len(names)} tensors, by {index.name}"
            raise UserError(f"{what}; the folder is not whole: {AGAIN}")
        yield path, names
