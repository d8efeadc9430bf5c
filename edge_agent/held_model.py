"""What a device holds of a task's model: a keyframe, and a position on its lattice that moves forward."""

from collections.abc import Sequence
from pathlib import Path

from federated_core.adapters.atomic_file import write_atomically
from federated_core.errors import RemoteProtocolError
from federated_core.learning.lattice import Keyframe, LatticePosition, apply_delta, start_of, vector_at
from federated_core.learning.lattice_codec import (
    decode_delta,
    decode_keyframe,
    decode_position,
    encode_position,
)
from federated_core.learning.parameters import Layout, Vector, checkpoint_digest, encode_checkpoint
from federated_core.protocol.messages import CheckpointReference


class HeldModel:
    """Two files: ``keyframe`` as it was downloaded, ``position`` rewritten at each version."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._keyframe_path = folder / "keyframe"
        self._position_path = folder / "position"
        self._layout = layout

    def move_to(self, task: str, base: CheckpointReference, fetched: Sequence[tuple[str, str]]) -> Vector:
        """Apply what was fetched and return the parameters of ``base``; RemoteProtocolError if it leads elsewhere.

        Doing it again after a crash gives the same: what is applied already is passed over.
        """
        keyframe, position = self._load()
        for kind, path in fetched:
            if kind == "keyframe":
                keyframe = self._take_keyframe(Path(path), keyframe)
                if position is None or (position.epoch, position.version) != (keyframe.epoch, base.version):
                    position = start_of(keyframe)  # What follows leads from the keyframe on, wherever we were.
            elif keyframe is not None and position is not None and position.version != base.version:
                position = self._take_delta(Path(path), keyframe, position)
        if keyframe is None or position is None:
            raise RemoteProtocolError("checkpoint: expected a keyframe to begin with, got none")
        vector = vector_at(keyframe, position)
        digest = checkpoint_digest(encode_checkpoint(self._layout, task, position.version, vector))
        if digest != base.digest:
            raise RemoteProtocolError(
                f"checkpoint: expected version {base.version} with digest {base.digest.hex()}, "
                f"got version {position.version} with digest {digest.hex()}"
            )
        write_atomically(self._position_path, encode_position(position))
        return vector

    def _load(self) -> tuple[Keyframe | None, LatticePosition | None]:
        try:
            keyframe_bytes, position_bytes = self._keyframe_path.read_bytes(), self._position_path.read_bytes()
            keyframe = decode_keyframe(keyframe_bytes, parameter_count=self._layout.size, size_max=len(keyframe_bytes))
            position = decode_position(position_bytes, parameter_count=self._layout.size, size_max=len(position_bytes))
        except (FileNotFoundError, RemoteProtocolError):  # Nothing yet, or damaged: the aggregator sends it anew.
            return None, None
        return keyframe, position if position.epoch == keyframe.epoch else None

    def _take_keyframe(self, path: Path, held: Keyframe | None) -> Keyframe:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            if held is None:
                raise
            return held  # Taken before a crash, and deleted since.
        keyframe = decode_keyframe(data, parameter_count=self._layout.size, size_max=len(data))
        write_atomically(self._keyframe_path, data)
        return keyframe

    def _take_delta(self, path: Path, keyframe: Keyframe, position: LatticePosition) -> LatticePosition:
        data = path.read_bytes()
        delta = decode_delta(data, parameter_count=self._layout.size, size_max=len(data))
        return apply_delta(keyframe, position, delta)[0]
