"""The quota ledger on a real PostgreSQL: its promises, kept under repetition, concurrency and tampering."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from threading import Barrier
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from typer.testing import CliRunner

from cp_cli.main import app
from cp_core.models.registry import ModelRegistry
from cp_core.quota.account import Account, AccountState
from cp_resources.database import Database
from cp_resources.ledger import Ledger, LedgerError, Reservation, Settlement, reservation_transfers

SHORT, WEEKLY, BUDGET = "plan/5-hour", "plan/weekly", "budget/api"
HOUR = timedelta(hours=1)
AT_ONCE = timedelta(0)


def _registry(**limits: int) -> ModelRegistry:
    """A registry with windows `short` (5-hour) and `weekly`, and the money budget `api`; 0 leaves one out."""
    declared = {"short": 100, "weekly": 1_000, "api": 10, **limits}
    windows = [
        {"window": window, "tokens": declared[name]}
        for name, window in (("short", "5-hour"), ("weekly", "weekly"))
        if declared[name]
    ]
    model = {
        "provider": "maker",
        "api_name": "one",
        "tier": "premium",
        "family": "maker",
        "input_usd_per_million": 1,
        "output_usd_per_million": 1,
        "context_window": 1000,
        "max_output_tokens": 1000,
        "capability": dict.fromkeys(
            ("infrastructure", "backend", "ml", "frontend", "testing", "documentation"), 0.5
        ),
    }
    return ModelRegistry.model_validate(
        {
            "providers": {
                "maker": {
                    "wire": "openai-chat",
                    "base_url": "https://api.example",
                    "api_key_env": "MAKER_KEY",
                }
            },
            "models": {"one": model},
            "subscriptions": {"plan": {"family": "maker", "models": ["one"], "windows": windows}},
            "budgets": {"api": {"window": "monthly", "usd": declared["api"]}} if declared["api"] else {},
        }
    )


@pytest.fixture
def ledger(database: Database, request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """A ledger whose accounts are open: 100 in 5 hours, 1,000 a week, 10 USD a month.

    Whatever a test does through it, the books balance at the end.
    """
    opened = Ledger(database)
    opened.open_accounts(_registry())
    yield opened
    if "tamper" not in request.fixturenames:
        assert opened.verify().differences == ()


@pytest.fixture
def reserve(ledger: Ledger, database: Database) -> Callable[..., list[bool]]:
    """Reserve (key, amounts) pairs in a transaction of their own."""

    def reserve_pairs(*pairs: tuple[UUID, dict[str, int]], expires_in: timedelta = HOUR) -> list[bool]:
        with database.transaction() as connection:
            return ledger.reserve(connection, _reservations(pairs), expires_in=expires_in)

    return reserve_pairs


@pytest.fixture
def settle(ledger: Ledger, database: Database) -> Callable[..., int]:
    """Settle (key, used) pairs in a transaction of their own."""

    def settle_pairs(*pairs: tuple[UUID, dict[str, int]]) -> int:
        with database.transaction() as connection:
            return ledger.settle(connection, _settlements(pairs))

    return settle_pairs


def _reservations(pairs: Sequence[tuple[UUID, dict[str, int]]]) -> list[Reservation]:
    return [Reservation(key, {a: Decimal(n) for a, n in amounts.items()}) for key, amounts in pairs]


def _settlements(pairs: Sequence[tuple[UUID, dict[str, int]]]) -> list[Settlement]:
    return [Settlement(key, {a: Decimal(n) for a, n in used.items()}) for key, used in pairs]


def _account(ledger: Ledger, name: str) -> Account:
    return next(account for account in ledger.accounts() if account.account == name)


def _figures(ledger: Ledger, name: str) -> tuple[Decimal, Decimal, Decimal]:
    account = _account(ledger, name)
    return account.used, account.pending, account.available


def _transfers(database: Database) -> int:
    return int(database.fetch("SELECT count(*) FROM quota_transfers")[0][0])


def _end_window(database: Database, account: str) -> None:
    """Let the account's window be over, as if its time had passed."""
    with database.transaction() as connection:
        connection.execute(
            "UPDATE quota_accounts SET window_ends_at = now() - interval '1 second' WHERE account = %s",
            (account,),
        )


class TestAccounts:
    """Opening accounts, and what a change of models.yaml does to them."""

    def test_opening_grants_every_limit_and_a_repeat_changes_nothing(
        self, ledger: Ledger, database: Database
    ) -> None:
        assert [(a.account, a.limit, a.available, a.state) for a in ledger.accounts()] == [
            (BUDGET, 10, 10, AccountState.FULL),
            (SHORT, 100, 100, AccountState.FULL),
            (WEEKLY, 1_000, 1_000, AccountState.FULL),
        ]
        before = _transfers(database)
        ledger.open_accounts(_registry())
        assert _transfers(database) == before

    def test_many_processes_may_open_the_same_accounts_at_once(self, database: Database) -> None:
        ledger = Ledger(database)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda _: ledger.open_accounts(_registry()), range(12)))
        assert _account(ledger, WEEKLY).available == 1_000
        assert ledger.verify().balanced

    def test_a_database_without_accounts_has_none(self, database: Database) -> None:
        assert Ledger(database).accounts() == []
        assert Ledger(database).verify().balanced

    def test_a_changed_limit_takes_effect_within_the_window(
        self, ledger: Ledger, reserve: Callable[..., list[bool]]
    ) -> None:
        reserve((uuid4(), {WEEKLY: 400}))
        ledger.open_accounts(_registry(weekly=500))
        assert _figures(ledger, WEEKLY) == (0, 400, 100)
        ledger.open_accounts(_registry(weekly=2_000))
        assert _figures(ledger, WEEKLY) == (0, 400, 1_600)

    def test_an_account_that_left_the_registry_grants_nothing_and_its_reservations_can_be_settled(
        self, ledger: Ledger, reserve: Callable[..., list[bool]], settle: Callable[..., int]
    ) -> None:
        key = uuid4()
        reserve((key, {WEEKLY: 400}))
        ledger.open_accounts(_registry(weekly=0))
        assert _account(ledger, WEEKLY).state is AccountState.EXHAUSTED
        assert reserve((uuid4(), {WEEKLY: 1})) == [False]
        assert settle((key, {WEEKLY: 300})) == 1

    def test_a_five_hour_window_opens_with_its_first_use_and_again_after_it_ended(
        self, ledger: Ledger, database: Database, reserve: Callable[..., list[bool]]
    ) -> None:
        assert _account(ledger, SHORT).window_started_at is None
        assert reserve((uuid4(), {SHORT: 70})) == [True]
        first = _account(ledger, SHORT)
        assert first.window_started_at
        assert first.window_ends_at == first.window_started_at + timedelta(hours=5)
        assert reserve((uuid4(), {SHORT: 31})) == [False]

        _end_window(database, SHORT)
        assert _account(ledger, SHORT).window_started_at is None
        assert _figures(ledger, SHORT) == (0, 70, 30)  # what is still reserved will be used in a later window
        assert reserve((uuid4(), {SHORT: 30})) == [True]
        second = _account(ledger, SHORT)
        assert second.window_started_at
        assert second.window_started_at > first.window_started_at
        assert _figures(ledger, SHORT) == (0, 100, 0)

    def test_a_week_that_is_over_is_granted_anew_with_the_next_opening(
        self, ledger: Ledger, database: Database, settle: Callable[..., int]
    ) -> None:
        settle((uuid4(), {WEEKLY: 600}))
        with database.transaction() as connection:
            connection.execute("SET LOCAL session_replication_role = replica")  # no triggers
            # What was granted this week becomes what was granted a week ago.
            connection.execute("UPDATE quota_transfers SET transfer_id = gen_random_uuid()")
            connection.execute(
                """UPDATE quota_accounts SET window_started_at = window_started_at - interval '7 days',
                       window_ends_at = window_ends_at - interval '7 days' WHERE account = %s""",
                (WEEKLY,),
            )
        assert _figures(ledger, WEEKLY) == (0, 0, 1_000)
        for _ in range(2):
            ledger.open_accounts(_registry())
            assert _figures(ledger, WEEKLY) == (0, 0, 1_000)
        now = datetime.now(UTC)
        week = _account(ledger, WEEKLY)
        assert week.window_started_at
        assert week.window_ends_at
        assert week.window_started_at <= now < week.window_ends_at
        assert week.window_started_at.weekday() == 0


class TestReserving:
    """Reservations: all or nothing, in order, once a key."""

    def test_a_reservation_takes_from_every_account_or_from_none(
        self, ledger: Ledger, reserve: Callable[..., list[bool]]
    ) -> None:
        assert reserve((uuid4(), {SHORT: 101, WEEKLY: 101})) == [False]
        assert _figures(ledger, WEEKLY) == (0, 0, 1_000)
        assert reserve((uuid4(), {SHORT: 100, WEEKLY: 100})) == [True]
        assert _figures(ledger, SHORT) == (0, 100, 0)
        assert _figures(ledger, WEEKLY) == (0, 100, 900)

    def test_a_batch_takes_in_the_given_order_what_fits(self, reserve: Callable[..., list[bool]]) -> None:
        batch = [(uuid4(), {SHORT: amount}) for amount in (60, 50, 30, 20, 10)]
        assert reserve(*batch) == [True, False, True, False, True]

    def test_accounts_of_tokens_and_of_money_can_be_reserved_in_one_batch(
        self, ledger: Ledger, reserve: Callable[..., list[bool]]
    ) -> None:
        assert reserve(
            (uuid4(), {SHORT: 1, WEEKLY: 1}), (uuid4(), {BUDGET: 11}), (uuid4(), {BUDGET: 10})
        ) == [
            True,
            False,
            True,
        ]
        assert _figures(ledger, BUDGET) == (0, 10, 0)

    def test_a_repeat_of_a_key_changes_nothing_whatever_became_of_it(
        self,
        ledger: Ledger,
        database: Database,
        reserve: Callable[..., list[bool]],
        settle: Callable[..., int],
    ) -> None:
        posted, voided = uuid4(), uuid4()
        batch = [(posted, {SHORT: 60, WEEKLY: 60}), (voided, {SHORT: 40, WEEKLY: 40})]
        assert reserve(*batch, batch[0]) == [True, True, True]
        before = _transfers(database)
        assert reserve(*batch) == [True, True]
        settle((posted, {SHORT: 60, WEEKLY: 60}), (voided, {}))
        assert reserve(*batch) == [True, True]
        assert _transfers(database) == before + 4
        assert _figures(ledger, SHORT) == (60, 0, 40)

    def test_a_key_that_was_refused_may_be_tried_again(
        self, reserve: Callable[..., list[bool]], settle: Callable[..., int]
    ) -> None:
        first, refused = uuid4(), uuid4()
        assert reserve((first, {SHORT: 80}), (refused, {SHORT: 30})) == [True, False]
        settle((first, {}))
        assert reserve((refused, {SHORT: 30})) == [True]

    def test_a_key_belongs_to_its_accounts(self, reserve: Callable[..., list[bool]]) -> None:
        key = uuid4()
        reserve((key, {SHORT: 1}))
        with pytest.raises(LedgerError, match="was made before over plan/5-hour, not plan/weekly"):
            reserve((key, {WEEKLY: 1}))

    def test_an_unknown_account_is_named(self, reserve: Callable[..., list[bool]]) -> None:
        with pytest.raises(LedgerError, match="no quota account 'plan/hourly'"):
            reserve((uuid4(), {"plan/hourly": 1}))

    def test_the_pending_transfers_have_the_ids_that_follow_from_the_key(
        self, database: Database, reserve: Callable[..., list[bool]]
    ) -> None:
        key = uuid4()
        reserve((key, {SHORT: 1, WEEKLY: 1}))
        stored = database.fetch("SELECT transfer_id FROM quota_transfers WHERE phase = 'pending'")
        assert {row[0] for row in stored} == set(reservation_transfers(key, [SHORT, WEEKLY]))

    def test_what_the_caller_rolls_back_was_never_reserved(self, ledger: Ledger, database: Database) -> None:
        with database.transaction() as connection:
            ledger.reserve(connection, _reservations([(uuid4(), {SHORT: 50})]), expires_in=HOUR)
            raise psycopg.Rollback
        assert _figures(ledger, SHORT) == (0, 0, 100)


class TestSettling:
    """Settlements: what was used is charged once, whatever became of the reservation."""

    def test_a_repeat_changes_nothing(
        self,
        ledger: Ledger,
        database: Database,
        reserve: Callable[..., list[bool]],
        settle: Callable[..., int],
    ) -> None:
        under, over, nothing = uuid4(), uuid4(), uuid4()
        reserve((under, {SHORT: 30}), (over, {SHORT: 30}), (nothing, {SHORT: 30}))
        batch = [(under, {SHORT: 20}), (over, {SHORT: 45}), (nothing, {})]
        assert settle(*batch) == 3
        assert _figures(ledger, SHORT) == (65, 0, 35)
        before = _transfers(database)
        assert settle(*batch, *batch) == 0
        assert settle((under, {SHORT: 29})) == 0
        assert _transfers(database) == before

    def test_accounts_that_a_settlement_does_not_name_are_freed(
        self, ledger: Ledger, reserve: Callable[..., list[bool]], settle: Callable[..., int]
    ) -> None:
        key = uuid4()
        reserve((key, {SHORT: 50, WEEKLY: 50}))
        assert settle((key, {SHORT: 10})) == 2
        assert _figures(ledger, SHORT) == (10, 0, 90)
        assert _figures(ledger, WEEKLY) == (0, 0, 1_000)

    def test_an_overrun_never_takes_an_account_below_zero(
        self, ledger: Ledger, reserve: Callable[..., list[bool]], settle: Callable[..., int]
    ) -> None:
        key = uuid4()
        reserve((key, {SHORT: 60}))
        settle((key, {SHORT: 250}))
        assert _figures(ledger, SHORT) == (250, 0, 0)
        assert _account(ledger, SHORT).state is AccountState.EXHAUSTED

    def test_posts_free_what_an_overrun_of_the_same_batch_needs(
        self,
        ledger: Ledger,
        database: Database,
        reserve: Callable[..., list[bool]],
        settle: Callable[..., int],
    ) -> None:
        over, nothing = uuid4(), uuid4()
        reserve((over, {SHORT: 50}), (nothing, {SHORT: 50}))
        assert settle((over, {SHORT: 90}), (nothing, {})) == 2
        assert _figures(ledger, SHORT) == (90, 0, 10)
        overruns = database.fetch(
            "SELECT debit_account, amount FROM quota_transfers WHERE code = 'overrun' AND reservation = %s",
            (over,),
        )
        assert overruns == [(SHORT, 40)]  # nothing was drawn from the source

    def test_what_is_settled_twice_in_one_batch_counts_as_it_comes_first(
        self, ledger: Ledger, reserve: Callable[..., list[bool]], settle: Callable[..., int]
    ) -> None:
        key = uuid4()
        reserve((key, {SHORT: 50}))
        assert settle((key, {SHORT: 20}), (key, {SHORT: 30})) == 1
        assert _figures(ledger, SHORT) == (20, 0, 80)

    def test_an_unknown_account_cannot_be_charged(self, settle: Callable[..., int]) -> None:
        with pytest.raises(LedgerError, match="no quota account 'plan/hourly'"):
            settle((uuid4(), {"plan/hourly": 1}))

    def test_use_is_charged_though_its_reservation_expired_or_was_never_made(
        self, ledger: Ledger, reserve: Callable[..., list[bool]], settle: Callable[..., int]
    ) -> None:
        expired, never_made = uuid4(), uuid4()
        reserve((expired, {SHORT: 60}), expires_in=AT_ONCE)
        assert ledger.expire_pending() == 1
        for _ in range(2):
            assert settle((expired, {SHORT: 50}), (never_made, {SHORT: 5})) == 0
            assert _figures(ledger, SHORT) == (55, 0, 45)

    def test_money_is_kept_to_the_ninth_decimal(self, ledger: Ledger, database: Database) -> None:
        key, price = uuid4(), Decimal("0.123456789123")
        with database.transaction() as connection:
            ledger.reserve(connection, [Reservation(key, {BUDGET: Decimal(1)})], expires_in=HOUR)
            ledger.settle(connection, [Settlement(key, {BUDGET: price})])
        assert _figures(ledger, BUDGET) == (Decimal("0.123456789"), 0, Decimal("9.876543211"))


class TestExpiry:
    """Reservations that nobody settles are freed."""

    def test_only_what_expired_is_freed_and_only_once(
        self, ledger: Ledger, reserve: Callable[..., list[bool]], settle: Callable[..., int]
    ) -> None:
        settled = uuid4()
        reserve((settled, {SHORT: 10}), (uuid4(), {SHORT: 20, WEEKLY: 20}), expires_in=AT_ONCE)
        reserve((uuid4(), {SHORT: 30}), expires_in=HOUR)
        settle((settled, {SHORT: 10}))
        assert ledger.expire_pending() == 2
        assert ledger.expire_pending() == 0
        assert _figures(ledger, SHORT) == (10, 30, 60)

    def test_what_expires_after_a_pass_is_found_by_the_next(
        self, ledger: Ledger, reserve: Callable[..., list[bool]]
    ) -> None:
        for _ in range(3):
            reserve((uuid4(), {SHORT: 10}), expires_in=AT_ONCE)
            assert ledger.expire_pending() == 1

    def test_more_than_one_batch_is_freed(
        self, ledger: Ledger, reserve: Callable[..., list[bool]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cp_resources.ledger.EXPIRY_BATCH", 3)
        reserve(*((uuid4(), {WEEKLY: 1}) for _ in range(10)), expires_in=AT_ONCE)
        assert ledger.expire_pending() == 10

    def test_a_database_without_accounts_has_nothing_to_free(self, database: Database) -> None:
        assert Ledger(database).expire_pending() == 0


class TestConcurrency:
    """Many writers at once."""

    def test_exactly_as_many_win_as_there_are_tokens_for(self, ledger: Ledger, database: Database) -> None:
        ledger.open_accounts(_registry(short=37))
        ready = Barrier(8)

        def race(_: int) -> int:
            won = 0
            ready.wait()
            for _attempt in range(6):
                with database.transaction() as connection:
                    batch = _reservations([(uuid4(), {SHORT: 1, WEEKLY: 1}) for _ in range(3)])
                    won += sum(ledger.reserve(connection, batch, expires_in=HOUR))
            return won

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(race, range(8))) == 37
        assert _figures(ledger, SHORT) == (0, 37, 0)
        assert _figures(ledger, WEEKLY) == (0, 37, 963)

    def test_the_same_keys_reserved_and_settled_by_all_count_once(
        self, ledger: Ledger, database: Database
    ) -> None:
        keys = [uuid4() for _ in range(10)]
        ready = Barrier(6)

        def work(_: int) -> tuple[list[bool], int]:
            ready.wait()
            with database.transaction() as connection:
                made = ledger.reserve(
                    connection, _reservations([(k, {SHORT: 10}) for k in keys]), expires_in=HOUR
                )
            with database.transaction() as connection:
                return made, ledger.settle(connection, _settlements([(k, {SHORT: 9}) for k in keys]))

        with ThreadPoolExecutor(6) as pool:
            results = list(pool.map(work, range(6)))
        assert all(made == [True] * 10 for made, _ in results)
        assert sum(resolved for _, resolved in results) == 10
        assert _figures(ledger, SHORT) == (90, 0, 10)

    def test_settling_and_expiring_at_once_charges_what_was_used_once(
        self,
        ledger: Ledger,
        database: Database,
        reserve: Callable[..., list[bool]],
        settle: Callable[..., int],
    ) -> None:
        keys = [uuid4() for _ in range(40)]
        reserve(*((key, {WEEKLY: 10}) for key in keys), expires_in=AT_ONCE)
        ready = Barrier(5)

        def work(position: int) -> None:
            ready.wait()
            if position == 4:
                ledger.expire_pending()
                return
            for key in keys[position::4]:
                settle((key, {WEEKLY: 7}))

        with ThreadPoolExecutor(5) as pool:
            list(pool.map(work, range(5)))
        assert _figures(ledger, WEEKLY) == (280, 0, 720)

    def test_transactions_that_call_the_ledger_more_than_once_do_not_deadlock(
        self, ledger: Ledger, database: Database
    ) -> None:
        ledger.open_accounts(_registry(short=10_000, weekly=100_000, api=10_000))
        orders = [(SHORT, BUDGET, WEEKLY), (WEEKLY, SHORT, BUDGET), (BUDGET, WEEKLY, SHORT)]

        def work(position: int) -> None:
            for turn in range(5):
                with database.transaction() as connection:
                    for account in orders[(position + turn) % 3]:
                        key = uuid4()
                        ledger.reserve(connection, _reservations([(key, {account: 2})]), expires_in=HOUR)
                        ledger.settle(connection, _settlements([(key, {account: 3})]))

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
        assert [_figures(ledger, name)[:2] for name in (SHORT, WEEKLY, BUDGET)] == [(90, 0)] * 3


_TRANSFER = """
INSERT INTO quota_transfers (transfer_id, phase, pending_id, debit_account, credit_account, amount, code)
VALUES (gen_random_uuid(), %s, %s, %s, %s, %s, 'use')
"""


class TestDatabase:
    """What the database itself refuses, whoever writes."""

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE quota_transfers SET amount = amount + 1",
            "DELETE FROM quota_transfers",
            "TRUNCATE quota_transfers",
            "DELETE FROM quota_accounts",
            "TRUNCATE quota_accounts",
        ],
    )
    def test_what_was_written_stays(self, ledger: Ledger, database: Database, statement: str) -> None:
        with pytest.raises(psycopg.errors.RestrictViolation, match="append only"):  # noqa: SIM117
            with database.transaction() as connection:
                connection.execute(statement)  # type: ignore[call-overload]

    def test_an_account_cannot_go_below_zero(self, ledger: Ledger, database: Database) -> None:
        with pytest.raises(psycopg.errors.CheckViolation, match="not_below_zero"):  # noqa: SIM117
            with database.transaction() as connection:
                connection.execute(
                    "UPDATE quota_accounts SET debits_posted = 1001 WHERE account = %s", (WEEKLY,)
                )

    @pytest.mark.parametrize(
        ("debit", "credit"),
        [("plan/hourly", "spent:tokens"), (WEEKLY, "spent:yen"), (WEEKLY, "spent:usd")],
    )
    def test_a_transfer_moves_one_unit_between_accounts_that_exist(
        self, ledger: Ledger, database: Database, debit: str, credit: str
    ) -> None:
        with pytest.raises(psycopg.errors.ForeignKeyViolation, match="moves"):  # noqa: SIM117
            with database.transaction() as connection:
                connection.execute(_TRANSFER, ("single", None, debit, credit, 1))

    @pytest.mark.parametrize(
        ("debit", "amount"), [(WEEKLY, 11), (SHORT, 10)], ids=["more than reserved", "of another account"]
    )
    def test_a_post_resolves_what_was_reserved(
        self,
        ledger: Ledger,
        database: Database,
        reserve: Callable[..., list[bool]],
        debit: str,
        amount: int,
    ) -> None:
        key = uuid4()
        reserve((key, {WEEKLY: 10}))
        [pending] = reservation_transfers(key, [WEEKLY])
        with pytest.raises(psycopg.errors.ForeignKeyViolation, match="is a post of"):  # noqa: SIM117
            with database.transaction() as connection:
                connection.execute(_TRANSFER, ("post", pending, debit, "spent:tokens", amount))

    def test_a_reservation_is_resolved_once(
        self,
        ledger: Ledger,
        database: Database,
        reserve: Callable[..., list[bool]],
        settle: Callable[..., int],
    ) -> None:
        key = uuid4()
        reserve((key, {WEEKLY: 10}))
        settle((key, {WEEKLY: 10}))
        [pending] = reservation_transfers(key, [WEEKLY])
        with pytest.raises(psycopg.errors.UniqueViolation):  # noqa: SIM117
            with database.transaction() as connection:
                connection.execute(_TRANSFER, ("void", pending, WEEKLY, "spent:tokens", 10))


class TestVerification:
    """`verify` finds what was done behind the ledger's back, and says it in words."""

    @pytest.fixture
    def tamper(self, database: Database) -> Callable[..., None]:
        """Execute a statement without triggers or constraints."""

        def execute(statement: Any, parameters: Sequence[object] = ()) -> None:
            with database.transaction() as connection:
                connection.execute("SET LOCAL session_replication_role = replica")
                for table, constraint in (
                    ("quota_accounts", "ck_quota_accounts_not_below_zero"),
                    ("quota_transfers", "uq_quota_transfers_pending_id"),
                ):
                    connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {constraint}")
                connection.execute(statement, parameters)

        return execute

    @pytest.fixture
    def pending(self, reserve: Callable[..., list[bool]], settle: Callable[..., int]) -> UUID:
        """Some use on the books, and one pending transfer of 10 a week."""
        used, key = uuid4(), uuid4()
        reserve((used, {SHORT: 5, WEEKLY: 5}), (key, {WEEKLY: 10}))
        settle((used, {SHORT: 5, WEEKLY: 4}))
        return reservation_transfers(key, [WEEKLY])[0]

    def test_a_balanced_ledger_says_what_it_checked(self, ledger: Ledger, pending: UUID) -> None:
        report = ledger.verify()
        # 3 grants; 3 reserved; 2 posted
        assert (report.balanced, report.accounts, report.transfers) == (True, 7, 8)

    def test_a_counter_that_moved_alone_is_found(
        self, ledger: Ledger, pending: UUID, tamper: Callable[..., None]
    ) -> None:
        tamper("UPDATE quota_accounts SET credits_posted = credits_posted + 1 WHERE account = %s", (WEEKLY,))
        assert ledger.verify().differences == (
            "account plan/weekly: credits_posted is 1001, but its transfers add up to 1000",
            "unit tokens: posted debits are 1109, but posted credits are 1110",
        )

    def test_a_changed_transfer_is_found(
        self, ledger: Ledger, pending: UUID, tamper: Callable[..., None]
    ) -> None:
        tamper("UPDATE quota_transfers SET amount = 9 WHERE transfer_id = %s", (pending,))
        assert ledger.verify().differences == (
            "account plan/weekly: debits_pending is 10, but its transfers add up to 9",
            "account spent:tokens: credits_pending is 10, but its transfers add up to 9",
        )

    def test_a_reservation_that_was_resolved_twice_or_for_too_much_is_found(
        self, ledger: Ledger, pending: UUID, tamper: Callable[..., None]
    ) -> None:
        tamper(_TRANSFER, ("post", pending, WEEKLY, "spent:tokens", 11))
        tamper(_TRANSFER, ("void", pending, WEEKLY, "spent:tokens", 10))
        said = "\n".join(ledger.verify().differences)
        assert f"posts 11 of the 10 that {pending} reserved" in said
        assert f"pending transfer {pending}: resolved 2 times" in said

    def test_a_transfer_between_units_is_found(
        self, ledger: Ledger, pending: UUID, tamper: Callable[..., None]
    ) -> None:
        tamper(_TRANSFER, ("single", None, WEEKLY, BUDGET, 1))
        assert "moves tokens of plan/weekly to usd of budget/api" in "\n".join(ledger.verify().differences)

    def test_a_transfer_of_an_account_that_does_not_exist_is_found(
        self, ledger: Ledger, pending: UUID, tamper: Callable[..., None]
    ) -> None:
        tamper(_TRANSFER, ("single", None, "plan/hourly", "spent:tokens", 1))
        assert "account plan/hourly: does not exist, but has transfers" in ledger.verify().differences

    def test_an_account_below_zero_is_found(
        self, ledger: Ledger, pending: UUID, tamper: Callable[..., None]
    ) -> None:
        tamper("UPDATE quota_accounts SET debits_posted = 1001 WHERE account = %s", (WEEKLY,))
        assert "account plan/weekly: holds -11, below zero" in ledger.verify().differences

    def test_use_that_the_window_forgot_is_found(
        self, ledger: Ledger, pending: UUID, tamper: Callable[..., None]
    ) -> None:
        tamper("UPDATE quota_accounts SET debits_before_window = 3 WHERE account = %s", (WEEKLY,))
        assert ledger.verify().differences == (
            "account plan/weekly: 1 used in this window, but its transfers since the opening add up to 4",
        )

    def test_the_command_prints_differences_and_exits_with_one(
        self,
        database: Database,
        ledger: Ledger,
        pending: UUID,
        tamper: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("CP_DATABASE_URL", database.url)
        balanced = CliRunner().invoke(app, ["ledger", "verify"])
        assert (balanced.exit_code, balanced.stdout) == (
            0,
            "7 accounts recomputed from 8 transfers: balanced\n",
        )
        tamper("UPDATE quota_accounts SET debits_pending = 11 WHERE account = %s", (WEEKLY,))
        wrong = CliRunner().invoke(app, ["ledger", "verify"])
        assert wrong.exit_code == 1
        assert "account plan/weekly: debits_pending is 11, but its transfers add up to 10" in wrong.stdout
        as_json = CliRunner().invoke(app, ["ledger", "verify", "--json"])
        assert as_json.exit_code == 1
        assert json.loads(as_json.stdout)["balanced"] is False


class TestQuotaCommand:
    """`control-panel quota` shows the accounts of models.yaml."""

    def test_it_opens_and_shows_every_declared_account(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CP_DATABASE_URL", database.url)
        as_json = CliRunner().invoke(app, ["quota", "--json"])
        rows = {row["account"]: row for row in map(json.loads, as_json.stdout.splitlines())}
        assert set(rows) == {
            "budget/api",
            "chatgpt-pro/5-hour",
            "chatgpt-pro/weekly",
            "claude-max/5-hour",
            "claude-max/weekly",
            "gemini-pro/daily",
        }
        assert all(row["available"] == row["limit"] and row["state"] == "FULL" for row in rows.values())
        assert rows["claude-max/5-hour"]["resets_at"] is None
        shown = CliRunner().invoke(app, ["quota"], env={"COLUMNS": "80"}).stdout
        assert all(name in shown for name in rows)
        assert max(map(len, shown.splitlines())) <= 80


@dataclass
class _ModelAccount:
    """What an account should say, kept in four numbers."""

    limit: int
    held: int = 0
    used: int = 0
    reserved: dict[UUID, int] = field(default_factory=dict)
    is_open: bool = True

    @property
    def pending(self) -> int:
        return sum(self.reserved.values())

    @property
    def available(self) -> int:
        return self.held if self.is_open else max(0, self.limit - self.pending)

    def reserve(self, key: UUID, amount: int) -> None:
        self.held, self.used = self.available - amount, self.used if self.is_open else 0
        self.reserved[key] = amount
        self.is_open = True

    def use(self, key: UUID, used: int) -> None:
        self.held = max(0, self.held + self.reserved.pop(key, 0) - used)
        self.used += used

    def change_limit(self, limit: int) -> None:
        self.limit = limit
        if self.is_open:
            self.held = max(0, limit - self.used - self.pending)


class LedgerMachine(RuleBasedStateMachine):
    """The ledger beside a model of it in plain numbers; every step must leave both the same."""

    database: Database  # set by the test

    def __init__(self) -> None:
        super().__init__()
        with self.database.transaction() as connection:
            connection.execute("SET LOCAL session_replication_role = replica")
            connection.execute("TRUNCATE cp.quota_transfers, cp.quota_accounts")
        self.ledger = Ledger(self.database)
        self.limits = {"short": 100, "weekly": 150, "api": 60}
        self.ledger.open_accounts(_registry(**self.limits))
        self.model = {
            SHORT: _ModelAccount(100, is_open=False),
            WEEKLY: _ModelAccount(150, held=150),
            BUDGET: _ModelAccount(60, held=60),
        }
        self.keys: list[tuple[UUID, tuple[str, ...]]] = []
        self.expiring: set[UUID] = set()
        self.charged: set[tuple[UUID, str]] = set()

    amounts = st.integers(1, 70)
    fundings = st.sampled_from([(SHORT, WEEKLY), (WEEKLY,), (BUDGET,)])

    @rule(wanted=st.lists(st.tuples(fundings, amounts), min_size=1, max_size=4), expires=st.booleans())
    def reserve(self, wanted: list[tuple[tuple[str, ...], int]], expires: bool) -> None:
        batch = [(uuid4(), accounts, amount) for accounts, amount in wanted]
        expected = []
        for key, accounts, amount in batch:
            fits = all(self.model[account].available >= amount for account in accounts)
            expected.append(fits)
            if fits:
                for account in accounts:
                    self.model[account].reserve(key, amount)
                self.keys.append((key, accounts))
                if expires:
                    self.expiring.add(key)
        reservations = _reservations(
            [(key, dict.fromkeys(accounts, amount)) for key, accounts, amount in batch]
        )
        for _ in range(2 if all(expected) else 1):  # a repeat answers the same and changes nothing
            with self.database.transaction() as connection:
                made = self.ledger.reserve(connection, reservations, expires_in=AT_ONCE if expires else HOUR)
            assert made == expected

    @rule(picks=st.lists(st.tuples(st.integers(0, 1_000), st.integers(0, 90)), min_size=1, max_size=4))
    def settle(self, picks: list[tuple[int, int]]) -> None:
        if not self.keys:
            return
        chosen = {self.keys[position % len(self.keys)]: used for position, used in picks}
        late: list[tuple[UUID, str, int]] = []
        for (key, accounts), used in chosen.items():
            for account in accounts:
                model = self.model[account]
                if (key, account) in self.charged:
                    continue
                within = min(used, model.reserved.get(key, 0))
                model.use(key, within)
                if used > within:
                    late.append((key, account, used - within))
                if used:
                    self.charged.add((key, account))
        for _, account, beyond in late:
            self.model[account].use(uuid4(), beyond)
        settlements = _settlements(
            [(key, dict.fromkeys(accounts, used)) for (key, accounts), used in chosen.items()]
        )
        for _ in range(2):  # a repeat changes nothing
            with self.database.transaction() as connection:
                self.ledger.settle(connection, settlements)

    @rule()
    def expire(self) -> None:
        freed = 0
        for model in self.model.values():
            for key in self.expiring & model.reserved.keys():
                model.use(key, 0)
                freed += 1
        assert self.ledger.expire_pending() == freed

    @rule(name=st.sampled_from(["short", "weekly", "api"]), limit=st.integers(1, 200))
    def change_limit(self, name: str, limit: int) -> None:
        self.limits[name] = limit
        self.model[{"short": SHORT, "weekly": WEEKLY, "api": BUDGET}[name]].change_limit(limit)
        self.ledger.open_accounts(_registry(**self.limits))

    @rule()
    def end_the_short_window(self) -> None:
        _end_window(self.database, SHORT)
        self.model[SHORT].is_open = False

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        assert {
            account.account: (account.limit, account.used, account.pending, account.available)
            for account in self.ledger.accounts()
        } == {
            name: (model.limit, model.used if model.is_open else 0, model.pending, model.available)
            for name, model in self.model.items()
        }
        report = self.ledger.verify()
        assert report.balanced, report.differences


def test_whatever_is_done_the_ledger_agrees_with_plain_numbers_and_balances(database: Database) -> None:
    LedgerMachine.database = database
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=60,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
