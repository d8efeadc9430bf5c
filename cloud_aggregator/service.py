"""What operators can ask and see: the one way in for the command line and the console.

Writes are commands that the coordinator carries out; reads are queries of its database. Both work from any process.
"""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import msgspec

from cloud_aggregator import commands, release_service
from cloud_aggregator.adapters.database import Database
from cloud_aggregator.adapters.keyring import MODEL_KEY_NAME, load_keyring, read_secret
from cloud_aggregator.adapters.model_registry import read_checkpoint
from cloud_aggregator.adapters.schema import RoundRow
from cloud_aggregator.config import AggregatorSettings, database_url
from cloud_aggregator.recipe import Recipe
from federated_core.errors import AdapterError, LocalMisuseError
from federated_core.learning.bundle import decode_bundle
from federated_core.learning.parameters import Layout, Vector, encode_checkpoint, flatten, unflatten
from federated_core.protocol import enrollment, keys, topics
from federated_core.protocol.messages import BlobReference

ENDPOINT_NAME = "endpoint.json"
KEYS_NAME = "keys"
BLOBS_NAME = "blobs"
_POLL_S = 0.05


class Endpoint(msgspec.Struct, frozen=True):
    """Where devices reach the broker of a running aggregator, and how they know it."""

    host: str
    port: int
    ca_pem: str = ""


class Service:
    """One aggregator's state, from the outside."""

    def __init__(
        self, folder: Path, settings: AggregatorSettings, actor: str, database: Database | None = None
    ) -> None:
        """Open the state in ``folder``, through ``database`` if that is open already."""
        self._folder = folder
        self._settings = settings
        self._actor = actor
        self._database = database or Database(database_url(folder, settings))

    def acting_as(self, actor: str) -> "Service":
        """Return the same service as ``actor`` uses it: the log of what was asked names who asked."""
        return Service(self._folder, self._settings, actor, self._database)

    # --- Commands

    def ask(self, command: commands.Command, timeout_s: float = 30.0) -> None:
        """Have ``command`` carried out; what went wrong is raised as LocalMisuseError."""
        with self._database.transaction() as tx:
            number = tx.add_command(msgspec.msgpack.encode(command), self._actor).number
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            with self._database.transaction() as tx:
                row = tx.command(number)
                done_at, error = row.done_at, row.error
            if done_at is not None:
                if error:
                    raise LocalMisuseError(error)
                return
            time.sleep(_POLL_S)
        raise AdapterError(f"asked, but no aggregator took command {number} within {timeout_s:.0f} s; is it running?")

    def create_token(self, uses_max: int, lifetime_s: float, name: str | None = None) -> str:
        """Return the text of a new enrollment token."""
        endpoint = self._endpoint()
        keyring = load_keyring(self._folder / KEYS_NAME)
        name = topics.check_identifier(name or f"t{os.urandom(5).hex()}", "token name")
        secret = os.urandom(32)
        self.ask(commands.CreateToken(name, secret, uses_max, lifetime_s))
        return enrollment.encode_token(
            enrollment.Token(
                endpoint.host,
                endpoint.port,
                self._settings.fleet,
                name,
                secret,
                keyring.signing.public,
                keyring.sealing.public,
                keyring.model_public,
                endpoint.ca_pem,
            )
        )

    def create_task(self, name: str, model: bytes, recipe: Recipe, model_key: Path | None = None) -> int:
        """Make a model trainable, sign its bundle with the model key, begin a task; return its parameter count."""
        from cloud_aggregator.model_building import build_bundle  # Imports onnx, which nothing else here needs.

        topics.check_identifier(name, "task name")
        settings = recipe.model
        built = build_bundle(
            model,
            name=settings.name,
            loss=settings.loss,
            trainable=settings.trainable,
            personal=settings.personal,
            fits=settings.fits,
            classes=settings.classes,
            output=settings.output,
        )
        layout = decode_bundle(built.data).description.layout
        key = keys.SigningKey(read_secret(self._model_key_path(model_key)))
        self.ask(
            commands.CreateTask(
                name=name,
                settings=recipe.task,
                bundle=built.data,
                bundle_signature=key.sign(keys.bundle_statement(hashlib.sha256(built.data).digest())),
                checkpoint=encode_checkpoint(layout, name, 0, flatten(layout, built.tensors)),
                model=model,
            )
        )
        return layout.size

    # --- Releases

    def can_sign(self) -> bool:
        """Say whether the model key lies in the state folder, so that nobody need name it."""
        return (self._folder / KEYS_NAME / MODEL_KEY_NAME).exists()

    def promote(
        self,
        task: str,
        version: int | None = None,
        *,
        fraction: float | None = None,
        soak_s: float | None = None,
        accuracy_drop_max: float | None = None,
        model_key: Path | None = None,
    ) -> int:
        """Release a published version (the newest by default) to devices, a ``fraction`` of them first; its number."""
        version, layout, vector = self.checkpoint(task, version)
        checkpoint, bundle = encode_checkpoint(layout, task, version, vector), self.bundle(task)
        order = release_service.ReleaseOrder(
            fleet=self._settings.fleet,
            family=decode_bundle(bundle).description.name,
            task=task,
            version=version,
            bundle=_reference(bundle),
            checkpoint=_reference(checkpoint),
        )
        settings = self._settings.release
        given = {"canary_ratio": fraction, "soak_s": soak_s}
        policy = msgspec.structs.replace(
            settings.rollout, **{name: value for name, value in given.items() if value is not None}
        )
        drop_max = settings.accuracy_drop_max if accuracy_drop_max is None else accuracy_drop_max
        key_path = self._model_key_path(model_key)
        number, command = release_service.make_promotion(self._database, order, settings, policy, drop_max, key_path)
        self.ask(command)
        return number

    def rollback(
        self,
        number: int | None = None,
        *,
        family: str | None = None,
        to: int | None = None,
        model_key: Path | None = None,
    ) -> int:
        """Take everyone back from a release (the current one by default) to the one before it; the new number."""
        key_path = self._model_key_path(model_key)
        fresh, command = release_service.make_rollback(
            self._database, number, family, to, self._settings.release, key_path
        )
        self.ask(command)
        return fresh

    def halt_release(self, number: int) -> None:
        """Offer a release to nobody any more."""
        self.ask(commands.HaltRelease(number))

    def advance_release(self, number: int) -> None:
        """Offer a release to everyone now."""
        self.ask(commands.AdvanceRelease(number))

    def release_status(self, family: str | None = None) -> dict[str, Any]:
        """Return releases, newest first, and what every device runs, as plain values ready for JSON."""
        return release_service.describe_releases(self._database, family)

    def _model_key_path(self, given: Path | None) -> Path:
        return given or self._folder / KEYS_NAME / MODEL_KEY_NAME

    # --- Queries

    def checkpoint(self, task: str, version: int | None = None) -> tuple[int, Layout, Vector]:
        """Return a published version (the newest by default): its number, its layout and its parameters."""
        with self._database.transaction() as tx:
            row = tx.task(task)
            rows = tx.checkpoints(task)
        if row is None or not rows:
            raise LocalMisuseError(f"no task {task!r}")
        layout = decode_bundle(self._read_blob(row.bundle.hex())).description.layout
        version = rows[-1].version if version is None else version
        return version, layout, read_checkpoint(layout, rows, version, self._read_blob)

    def export(self, task: str, version: int | None = None) -> tuple[int, bytes]:
        """Return a published version as the ONNX file that the task began with: same nodes and names, new weights."""
        from cloud_aggregator.model_building import write_parameters

        version, layout, vector = self.checkpoint(task, version)
        with self._database.transaction() as tx:
            original = tx.get_task(task).model
        return version, write_parameters(self._read_blob(original.hex()), unflatten(layout, vector))

    def bundle(self, task: str) -> bytes:
        """Return the bundle of a task."""
        with self._database.transaction() as tx:
            row = tx.task(task)
        if row is None:
            raise LocalMisuseError(f"no task {task!r}")
        return self._read_blob(row.bundle.hex())

    def status(self) -> dict[str, Any]:
        """Return devices, tokens and tasks with their rounds as plain values, ready for JSON."""
        with self._database.transaction() as tx:
            tasks = {row.name: [_describe_round(one) for one in tx.rounds(row.name)] for row in tx.tasks()}
            return {
                "fleet": self._settings.fleet,
                "devices": [
                    {"device": row.name, "enrolled_at": row.enrolled_at, "last_seen_at": row.last_seen_at}
                    for row in tx.devices()
                ],
                "tokens": [
                    {
                        "token": row.name,
                        "uses": row.uses,
                        "uses_max": row.uses_max,
                        "expires_at": row.expires_at,
                        "is_revoked": row.revoked_at is not None,
                    }
                    for row in tx.tokens()
                ],
                "tasks": tasks,
                "bytes_enrollment": tx.counter("bytes_enrollment"),
                "protocol_errors": tx.counter("protocol_errors"),
            }

    def _endpoint(self) -> Endpoint:
        path = self._folder / ENDPOINT_NAME
        try:
            return msgspec.json.decode(path.read_bytes(), type=Endpoint)
        except FileNotFoundError as error:
            raise LocalMisuseError(
                f"{path}: not there yet; run: cloud-aggregator serve --state {self._folder}"
            ) from error

    def _read_blob(self, digest: str) -> bytes:
        """Read beside the running aggregator, which owns the store."""
        path = self._folder / BLOBS_NAME / "blobs" / digest
        try:
            data = path.read_bytes()
        except OSError as error:
            raise AdapterError(f"{path}: cannot be read ({error.strerror or error})") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise AdapterError(f"{path}: its content does not match its name")
        return data


def _reference(data: bytes) -> BlobReference:
    return BlobReference(hashlib.sha256(data).digest(), len(data))


def _describe_round(row: RoundRow) -> dict[str, Any]:
    names = (
        "number kind phase base_version opened_at closed_at assignment_count report_count example_count accuracy loss "
        "bytes_up bytes_down bytes_keyframe bytes_bundle"
    )
    return {name: getattr(row, name) for name in names.split()}
