"""Joining a fleet: one conversation over MQTT, with a token, that ends with an identity on disk."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from edge_agent.adapters.identity import Identity, load_identity, new_identity, save_identity
from federated_core.adapters.inbox import Inbox, TimerFired
from federated_core.adapters.link import LinkDown, LinkNews, LinkSettings, LinkUp, MessageArrived
from federated_core.adapters.mqtt_link import MqttLink
from federated_core.errors import AdapterError, LocalMisuseError, RemoteProtocolError
from federated_core.protocol import enrollment, keys, messages, topics, wire

_log = logging.getLogger(__name__)
_ANSWERS = msgspec.msgpack.Decoder(messages.EnrollmentAnswer)
_REPEAT_AFTER_S = 3.0

REFUSALS: dict[messages.EnrollmentRefusalReason, str] = {
    "unknown-token": "this token is not known or was revoked; ask the operator for another",
    "expired-token": "this token has expired; ask the operator for another",
    "used-up-token": "this token was used as often as it may be; ask the operator for another",
    "bad-proof": "this token's secret is wrong; copy the token again in full",
    "conflicting-identity": "this device is enrolled already with other keys; ask the operator to remove it first",
}


def enroll(folder: Path, token_text: str, timeout_s: float, say: Callable[[str], None]) -> Identity:
    """Enroll the device whose state lies in ``folder``; one that is enrolled already stays as it is.

    The keys are on disk before they are shown to anyone, so that a crash in between ends in the same identity.
    """
    token = enrollment.decode_token(token_text)
    identity = load_identity(folder)
    if identity is not None and identity.grant is not None:
        if identity.token.fleet != token.fleet or identity.token.verify_key != token.verify_key:
            raise LocalMisuseError(f"{folder}: enrolled in fleet {identity.token.fleet!r} already; use another --state")
        return identity
    if identity is None or identity.token != token:
        fresh = new_identity(token, folder)
        identity = fresh if identity is None else msgspec.structs.replace(identity, token=token)
        save_identity(folder, identity)
    grant = _converse(identity, timeout_s, say)
    blank_token = msgspec.structs.replace(token, secret=bytes(16))  # It has done its work.
    identity = msgspec.structs.replace(identity, grant=grant, token=blank_token)
    save_identity(folder, identity)
    return identity


def _converse(identity: Identity, timeout_s: float, say: Callable[[str], None]) -> messages.EnrollmentGrant:
    token = identity.token
    up, down = topics.enroll_up(token.fleet, token.token), topics.enroll_down(token.fleet, token.token)
    nonce = os.urandom(16)
    payload = sign_request(identity, nonce)
    inbox: Inbox[LinkNews] = Inbox()
    inbox.set_timer("timeout", timeout_s)
    link = MqttLink(
        LinkSettings(
            host=token.host,
            port=token.port,
            username=enrollment.broker_username(token.token),
            password=enrollment.broker_password(token.secret),
            client_id=identity.client_id,
            subscriptions=(down,),
            ca_pem=token.ca_pem,
            reconnect_min_s=0.2,
            reconnect_max_s=5.0,
        ),
        inbox.put,
    )
    last_trouble = f"no answer from the aggregator within {timeout_s:.0f} s"
    try:
        while True:
            match inbox.next():
                case LinkUp() | TimerFired("repeat"):
                    link.send(up, payload)
                    inbox.set_timer("repeat", _REPEAT_AFTER_S)
                case LinkDown(reason):
                    inbox.cancel_timer("repeat")
                    last_trouble = f"no connection to {token.host}:{token.port}: {reason}"
                    say(last_trouble)
                case TimerFired("timeout"):
                    raise AdapterError(f"not enrolled: {last_trouble}")
                case MessageArrived(topic, answer_payload):
                    grant = read_answer(identity, nonce, topic, answer_payload)
                    if grant is not None:
                        return grant
                case _:
                    pass
    finally:
        link.close()


def sign_request(identity: Identity, nonce: bytes) -> bytes:
    """Return the request for an identity as the payload that the aggregator expects."""
    token = identity.token
    signing_key, sealing_key = keys.SigningKey(identity.signing_secret), keys.SealingKey(identity.sealing_secret)
    request = messages.EnrollmentRequest(
        token.token, signing_key.public, sealing_key.public, nonce, identity.machine, bytes(32)
    )
    request = msgspec.structs.replace(request, proof=enrollment.prove(token.secret, token.fleet, request))
    return wire.sign_message(signing_key, topics.enroll_up(token.fleet, token.token), request)


def read_answer(identity: Identity, nonce: bytes, topic: str, payload: bytes) -> messages.EnrollmentGrant | None:
    """Return the grant, None if this was an answer to another device that uses the same token."""
    token = identity.token
    try:
        frame = wire.decode_frame(payload)
        if not isinstance(frame, wire.SignedFrame):
            return None
        answer = wire.open_message(frame, topic, token.verify_key, _ANSWERS)
    except RemoteProtocolError as error:
        _log.warning("ignored: %s", error)
        return None
    if answer.nonce != nonce:
        return None
    if isinstance(answer, messages.EnrollmentRefusal):
        raise LocalMisuseError(f"not enrolled: {REFUSALS[answer.why]}")
    sealing_key = keys.SealingKey(identity.sealing_secret)
    opened = sealing_key.open(answer.sealed_grant, keys.grant_context(token.fleet, token.token, nonce))
    return wire.decode_body(opened, msgspec.msgpack.Decoder(messages.EnrollmentGrant))
