"""Tables of the console: who may sign in, who has, and who tried; and the indexes that its pages lean on."""

from sqlalchemy import Float, ForeignKey, Index, Integer, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from cloud_aggregator.adapters.schema import Base, EventRow, RoundRow


class UserRow(Base):
    """A person who may sign in. Times are seconds since 1970, UTC."""

    __tablename__ = "console_users"

    name: Mapped[str] = mapped_column(String(48), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    password_hash: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[float] = mapped_column(Float)


class SessionRow(Base):
    """Someone signed in; the cookie itself is not kept, only its SHA-256."""

    __tablename__ = "console_sessions"

    cookie_digest: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    user: Mapped[str] = mapped_column(ForeignKey("console_users.name", ondelete="CASCADE"), index=True)
    address: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Float)
    seen_at: Mapped[float] = mapped_column(Float)
    notice: Mapped[str | None] = mapped_column(Text)  # What the next page says once.


class SignInRow(Base):
    """An attempt to sign in that has not succeeded, counted before its password is looked at."""

    __tablename__ = "console_sign_ins"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(Float, index=True)
    user: Mapped[str] = mapped_column(String(48))
    address: Mapped[str] = mapped_column(String(64))


Index("ix_events_device_number", EventRow.device, EventRow.number)
Index("ix_events_kind_number", EventRow.kind, EventRow.number)
Index("ix_rounds_opened_at", RoundRow.opened_at)
