"""What becomes of a night's candidate: promoted, refused, or nothing to do."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from cp_core.learning.gates.verdict import REQUIRED, missing
from cp_resources.candidates import Candidates
from cp_resources.champion import NIGHTLY, ConfigurationStore, PromotionError
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.gate_results import GateResults


@dataclass(frozen=True)
class Settled:
    """What became of it.

    Attributes:
        says: in a sentence.
        candidate: its hash; None if the day has none.
        in_force: hash of what decides from now on.
        passed, lacking: how many gates passed, and the others in words.
        changes: numbers that the candidate moves.
    """

    says: str
    was_promoted: bool
    candidate: str | None
    in_force: str
    passed: int = 0
    lacking: tuple[str, ...] = ()
    changes: int = 0


def settle_night(database: Database, files: Configuration, day: date) -> Settled:
    """Promote a day's candidate if its stored gate results allow it, and keep the refusal if not."""
    store = ConfigurationStore(database)
    candidates = Candidates(database)
    champion = store.pointers().get("champion")
    in_force = store.in_force(files).content_hash
    made = candidates.read(day)
    if made is None:
        return Settled("the day has no candidate", False, None, in_force)
    version, _, changes = made
    if version in (in_force, champion):
        return Settled("nothing to promote: the candidate is what is in force", False, version, in_force)
    lacking = missing(GateResults(database).latest(version, day), in_force)
    obstacles = [*lacking, *_of_the_moment(candidates, files, day)]
    evidence = {"day": day.isoformat(), "changes": len(changes), "not_passed": obstacles}
    standing = len(REQUIRED) - len(lacking), tuple(obstacles), len(changes)
    if obstacles:
        says = f"refused: {'; '.join(obstacles)}"
        store.refuse(version, champion=in_force, reason=says, evidence=evidence)
        return Settled(says, False, version, in_force, *standing)
    try:
        store.promote(
            version,
            instead_of=champion,
            base=store.remember(files),
            by=NIGHTLY,
            reason=f"every gate passed for {day}",
            evidence=evidence,
        )
    except PromotionError as error:
        store.refuse(version, champion=in_force, reason=str(error), evidence=evidence)
        return Settled(f"refused: {error}", False, version, in_force, *standing)
    return Settled(
        f"promoted: {len(changes)} numbers move, every gate passed", True, version, version, *standing
    )


def _of_the_moment(candidates: Candidates, files: Configuration, day: date) -> list[str]:
    """What keeps a candidate from being promoted now, whatever gates say."""
    found = []
    if not files.policies.learning.promote:
        found.append(
            "learning.promote of policies.yaml is off: `control-panel config promote` puts it in force"
        )
    if (later := candidates.later_than(day)) is not None:
        found.append(f"the night of {later} has been judged already, and is newer")
    return found
