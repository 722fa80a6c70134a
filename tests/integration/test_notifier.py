"""The three sinks: a file, a webhook on loopback and a mail server on loopback, in good and in bad manners."""

from __future__ import annotations

import base64
import errno
import hashlib
import hmac
import json
import os
import socket
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from mail_server import MailServer, write_certificate
from stub_provider import Reply, StubProvider

from cp_core.policy.notices import NoticePolicy
from cp_resources.notifiers.chosen import open_notifier
from cp_resources.notifiers.file import FileNotifier
from cp_resources.notifiers.mail import subject, text
from cp_resources.notifiers.message import Message, NoticeSetupError, Sent
from cp_resources.notifiers.webhook import signing_key

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
SECRET = "a secret of the webhook"
PASSWORD = "correct horse battery staple"
DELIVERED = Sent(delivered=True)


def message(number: int = 0, *, at: datetime = NOON, **told: Any) -> Message:
    key = str(uuid4())
    payload = {
        "id": key,
        "kind": "completed",
        "task_id": f"t{number}",
        "title": "Fix it",
        "state": "succeeded",
    }
    return Message(key, created_at=at, claimed_at=at, payload={**payload, **told})


def messages(count: int) -> list[Message]:
    return [message(number) for number in range(count)]


# --- file


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_notice_is_a_line_of_json_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "home" / "notices.jsonl"
    notice = message(title="Zeile\nzwei\u2028 ✓")
    assert FileNotifier(path).send([notice]) == {notice.id: DELIVERED}
    assert lines(path) == [{**notice.payload, "written_at": "2026-03-04T12:00:00+00:00"}]
    assert path.read_bytes().count(b"\n") == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_default_file_is_in_the_home(tmp_path: Path) -> None:
    open_notifier(NoticePolicy(), tmp_path, {}).send([message()])
    assert (tmp_path / "notices.jsonl").exists()


def test_a_repeat_is_not_written_by_this_process_nor_by_another(tmp_path: Path) -> None:
    path = tmp_path / "n.jsonl"
    first, notices = FileNotifier(path), messages(5)
    first.send(notices[:3])
    first.send(notices[:4])
    FileNotifier(path).send(notices)
    first.send(notices)
    assert [line["id"] for line in lines(path)] == [notice.id for notice in notices]


def test_a_repeat_is_found_behind_what_others_wrote_later(tmp_path: Path) -> None:
    path = tmp_path / "n.jsonl"
    early = message()
    FileNotifier(path).send([early])
    FileNotifier(path).send([message(at=NOON + timedelta(hours=minutes)) for minutes in range(200)])
    FileNotifier(path).send([early])
    assert [line["id"] for line in lines(path)].count(early.id) == 1


def test_many_writers_at_once_tear_no_line_and_repeat_none(tmp_path: Path) -> None:
    path, notices = tmp_path / "n.jsonl", messages(200)
    batches = [notices[first : first + 50] for first in (0, 25, 50, 75, 100, 125, 150)]
    with ThreadPoolExecutor(len(batches)) as pool:
        list(pool.map(lambda batch: FileNotifier(path).send(batch), batches))
    assert sorted(line["id"] for line in lines(path)) == sorted(notice.id for notice in notices)


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_line_that_a_crash_tore_is_written_anew(tmp_path: Path, kept: int) -> None:
    path, notices = tmp_path / "n.jsonl", messages(2)
    FileNotifier(path).send(notices)
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    path.write_bytes(whole[:start] + whole[start:][:kept])
    FileNotifier(path).send([notices[1]])
    assert path.read_bytes() == whole


def test_what_a_person_wrote_into_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "n.jsonl"
    path.write_text('seen until here\n[1]\n{"written_at": 7}\n\n')
    notice = message()
    for _ in range(2):
        FileNotifier(path).send([notice])
    assert path.read_text().startswith('seen until here\n[1]\n{"written_at": 7}\n\n{')
    assert path.read_text().count(notice.id) == 1


def test_a_file_that_was_taken_away_or_emptied_is_begun_anew(tmp_path: Path) -> None:
    path, notifier = tmp_path / "n.jsonl", FileNotifier(tmp_path / "n.jsonl")
    for renew in (lambda: path.rename(tmp_path / "n.1"), lambda: path.write_bytes(b""), path.unlink):
        notifier.send(messages(2))
        renew()
        notice = message()
        notifier.send([notice])
        assert [line["id"] for line in lines(path)] == [notice.id]


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "n.jsonl"
    FileNotifier(path).send(messages(1))
    before, write, calls = path.read_bytes(), os.write, iter([False, True])

    def full(descriptor: int, content: bytes) -> int:
        if next(calls):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content[:50])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(NoticeSetupError, match=r"notices.file.path: cannot write .*No space left on device"):
        FileNotifier(path).send(messages(3))
    assert path.read_bytes() == before


def test_a_path_that_cannot_be_a_file_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "taken" / "n.jsonl", tmp_path / "pipe"):
        with pytest.raises(NoticeSetupError, match=r"notices\.file\.path"):
            FileNotifier(path).send(messages(1))


# --- webhook


def webhook(url: str, *, secret: bool = True, allowed: tuple[str, ...] = ("127.0.0.0/8",), **policy: Any):
    chosen: dict[str, Any] = {"url": url, "allowed_networks": allowed}
    if secret:
        chosen["secret_env"] = "HOOK_SECRET"
    return open_notifier(
        NoticePolicy.model_validate({"sink": "webhook", "webhook": chosen, "timeout_seconds": 5, **policy}),
        Path("/nowhere"),
        {"HOOK_SECRET": SECRET},
    )


def test_a_webhook_gets_the_notice_with_a_key_and_a_signature() -> None:
    notice = message()
    with StubProvider(lambda call: Reply()) as hook:
        assert webhook(f"{hook.url}/tasks?x=1").send([notice]) == {notice.id: DELIVERED}
    [call] = hook.calls
    assert (call.path, call.body) == ("/tasks?x=1", notice.payload)
    assert call.headers["idempotency-key"] == call.headers["webhook-id"] == notice.id
    # the signed text by https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    signed = f"{notice.id}.{call.headers['webhook-timestamp']}.{json.dumps(notice.payload)}"
    digest = hmac.digest(SECRET.encode(), signed.encode(), hashlib.sha256)
    assert call.headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
    assert abs(int(call.headers["webhook-timestamp"]) - time.time()) < 60


def test_without_a_secret_nothing_is_signed() -> None:
    with StubProvider(lambda call: Reply()) as hook:
        webhook(hook.url, secret=False).send([message()])
    assert "webhook-signature" not in hook.calls[0].headers


def test_a_secret_of_the_standards_form_is_base64() -> None:
    assert signing_key("whsec_aGVsbG8=") == b"hello"
    assert signing_key("hello") == b"hello"


def test_a_webhook_that_answers_500_then_200_gets_the_same_key_twice() -> None:
    notice = message()
    with StubProvider(lambda call: Reply(status=500 if len(hook.calls) == 1 else 200)) as hook:
        notifier = webhook(hook.url)
        first, second = notifier.send([notice]), notifier.send([notice])
    assert first == {notice.id: Sent(delivered=False, error="answered 500")}
    assert second == {notice.id: DELIVERED}
    assert len({call.headers["idempotency-key"] for call in hook.calls}) == 1


def test_a_webhook_may_say_when_to_come_back() -> None:
    notice = message()
    with StubProvider(lambda call: Reply(b"slow down", 429, {"retry-after": "120"})) as hook:
        sent = webhook(hook.url).send([notice])
    assert sent[notice.id] == Sent(delivered=False, error="answered 429: slow down", retry_after=120)


@pytest.mark.parametrize(
    "bad", [Reply(delay=60), Reply(b"x" * 600, trickle=0.1)], ids=["silent", "trickling"]
)
def test_a_webhook_that_hangs_is_given_up_in_time(bad: Reply) -> None:
    notice = message()
    began = time.monotonic()
    with StubProvider(lambda call: bad) as hook:
        sent = webhook(hook.url, timeout_seconds=0.3).send([notice])
    assert sent[notice.id].error == "no answer within 0.3 s"
    assert time.monotonic() - began < 5


def test_a_batch_that_hangs_begins_no_more_after_its_time() -> None:
    notices = messages(100)
    with StubProvider(lambda call: Reply(delay=60)) as hook:
        sent = webhook(hook.url, timeout_seconds=0.3, batch_seconds=0.5).send(notices)
    assert 8 <= len(sent) <= 24  # eight at a time, and no more than three times that within half a second
    assert set(sent) <= {notice.id for notice in notices}


def test_many_notices_are_posted_a_few_at_a_time() -> None:
    notices = messages(40)
    with StubProvider(lambda call: Reply(delay=0.01)) as hook:
        sent = webhook(hook.url).send(notices)
    assert sent == {notice.id: DELIVERED for notice in notices}
    assert 1 < hook.busiest <= 8


def test_a_long_answer_is_not_read_to_its_end() -> None:
    notice = message()
    with StubProvider(lambda call: Reply(b"x" * 50_000_000, 500)) as hook:
        sent = webhook(hook.url).send([notice])
    assert sent[notice.id].error == f"answered 500: {'x' * 200}"


def test_a_redirect_is_not_followed() -> None:
    notice = message()
    with StubProvider(lambda call: Reply(status=307, headers={"location": f"{hook.url}/elsewhere"})) as hook:
        sent = webhook(hook.url).send([notice])
    assert sent[notice.id].error == "answered 307: redirects are not followed; name the final address"
    assert len(hook.calls) == 1


def test_a_webhook_that_nobody_serves_is_tried_again_later() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    notice = message()
    sent = webhook(f"http://127.0.0.1:{port}").send([notice])
    assert not sent[notice.id].delivered
    assert "ConnectError" in (sent[notice.id].error or "")


def test_no_secret_appears_in_an_error() -> None:
    notice = message()
    echo = f"your secret is {SECRET} at /hooks/T0KEN".encode()
    with StubProvider(lambda call: Reply(echo, 400)) as hook:
        sent = webhook(f"{hook.url}/hooks/T0KEN").send([notice])
    assert "answered 400: your secret is [key]" in (sent[notice.id].error or "")
    assert "T0KEN" not in (sent[notice.id].error or "")


def test_an_internal_address_is_refused_unless_it_is_listed() -> None:
    with StubProvider(lambda call: Reply()) as hook:
        for url in (
            hook.url,
            hook.url.replace("127.0.0.1", "localhost"),
            hook.url.replace("http:", "https:"),
        ):
            with pytest.raises(NoticeSetupError, match=r"notices\.webhook\.url: .* is (127\.0\.0\.1|::1)"):
                webhook(url, allowed=("10.0.0.0/8",)).send(messages(3))
    assert hook.calls == []


@pytest.mark.parametrize("address", ["169.254.169.254", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]", "10.0.0.1"])
def test_the_usual_disguises_of_an_internal_address_are_refused(address: str) -> None:
    with pytest.raises(NoticeSetupError, match=r"notices\.webhook\.allowed_networks"):
        webhook(f"https://{address}/latest/meta-data", allowed=()).send(messages(1))


def resolve_to(monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
    """Have hooks.example.com resolve to one answer after the other, the last one for ever."""
    left, real = list(answers), socket.getaddrinfo

    def resolve(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host in ("hooks.example.com", b"hooks.example.com"):
            host = left.pop(0) if len(left) > 1 else left[0]
        return real(host, port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def test_a_name_is_judged_by_the_address_that_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with StubProvider(lambda call: Reply()) as hook:
        url = hook.url.replace("127.0.0.1", "hooks.example.com")
        resolve_to(monkeypatch, "127.0.0.1")
        with pytest.raises(NoticeSetupError, match=r"hooks\.example\.com is 127\.0\.0\.1"):
            webhook(url, allowed=()).send(messages(1))
        assert hook.calls == []
        notice = message()
        assert webhook(url).send([notice]) == {notice.id: DELIVERED}
    assert hook.calls[0].headers["host"].startswith("hooks.example.com")


def test_a_name_that_resolves_elsewhere_after_the_check_does_not_get_the_notice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with StubProvider(lambda call: Reply()) as listed:
        port = int(listed.url.rpartition(":")[2])
        resolve_to(monkeypatch, "127.0.0.1", "127.0.0.2")
        notice = message()
        sent = webhook(f"http://hooks.example.com:{port}", allowed=("127.0.0.1/32",)).send([notice])
    assert sent == {notice.id: DELIVERED}
    assert len(listed.calls) == 1


def test_an_unset_variable_is_an_error_that_names_key_and_variable(tmp_path: Path) -> None:
    signed = NoticePolicy.model_validate(
        {"sink": "webhook", "webhook": {"url_env": "HOOK_URL", "secret_env": "HOOK_SECRET"}}
    )
    with pytest.raises(
        NoticeSetupError, match=r"notices\.webhook\.url_env names .* HOOK_URL, which is not set"
    ):
        open_notifier(signed, tmp_path, {"HOOK_SECRET": SECRET})
    with pytest.raises(NoticeSetupError, match=r"notices\.webhook\.secret_env names .* HOOK_SECRET"):
        open_notifier(signed, tmp_path, {"HOOK_URL": "https://hooks.example.com", "HOOK_SECRET": " "})


def test_a_variable_with_the_wrong_thing_in_it_is_named_and_not_shown(tmp_path: Path) -> None:
    policy = NoticePolicy.model_validate(
        {"sink": "webhook", "webhook": {"url_env": "HOOK_URL", "secret_env": "HOOK_SECRET"}}
    )
    with pytest.raises(NoticeSetupError, match="the value of HOOK_URL must be an address") as raised:
        open_notifier(policy, tmp_path, {"HOOK_URL": "T0KEN", "HOOK_SECRET": SECRET})
    assert "T0KEN" not in str(raised.value)
    environment = {"HOOK_URL": "https://hooks.example.com", "HOOK_SECRET": "whsec_no-base64!"}
    with pytest.raises(NoticeSetupError, match="in HOOK_SECRET, what follows whsec_ is not base64") as raised:
        open_notifier(policy, tmp_path, environment)
    assert "no-base64" not in str(raised.value)


# --- mail


def mailer(
    server: MailServer, *, login: tuple[str, str] | None = None, host: str = "localhost", **chosen: Any
):
    policy = {key: chosen.pop(key) for key in ("timeout_seconds", "batch_seconds") if key in chosen}
    email = {
        "host": host,
        "port": server.port,
        "tls": "none",
        "sender": "panel@example.com",
        "recipients": ["team@example.com", "boss@example.com"],
        **chosen,
    }
    if login:
        email |= {"username_env": "MAIL_USER", "password_env": "MAIL_PASSWORD"}
    return open_notifier(
        NoticePolicy.model_validate({"sink": "email", "email": email, "timeout_seconds": 5, **policy}),
        Path("/nowhere"),
        dict(zip(("MAIL_USER", "MAIL_PASSWORD"), login or ("", ""), strict=True)),
    )


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A certificate for localhost that is trusted here."""
    files = write_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))
    return files


def test_a_mail_says_what_happened_to_whom_it_concerns() -> None:
    notice = message(title="Größe prüfen ✓", quality=9.0, reason=None)
    with MailServer() as server:
        assert mailer(server).send([notice]) == {notice.id: DELIVERED}
    [mail] = server.mails
    assert mail["Subject"] == "Task t0 succeeded: Größe prüfen ✓"
    assert (mail["From"], mail["To"]) == ("panel@example.com", "team@example.com, boss@example.com")
    assert mail["Message-ID"] == f"<{notice.id}@example.com>"
    assert mail["Date"].datetime == NOON
    assert mail.get_content().splitlines() == [
        f"id: {notice.id}",
        "kind: completed",
        "task id: t0",
        "title: Größe prüfen ✓",
        "state: succeeded",
        "quality: 9.0",
    ]


def test_a_title_cannot_write_headers_of_its_own() -> None:
    notice = message(title="Fix\r\nBcc: thief@example.com\r\n\r\n.\r\nMAIL FROM:<x>")
    with MailServer() as server:
        mailer(server).send([notice])
    [mail] = server.mails
    assert mail["Bcc"] is None
    assert mail["Subject"] == "Task t0 succeeded: Fix Bcc: thief@example.com . MAIL FROM:<x>"


def test_a_subject_is_one_line_of_bounded_length() -> None:
    assert (
        subject({"kind": "assigned", "task_id": "a", "title": "x" * 500}) == f"Task a assigned: {'x' * 133}"
    )
    assert subject({"kind": "completed", "state": "dead", "task_id": "a", "title": None}) == "Task a dead"
    assert text({"task_id": "a\nb", "cost_usd": 0.5, "reason": None}) == "task id: a b\ncost usd: 0.5\n"


def test_many_mails_share_a_connection() -> None:
    with MailServer() as server:
        sent = mailer(server).send(messages(20))
    assert all(one.delivered for one in sent.values())
    assert (len(server.mails), server.connections) == (20, 1)


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_a_login_travels_encrypted(certificate: tuple[Path, Path], tls: str) -> None:
    login = ("panel", PASSWORD)
    with MailServer(certificate=certificate, implicit=tls == "implicit", login=login) as server:
        sent = mailer(server, login=login, tls=tls).send(messages(2))
    assert all(one.delivered for one in sent.values())
    assert len(server.mails) == 2


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_a_server_that_cannot_prove_who_it_is_gets_nothing(tmp_path: Path, tls: str) -> None:
    with MailServer(certificate=write_certificate(tmp_path), implicit=tls == "implicit") as server:
        with pytest.raises(NoticeSetupError, match=r"notices\.email\.host: the certificate of localhost"):
            mailer(server, tls=tls).send(messages(2))
        assert server.mails == []
        assert all(
            one.delivered
            for one in mailer(server, tls=tls, verify_certificate=False).send(messages(1)).values()
        )


def test_a_certificate_for_another_host_is_not_trusted(certificate: tuple[Path, Path]) -> None:
    with (
        MailServer(certificate=certificate) as server,
        pytest.raises(NoticeSetupError, match=r"the certificate of 127\.0\.0\.1 cannot be trusted"),
    ):
        mailer(server, tls="starttls", host="127.0.0.1").send(messages(1))


def test_a_server_without_encryption_is_not_spoken_to_in_the_clear(certificate: tuple[Path, Path]) -> None:
    with (
        MailServer() as server,
        pytest.raises(NoticeSetupError, match=r"notices\.email\.tls: localhost cannot do what is asked"),
    ):
        mailer(server, tls="starttls").send(messages(1))
    assert server.mails == []


def test_a_wrong_password_waits_for_a_person_and_is_not_shown(certificate: tuple[Path, Path]) -> None:
    with (
        MailServer(certificate=certificate, login=("panel", "another")) as server,
        pytest.raises(NoticeSetupError, match=r"refuses the login \(535\).* MAIL_PASSWORD") as raised,
    ):
        mailer(server, login=("panel", PASSWORD), tls="starttls").send(messages(1))
    assert PASSWORD not in str(raised.value)


def test_a_refused_mail_does_not_hold_back_the_others() -> None:
    notices = messages(3)
    with MailServer(answer=lambda number: "451 later" if number == 1 else "250 taken") as server:
        sent = mailer(server).send(notices)
    assert [sent[notice.id].delivered for notice in notices] == [True, False, True]
    assert "451" in (sent[notices[1].id].error or "")


def test_one_unknown_recipient_does_not_keep_the_others_from_hearing() -> None:
    notice = message()
    with MailServer(refused=("boss@example.com",)) as server:
        sent = mailer(server).send([notice])
    assert sent[notice.id].delivered
    assert "some recipients were refused: boss@example.com: 550" in (sent[notice.id].error or "")


def test_when_all_recipients_are_unknown_nothing_was_delivered() -> None:
    notice = message()
    with MailServer(refused=("@example.com",)) as server:
        sent = mailer(server).send([notice])
    assert not sent[notice.id].delivered
    assert "550" in (sent[notice.id].error or "")


def test_a_mail_server_that_nobody_runs_fails_every_notice_after_one_look() -> None:
    with MailServer() as server:
        gone = mailer(server)
    notices = messages(50)
    sent = gone.send(notices)
    assert {one.delivered for one in sent.values()} == {False}
    assert set(sent) == {notice.id for notice in notices}


def test_a_mail_server_that_hangs_is_given_up_in_time() -> None:
    began = time.monotonic()
    with MailServer(pause=60) as server:
        sent = mailer(server, timeout_seconds=0.3).send(messages(3))
    assert {one.error for one in sent.values()} == {"no answer within 0.3 s"}
    assert time.monotonic() - began < 5


def test_a_batch_of_mails_begins_no_more_after_its_time() -> None:
    slow = threading.Event()
    with MailServer(answer=lambda number: "250 taken" if slow.wait(0.2) else "250 slowly") as server:
        sent = mailer(server, batch_seconds=0.5).send(messages(50))
    assert 1 <= len(sent) <= 4
    assert all(one.delivered for one in sent.values())
