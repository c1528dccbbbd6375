"""A checkpoint's files: what they are, whether they are whole, which is the newest.

    step-00000100/
      rank-00000.safetensors …   what each process wrote, one entry for each shard
      tensors.json               which file holds which part of which tensor
      state.json                 everything that is not a tensor
      manifest.json              size and SHA-256 of the files above; step, metric, world size

Hidden folders beside it are being written (`.partial`) or deleted (`.removed`).
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cola_train import files
from cola_train.errors import UserError

FORMAT = 1
MANIFEST, STATE, TENSORS = "manifest.json", "state.json", "tensors.json"

# `.replaced` outlives only a crash in the middle of replacing a checkpoint of the same step.
NAME = re.compile(r"step-\d{8,}(\.replaced)?")


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    step: int
    metric: float | None
    world_size: int
    sequence: int  # one more than any beside it when it was saved: the newest has the highest
    files: dict[str, FileEntry]


def write_manifest(path: Path, manifest: Manifest) -> None:
    content = asdict(manifest)
    content |= {"checksum": _manifest_checksum(content), "format": FORMAT}
    write_file(path / MANIFEST, [json.dumps(content, indent=1).encode()])


def _manifest_checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """The manifest of checkpoint folder `path`; ValueError says what is wrong with it."""
    try:
        content = json.loads((path / MANIFEST).read_bytes())
        if content.pop("format") != FORMAT:
            raise ValueError("written in a format that this version does not know")
        if content.pop("checksum") != _manifest_checksum(content):
            raise ValueError("its checksum does not match its content")
        return Manifest(
            step=int(content["step"]),
            metric=None if content["metric"] is None else float(content["metric"]),
            world_size=int(content["world_size"]),
            sequence=int(content["sequence"]),
            files={name: FileEntry(**entry) for name, entry in content["files"].items()},
        )
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST}: missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{MANIFEST}: damaged ({error!r})") from None


def verify(path: Path, part: int = 0, parts: int = 1) -> list[str]:
    """What is wrong with checkpoint folder `path`, one line each; empty if it is good.

    Checks every file's presence, size and SHA-256 against the manifest, and that there are no
    others. Local. Processes share the work by each checking `part` of `parts` of the files.
    """
    if not path.is_dir():
        return ["no such folder"]
    try:
        manifest = read_manifest(path)
        found = {entry.name for entry in path.iterdir()}
    except (OSError, ValueError) as error:
        return [str(error)]
    problems = [f"{name}: not in the manifest" for name in {STATE, TENSORS} - set(manifest.files)]
    problems += [
        f"{name}: not part of the checkpoint, delete it"
        for name in sorted(found - set(manifest.files) - {MANIFEST})
    ]
    for name in sorted(manifest.files)[part::parts]:
        expected = manifest.files[name]
        try:
            if Path(name).name != name:
                raise ValueError("not a plain file name")
            size = (path / name).stat().st_size
            if size != expected.bytes:
                raise ValueError(f"{size} bytes instead of {expected.bytes}")
            with (path / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected.sha256:
                    raise ValueError("its SHA-256 is not the one in the manifest")
        except FileNotFoundError:
            problems.append(f"{name}: missing")
        except (OSError, ValueError) as error:
            problems.append(f"{name}: {error}")
    return problems


def read_json(path: Path) -> Any:
    """The content of a JSON file of a checkpoint. Raises UserError naming the file."""
    try:
        return files.read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); resume from another one") from None


def read_state(path: Path) -> dict[str, Any]:
    """The JSON state of checkpoint folder `path`, without its tensors. Raises UserError."""
    return dict(read_json(path / STATE))


def tensor_names(path: Path) -> list[str]:
    """Of the tensors of checkpoint folder `path`. Raises UserError."""
    return list(read_json(path / TENSORS))


def newest_first(folder: Path) -> list[tuple[Path, Manifest | None]]:
    """The checkpoints in `folder`, the one saved last first.

    Those with an unreadable manifest (None) lead, so that a search names them.
    """
    found: list[tuple[Path, Manifest | None]] = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if NAME.fullmatch(path.name):
            try:
                found.append((path, read_manifest(path)))
            except ValueError:
                found.append((path, None))

    def age(checkpoint: tuple[Path, Manifest | None]) -> tuple[bool, int, str]:
        path, manifest = checkpoint
        return manifest is None, manifest.sequence if manifest else 0, path.name

    return sorted(found, key=age, reverse=True)


def first_few(items: Sequence[str], separator: str = ", ", limit: int = 3) -> str:
    more = [f"and {len(items) - limit} more"] if len(items) > limit else []
    return separator.join([*items[:limit], *more])


def write_file(path: Path, pieces: Iterable[Any]) -> FileEntry:
    """Write bytes-like `pieces` to `path`, through to the disk, with their checksum."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for piece in pieces:
            digest.update(piece)
            size += file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(size, digest.hexdigest())


def remove(path: Path) -> None:
    """Delete a folder, hiding it first: a checkpoint that is half deleted is never seen."""
    hidden = path.with_name(f".{path.name.lstrip('.')}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Delete what a crash left in `folder`, or what an earlier process is still writing there."""
    for path in folder.glob(".step-*"):
        if path.suffix == ".removed":
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                remove(path)
