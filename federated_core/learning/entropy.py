"""Small integers to few bytes and back, close to their entropy and in exact integers.

Two forms; the encoder keeps the smaller:

* *trits*: the signs, five to a byte, then ``|symbol| - 1`` of the non-zero ones in the *gaps* form;
* *gaps*: how many are not zero, the runs of zeros between those, then their values.

Every stream is raw deflate. Its Huffman coder alone (no matches, code lengths up to 15 bits) is what comes close to
the entropy: five trits in a byte cost a fraction of a bit each, and one table of 243 bytes learns how signs and
densities go together. zstandard stops at 11 bits and spends 10 % more here.
"""

from __future__ import annotations

import math
import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError, RemoteProtocolError
from federated_core.learning.quantization import MAGNITUDE_MAX, Symbols

_TRITS: Final = 0
_GAPS: Final = 1

_TRITS_PER_BYTE: Final = 5
_TRIT_WEIGHTS: Final = 3 ** np.arange(_TRITS_PER_BYTE)
_PACKED_MAX: Final = 3**_TRITS_PER_BYTE - 1
# Signs of each packed byte: digit 0, 1, 2 stands for 0, +1, -1. Bytes above 242 have no row: they are refused first.
_SIGNS: Final = np.array([0, 1, -1], np.int8)[np.arange(_PACKED_MAX + 1)[:, None] // _TRIT_WEIGHTS % 3]

_LEVEL: Final = 5
"""How hard to look for matches: 9 takes four times as long and saves 0.2 %."""
_MEMORY_LEVEL: Final = 9
"""Up to 32,767 symbols share one Huffman table: a whole update of 160,000 parameters."""
_WIDE: Final = 255
"""A byte of this value announces a number of four bytes, 255 or more, after all the bytes of its stream."""
_NUMBER_BYTES_MAX: Final = 5


def encode_symbols(symbols: Symbols) -> bytes:
    """Write ``symbols`` in the smaller of the two forms.

    Parameters
    ----------
    symbols : int32, shape (n,)
        Within ``MAGNITUDE_MAX``; their number is not written.

    Returns
    -------
    bytes
        Where a tenth to a half of the symbols are not zero, within 4 % of their order-0 entropy, or below it.

    Raises
    ------
    LocalMisuseError
        If a symbol is beyond ``MAGNITUDE_MAX``.

    Examples
    --------
    >>> data = encode_symbols(np.int32([0, 0, -1, 0, 300]))
    >>> decode_symbols(data, 5, magnitude_max=300).tolist()
    [0, 0, -1, 0, 300]
    """
    if symbols.size and np.abs(symbols.astype(np.int64)).max() > MAGNITUDE_MAX:
        raise LocalMisuseError(f"expected symbols within {MAGNITUDE_MAX}, got one of {np.abs(symbols).max()}")
    trits = bytes([_TRITS]) + _encode_trits(symbols)
    gaps = bytes([_GAPS]) + _encode_gaps(_zigzag(symbols))
    return min(trits, gaps, key=len)


def decode_symbols(data: bytes, count: int, *, magnitude_max: int) -> Symbols:
    """Read back what ``encode_symbols`` wrote.

    Parameters
    ----------
    data : bytes
        The encoded symbols, or anything else.
    count : int
        How many symbols the reader expects. At most a small multiple of it is ever allocated.
    magnitude_max : int
        Largest magnitude that the reader accepts, at most ``MAGNITUDE_MAX``.

    Returns
    -------
    int32, shape (count,)
        The symbols.

    Raises
    ------
    RemoteProtocolError
        If ``data`` is not exactly ``count`` symbols within ``magnitude_max``.

    Examples
    --------
    >>> decode_symbols(encode_symbols(np.int32([0, 0, 1])), 3, magnitude_max=1).tolist()
    [0, 0, 1]
    """
    if not data:
        raise RemoteProtocolError("$.symbols: expected a form, got no bytes")
    form = data[0]
    if form == _TRITS:
        symbols, rest = _decode_trits(data[1:], count)
    elif form == _GAPS:
        numbers, rest = _decode_gaps(data[1:], count)
        symbols = _unzigzag(numbers)
    else:
        raise RemoteProtocolError(f"$.symbols: expected form {_TRITS} or {_GAPS}, got {form}")
    if rest:
        raise RemoteProtocolError(f"$.symbols: expected nothing after the last stream, got {len(rest)} bytes")
    if count and (magnitude := int(np.abs(symbols).max())) > magnitude_max:
        raise RemoteProtocolError(f"$.symbols: expected magnitudes of at most {magnitude_max}, got {magnitude}")
    return symbols.astype(np.int32)


def decode_scaled_symbols(step: float, data: bytes, count: int, *, magnitude_max: int) -> Symbols:
    """Read symbols that came with a step.

    Parameters
    ----------
    step : float
        What came; accepted if it is finite and positive, or 0 with symbols that are all 0.
    data, count, magnitude_max
        As in ``decode_symbols``.

    Returns
    -------
    int32, shape (count,)
        The symbols.

    Raises
    ------
    RemoteProtocolError
        If the step is none, or as ``decode_symbols``.

    Examples
    --------
    >>> decode_scaled_symbols(0.5, encode_symbols(np.int32([0, 2])), 2, magnitude_max=2).tolist()
    [0, 2]
    """
    if not 0 <= step < math.inf:
        raise RemoteProtocolError(f"$.step: expected a finite float of 0 or more, got {step}")
    return decode_symbols(data, count, magnitude_max=magnitude_max if step else 0)


def deflate(data: bytes) -> bytes:
    """Huffman codes alone, or with the matches that a quiet downlink has: whichever is shorter."""
    candidates = []
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_FILTERED):
        compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, _MEMORY_LEVEL, strategy)
        candidates.append(compressor.compress(data) + compressor.flush())
    return min(candidates, key=len)


def inflate(data: bytes, bytes_min: int, bytes_max: int) -> tuple[NDArray[np.uint8], bytes]:
    """Inflate the stream that ``data`` begins with.

    Parameters
    ----------
    data : bytes
        A stream of ``deflate``, and whatever follows it.
    bytes_min, bytes_max : int
        How long the stream may be once inflated; no more than that is ever inflated.

    Returns
    -------
    tuple of uint8 array and bytes
        The stream, and what follows it.

    Raises
    ------
    RemoteProtocolError
        If ``data`` does not begin with such a stream.

    Examples
    --------
    >>> stream, rest = inflate(deflate(b"zero") + b" rest", 0, 10)
    >>> stream.tobytes(), rest
    (b'zero', b' rest')
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        stream = inflater.decompress(data, bytes_max + 1)
    except zlib.error as error:
        raise RemoteProtocolError(f"$: expected a deflate stream, got {error}") from error
    if not inflater.eof or not bytes_min <= len(stream) <= bytes_max:
        raise RemoteProtocolError(f"$: expected a stream of {bytes_min} to {bytes_max} bytes")
    return np.frombuffer(stream, np.uint8), inflater.unused_data


def _encode_trits(symbols: Symbols) -> bytes:
    digits = np.zeros(-(-symbols.size // _TRITS_PER_BYTE) * _TRITS_PER_BYTE, np.uint8)
    digits[: symbols.size] = np.sign(symbols) % 3
    packed = (digits.reshape(-1, _TRITS_PER_BYTE) @ _TRIT_WEIGHTS.astype(np.uint8)).tobytes()
    return deflate(packed) + _encode_gaps(np.abs(symbols[symbols != 0].astype(np.int64)) - 1)


def _decode_trits(data: bytes, count: int) -> tuple[NDArray[np.int64], bytes]:
    packed_bytes = -(-count // _TRITS_PER_BYTE)
    packed, rest = inflate(data, packed_bytes, packed_bytes)
    if packed_bytes and packed.max() > _PACKED_MAX:
        raise RemoteProtocolError(f"$.symbols: expected trits, bytes of at most {_PACKED_MAX}, got {packed.max()}")
    signs = _SIGNS[packed].reshape(-1)
    if signs[count:].any():
        raise RemoteProtocolError(f"$.symbols: expected {count} trits, got more")
    symbols = signs[:count].astype(np.int64)
    where = np.flatnonzero(symbols)
    magnitudes, rest = _decode_gaps(rest, where.size)
    symbols[where] *= magnitudes + 1
    return symbols, rest


def _encode_gaps(numbers: NDArray[np.int64]) -> bytes:
    where = np.flatnonzero(numbers)
    gaps = np.diff(where, prepend=-1) - 1
    return where.size.to_bytes(4, "little") + deflate(_narrow(gaps)) + deflate(_narrow(numbers[where] - 1))


def _decode_gaps(data: bytes, count: int) -> tuple[NDArray[np.int64], bytes]:
    nonzero_count = int.from_bytes(data[:4], "little")
    if len(data) < 4 or nonzero_count > count:
        raise RemoteProtocolError(f"$.symbols: expected at most {count} non-zero symbols, got {nonzero_count}")
    gaps, rest = _inflate_numbers(data[4:], nonzero_count)
    values, rest = _inflate_numbers(rest, nonzero_count)
    where = np.cumsum(gaps + 1) - 1
    if nonzero_count and where[-1] >= count:
        raise RemoteProtocolError(f"$.symbols: expected gaps within {count} symbols, got {where[-1]}")
    numbers = np.zeros(count, np.int64)
    numbers[where] = values + 1
    return numbers, rest


def _zigzag(symbols: Symbols) -> NDArray[np.int64]:
    """0, -1, 1, -2, 2 ... become 0, 1, 2, 3, 4 ..."""
    wide = symbols.astype(np.int64)
    return np.where(wide < 0, -2 * wide - 1, 2 * wide)


def _unzigzag(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(numbers % 2, -(numbers // 2) - 1, numbers // 2)


def _narrow(numbers: NDArray[np.int64]) -> bytes:
    """One byte a number; the rare wide ones follow in four."""
    wide = numbers[numbers >= _WIDE]
    return np.minimum(numbers, _WIDE).astype(np.uint8).tobytes() + wide.astype("<u4").tobytes()


def _inflate_numbers(data: bytes, count: int) -> tuple[NDArray[np.int64], bytes]:
    """Inflate what ``_narrow`` wrote: ``count`` numbers."""
    stream, rest = inflate(data, count, _NUMBER_BYTES_MAX * count)
    numbers = stream[:count].astype(np.int64)
    where = np.flatnonzero(numbers == _WIDE)
    if stream.size != count + 4 * where.size:
        raise RemoteProtocolError(f"$.symbols: expected {where.size} wide numbers, got {stream.size - count} bytes")
    numbers[where] = np.frombuffer(stream[count:].tobytes(), "<u4")
    return numbers, rest
