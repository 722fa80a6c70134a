"""Which configuration is in force: the files that people wrote, with what was learned and promoted laid over them.

A version is immutable and known by its content hash. Three pointers say which version is the champion, which one
challenges it and which one was champion before; they move together with a row of promotions, in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb
from pydantic import ValidationError

from cp_core.learning.learned import Learned
from cp_core.scoring.config import ScoringConfig
from cp_resources.artifacts import Artifacts
from cp_resources.configuration import Configuration, load_configuration
from cp_resources.database import Database
from cp_resources.errors import UserError
from cp_resources.events import announce

NIGHTLY = "calibrated_config"
"""Who promotes at night: the asset of that name."""

_LOCK = 0x43504350  # advisory lock: one mover of pointers at a time
_SHORTEST_HASH = 6


class PromotionError(UserError):
    """A version is not known, or the pointers cannot be moved to it."""


@dataclass(frozen=True)
class Promotion:
    """One line of the history: what was done to the pointers, or refused."""

    promoted_at: datetime
    action: str
    from_hash: str | None
    to_hash: str
    by: str
    reason: str
    evidence: dict[str, Any]


class ConfigurationStore:
    """Tables config_versions, config_pointers and promotions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def in_force(self, files: Configuration) -> Configuration:
        """The files with the champion's learned numbers over them; the files alone while there is no champion.

        What no longer fits the files (a model that vanished, a number that a person changed since) is left out, and
        an event `learned.left_out` says so.
        """
        champion = self.pointers().get("champion")
        return files if champion is None else self.laid_over(files, champion)

    def in_force_before(self, day: date, files: Configuration) -> Configuration:
        """What a day's night starts from, however often it is repeated: see `champion_before`."""
        champion = self.champion_before(day)
        return files if champion is None else self.laid_over(files, champion)

    def laid_over(self, files: Configuration, version: str) -> Configuration:
        """The files with the learned numbers of a stored version over them, as far as they fit."""
        try:
            learned, left_out = self.learned(version).fitting(files.registry, files.scoring)
        except ValidationError as error:
            learned, left_out = Learned(), [f"all of it, which this release cannot read: {error}"]
        eye = learned.calibration.trait_model
        if eye is not None and not Artifacts(self._database).has(eye):
            learned = learned.without_texts()
            left_out.append(f"what texts say: trait model {eye}, which sees them, is not stored")
        if left_out:
            self._say_what_was_left_out(version, left_out)
        return files.with_learned(learned)

    def named(self, name: str, files: Configuration) -> Configuration:
        """What would be in force with other files, or with what another version learned.

        Args:
            name: a folder of files, over which what is in force is laid; or what `find` takes.

        Raises:
            ConfigurationError: the files are not valid.
            PromotionError: there is no such folder, and no such version.
        """
        if Path(name).is_dir():
            return self.in_force(load_configuration(Path(name)))
        return self.laid_over(files, self.find(name))

    def pointers(self) -> dict[str, str]:
        """Content hash by pointer: champion, challenger and previous, as far as there are any."""
        return dict(self._database.fetch("SELECT name, config_hash FROM config_pointers"))

    def learned(self, version: str) -> Learned:
        """What was learned in a version.

        Raises:
            PromotionError: there is no such version.
        """
        return Learned.model_validate(self.content(version).get("learned", {}))

    def content(self, version: str) -> dict[str, Any]:
        """A version as plain JSON values.

        Raises:
            PromotionError: there is no such version.
        """
        found = self._database.fetch("SELECT content FROM config_versions WHERE config_hash = %s", [version])
        if not found:
            raise PromotionError(
                f"there is no configuration {version}: `control-panel config history` lists them"
            )
        content: dict[str, Any] = found[0][0]
        return content

    def scoring_of(self, versions: Iterable[str]) -> dict[str, ScoringConfig]:
        """The scoring rules of stored versions, learned numbers included; without those that cannot be read."""
        found = self._database.fetch(
            "SELECT config_hash, content -> 'scoring' FROM config_versions WHERE config_hash = ANY(%s)",
            [list(versions)],
        )
        readable = {}
        for version, content in found:
            with suppress(ValidationError):
                readable[version] = ScoringConfig.model_validate(content)
        return readable

    def find(self, beginning: str) -> str:
        """The whole hash of a version, from its beginning or the name of a pointer.

        Raises:
            PromotionError: too short, or of no version, or of several.
        """
        if (named := self.pointers().get(beginning)) is not None:
            return named
        if len(beginning) < _SHORTEST_HASH or not set(beginning) <= set("0123456789abcdef"):
            raise PromotionError(
                f"{beginning!r} names no configuration: give champion, challenger or previous, where there is "
                f"one, or at least {_SHORTEST_HASH} characters of a hash"
            )
        found = self._database.fetch(
            "SELECT config_hash FROM config_versions WHERE starts_with(config_hash, %s) LIMIT 2", [beginning]
        )
        if len(found) != 1:
            many = "several configurations begin" if found else "no configuration begins"
            raise PromotionError(f"{many} with {beginning}: `control-panel config history` lists them")
        whole: str = found[0][0]
        return whole

    def remember(self, configuration: Configuration) -> str:
        """Store a version, unless it is there, and return its hash."""
        with self._database.transaction() as connection:
            return configuration.remember(connection)

    def challenge(self, version: str) -> None:
        """Point `challenger` at a version that is about to be judged."""
        with self._database.transaction() as connection:
            _take_turn(connection)
            _point(connection, "challenger", version)

    def promote(
        self,
        version: str,
        *,
        instead_of: str | None,
        base: str,
        by: str,
        reason: str,
        evidence: Mapping[str, Any],
    ) -> bool:
        """Make a version the champion, and the champion before it `previous`; all of it or nothing.

        Args:
            version: hash of a stored version.
            instead_of: the champion that the caller saw; None when there was none.
            base: version that was in force when there was no champion.

        Returns:
            False when the version is the champion already: nothing is written.

        Raises:
            PromotionError: another promotion was faster, or there is no such version.
        """
        self.content(version)
        with self._database.transaction() as connection:
            _take_turn(connection)
            champion = _pointed(connection).get("champion")
            if champion == version:
                return False
            if champion != instead_of:
                raise PromotionError(
                    f"{version[:12]} was not promoted: {(champion or 'nothing')[:12]} is in force now, and not "
                    f"{(instead_of or 'nothing')[:12]}, which it was judged against. Judge it again"
                )
            before = champion or base
            _point(connection, "previous", before)
            _point(connection, "champion", version)
            connection.execute(
                "DELETE FROM config_pointers WHERE name = 'challenger' AND config_hash = %s", [version]
            )
            _record(connection, "promote", before, version, by, reason, evidence)
        return True

    def roll_back(self, *, by: str, reason: str) -> tuple[str, str]:
        """Put the version before the champion in force again; the champion becomes `previous`.

        Returns:
            The hash that was in force, and the one that is now.

        Raises:
            PromotionError: there is no version before.
        """
        with self._database.transaction() as connection:
            _take_turn(connection)
            pointers = _pointed(connection)
            if "champion" not in pointers or "previous" not in pointers:
                raise PromotionError("nothing to roll back to: no configuration was ever promoted")
            champion, previous = pointers["champion"], pointers["previous"]
            _point(connection, "champion", previous)
            _point(connection, "previous", champion)
            _record(connection, "rollback", champion, previous, by, reason, {})
        return champion, previous

    def refuse(self, version: str, *, champion: str, reason: str, evidence: Mapping[str, Any]) -> None:
        """Record that a candidate was not promoted. The same refusal of the same day is recorded once."""
        with self._database.transaction() as connection:
            _take_turn(connection)
            last = connection.execute(_LAST_REFUSAL, [version, evidence.get("day")]).fetchone()
            if last is None or last[0] != reason:
                _record(connection, "refuse", champion, version, NIGHTLY, reason, evidence)

    def history(self, limit: int = 50) -> list[Promotion]:
        """What was done, latest first."""
        with self._database.transaction() as connection:
            cursor = connection.cursor(row_factory=class_row(Promotion))
            return cursor.execute(_HISTORY, [limit]).fetchall()

    def champion_before(self, day: date) -> str | None:
        """The champion without what this day's night, or a later one, promoted on top of it.

        Makes a night repeatable: its candidate is made from what it was made from the first time, unless a person
        has moved the pointers since.
        """
        champion = self.pointers().get("champion")
        for each in self.history(limit=400):
            if each.action not in ("promote", "rollback") or each.to_hash != champion:
                continue
            by_night = each.action == "promote" and each.by == NIGHTLY
            if not by_night or date.fromisoformat(each.evidence["day"]) < day:
                return champion
            champion = each.from_hash
        return champion

    def _say_what_was_left_out(self, version: str, left_out: list[str]) -> None:
        with self._database.transaction() as connection:
            said = connection.execute(
                "SELECT payload ->> 'left_out' FROM events WHERE kind = 'learned.left_out' AND subject = %s "
                "ORDER BY id DESC LIMIT 1",
                [version],
            ).fetchone()
            words = "; ".join(left_out)
            if said is None or said[0] != words:
                announce(connection, "learned.left_out", version, {"left_out": words})


_HISTORY: LiteralString = """
    SELECT promoted_at, action, from_hash, to_hash, "by", reason, evidence
    FROM promotions ORDER BY id DESC LIMIT %s
"""
_LAST_REFUSAL: LiteralString = """
    SELECT reason FROM promotions
    WHERE action = 'refuse' AND to_hash = %s AND evidence ->> 'day' = %s ORDER BY id DESC LIMIT 1
"""


def _take_turn(connection: psycopg.Connection) -> None:
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])


def _pointed(connection: psycopg.Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT name, config_hash FROM config_pointers").fetchall())


def _point(connection: psycopg.Connection, name: str, version: str) -> None:
    connection.execute(
        "INSERT INTO config_pointers (name, config_hash) VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET "
        "config_hash = excluded.config_hash, moved_at = now()",
        [name, version],
    )


def _record(
    connection: psycopg.Connection,
    action: str,
    before: str | None,
    after: str,
    by: str,
    reason: str,
    evidence: Mapping[str, Any],
) -> None:
    connection.execute(
        'INSERT INTO promotions (action, from_hash, to_hash, "by", reason, evidence) VALUES (%s, %s, %s, %s, %s, %s)',
        [action, before, after, by, reason, Jsonb(dict(evidence))],
    )
    announce(connection, f"configuration.{action}", after, {"instead_of": before, "by": by, "reason": reason})
