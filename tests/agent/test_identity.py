"""The identity: secrets of one device, in a file for its owner alone."""

from pathlib import Path

import msgspec
import pytest

from edge_agent.adapters.identity import IDENTITY_NAME, load_identity, new_identity, save_identity
from federated_core.errors import LocalMisuseError
from federated_core.protocol.enrollment import Token
from federated_core.protocol.messages import EnrollmentGrant

TOKEN = Token("localhost", 1883, "fleet", "t1", bytes(16), bytes(32), bytes(32), bytes(32))


def test_an_identity_is_kept_and_found_again(tmp_path: Path) -> None:
    assert load_identity(tmp_path) is None
    identity = new_identity(TOKEN, tmp_path)
    save_identity(tmp_path / "state", identity)
    assert load_identity(tmp_path / "state") == identity
    enrolled = msgspec.structs.replace(identity, grant=EnrollmentGrant("fleet", "d1", "d1", "password"))
    save_identity(tmp_path / "state", enrolled)
    assert load_identity(tmp_path / "state") == enrolled


def test_nobody_but_the_owner_may_read_it(tmp_path: Path) -> None:
    save_identity(tmp_path / "state", new_identity(TOKEN, tmp_path))
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state" / IDENTITY_NAME).stat().st_mode & 0o777 == 0o600


def test_two_identities_share_no_secret_but_say_that_they_live_in_one_place(tmp_path: Path) -> None:
    one, other = new_identity(TOKEN, tmp_path), new_identity(TOKEN, tmp_path)
    secrets = [(i.signing_secret, i.sealing_secret, i.noise_secret, i.client_id) for i in (one, other)]
    assert len({secret for values in secrets for secret in values}) == 8
    assert len(one.client_id) == 32
    if Path("/etc/machine-id").exists():
        assert one.machine == other.machine
        assert new_identity(TOKEN, tmp_path / "elsewhere").machine != one.machine


def test_a_damaged_identity_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / IDENTITY_NAME).write_bytes(b"\x01nonsense")
    with pytest.raises(LocalMisuseError, match="enroll anew"):
        load_identity(tmp_path)
