"""What a view finds around it: the parts of the application, the visitor, and one session of the database."""

import dataclasses
import hashlib
import hmac
from typing import cast

from flask import current_app, g, redirect, request, url_for
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from werkzeug.exceptions import BadRequest
from werkzeug.wrappers import Response

from cloud_aggregator.adapters.accounts import Accounts, SignedIn
from cloud_aggregator.adapters.event_feed import EventFeed
from cloud_aggregator.config import AggregatorSettings
from cloud_aggregator.console.queries.reading import Reading
from cloud_aggregator.console.spreads import SpreadCache
from cloud_aggregator.service import Service

EXTENSION = "fallow"
PAGE_MAX = 1_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """What the console is made of."""

    settings: AggregatorSettings
    service: Service
    accounts: Accounts
    engine: Engine
    feed: EventFeed
    spreads: SpreadCache
    metrics_token: bytes | None


@dataclasses.dataclass(frozen=True, slots=True)
class Visitor:
    """Whoever asks: signed in or not; forms that are shown to them carry ``form_token``."""

    cookie: str
    is_new: bool
    signed_in: SignedIn | None

    @property
    def form_token(self) -> str:
        """What only a page shown to this visitor can know, since their cookie is hidden from every script."""
        return hmac.new(self.cookie.encode(), b"form", hashlib.sha256).hexdigest()

    @property
    def can_operate(self) -> bool:
        """Whether controls that change something are shown."""
        return self.signed_in is not None and self.signed_in.role == "operator"


def parts() -> Parts:
    """Return the parts of the running application."""
    return cast(Parts, current_app.extensions[EXTENSION])


def visitor() -> Visitor:
    """Return who asks."""
    return cast(Visitor, g.visitor)


def signed_in() -> SignedIn:
    """Return the session of a visitor whose permission was checked already."""
    session = visitor().signed_in
    assert session is not None
    return session


def reading() -> Reading:
    """Return the reading of this request, made at its first use."""
    if "reading" not in g:
        g.reading = Reading(Session(parts().engine), parts().accounts.now_s(), parts().spreads)
    return cast(Reading, g.reading)


def close_reading(_error: BaseException | None = None) -> None:
    """End what `reading` began."""
    made = g.pop("reading", None)
    if made is not None:
        made.session.close()


def operator_service() -> Service:
    """Return the service in the name of whoever is signed in."""
    session = signed_in()
    return parts().service.acting_as(f"{session.user} at {request.remote_addr}")


def done(text: str, endpoint: str, **values: object) -> Response:
    """Say ``text`` on the next page, and go there."""
    parts().accounts.leave_notice(signed_in().digest, text)
    return redirect(url_for(endpoint, **values), 303)  # type: ignore[arg-type]


def number_argument(name: str, default: int, largest: int) -> int:
    """Return a whole number of the query, from 1 to ``largest``."""
    text = request.args.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= largest):
        raise BadRequest(f"{name}: expected a number from 1 to {largest:,}, got {text[:40]!r}")
    return int(text)


def page_argument() -> int:
    """Return which page of a list is asked for."""
    return number_argument("page", 1, PAGE_MAX)


def text_argument(name: str) -> str:
    """Return a text of the query, at most as long as anything that it is compared with."""
    return request.args.get(name, "").strip()[:120]
