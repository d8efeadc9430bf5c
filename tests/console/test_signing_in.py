from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from cloud_aggregator.adapters import accounts
from cloud_aggregator.adapters.accounts import Accounts, TooManyAttempts, Welcome, WrongPassword
from cloud_aggregator.adapters.database import Database
from cloud_aggregator.config import AggregatorSettings, ConsoleSettings
from cloud_aggregator.console.login import local_address
from federated_core.errors import LocalMisuseError
from tests.console.visitors import PASSWORD, QUICK_HASHER, Clock, Visitor, make_console, parts_of, visit_as


@pytest.fixture
def known(tmp_path: Path, clock: Clock) -> Accounts:
    database = Database(f"sqlite:///{tmp_path / 'aggregator.db'}")
    made = Accounts(database.engine, clock, QUICK_HASHER)
    made.create_user("anna", "operator", PASSWORD)
    return made


def test_there_is_no_user_before_one_is_made(tmp_path: Path, clock: Clock) -> None:
    database = Database(f"sqlite:///{tmp_path / 'aggregator.db'}")
    empty = Accounts(database.engine, clock, QUICK_HASHER)
    assert empty.users() == []
    for name, password in (("admin", "admin"), ("root", ""), ("", "")):
        assert empty.sign_in(name, password, "10.0.0.7") == WrongPassword()
    database.close()


def test_neither_password_nor_cookie_is_in_the_database(known: Accounts, tmp_path: Path) -> None:
    outcome = known.sign_in("anna", PASSWORD, "10.0.0.7")
    assert isinstance(outcome, Welcome)
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    assert b"$argon2id$" in content
    assert PASSWORD.encode() not in content
    assert outcome.cookie.encode() not in content


@pytest.mark.parametrize("password", ["short", "x" * 257])
def test_a_password_that_is_too_short_or_too_long_is_refused(known: Accounts, password: str) -> None:
    with pytest.raises(LocalMisuseError, match="expected 12 to 256 characters"):
        known.create_user("otto", "viewer", password)


@pytest.mark.parametrize("name", ["Anna", "a b", "", "<script>", "x" * 49])
def test_an_odd_user_name_is_refused(known: Accounts, name: str) -> None:
    with pytest.raises(LocalMisuseError, match="user name"):
        known.create_user(name, "viewer", PASSWORD)


def test_a_fifth_wrong_password_is_the_last_that_is_looked_at_for_a_while(known: Accounts, clock: Clock) -> None:
    for _ in range(accounts.ATTEMPTS_OF_USER_AT_ADDRESS_MAX):
        assert known.sign_in("anna", "wrong", "10.0.0.7") == WrongPassword()
    assert known.sign_in("anna", PASSWORD, "10.0.0.7") == TooManyAttempts(accounts.ATTEMPT_WINDOW_S)
    assert isinstance(known.sign_in("anna", PASSWORD, "10.0.0.8"), Welcome), "another address is not locked out"
    clock.now_s += accounts.ATTEMPT_WINDOW_S + 1.0
    assert isinstance(known.sign_in("anna", PASSWORD, "10.0.0.7"), Welcome)


def test_an_address_that_tries_many_names_is_refused(known: Accounts) -> None:
    for index in range(accounts.ATTEMPTS_OF_ADDRESS_MAX):
        assert known.sign_in(f"user{index}", "wrong", "10.0.0.7") == WrongPassword()
    assert isinstance(known.sign_in("anna", PASSWORD, "10.0.0.7"), TooManyAttempts)


def test_a_herd_of_addresses_that_tries_one_name_is_refused(known: Accounts) -> None:
    for index in range(accounts.ATTEMPTS_OF_USER_MAX):
        assert known.sign_in("anna", "wrong", f"10.0.1.{index}") == WrongPassword()
    assert isinstance(known.sign_in("anna", PASSWORD, "10.0.2.1"), TooManyAttempts)


def test_many_attempts_at_once_are_not_more_than_the_limit(known: Accounts) -> None:
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda _: known.sign_in("anna", "wrong", "10.0.0.7"), range(24)))
    assert sum(isinstance(one, WrongPassword) for one in outcomes) <= accounts.ATTEMPTS_OF_USER_AT_ADDRESS_MAX


def test_success_forgives_earlier_mistakes(known: Accounts) -> None:
    for _ in range(3):
        for _ in range(accounts.ATTEMPTS_OF_USER_AT_ADDRESS_MAX - 1):
            known.sign_in("anna", "wrong", "10.0.0.7")
        assert isinstance(known.sign_in("anna", PASSWORD, "10.0.0.7"), Welcome)


def test_the_page_says_when_to_try_again(console: Flask) -> None:
    visitor = Visitor(console)
    codes = [visitor.sign_in("anna", "wrong").status_code for _ in range(6)]
    assert codes == [403] * 5 + [429]
    answer = visitor.sign_in("anna")
    assert answer.headers["Retry-After"] == "900"
    assert "Try again in 15 min" in answer.text


def test_signing_in_makes_a_new_cookie_and_the_one_from_before_is_useless(console: Flask) -> None:
    visitor = Visitor(console)
    visitor.get("/login")
    before = visitor.cookie
    assert before
    visitor.sign_in("anna")
    assert visitor.cookie != before
    thief = Visitor(console)
    thief.client.set_cookie("fallow", before)
    assert thief.get("/fleet").status_code == 303


def test_a_planted_cookie_is_not_what_signing_in_makes_valid(console: Flask) -> None:
    victim = Visitor(console)
    victim.client.set_cookie("fallow", "planted-by-somebody-else")
    victim.sign_in("anna")
    thief = Visitor(console)
    thief.client.set_cookie("fallow", "planted-by-somebody-else")
    assert thief.get("/fleet").status_code == 303
    assert victim.get("/fleet").status_code == 200


def test_after_signing_out_the_cookie_is_useless(console: Flask) -> None:
    visitor = visit_as(console, "operator")
    cookie = visitor.cookie
    visitor.post("/logout")
    thief = Visitor(console)
    thief.client.set_cookie("fallow", cookie)
    assert thief.get("/fleet").status_code == 303


def test_another_password_ends_every_session(console: Flask) -> None:
    first, second = visit_as(console, "operator"), visit_as(console, "operator")
    new = "an entirely new pass phrase"
    answer = first.post("/account/password", password=PASSWORD, new_password=new, new_password_again=new)
    assert answer.status_code == 303
    assert [one.get("/fleet").status_code for one in (first, second)] == [303, 303]
    assert Visitor(console).sign_in("anna").status_code == 403
    assert Visitor(console).sign_in("anna", new).status_code == 303


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"password": "wrong", "new_password": "x" * 12, "new_password_again": "x" * 12}, "present password"),
        ({"password": PASSWORD, "new_password": "x" * 12, "new_password_again": "y" * 12}, "differ"),
        ({"password": PASSWORD, "new_password": "x", "new_password_again": "x"}, "12 to 256"),
    ],
)
def test_a_mistake_in_the_password_form_is_told(console: Flask, fields: dict[str, str], text: str) -> None:
    answer = visit_as(console, "viewer").post("/account/password", **fields)
    assert answer.status_code == 400
    assert text in answer.text


def test_a_stolen_session_cannot_guess_the_password_either(console: Flask) -> None:
    visitor = visit_as(console, "operator")
    fields = {"password": "wrong", "new_password": "x" * 12, "new_password_again": "x" * 12}
    texts = [visitor.post("/account/password", **fields).text for _ in range(6)]
    assert "present password" in texts[4]
    assert "Too many attempts" in texts[5]


def test_another_role_ends_every_session(console: Flask) -> None:
    visitor = visit_as(console, "operator")
    parts_of(console).accounts.set_role("anna", "viewer")
    assert visitor.get("/fleet").status_code == 303
    assert visit_as(console, "operator").get("/start-task").status_code == 403


def test_a_deleted_user_is_out_at_once(console: Flask) -> None:
    visitor = visit_as(console, "operator")
    parts_of(console).accounts.delete_user("anna")
    assert visitor.get("/fleet").status_code == 303
    assert Visitor(console).sign_in("anna").status_code == 403


def test_signing_out_everywhere_ends_the_other_browsers_too(console: Flask) -> None:
    first, second = visit_as(console, "viewer"), visit_as(console, "viewer")
    first.post("/account/sign-out-everywhere")
    assert second.get("/fleet").status_code == 303


def test_an_idle_session_ends(console: Flask, clock: Clock) -> None:
    visitor = visit_as(console, "viewer")
    clock.now_s += accounts.SESSION_IDLE_S - 1.0
    assert visitor.get("/fleet").status_code == 200
    clock.now_s += accounts.SESSION_IDLE_S - 1.0
    assert visitor.get("/fleet").status_code == 200, "each page begins the wait anew"
    clock.now_s += accounts.SESSION_IDLE_S + 1.0
    assert visitor.get("/fleet").status_code == 303


def test_a_page_that_refreshes_itself_keeps_no_session_alive(console: Flask, clock: Clock) -> None:
    visitor = visit_as(console, "viewer")
    for _ in range(4):
        clock.now_s += accounts.SESSION_IDLE_S * 0.3
        answer = visitor.get("/fleet", X_Live="1")
    assert answer.status_code == 303


def test_a_session_ends_after_half_a_day_even_if_it_is_used(console: Flask, clock: Clock) -> None:
    visitor = visit_as(console, "viewer")
    codes = []
    for _ in range(13):
        clock.now_s += 3600.0
        codes.append(visitor.get("/fleet").status_code)
    assert codes == [200] * 12 + [303]


def test_after_signing_in_one_is_where_one_wanted_to_be(console: Flask) -> None:
    visitor = Visitor(console)
    asked = visitor.get("/fleet?presence=away")
    assert asked.headers["Location"] == "/login?next=/fleet?presence%3Daway"
    answer = visitor.post("/login", user="anna", password=PASSWORD, next="/fleet?presence=away")
    assert answer.headers["Location"] == "/fleet?presence=away"


@pytest.mark.parametrize(
    "wanted", ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:1", "", "/\n/x"]
)
def test_the_login_leads_to_no_other_site(console: Flask, wanted: str) -> None:
    answer = Visitor(console).post("/login", user="anna", password=PASSWORD, next=wanted)
    assert answer.headers["Location"] == "/"


@given(st.text())
def test_no_text_makes_the_login_lead_elsewhere(wanted: str) -> None:
    app = Flask(__name__)
    app.add_url_rule("/", "overview.show")
    with app.test_request_context():
        address = local_address(wanted)
    assert address.startswith("/")
    assert not address.startswith(("//", "/\\"))


def test_the_cookie_is_hidden_from_scripts_and_from_other_sites(console: Flask) -> None:
    set_cookie = Visitor(console).sign_in("anna").headers["Set-Cookie"]
    assert "HttpOnly" in set_cookie
    assert "SameSite=Lax" in set_cookie


def test_over_tls_the_cookie_never_leaves_it(tmp_path: Path, clock: Clock) -> None:
    settings = AggregatorSettings(fleet="demo", console=ConsoleSettings(proxy_count=1))
    app = make_console(tmp_path, clock, settings, device_count=0)
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "console.example", "X-Forwarded-For": "198.51.100.9"}
    answer = app.test_client().get("/login", headers=headers)
    assert answer.headers["Set-Cookie"].startswith("__Host-fallow=")
    assert "Secure" in answer.headers["Set-Cookie"]
    assert "Strict-Transport-Security" in answer.headers
    parts_of(app).engine.dispose()


def test_a_forwarded_address_is_not_believed_unless_a_proxy_is_configured(console: Flask) -> None:
    for index in range(6):
        visitor = Visitor(console)
        token = visitor.form_token()
        answer = visitor.client.post(
            "/login",
            data={"user": "anna", "password": "wrong", "form_token": token},
            headers={"X-Forwarded-For": f"198.51.100.{index}"},
        )
    assert answer.status_code == 429


def test_who_signed_in_and_who_could_not_is_in_the_audit_log(console: Flask) -> None:
    Visitor(console, "198.51.100.9").sign_in("mallory", "wrong")
    text = visit_as(console, "operator").get("/audit").text
    assert "sign-in of mallory from 198.51.100.9 refused" in text
    assert "anna signed in from 10.0.0.7" in text
