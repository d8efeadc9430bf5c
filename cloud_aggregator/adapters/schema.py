"""Tables of the aggregator, as SQLAlchemy sees them; `migrations` brings a database to this shape."""

from sqlalchemy import BigInteger, Float, ForeignKey, Index, Integer, LargeBinary, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Base of all tables."""


class DeviceRow(Base):
    """An enrolled device. Times are seconds since 1970, UTC."""

    __tablename__ = "devices"

    name: Mapped[str] = mapped_column(String(48), primary_key=True)
    verify_key: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    seal_key: Mapped[bytes] = mapped_column(LargeBinary(32))
    machine: Mapped[bytes] = mapped_column(LargeBinary(16), index=True)
    broker_password: Mapped[str] = mapped_column(String(120))
    token: Mapped[str] = mapped_column(String(48))
    enrolled_at: Mapped[float] = mapped_column(Float)
    last_seen_at: Mapped[float | None] = mapped_column(Float)
    agent_version: Mapped[str] = mapped_column(String(120), default="")
    engine: Mapped[str] = mapped_column(String(120), default="")


class TokenRow(Base):
    """An invitation to enroll. The secret is kept because the proof is an HMAC by it."""

    __tablename__ = "tokens"

    name: Mapped[str] = mapped_column(String(48), primary_key=True)
    secret: Mapped[bytes] = mapped_column(LargeBinary(64))
    uses_max: Mapped[int] = mapped_column(Integer)
    uses: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[float] = mapped_column(Float)
    expires_at: Mapped[float] = mapped_column(Float)
    revoked_at: Mapped[float | None] = mapped_column(Float)


class TaskRow(Base):
    """A standing goal: a model, its settings and its state (MessagePack of `task_progress.TaskState`)."""

    __tablename__ = "tasks"

    name: Mapped[str] = mapped_column(String(48), primary_key=True)
    settings: Mapped[bytes] = mapped_column(LargeBinary)
    bundle: Mapped[bytes] = mapped_column(LargeBinary(32))  # Blob.
    bundle_signature: Mapped[bytes] = mapped_column(LargeBinary(64))
    model: Mapped[bytes] = mapped_column(LargeBinary(32))  # Blob: the inference model as it was given.
    state: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[float] = mapped_column(Float)


class RoundRow(Base):
    """One attempt of a task; ``state`` is the journaled machine (MessagePack of `training_round.RoundState`)."""

    __tablename__ = "rounds"

    task: Mapped[str] = mapped_column(ForeignKey("tasks.name"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    phase: Mapped[str] = mapped_column(String(16), index=True)
    state: Mapped[bytes] = mapped_column(LargeBinary)
    transition_count: Mapped[int] = mapped_column(Integer, default=0)
    base_version: Mapped[int] = mapped_column(BigInteger)
    opened_at: Mapped[float] = mapped_column(Float)
    closed_at: Mapped[float | None] = mapped_column(Float)
    report_count: Mapped[int] = mapped_column(Integer, default=0)
    example_count: Mapped[int] = mapped_column(BigInteger, default=0)
    accuracy: Mapped[float | None] = mapped_column(Float)  # Of the base checkpoint on the devices' own holdouts.
    loss: Mapped[float | None] = mapped_column(Float)
    assignment_count: Mapped[int] = mapped_column(Integer, default=0)
    bytes_up: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes_down: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes_keyframe: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes_bundle: Mapped[int] = mapped_column(BigInteger, default=0)


class CheckpointRow(Base):
    """A published version of a task's parameters, on the lattice around its keyframe."""

    __tablename__ = "checkpoints"

    task: Mapped[str] = mapped_column(ForeignKey("tasks.name"), primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32))  # Of the published checkpoint.
    keyframe: Mapped[bytes] = mapped_column(LargeBinary(32))  # Blob.
    delta: Mapped[bytes | None] = mapped_column(LargeBinary(32))  # Blob: from the version before; None for a keyframe.
    state: Mapped[bytes] = mapped_column(LargeBinary(32))  # Blob: what the aggregator needs to go on from here.
    created_at: Mapped[float] = mapped_column(Float)


class EventRow(Base):
    """What happened, append-only: the source of the live view and of the audit log."""

    __tablename__ = "events"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(Float)
    kind: Mapped[str] = mapped_column(String(48))
    task: Mapped[str | None] = mapped_column(String(48))
    round: Mapped[int | None] = mapped_column(Integer)
    device: Mapped[str | None] = mapped_column(String(48))
    detail: Mapped[str] = mapped_column(Text, default="{}")

    __table_args__ = (Index("ix_events_task_round", "task", "round"),)


class CommandRow(Base):
    """What an operator asked for (MessagePack of `commands.Command`); the coordinator carries it out and says so."""

    __tablename__ = "commands"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(Float)
    actor: Mapped[str] = mapped_column(String(120))
    body: Mapped[bytes] = mapped_column(LargeBinary)
    done_at: Mapped[float | None] = mapped_column(Float, index=True)
    error: Mapped[str | None] = mapped_column(Text)


class CounterRow(Base):
    """A number that must survive restarts, such as bytes of enrollment."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(String(48), primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger, default=0)
