"""MACHINE: one release on its way to a fleet: to a small first group, then to all, or back.

::

    Canary --enough committed--> Soaking --SoakElapsed--> Everyone --all finished--> Completed
      |  '------AdvanceAsked------'-----------------------^  |
      '--too many failed, CanaryOverdue, HaltAsked-> Halted <'
    any of the first three --NewerPromoted--> Superseded

It sees counts. Who did what, and that a device counts once, is kept by the release desk, which also freezes who is in a
stage. At the canary a threshold that fires takes the release back where it was committed; an operator's halt does not.
"""

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Ratio = Annotated[float, Meta(ge=0.0, le=1.0)]
Stage = Literal["canary", "everyone"]


class RolloutPolicy(msgspec.Struct, frozen=True):
    """How a release spreads, and what stops it."""

    canary_ratio: Ratio = 0.1  # Of the fleet, rounded up; 1: everyone at once.
    failure_ratio_max: Ratio = 0.1  # Failed of finished; above it the release halts ...
    finished_count_min: Annotated[int, Meta(ge=1, le=1_000_000)] = 5  # ... once so many have finished, or all have.
    success_ratio_min: Ratio = 0.8  # Committed of the canary; from it on the canary has succeeded.
    soak_s: Annotated[float, Meta(ge=0.0, le=2_678_400.0)] = 600.0  # From the canary's last success to everyone.
    canary_timeout_s: Annotated[float, Meta(ge=0.1, le=31_536_000.0)] = 259_200.0  # Then the silent ones have failed.


class Tally(msgspec.Struct, frozen=True):
    """How far one stage is. Failed ones are those that refused, rolled back or were silent too long."""

    member_count: int = 0
    committed_count: int = 0
    failed_count: int = 0

    @property
    def finished_count(self) -> int:
        """Those that concluded the release, one way or the other."""
        return self.committed_count + self.failed_count


# --- States


class Canary(msgspec.Struct, frozen=True, tag="canary"):
    """The first group is offered the release."""

    tally: Tally = Tally()


class Soaking(msgspec.Struct, frozen=True, tag="soaking"):
    """Enough of the canary committed; wait whether it lasts."""

    tally: Tally


class Everyone(msgspec.Struct, frozen=True, tag="everyone"):
    """All others are offered it, and whoever joins."""

    tally: Tally = Tally()


class Completed(msgspec.Struct, frozen=True, tag="completed"):
    """All that were there have concluded; it is offered to whoever joins."""

    tally: Tally


class Halted(msgspec.Struct, frozen=True, tag="halted"):
    """It is offered to nobody any more."""

    tally: Tally
    why: str


class Superseded(msgspec.Struct, frozen=True, tag="superseded"):
    """A newer release of the family took its place before it was through."""

    tally: Tally


RolloutState = Canary | Soaking | Everyone | Completed | Halted | Superseded
STATES: msgspec.msgpack.Decoder[RolloutState] = msgspec.msgpack.Decoder(RolloutState)


# --- Events


class Restarted(msgspec.Struct, frozen=True):
    """The aggregator began; the state is the journaled one."""


class StageOpened(msgspec.Struct, frozen=True):
    """The members of a stage are frozen; this is how far they are."""

    tally: Tally


class DeviceJoined(msgspec.Struct, frozen=True):
    """A device that was not there when the last stage opened."""


class DeviceCommitted(msgspec.Struct, frozen=True):
    """A member runs it."""


class DeviceFailed(msgspec.Struct, frozen=True):
    """A member refused it or rolled it back."""


class SoakElapsed(msgspec.Struct, frozen=True):
    """Nothing spoke against the canary for long enough."""


class CanaryOverdue(msgspec.Struct, frozen=True):
    """The canary's time is over: whoever is silent has failed."""


class AdvanceAsked(msgspec.Struct, frozen=True):
    """The operator wants it everywhere, now."""


class HaltAsked(msgspec.Struct, frozen=True):
    """The operator stops it."""


class NewerPromoted(msgspec.Struct, frozen=True):
    """Another release of the family was promoted."""


RolloutEvent = (
    Restarted
    | StageOpened
    | DeviceJoined
    | DeviceCommitted
    | DeviceFailed
    | SoakElapsed
    | CanaryOverdue
    | AdvanceAsked
    | HaltAsked
    | NewerPromoted
)


# --- Actions


class OpenStage(msgspec.Struct, frozen=True):
    """Freeze who is in the stage, tell them, and give `StageOpened`. Again changes nobody's place."""

    stage: Stage


class AwaitCanary(msgspec.Struct, frozen=True):
    """Give `CanaryOverdue` when the canary's time is over."""

    after_s: float


class AwaitSoak(msgspec.Struct, frozen=True):
    """Give `SoakElapsed`; begins anew if it is under way."""

    after_s: float


class TimeOutSilent(msgspec.Struct, frozen=True):
    """Note that the members that did not conclude have failed."""


class TakeBack(msgspec.Struct, frozen=True):
    """Offer the way back to whoever runs this release."""


class Rest(msgspec.Struct, frozen=True):
    """Forget the timers."""


RolloutAction = OpenStage | AwaitCanary | AwaitSoak | TimeOutSilent | TakeBack | Rest
Transition = tuple[RolloutState, tuple[RolloutAction, ...]]


def canary_size(policy: RolloutPolicy, population: int) -> int:
    """Number of devices that go first."""
    return min(population, math.ceil(policy.canary_ratio * population))


def begin(policy: RolloutPolicy) -> Transition:
    """Return the first state of a rollout and what to do first."""
    if policy.canary_ratio >= 1.0:
        return Everyone(), (OpenStage("everyone"),)
    return Canary(), (OpenStage("canary"), AwaitCanary(policy.canary_timeout_s))


def step(state: RolloutState, event: RolloutEvent, policy: RolloutPolicy) -> Transition:
    """Advance ``state`` by one ``event``; an event out of season changes nothing."""
    match state, event:
        case Canary(), Restarted():
            return state, (OpenStage("canary"), AwaitCanary(policy.canary_timeout_s))
        case Soaking(), Restarted():
            return state, (AwaitSoak(policy.soak_s),)
        case Everyone(), Restarted():
            return state, (OpenStage("everyone"),)

        case Canary(), StageOpened(tally):
            return _judge_canary(tally, policy)
        case Canary(tally), DeviceCommitted() | DeviceFailed():
            return _judge_canary(_count(tally, event), policy)
        case Canary(tally), CanaryOverdue():
            after, actions = _judge_canary(_count_silent(tally), policy)
            if isinstance(after, Canary):
                why = f"only {tally.committed_count} of {tally.member_count} committed in time"
                after, actions = Halted(after.tally, why), (Rest(), TakeBack())
            return after, (TimeOutSilent(), *actions)
        case Soaking(tally), DeviceCommitted():
            return Soaking(_count(tally, event)), (AwaitSoak(policy.soak_s),)  # Counted from the last success.
        case Soaking(tally), DeviceFailed():
            tally = _count(tally, event)
            return _halt_canary(tally) if _is_failing(tally, policy) else (Soaking(tally), ())
        case Soaking(), SoakElapsed():
            return Everyone(), (Rest(), OpenStage("everyone"))
        case Canary() | Soaking(), AdvanceAsked():
            return Everyone(), (Rest(), OpenStage("everyone"))

        case Everyone(), StageOpened(tally):
            return _judge_everyone(tally, policy)
        case Everyone(tally), DeviceJoined():
            return Everyone(msgspec.structs.replace(tally, member_count=tally.member_count + 1)), ()
        case Everyone(tally), DeviceCommitted() | DeviceFailed():
            return _judge_everyone(_count(tally, event), policy)

        case Canary(tally) | Soaking(tally) | Everyone(tally), HaltAsked():
            return Halted(tally, "halted by the operator"), (Rest(),)
        case Canary(tally) | Soaking(tally) | Everyone(tally), NewerPromoted():
            return Superseded(tally), (Rest(),)
        case Halted(tally) | Superseded(tally), DeviceCommitted() | DeviceFailed():
            return msgspec.structs.replace(state, tally=_count(tally, event)), ()  # It had begun before it was stopped.
        case _:
            return state, ()


def _judge_canary(tally: Tally, policy: RolloutPolicy) -> Transition:
    if _is_failing(tally, policy):
        return _halt_canary(tally)
    if tally.committed_count >= policy.success_ratio_min * tally.member_count:
        return Soaking(tally), (Rest(), AwaitSoak(policy.soak_s))
    return Canary(tally), ()


def _judge_everyone(tally: Tally, policy: RolloutPolicy) -> Transition:
    if _is_failing(tally, policy):
        return Halted(tally, _failure(tally)), (Rest(),)
    if tally.finished_count >= tally.member_count:
        return Completed(tally), (Rest(),)
    return Everyone(tally), ()


def _halt_canary(tally: Tally) -> Transition:
    return Halted(tally, _failure(tally)), (Rest(), TakeBack())


def _is_failing(tally: Tally, policy: RolloutPolicy) -> bool:
    if tally.finished_count < min(policy.finished_count_min, tally.member_count):
        return False
    return tally.failed_count > policy.failure_ratio_max * tally.finished_count


def _failure(tally: Tally) -> str:
    return f"failed on {tally.failed_count} of {tally.finished_count} devices"


def _count(tally: Tally, event: DeviceCommitted | DeviceFailed) -> Tally:
    if isinstance(event, DeviceCommitted):
        return msgspec.structs.replace(tally, committed_count=tally.committed_count + 1)
    return msgspec.structs.replace(tally, failed_count=tally.failed_count + 1)


def _count_silent(tally: Tally) -> Tally:
    return msgspec.structs.replace(tally, failed_count=tally.member_count - tally.committed_count)
