"""What every query needs: the session and the moment of one request."""

import msgspec
from sqlalchemy.orm import Session

from cloud_aggregator.console.spreads import SpreadCache

PAGE_SIZE = 50
HOUR_S, DAY_S = 3600.0, 86_400.0


class Reading(msgspec.Struct, frozen=True):
    """One session for one request; ``now_s`` is the time that the whole page goes by."""

    session: Session
    now_s: float
    spreads: SpreadCache
