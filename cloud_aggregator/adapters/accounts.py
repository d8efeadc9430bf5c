"""Who may sign in to the console, who has, and who tried too often: argon2 hashes and sessions kept on this side.

A cookie is 32 random bytes, and only its digest is stored: whoever reads the database cannot become a user. Signing in
always makes a new one, so that a cookie planted before is worth nothing afterwards. An attempt is counted before its
password is looked at: many at once are not more than the limit.
"""

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from typing import Literal

import argon2
import msgspec
from sqlalchemy import Engine, delete, func, select, update
from sqlalchemy.orm import Session, sessionmaker

from cloud_aggregator.adapters.console_schema import SessionRow, SignInRow, UserRow
from cloud_aggregator.adapters.database import Transaction
from federated_core.errors import LocalMisuseError
from federated_core.protocol import topics

Role = Literal["viewer", "operator"]

PASSWORD_CHARACTERS_MIN, PASSWORD_CHARACTERS_MAX = 12, 256
SESSION_IDLE_S = 2 * 3600.0
SESSION_S = 12 * 3600.0
ATTEMPT_WINDOW_S = 900.0
ATTEMPTS_OF_USER_AT_ADDRESS_MAX = 5
ATTEMPTS_OF_ADDRESS_MAX = 20
ATTEMPTS_OF_USER_MAX = 50  # From everywhere: slows a guessing herd, yet one address alone locks nobody out.
_HASHES_AT_ONCE = 2  # Each takes 64 MiB for a moment.
_SEEN_EVERY_S = 60.0  # A page view is not worth a write to the disk each time.
_TEXT_MAX = 48


class User(msgspec.Struct, frozen=True):
    """A person who may sign in."""

    name: str
    role: str
    created_at: float


class SignedIn(msgspec.Struct, frozen=True):
    """A session: who, with which role, since when."""

    user: str
    role: Role
    address: str
    created_at: float
    seen_at: float
    digest: bytes


class Welcome(msgspec.Struct, frozen=True):
    """Signing in succeeded: the new cookie."""

    cookie: str


class WrongPassword(msgspec.Struct, frozen=True):
    """No such user, or not that password; which of the two is not said."""


class TooManyAttempts(msgspec.Struct, frozen=True):
    """Refused without a look at the password."""

    retry_after_s: float


class Accounts:
    """Users and their sessions in one database."""

    def __init__(
        self, engine: Engine, clock: Callable[[], float] = time.time, hasher: argon2.PasswordHasher | None = None
    ) -> None:
        self._sessions = sessionmaker(engine, expire_on_commit=False)
        self._clock = clock
        self._hasher = hasher or argon2.PasswordHasher()
        self._unknown_hash = self._hasher.hash(
            secrets.token_urlsafe()
        )  # So that a name that is nobody's takes as long.
        self._counting = threading.Lock()  # One console process serves a fleet: many at once are counted one by one.
        self._hashing = threading.BoundedSemaphore(_HASHES_AT_ONCE)

    def now_s(self) -> float:
        """Return the time by which sessions and pages go."""
        return self._clock()

    @staticmethod
    def draw_cookie() -> str:
        """Return a cookie that nobody can guess."""
        return secrets.token_urlsafe(32)

    # --- Users, from the command line

    def create_user(self, name: str, role: Role, password: str) -> None:
        """Let ``name`` sign in."""
        topics.check_identifier(name, "user name")
        hashed = self._hash(password)
        with self._sessions.begin() as session:
            if session.get(UserRow, name) is not None:
                raise LocalMisuseError(f"user {name!r} exists already")
            session.add(UserRow(name=name, role=role, password_hash=hashed, created_at=self._clock()))
            Transaction(session).record("user-created", user=name, role=role)

    def set_password(self, name: str, password: str) -> None:
        """Give ``name`` another password, and end every session that began with the old one."""
        hashed = self._hash(password)
        with self._sessions.begin() as session:
            _existing(session, name).password_hash = hashed
            session.execute(delete(SessionRow).where(SessionRow.user == name))
            Transaction(session).record("password-changed", user=name)

    def set_role(self, name: str, role: Role) -> None:
        """Give ``name`` another role; sessions end, so that a new id comes with the new rights."""
        with self._sessions.begin() as session:
            _existing(session, name).role = role
            session.execute(delete(SessionRow).where(SessionRow.user == name))
            Transaction(session).record("role-changed", user=name, role=role)

    def delete_user(self, name: str) -> None:
        """Let ``name`` sign in no more."""
        with self._sessions.begin() as session:
            session.execute(delete(SessionRow).where(SessionRow.user == name))
            session.delete(_existing(session, name))
            Transaction(session).record("user-deleted", user=name)

    def users(self) -> list[User]:
        """Return all users by name."""
        with self._sessions() as session:
            rows = session.scalars(select(UserRow).order_by(UserRow.name))
            return [User(row.name, row.role, row.created_at) for row in rows]

    # --- Signing in and out

    def sign_in(self, name: str, password: str, address: str) -> Welcome | WrongPassword | TooManyAttempts:
        """Try ``password``; the cookie of a new session if it is right."""
        name, address = name[:_TEXT_MAX], address[:_TEXT_MAX]
        refusal = self.check_password(name, password, address)
        if refusal is not None:
            return refusal
        now, cookie = self._clock(), self.draw_cookie()
        with self._sessions.begin() as session:
            session.execute(delete(SessionRow).where(SessionRow.created_at < now - SESSION_S))
            digest = _digest(cookie)
            session.add(SessionRow(cookie_digest=digest, user=name, address=address, created_at=now, seen_at=now))
            Transaction(session).record("signed-in", user=name, address=address)
        return Welcome(cookie)

    def check_password(self, name: str, password: str, address: str) -> WrongPassword | TooManyAttempts | None:
        """Say why ``password`` does not pass as that of ``name``; None if it does, which forgives earlier mistakes."""
        now = self._clock()
        with self._counting, self._sessions.begin() as session:
            wait_s = _attempt_wait_s(session, name, address, now)
            if wait_s is not None:
                return TooManyAttempts(wait_s)
            session.add(SignInRow(at=now, user=name, address=address))
            row = session.get(UserRow, name)
            hashed = row.password_hash if row is not None else self._unknown_hash
        is_right = self._verify(hashed, password) and row is not None
        with self._sessions.begin() as session:
            if not is_right:
                Transaction(session).record("sign-in-refused", user=name, address=address)
                return WrongPassword()
            session.execute(delete(SignInRow).where(SignInRow.user == name, SignInRow.address == address))
            session.execute(delete(SignInRow).where(SignInRow.at < now - ATTEMPT_WINDOW_S))
        return None

    def find(self, cookie: str, *, is_active: bool = True) -> SignedIn | None:
        """Return the session of ``cookie``, None if there is none (any more); ``is_active`` if a person asked."""
        now = self._clock()
        with self._sessions() as session:
            found = session.execute(
                select(SessionRow, UserRow.role).join(UserRow).where(SessionRow.cookie_digest == _digest(cookie))
            ).one_or_none()
            if found is None:
                return None
            row, role = found
            if now - row.seen_at > SESSION_IDLE_S or now - row.created_at > SESSION_S:
                return None
            if is_active and now - row.seen_at > _SEEN_EVERY_S:
                row.seen_at = now
                session.commit()
            return _signed_in(row, role)

    def sign_out(self, cookie: str) -> None:
        """End the session of ``cookie``."""
        with self._sessions.begin() as session:
            row = session.get(SessionRow, _digest(cookie))
            if row is not None:
                session.delete(row)
                Transaction(session).record("signed-out", user=row.user, address=row.address)

    def sign_out_everywhere(self, name: str) -> None:
        """End every session of ``name``."""
        with self._sessions.begin() as session:
            session.execute(delete(SessionRow).where(SessionRow.user == name))
            Transaction(session).record("signed-out", user=name, address="everywhere")

    def open_sessions(self, name: str) -> list[SignedIn]:
        """Return the sessions of ``name`` that have not ended, newest first."""
        now = self._clock()
        with self._sessions() as session:
            rows = session.execute(
                select(SessionRow, UserRow.role)
                .join(UserRow)
                .where(
                    SessionRow.user == name,
                    SessionRow.seen_at >= now - SESSION_IDLE_S,
                    SessionRow.created_at >= now - SESSION_S,
                )
                .order_by(SessionRow.created_at.desc())
            )
            return [_signed_in(row, role) for row, role in rows]

    # --- What the next page says once

    def leave_notice(self, digest: bytes, text: str) -> None:
        """Keep ``text`` for the next page of this session."""
        with self._sessions.begin() as session:
            session.execute(update(SessionRow).where(SessionRow.cookie_digest == digest).values(notice=text))

    def take_notice(self, digest: bytes) -> str | None:
        """Return what was left for this page, once."""
        with self._sessions() as session:
            row = session.get(SessionRow, digest)
            if row is None or row.notice is None:
                return None
            text, row.notice = row.notice, None
            session.commit()
            return text

    def _hash(self, password: str) -> str:
        if not PASSWORD_CHARACTERS_MIN <= len(password) <= PASSWORD_CHARACTERS_MAX:
            bounds = f"{PASSWORD_CHARACTERS_MIN} to {PASSWORD_CHARACTERS_MAX}"
            raise LocalMisuseError(f"password: expected {bounds} characters, got {len(password)}")
        return self._hasher.hash(password)

    def _verify(self, hashed: str, password: str) -> bool:
        if len(password) > PASSWORD_CHARACTERS_MAX:
            return False
        with self._hashing:
            try:
                return self._hasher.verify(hashed, password)
            except argon2.exceptions.VerifyMismatchError:
                return False


def _attempt_wait_s(session: Session, name: str, address: str, now: float) -> float | None:
    """Return how long to wait before the next attempt is looked at; None if it may be looked at now."""
    recent = SignInRow.at > now - ATTEMPT_WINDOW_S
    of_user, of_address = SignInRow.user == name, SignInRow.address == address
    limits = (
        ((of_user, of_address), ATTEMPTS_OF_USER_AT_ADDRESS_MAX),
        ((of_address,), ATTEMPTS_OF_ADDRESS_MAX),
        ((of_user,), ATTEMPTS_OF_USER_MAX),
    )
    waits_s = []
    for conditions, count_max in limits:
        count, oldest = session.execute(select(func.count(), func.min(SignInRow.at)).where(recent, *conditions)).one()
        if count >= count_max:
            waits_s.append(oldest + ATTEMPT_WINDOW_S - now)
    return max(waits_s) if waits_s else None


def _existing(session: Session, name: str) -> UserRow:
    row = session.get(UserRow, name)
    if row is None:
        raise LocalMisuseError(f"no user {name!r}")
    return row


def _signed_in(row: SessionRow, role: str) -> SignedIn:
    return SignedIn(row.user, msgspec.convert(role, Role), row.address, row.created_at, row.seen_at, row.cookie_digest)


def _digest(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "replace")).digest()
