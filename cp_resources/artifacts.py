"""What was learned and is too large for a configuration: bytes, kept under the hash of their content for good."""

from __future__ import annotations

import hashlib

from cp_resources.database import Database
from cp_resources.errors import UserError


class ArtifactError(UserError):
    """An artifact is missing, or is not what its hash says. The text says which, and what to do."""


class Artifacts:
    """Table artifacts: rows are added, and never changed or removed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, kind: str, content: bytes) -> str:
        """Store content, unless it is there, and return its hash."""
        name = hash_of(content)
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO artifacts (artifact_hash, kind, content) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                [name, kind, content],
            )
        return name

    def has(self, name: str) -> bool:
        """Whether there is one of this hash."""
        return bool(self._database.fetch("SELECT FROM artifacts WHERE artifact_hash = %s", [name]))

    def get(self, name: str, kind: str) -> bytes:
        """The content of a hash.

        Raises:
            ArtifactError: there is none, it is of another kind, or it was changed.
        """
        found = self._database.fetch("SELECT kind, content FROM artifacts WHERE artifact_hash = %s", [name])
        if not found:
            raise ArtifactError(
                f"artifact {name} is not stored, and the configuration in force needs it: {_WHAT_TO_DO}"
            )
        [(stored_kind, content)] = found
        if stored_kind != kind:
            raise ArtifactError(f"artifact {name} is a {stored_kind}, not a {kind}: {_WHAT_TO_DO}")
        if (is_now := hash_of(bytes(content))) != name:
            raise ArtifactError(
                f"artifact {name} is not what was stored: its content has the hash {is_now} now. Nothing of it was "
                f"read: {_WHAT_TO_DO}"
            )
        return bytes(content)


def hash_of(content: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


_WHAT_TO_DO = (
    "restore table artifacts from a backup, or put another version in force with "
    "`control-panel config rollback --reason ...`"
)
