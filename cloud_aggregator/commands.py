"""What an operator may ask of the coordinator, from the command line or the console alike."""

from typing import Literal

import msgspec

from cloud_aggregator.rollout import RolloutPolicy
from cloud_aggregator.task_progress import TaskSettings
from federated_core.protocol.messages import SignedManifest

ReleaseKind = Literal["promotion", "rollback"]


class CreateToken(msgspec.Struct, frozen=True, tag=True):
    """Let up to ``uses_max`` devices enroll with this secret."""

    name: str
    secret: bytes
    uses_max: int
    lifetime_s: float


class RevokeToken(msgspec.Struct, frozen=True, tag=True):
    """Let nobody enroll with a token any more."""

    name: str


class CreateTask(msgspec.Struct, frozen=True, tag=True):
    """Begin a task with a model: its bundle, the model key's signature over it, and the initial parameters."""

    name: str
    settings: TaskSettings
    bundle: bytes
    bundle_signature: bytes
    checkpoint: bytes
    model: bytes  # The inference model as it was given: the result of training goes back into it.


class PauseTask(msgspec.Struct, frozen=True, tag=True):
    """Open no more rounds for now."""

    name: str


class ResumeTask(msgspec.Struct, frozen=True, tag=True):
    """Go on."""

    name: str


class AbortTask(msgspec.Struct, frozen=True, tag=True):
    """End the task and its open round."""

    name: str


class PromoteRelease(msgspec.Struct, frozen=True, tag=True):
    """Release a checkpoint to devices; made by the service, which has the model key for as long as signing takes."""

    kind: ReleaseKind
    manifest: SignedManifest
    policy: RolloutPolicy
    replaces: int | None = None  # The release that is everyone's now.
    way_back: SignedManifest | None = None  # Of the next number, with the bytes of ``replaces``.


class HaltRelease(msgspec.Struct, frozen=True, tag=True):
    """Offer a release to nobody any more."""

    number: int


class AdvanceRelease(msgspec.Struct, frozen=True, tag=True):
    """Offer a release to everyone now."""

    number: int


Command = (
    CreateToken
    | RevokeToken
    | CreateTask
    | PauseTask
    | ResumeTask
    | AbortTask
    | PromoteRelease
    | HaltRelease
    | AdvanceRelease
)
