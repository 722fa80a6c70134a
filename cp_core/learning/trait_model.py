"""The eye for texts: what a task's title and description look like, as a few numbers that predictions weigh.

Words are hashed, weighed by rarity and projected on the axes in which the texts that it was learned from differ most;
beside them stand measures of style. Each trait is told as a difference from what is usual in the task's domain and
complexity, in deviations: 0 is the usual text of its kind, and says nothing that the kind does not say.

No word is kept, only its hash. It works offline, and needs nothing but numpy to look at a text.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cp_core.scoring.config import Complexity, Domain

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]

TRAITS = 32
LOOKED_AT = 4_000
"""Characters of a text that are looked at, from its beginning."""

_FORMAT = 1  # of the bytes, and of what words and style are: an eye of another format sees other things
_COLUMNS = 2**15
_STYLE = 6
_AXES = TRAITS - _STYLE
_WORD = re.compile(r"\w\w+")
_ENOUGH = 6_000  # texts that the axes are found on; more of them hardly turn an axis
_COMMON = 3  # texts that must have a word before it says something
_LEANS = 20.0  # texts of a kind at which its usual is half its own, and half its domain's
_FAR = 3.0  # deviations beyond which a trait is not told
_ALIKE = 1e-3  # deviation below which texts are all alike in a trait
_AT_ONCE = 2_000  # texts looked at together, so that memory does not grow with their number
_LEVELS = 127  # of an axis, on either side of 0: a byte each

KINDS: tuple[str, ...] = tuple(f"{domain}/{complexity}" for domain in Domain for complexity in Complexity)


class TraitModelError(ValueError):
    """Arrays are not those of a trait model that this release can read."""


@dataclass(frozen=True)
class TraitModel:
    """Sees traits.

    Attributes:
        rarity: (columns,): inverse document frequency of each column; 0 for words that were not met, or hardly.
        axes: (columns, axes): whole numbers; `steps` times them are the directions.
        steps: (axes,).
        kinds: names of the kinds of task whose usual is known, `domain/complexity`.
        usual: (kinds + 1, traits): the usual text of each kind, and last of all.
        spread: (traits,): deviation from the usual.
        learned_on: the last day whose texts it knows, as a proleptic ordinal.
    """

    rarity: Floats
    axes: NDArray[np.int8]
    steps: Floats
    kinds: NDArray[np.str_]
    usual: Floats
    spread: Floats
    learned_on: NDArray[np.int64]

    @classmethod
    def learn(cls, texts: Sequence[str], kinds: Sequence[str], *, day: date, seed: int) -> TraitModel:
        """Find the axes (latent semantic analysis: Deerwester et al., 1990) and what is usual.

        Args:
            texts: at least two different ones, of tasks submitted on `day` or before.
            kinds: `domain/complexity` of each.
            seed: of the search for axes.
        """
        rarity, axes = _axes(texts, seed)
        steps = np.maximum(np.abs(axes).max(axis=0), 1e-9) / _LEVELS
        whole = np.round(axes / steps).astype(np.int8)
        names = np.array(KINDS)
        raw = np.vstack(list(_looked_at(texts, rarity, whole, steps)))
        codes = _codes(names, kinds)
        usual = _usual(raw, codes)
        spread = np.maximum((raw - usual[codes]).std(axis=0), _ALIKE)
        return cls(
            rarity=rarity.astype(np.float32),
            axes=whole,
            steps=steps.astype(np.float32),
            kinds=names,
            usual=usual.astype(np.float32),
            spread=spread.astype(np.float32),
            learned_on=np.array(day.toordinal()),
        )

    def traits_of(self, texts: Sequence[str], kinds: Sequence[str]) -> Floats:
        """The traits of n texts, (n, TRAITS); 0 is what is usual for the kind.

        Args:
            kinds: `domain/complexity` of each; one that is not known is held against all texts.
        """
        if not len(texts):
            return np.zeros((0, TRAITS), dtype=np.float32)
        raw = np.vstack(list(_looked_at(texts, self.rarity, self.axes, self.steps)))
        apart = (raw - self.usual[_codes(self.kinds, kinds)]) / self.spread
        return np.clip(apart, -_FAR, _FAR).astype(np.float32)

    def as_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything it knows, by name: numbers, and the names of kinds."""
        return {"format": np.array(_FORMAT)} | {
            field.name: getattr(self, field.name) for field in fields(self)
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> TraitModel:
        """The model that `as_arrays` was asked of.

        Raises:
            TraitModelError: arrays are missing, or are of another format.
        """
        missing = [name for name in ("format", *(field.name for field in fields(cls))) if name not in arrays]
        if missing:
            raise TraitModelError(f"it has no {missing[0]}")
        if int(arrays["format"]) != _FORMAT:
            raise TraitModelError(
                f"it has format {int(arrays['format'])}, and this release reads format {_FORMAT}"
            )
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def text_of(title: str | None, description: str | None) -> str:
    """What is looked at of a task."""
    return f"{title or ''} \n{description or ''}"[:LOOKED_AT]


class _Hashes(dict[str, int]):
    """The hash of each word, worked out once."""

    def __missing__(self, word: str) -> int:
        found = self[word] = zlib.crc32(word.encode())
        return found


@dataclass(frozen=True)
class _Words:
    """How often texts hold words and pairs of words: a row of text, column and count for each that occurs."""

    text: NDArray[np.int64]
    column: NDArray[np.int64]
    count: NDArray[np.int64]
    words: NDArray[np.int64]  # of each text

    @classmethod
    def of(cls, texts: Sequence[str]) -> _Words:
        split = [_WORD.findall(text.lower()) for text in texts]
        words = np.array([len(own) for own in split], dtype=np.int64)
        hashes = _Hashes()
        flat = np.array(list(map(hashes.__getitem__, chain.from_iterable(split))), dtype=np.int64)
        text = np.repeat(np.arange(len(texts)), words)
        is_pair = text[1:] == text[:-1]
        pairs = (flat[:-1] * 0x9E3779B1 + flat[1:])[is_pair] & 0x7FFFFFFF
        keys = np.concatenate([text, text[1:][is_pair]]) * _COLUMNS
        keys += np.concatenate([flat, pairs]) % _COLUMNS
        found, count = np.unique(keys, return_counts=True)
        return cls(found // _COLUMNS, found % _COLUMNS, count, words)

    def weighed(self, rarity: Floats) -> Doubles:
        """Weight of each row: (1 + log count) x rarity, so that the squares of a text sum to 1 where it has any."""
        weight = (1 + np.log(self.count)) * rarity[self.column]
        squares = np.bincount(self.text, weight**2, len(self.words))
        return np.asarray(weight / np.sqrt(np.maximum(squares, 1e-12))[self.text], dtype=np.float64)


def _axes(texts: Sequence[str], seed: int) -> tuple[Floats, Doubles]:
    """Rarity of each column, and the directions in which the texts differ most, (columns, axes)."""
    from scipy import sparse
    from sklearn.utils.extmath import randomized_svd

    if len(texts) > _ENOUGH:
        chosen = np.random.default_rng(seed).choice(len(texts), _ENOUGH, replace=False)
        texts = [texts[place] for place in chosen]
    words = _Words.of(texts)
    held = np.bincount(words.column, minlength=_COLUMNS)
    rarity = np.where(held >= _COMMON, np.log((1 + len(texts)) / (1 + held)) + 1.0, 0.0).astype(np.float32)
    weighed = sparse.csr_matrix(
        (words.weighed(rarity), (words.text, words.column)), shape=(len(texts), _COLUMNS)
    )
    axes = np.zeros((_COLUMNS, _AXES))
    most = min(_AXES, max(len(texts) // 2, 1))
    if weighed.count_nonzero():
        _, _, found = randomized_svd(weighed, most, n_iter=2, random_state=seed)
        axes[:, :most] = found.T
    return rarity, axes


def _looked_at(
    texts: Sequence[str], rarity: Floats, axes: NDArray[np.int8], steps: Floats
) -> Iterator[Doubles]:
    """Where texts stand on the axes, and their style, (n, TRAITS), some texts at a time."""
    for first in range(0, len(texts), _AT_ONCE):
        some = texts[first : first + _AT_ONCE]
        words = _Words.of(some)
        known = rarity[words.column] > 0
        column, text, weight = words.column[known], words.text[known], words.weighed(rarity)[known]
        on_axes = np.zeros((len(some), _AXES), dtype=np.float64)
        if len(text):
            starts = np.flatnonzero(np.diff(text, prepend=-1))
            on_axes[text[starts]] = np.add.reduceat(
                axes[column] * weight[:, None].astype(np.float32), starts, axis=0
            )
        yield np.hstack([on_axes * steps, _style(some, words.words)])


_CHARACTERS = np.zeros((256, _STYLE - 2), dtype=np.int64)
"""Whether each character of ASCII is a digit, a capital, the end of a line, or a mark."""
for _code in range(128):
    _character = chr(_code)
    _CHARACTERS[_code] = [
        _character.isdigit(),
        _character.isupper(),
        _character == "\n",
        _character.isprintable() and not _character.isalnum() and _character != " ",
    ]


def _style(texts: Sequence[str], words: NDArray[np.int64]) -> Doubles:
    """Logarithms of how many characters, words, digits, capitals, lines and marks, (n, _STYLE)."""
    encoded = [f"{text} ".encode() for text in texts]
    starts = np.cumsum([0, *(len(one) for one in encoded[:-1])])
    characters = np.add.reduceat(
        _CHARACTERS[np.frombuffer(b"".join(encoded), dtype=np.uint8)], starts, axis=0
    )
    length = np.array([len(text) for text in texts])
    return np.log1p(np.column_stack([length, words, characters]).astype(np.float64))


def _codes(names: NDArray[np.str_], kinds: Sequence[str]) -> NDArray[np.int64]:
    """Place of each kind among the names; the last of all for one that is not there."""
    place = {str(name): at for at, name in enumerate(names)}
    return np.array([place.get(str(kind), len(names)) for kind in kinds], dtype=np.int64)


def _usual(raw: Doubles, codes: NDArray[np.int64]) -> Doubles:
    """Means of the kinds, drawn toward their domain's, and those toward the mean of all, which stands last."""
    whole = raw.mean(axis=0)
    usual = np.tile(whole, (len(KINDS) + 1, 1))
    domains = np.append(np.arange(len(KINDS)) // len(Complexity), -1)
    for domain in range(len(Domain)):
        own = raw[domains[codes] == domain]
        mean = (own.sum(axis=0) + _LEANS * whole) / (len(own) + _LEANS)
        for kind in np.flatnonzero(domains == domain):
            of_kind = raw[codes == kind]
            usual[kind] = (of_kind.sum(axis=0) + _LEANS * mean) / (len(of_kind) + _LEANS)
    return usual
