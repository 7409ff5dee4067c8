"""What a frozen teacher says of training rows: computed once, kept on disk, shared by all steps, epochs and runs with that teacher.

Kept are its final hidden states, float32, at the positions where the softmax has a choice: exact for every loss and temperature, and a small part of
their logits. They lie in shards, safetensors files of some rows each that are whole or absent, under a hash of all that they depend on. They are read
through memory maps, row by row.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from recbole_prunerec import __version__
from recbole_prunerec.backbone.family import model_hash
from recbole_prunerec.backbone.forward import answer_states
from recbole_prunerec.backbone.softmax import IGNORE, Softmax, Vocabulary
from recbole_prunerec.data.samples import choose_rows
from recbole_prunerec.distributed import barrier, by_first, share
from recbole_prunerec.errors import UserError
from recbole_prunerec.storage import hash_of, write_bytes
from recbole_prunerec.text.packing import Key, Rows, collate, micro_batches
from recbole_prunerec.text.prompts import Example
from recbole_prunerec.validation.on_disk import disk_problems

SHARD_BYTES, SHARD_SECONDS = 2**25, 60.0  # a shard is written when it has so much, or has taken so long
SAMPLED = 100  # rows by which the size of all is told
TAKEN = 512  # rows that are in memory at once, to be put together by length
ABANDONED = 3600.0  # seconds after which a file that was never finished is swept away
DIGEST = "S16"

logger = logging.getLogger(__name__)


class _Shard(NamedTuple):
    digests: np.ndarray  # (row,) of DIGEST
    ends: np.ndarray  # (row,) where each row's states end
    states: Tensor  # (answer, hidden), mapped into memory
    fill: str  # a hash of all rows that were asked for when it was written


class TeacherCache:
    """The hidden states of one teacher for one softmax, in a folder `teacher-<hash>` of `root`.

    `made_of` are the hashes of what the prefix tree depends on. `tokens_at_once`, padding by `pad_id` included, go through the teacher, which must be
    in evaluation mode, under bfloat16 autocast if `bfloat16`.
    """

    def __init__(
        self,
        root: Path,
        teacher: PreTrainedModel,
        softmax: Softmax,
        made_of: Mapping[str, str],
        pad_id: int,
        tokens_at_once: int,
        bfloat16: bool,
    ) -> None:
        self._teacher, self._softmax, self._pad_id, self._tokens, self._bfloat16 = teacher, softmax, pad_id, tokens_at_once, bfloat16
        over = {} if isinstance(softmax, Vocabulary) else dict(made_of)  # the vocabulary's needs no tree
        self._key = hash_of([model_hash(teacher), over, bfloat16, __version__])
        self.folder = root / f"teacher-{self._key[:16]}"
        self._shards: dict[str, _Shard] = {}
        self._index()
        for path in self.folder.glob(".*.partial"):  # of a process that was killed, not of one that works here now
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink(missing_ok=True)

    def announce(self, wanted: Sequence[tuple[Rows, Collection[Key]]]) -> None:
        """Say in the log what the states of these rows will take. Raises `UserError` where the disk has less room."""
        by_first(lambda: self._announce(wanted))

    def _announce(self, wanted: Sequence[tuple[Rows, Collection[Key]]]) -> None:
        wanted_rows, count, needed = 0, 0, 0
        for rows, keys in wanted:
            distinct = list(dict.fromkeys(keys))
            few = [rows[distinct[index]] for index in choose_rows(len(distinct), SAMPLED, 0)]
            missing = [example for example, place in zip(few, self._find(_digests(few)), strict=True) if place < 0]
            positions = sum(int(self._positions(example).sum()) for example in missing)
            wanted_rows += len(distinct)
            count += len(missing) * len(distinct) // max(len(few), 1)
            needed += 4 * self._teacher.config.hidden_size * positions * len(distinct) // max(len(few), 1)
        if not count:
            return
        said = f"{count:,} of {wanted_rows:,} rows, about {_amount(needed)} at most, go into {self.folder}"
        logger.info("teacher's hidden states: %s", said)
        problems = disk_problems(self.folder, needed)
        if problems:
            raise UserError(f"{problems[0]}; or choose restore.cache=false")

    def fill(self, rows: Rows, keys: Sequence[Key], show_progress: bool = True) -> None:
        """Compute what is not there yet of `rows` at `keys`, each process its share, and see what the others did."""
        mine = share(keys)
        digests = np.concatenate([_digests([rows[key]]) for key in mine] or [_digests([])])
        fill = hashlib.sha256(digests.tobytes()).hexdigest()
        # What an attempt that was cut has left counts as missing until rows are grouped: a row's last bits depend on those beside it.
        absent = self._find(digests) < 0
        wanted = absent | (self._fill_of(digests) == fill) if absent.any() else absent
        missing = {digest: key for digest, key, want in zip(digests, mine, wanted, strict=True) if want}
        lengths = {key: len(rows[key].ids) for key in missing.values()}
        longest_first = sorted(lengths, key=lambda key: -lengths[key])
        done: list[tuple[Example, Tensor]] = []
        size, started = 0, time.monotonic()
        with tqdm(total=len(longest_first), desc="teacher", unit="row", disable=not (show_progress and longest_first)) as bar:
            for start in range(0, len(longest_first), TAKEN):
                for examples in micro_batches([rows[key] for key in longest_first[start : start + TAKEN]], self._tokens):
                    bar.update(len(examples))
                    if (self._find(_digests(examples)) >= 0).all():
                        continue
                    done += zip(examples, self._computed(examples), strict=True)
                    size += sum(states.nbytes for _, states in done[-len(examples) :])
                    if size >= SHARD_BYTES or time.monotonic() - started >= SHARD_SECONDS:
                        self._write(done, fill)
                        done, size, started = [], 0, time.monotonic()
        if done:
            self._write(done, fill)
        barrier()
        self._index()

    def states(self, examples: Sequence[Example]) -> Tensor:
        """The teacher's final hidden states at the softmax's positions, row by row. Shape (answer, hidden), float32.

        Raises `LookupError` for a row that `fill` was not asked for.
        """
        places = self._find(_digests(examples))
        if (places < 0).any():
            raise LookupError(f"{int((places < 0).sum())} of {len(examples)} rows are not in {self.folder}: they were never computed")
        shards = list(self._shards.values())
        rows = [shards[shard].states[begin:end] for shard, begin, end in self._places[places].tolist()]
        return torch.cat(rows) if rows else torch.empty(0, self._teacher.config.hidden_size)

    def _positions(self, example: Example) -> Tensor:
        return self._softmax.positions(torch.from_numpy(example.labels)[None].to(self._teacher.device))

    @torch.no_grad()
    def _computed(self, examples: Sequence[Example]) -> Sequence[Tensor]:
        """The states of each row, (answer, hidden)."""
        device = self._teacher.device
        batch = {name: values.to(device) for name, values in collate(examples, self._pad_id).items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=self._bfloat16):
            states = answer_states(self._teacher, batch, self._softmax).float().cpu()
        return states.split(self._softmax.positions(batch["labels"]).sum(1).tolist())

    def _find(self, digests: np.ndarray) -> np.ndarray:
        """Where in `_places` each row is, or -1."""
        at = np.searchsorted(self._digests, digests).clip(max=len(self._digests) - 1)
        return np.where(self._digests[at] == digests, at, -1)

    def _fill_of(self, digests: np.ndarray) -> np.ndarray:
        """The `fill` of the shard that each row is in, "" where it is in none."""
        fills = ["", *(shard.fill for shard in self._shards.values())]
        places = self._find(digests)
        return np.array([fills[1 + self._places[place, 0] if place >= 0 else 0] for place in places])

    def _index(self) -> None:
        """Take in the shards that came since the last time, in files and so in memory maps."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name not in self._shards and (shard := self._read(path)) is not None:
                self._shards[path.name] = shard
        digests, places = [np.array([b""], DIGEST)], [np.zeros((1, 3), dtype=np.int64)]  # one of no row, so that there is one
        for number, shard in enumerate(self._shards.values()):
            digests.append(shard.digests)
            places.append(np.stack([np.full(len(shard.ends), number), np.concatenate([[0], shard.ends[:-1]]), shard.ends], 1))
        flat = np.concatenate(digests)
        order = flat.argsort(kind="stable")
        self._digests, self._places = flat[order], np.concatenate(places)[order]

    def _write(self, rows: Sequence[tuple[Example, Tensor]], fill: str) -> None:
        """A shard, under a hash of its rows, so that processes with other rows write other files."""
        digests = _digests([example for example, _ in rows])
        shard = _Shard(digests, np.cumsum([len(states) for _, states in rows]), torch.cat([states for _, states in rows]), fill)
        tensors = {"digests": _as_bytes(digests), "ends": torch.from_numpy(shard.ends), "states": shard.states}
        name = hashlib.sha256(digests.tobytes()).hexdigest()[:16]
        write_bytes(self.folder / f"{name}.safetensors", save(tensors, {"key": self._key, "fill": fill, "sha256": _checksum(shard)}))

    def _read(self, path: Path) -> _Shard | None:
        """A shard that was written before; None, with a word, where it is damaged or another cache's: it is removed, and its rows are made again."""
        try:
            with safe_open(path, "pt") as file:
                digests, ends, states = (file.get_tensor(name) for name in ("digests", "ends", "states"))
                said = file.metadata() or {}
        except FileNotFoundError:  # another process has removed it
            return None
        except SafetensorError:
            said = {}
        if said.get("key") == self._key:
            shard = _Shard(digests.numpy().view(DIGEST)[:, 0], ends.numpy(), states, said.get("fill", ""))
            if _checksum(shard) == said.get("sha256"):
                return shard
        logger.warning("%s is damaged; its rows go through the teacher again", path)
        path.unlink(missing_ok=True)
        return None


def _digests(examples: Sequence[Example]) -> np.ndarray:
    """What tells rows apart: their tokens, and which of them are answers'. Shape (row,) of DIGEST."""
    parts = ((np.asarray(example.ids, dtype=np.int64), np.asarray(example.labels) != IGNORE) for example in examples)
    return np.array([hashlib.blake2b(ids.tobytes() + answers.tobytes(), digest_size=16).digest() for ids, answers in parts], DIGEST)


def _as_bytes(digests: np.ndarray) -> Tensor:
    return torch.from_numpy(digests[:, None].view(np.uint8))


def _checksum(shard: _Shard) -> str:
    """SHA-256 of a shard's content."""
    hasher = hashlib.sha256(shard.digests.tobytes())
    hasher.update(shard.ends.tobytes() + shard.fill.encode())
    hasher.update(shard.states.numpy().data)
    return hasher.hexdigest()


def _amount(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
