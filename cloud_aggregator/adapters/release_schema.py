"""Tables of releases: what was promoted, how far it is, what each device did with it and what it runs."""

from sqlalchemy import BigInteger, Float, ForeignKey, Integer, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from cloud_aggregator.adapters.schema import Base


class ReleaseRow(Base):
    """A release; ``state`` is the journaled machine (MessagePack of `rollout.RolloutState`), times are since 1970."""

    __tablename__ = "releases"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    family: Mapped[str] = mapped_column(String(48), index=True)
    task: Mapped[str] = mapped_column(ForeignKey("tasks.name"))
    version: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str] = mapped_column(String(16))  # promotion, rollback
    phase: Mapped[str] = mapped_column(String(16), index=True)  # The state's tag.
    state: Mapped[bytes] = mapped_column(LargeBinary)
    policy: Mapped[bytes] = mapped_column(LargeBinary)  # MessagePack of `rollout.RolloutPolicy`.
    manifest: Mapped[bytes] = mapped_column(LargeBinary)  # MessagePack of `messages.SignedManifest`.
    bundle: Mapped[bytes] = mapped_column(LargeBinary(32))
    checkpoint: Mapped[bytes] = mapped_column(LargeBinary(32))
    issued_at: Mapped[float] = mapped_column(Float)
    expires_at: Mapped[float] = mapped_column(Float)
    replaces: Mapped[int | None] = mapped_column(Integer)  # The release that was everyone's when this one was made.
    restricted_to: Mapped[int | None] = mapped_column(Integer)  # Only for devices that run this number: a way back.
    way_back: Mapped[bytes | None] = mapped_column(LargeBinary)  # MessagePack of `messages.SignedManifest`.
    way_back_number: Mapped[int | None] = mapped_column(Integer)
    actor: Mapped[str] = mapped_column(String(120))
    why: Mapped[str | None] = mapped_column(Text)  # It was halted.
    created_at: Mapped[float] = mapped_column(Float)
    closed_at: Mapped[float | None] = mapped_column(Float)
    member_count: Mapped[int] = mapped_column(Integer, default=0)  # Of the stage that it is in.
    committed_count: Mapped[int] = mapped_column(Integer, default=0)
    failed_count: Mapped[int] = mapped_column(Integer, default=0)


class DeviceReleaseRow(Base):
    """What one device did with one release."""

    __tablename__ = "device_releases"

    release: Mapped[int] = mapped_column(ForeignKey("releases.number"), primary_key=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.name"), primary_key=True, index=True)
    stage: Mapped[str] = mapped_column(String(16))  # canary, everyone
    state: Mapped[str] = mapped_column(
        String(16), index=True
    )  # waiting, offered, committed, failed, refused, timed-out
    reason: Mapped[str | None] = mapped_column(String(48))
    detail: Mapped[str | None] = mapped_column(Text)  # The device's words.
    offered_at: Mapped[float | None] = mapped_column(Float)
    concluded_at: Mapped[float | None] = mapped_column(Float)


class RunningReleaseRow(Base):
    """What a device last said, signed, that it runs of a family."""

    __tablename__ = "running_releases"

    device: Mapped[str] = mapped_column(ForeignKey("devices.name"), primary_key=True)
    family: Mapped[str] = mapped_column(String(48), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, index=True)
    checkpoint: Mapped[bytes] = mapped_column(LargeBinary(32))
    reported_at: Mapped[float] = mapped_column(Float)
