"""One split of a prepared folder, memory-mapped: a stream of tokens, and documents within it."""

import functools
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from cola_train.data.locks import reading
from cola_train.data.shards import ArrayFile, Shard, read_manifest, token_dtype
from cola_train.errors import UserError

# Mapped at once: each holds a file descriptor, of which a process often has 1,024.
OPEN_FILES = 256


class TokenDataset:
    """The tokens of all shards of a split as one array, read where asked.

    n_tokens, n_documents: of the split, end-of-document tokens included.
    bytes_of_text: UTF-8 bytes of its text before tokenising.
    vocab_size, eos_id: of the tokenizer that made it.
    fingerprint: a hash of its content; equal fingerprints mean equal tokens.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self._in_use = reading(folder)  # before anything is read
        manifest = read_manifest(folder)
        if not manifest["splits"][split]["shards"]:
            raise UserError(f"{folder}: no {split} split in its manifest: run cola-prepare again")
        values = manifest["splits"][split]
        self.folder, self.split = folder, split
        self.vocab_size: int = manifest["vocab_size"]
        self.eos_id: int = manifest["eos_id"]
        self.fingerprint: str = values["fingerprint"]
        self.bytes_of_text: int = values["bytes_of_text"]
        self._shards = [Shard.from_json(shard) for shard in values["shards"]]
        self._first_token = _starts(shard.n_tokens for shard in self._shards)
        self._first_document = _starts(shard.n_documents for shard in self._shards)
        self.n_tokens = int(self._first_token[-1])
        self.n_documents = int(self._first_document[-1])
        self._dtype = token_dtype(self.vocab_size)
        self._map: Callable[[ArrayFile], np.ndarray] = functools.lru_cache(OPEN_FILES)(
            self._open_array
        )
        self._check(lambda file: file.problem(folder))
        self._map(self._shards[0].tokens)
        self._map(self._shards[0].documents)

    @classmethod
    def open(cls, folder: Path, split: str) -> "TokenDataset":
        """Open a split and check the sizes of its files.

        Raises:
            UserError: naming each file that is missing, unreadable or cut short, and the fix.
        """
        return cls(Path(folder), split)

    def verify(self, part: int = 0, parts: int = 1) -> None:
        """Read everything and compare the checksums; processes share the work by each doing `part`
        of `parts` of the shards. Raises UserError naming the bad files."""

        def problem(file: ArrayFile) -> str | None:
            digest = hashlib.sha256(self._open_array(file).data).hexdigest()
            return None if digest == file.sha256 else "its checksum differs"

        self._check(problem, self._shards[part::parts])

    def window(self, start: int, length: int) -> np.ndarray:
        """tokens[start : start + length] of the split, (length,) in the shards' dtype."""
        if start < 0 or start + length > self.n_tokens:
            raise IndexError(f"window {start}..{start + length} of {self.n_tokens} tokens")
        shard = _find(self._first_token, start)
        pieces = []
        while length > 0:
            offset = start - int(self._first_token[shard])
            piece = self._map(self._shards[shard].tokens)[offset : offset + length]
            pieces.append(piece)
            start += piece.size
            length -= piece.size
            shard += 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def document(self, index: int, longest: int | None = None) -> np.ndarray:
        """The tokens of one document, eos last; only the first `longest` of them if given."""
        if not 0 <= index < self.n_documents:
            raise IndexError(f"document {index} of {self.n_documents}")
        shard = _find(self._first_document, index)
        within = index - int(self._first_document[shard])
        start, end = self._map(self._shards[shard].documents)[within : within + 2].tolist()
        if longest is not None:
            end = min(end, start + longest)
        return self._map(self._shards[shard].tokens)[start:end]

    def document_lengths(self) -> np.ndarray:
        """Tokens of each document, eos included: (n_documents,) int64."""
        lengths = [np.diff(self._map(shard.documents)) for shard in self._shards]
        return np.concatenate(lengths).astype(np.int64)

    def _open_array(self, file: ArrayFile) -> np.ndarray:
        try:
            array = np.load(self.folder / file.name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(self._message(file, str(error))) from error
        dtype = self._dtype if file.name.endswith(".tokens.npy") else np.dtype("<u8")
        if array.shape != (file.items,) or array.dtype != dtype:
            found = f"it holds {array.dtype}{list(array.shape)}, not {dtype}[{file.items}]"
            raise UserError(self._message(file, found))
        return array

    def _check(
        self, problem: Callable[[ArrayFile], str | None], shards: list[Shard] | None = None
    ) -> None:
        found = [
            self._message(file, reason)
            for shard in (self._shards if shards is None else shards)
            for file in shard.files
            if (reason := problem(file)) is not None
        ]
        if found:
            raise UserError(*found)

    def _message(self, file: ArrayFile, reason: str) -> str:
        return (
            f"{self.folder / file.name}: unreadable shard ({reason}): delete it and run "
            "cola-prepare again with the settings that made it, or copy it anew"
        )


def _starts(counts: Iterable[int]) -> np.ndarray:
    """Running sums from 0: (n + 1,) int64."""
    return np.concatenate([[0], np.cumsum(list(counts), dtype=np.int64)])


def _find(starts: np.ndarray, position: int) -> int:
    """The shard that holds a position."""
    return int(np.searchsorted(starts, position, side="right")) - 1
