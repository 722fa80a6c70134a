"""Trait models: loaded once a process, by the hash of their bytes, and what they see in tasks.

The bytes are an npz archive of numbers. It is read without pickle, so that nothing in it is ever executed.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Sequence
from io import BytesIO
from threading import Lock
from typing import TYPE_CHECKING, LiteralString, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from cp_resources import arrays
from cp_resources.artifacts import ArtifactError, Artifacts
from cp_resources.database import Database

if TYPE_CHECKING:
    from cp_core.learning.trait_model import TraitModel
    from cp_core.learning.traits_seen import TraitsSeen

KIND = "trait_model"
"""What such an artifact is called in table artifacts."""

_KEPT = 4  # in memory at once: the one in force, and those of arms and candidates
_AT_ONCE = 5_000  # tasks whose texts are in memory at once


class Looks(NamedTuple):
    """What a trait model saw in n texts.

    Attributes:
        trait_model: its hash.
        traits: (n, k).
    """

    trait_model: str
    traits: NDArray[np.float32]


class TraitModels:
    """Reads and keeps trait models, and has them look at tasks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self, name: str) -> TraitModel:
        """The trait model of a hash.

        Raises:
            ArtifactError: there is none, or its bytes are not what the hash says.
        """
        with _LOADING:
            if name not in _LOADED:
                _LOADED[name] = self._read(name)
                while len(_LOADED) > _KEPT:
                    _LOADED.popitem(last=False)
            _LOADED.move_to_end(name)
            return _LOADED[name]

    def _read(self, name: str) -> TraitModel:
        try:
            return model_of(Artifacts(self._database).get(name, KIND))
        except ValueError as error:
            raise ArtifactError(
                f"artifact {name} is no trait model that this release can read: {error}"
            ) from error

    def keep(self, model: TraitModel) -> str:
        """Store a trait model for good, and return its hash."""
        return Artifacts(self._database).put(KIND, bytes_of(model))

    def look_at(self, tasks: Sequence[int], name: str, model: TraitModel | None = None) -> TraitsSeen:
        """What a trait model sees in tasks: as it was stored with their scores, or by looking at their texts now.

        Args:
            tasks: `tasks.id`; those without a score or a text are left out.
            model: the trait model of hash `name`, where it is not stored yet.
        """
        from cp_core.learning.trait_model import TRAITS
        from cp_core.learning.traits_seen import TraitsSeen

        ids: list[int] = []
        found = [np.zeros((0, TRAITS), dtype=np.float32)]
        for first in range(0, len(tasks), _AT_ONCE):
            rows = self._rows(tasks[first : first + _AT_ONCE], name)
            stored = [(task, traits) for task, _, traits, _ in rows if traits is not None]
            unseen = [(task, kind, text) for task, kind, traits, text in rows if traits is None]
            if stored:
                ids += [task for task, _ in stored]
                found.append(arrays.reals_of([traits for _, traits in stored]))
            if unseen:
                ids += [task for task, _, _ in unseen]
                eye = model or self.load(name)
                found.append(eye.traits_of([text for *_, text in unseen], [kind for _, kind, _ in unseen]))
        return TraitsSeen.of(np.array(ids, dtype=np.int64), np.vstack(found))

    def texts(self, tasks: Sequence[int]) -> tuple[list[str], list[str]]:
        """Texts of tasks, and the kind of each, as trait models look at them."""
        rows = self._rows(tasks, None)
        return [text for *_, text in rows], [kind for _, kind, _, _ in rows]

    def _rows(
        self, tasks: Sequence[int], trait_model: str | None
    ) -> list[tuple[int, str, bytes | None, str]]:
        from cp_core.learning.trait_model import LOOKED_AT, text_of

        parameters = {"tasks": arrays.int8s(tasks), "trait_model": trait_model, "most": LOOKED_AT}
        return [
            (task, kind, traits, "" if traits is not None else text_of(title, description))
            for task, kind, traits, title, description in self._database.fetch(_TRAITS, parameters)
        ]


def bytes_of(model: TraitModel) -> bytes:
    """What is stored of a trait model: the same bytes for the same model."""
    content = BytesIO()
    np.savez_compressed(content, allow_pickle=False, **model.as_arrays())
    return content.getvalue()


def model_of(content: bytes) -> TraitModel:
    """The trait model of `bytes_of`.

    Raises:
        ValueError: it is something else.
    """
    from cp_core.learning.trait_model import TraitModel

    try:
        with np.load(BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, EOFError, AttributeError, ValueError, zlib.error, BadZipFile) as error:
        raise ValueError(f"these are not the bytes of a trait model: {error}") from error
    return TraitModel.of_arrays(arrays)


_LOADING = Lock()
_LOADED: OrderedDict[str, TraitModel] = OrderedDict()


_TRAITS: LiteralString = """
    SELECT s.task, s.domain || '/' || s.complexity,
        CASE WHEN s.trait_model = %(trait_model)s::text THEN array_send(s.traits) END,
        CASE WHEN (s.trait_model = %(trait_model)s::text) IS NOT TRUE THEN left(p.title, %(most)s) END,
        CASE WHEN (s.trait_model = %(trait_model)s::text) IS NOT TRUE THEN left(p.description, %(most)s) END
    FROM cp.task_scores s JOIN cp.task_payloads p ON p.task = s.task
    WHERE s.task = ANY(%(tasks)s) ORDER BY s.task
"""
