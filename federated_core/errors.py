"""The four kinds of error, by who is at fault and what to do about it."""


class FallowError(Exception):
    """Base of every error that Fallow raises on purpose; the message says what was expected, what came and where."""


class LocalMisuseError(FallowError):
    """Our own code or our caller is wrong: crash, and fix it."""


class RemoteProtocolError(FallowError):
    """What came from the other side is wrong: reject it, count it, carry on."""


class UntrustedReleaseError(FallowError):
    """A bundle or release is not what a trusted key signed: refuse it, raise an alert, keep what runs."""


class AdapterError(FallowError):
    """The world is in the way (disk, network, process): retry with backoff."""


class UntrainableModelError(FallowError):
    """A model that cannot be turned into a training graph; names the operator, the node and what to do."""
