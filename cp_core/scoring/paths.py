"""Finding the files and folders that texts name."""

from __future__ import annotations

import numpy as np

from cp_core.scoring.config import TextRules
from cp_core.scoring.words import LAST_SEPARATOR, POINT, QUOTE, SLASH, Vocabulary, Words


class PathFinder:
    """Finds paths inside the workspace: `src/app/`, `docs/guide.md:12`, `settings.py`, `Dockerfile`.

    Absolute paths, addresses and paths through folders of other people's code are left out.
    """

    def __init__(self, rules: TextRules) -> None:
        self._extensions = frozenset(rules.file_extensions)
        self._file_names = frozenset(rules.file_names)
        self._no_paths = frozenset(rules.no_paths)
        self._foreign_folders = frozenset(rules.foreign_folders)
        self._known: dict[bytes, tuple[str, ...]] = {}
        self.vocabulary_words = {*self._extensions, *self._file_names}

    def bind(self, vocabulary: Vocabulary) -> None:
        """Learn the numbers that `vocabulary`, which has all of `vocabulary_words`, gave them."""
        self._is_extension = vocabulary.among(self._extensions)
        self._is_file_name = vocabulary.among(self._file_names)

    def find(self, words: Words) -> dict[int, tuple[str, ...]]:
        """The paths of each text that names some: in lower case, each once, in order of appearance."""
        buffer = words.buffer
        slashes = np.flatnonzero(buffer.codes == SLASH)
        slashes = slashes[buffer.codes[slashes - 1] > LAST_SEPARATOR]
        number, start = words.numbers[words.hits], words.starts[words.hits]
        after_point = (buffer.codes[start - 1] == POINT) & (buffer.codes[start - 2] > LAST_SEPARATOR)
        files = start[(self._is_extension[number] & after_point) | self._is_file_name[number]]
        positions = np.sort(np.concatenate((slashes, files)))

        found: dict[int, list[str]] = {}
        end = 0
        for position, text in zip(positions.tolist(), buffer.text_at(positions).tolist(), strict=True):
            if position < end:
                continue  # another part of the same run
            run_start = buffer.form.rfind(b" ", 0, position) + 1
            end = buffer.form.find(b" ", position)
            if paths := self._paths_of(buffer.form[run_start:end]):
                found.setdefault(text, []).extend(paths)
        return {text: tuple(dict.fromkeys(paths)) for text, paths in found.items()}

    def count_files(self, paths: tuple[str, ...]) -> int:
        """How many files are among `paths`; of the same name (`a.py`, `src/a.py`) they count once."""
        return len({path.rpartition("/")[2] for path in paths if self._is_file(path)})

    def _paths_of(self, run: bytes) -> tuple[str, ...]:
        """The paths in a run of characters without space."""
        if run not in self._known:
            parts = (part.strip("-").rstrip("./-") for part in run.decode().split(chr(QUOTE)))
            paths = (part.removeprefix("./") for part in parts)
            self._known[run] = tuple(path for path in paths if self._is_path(path))
        return self._known[run]

    def _is_path(self, path: str) -> bool:
        if path in self._no_paths:
            return False
        if "/" not in path:
            return self._is_file(path)
        root, *rest = path.split("/")
        absolute_or_above = root in ("", "..")
        is_address = "." in root.lstrip(".")  # github.com/owner/name
        return not absolute_or_above and not is_address and self._foreign_folders.isdisjoint((root, *rest))

    def _is_file(self, path: str) -> bool:
        name = path.rpartition("/")[2]
        return name in self._file_names or ("." in name and name.rpartition(".")[2] in self._extensions)
