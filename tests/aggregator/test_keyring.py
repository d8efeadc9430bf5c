"""The aggregator's keys: made once, kept from others, never replaced."""

from pathlib import Path

import pytest

from cloud_aggregator.adapters.keyring import MODEL_KEY_NAME, load_keyring, make_keys, read_secret
from federated_core.errors import LocalMisuseError
from federated_core.protocol.keys import SigningKey, is_signed_by


def test_keys_are_made_once_and_stay(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    before = load_keyring(tmp_path / "keys")
    make_keys(tmp_path / "keys")
    after = load_keyring(tmp_path / "keys")
    assert (before.signing.public, before.sealing.public, before.selection_secret, before.client_id) == (
        after.signing.public,
        after.sealing.public,
        after.selection_secret,
        after.client_id,
    )


def test_every_key_is_another_and_for_its_owner_alone(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    files = [path for path in (tmp_path / "keys").iterdir() if path.name != "model.pub"]
    assert len({path.read_bytes() for path in files}) == len(files) == 5
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700


def test_the_running_aggregator_needs_only_the_public_half_of_the_model_key(tmp_path: Path) -> None:
    make_keys(tmp_path)
    signature = SigningKey(read_secret(tmp_path / MODEL_KEY_NAME)).sign(b"bundle")
    (tmp_path / MODEL_KEY_NAME).unlink()  # It may be kept offline.
    assert is_signed_by(load_keyring(tmp_path).model_public, signature, b"bundle")
    make_keys(tmp_path)  # As each start does: another model key in its place would sign what every device refuses.
    assert not (tmp_path / MODEL_KEY_NAME).exists()
    assert is_signed_by(load_keyring(tmp_path).model_public, signature, b"bundle")


def test_a_key_that_is_absent_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalMisuseError, match=r"signing\.key: no key here; run: cloud-aggregator init"):
        load_keyring(tmp_path)
    make_keys(tmp_path)
    (tmp_path / "sealing.key").write_bytes(bytes(31))
    with pytest.raises(LocalMisuseError, match=r"sealing\.key: expected a key of 32 bytes, got 31"):
        load_keyring(tmp_path)
