"""The fleet, and each device of it."""

from typing import get_args

from flask import Blueprint, abort, render_template, request

from cloud_aggregator.console import queries, records
from cloud_aggregator.console.context import page_argument, reading, text_argument
from cloud_aggregator.console.permissions import needs

blueprint = Blueprint("fleet", __name__)
PRESENCES: tuple[str, ...] = get_args(records.Presence)
ORDERS = ("name", "seen", "enrolled")


@blueprint.get("/fleet")
@needs("view")
def show() -> str:
    """Show a page of the fleet."""
    presence, order = request.args.get("presence", ""), request.args.get("order", "")
    presence, order = presence if presence in PRESENCES else "", order if order in ORDERS else "name"
    text = text_argument("text")
    return render_template(
        "fleet.html",
        page=queries.devices.find_page(reading(), text=text, presence=presence, order=order, page=page_argument()),
        counts=queries.devices.presence_counts(reading()),
        text=text,
        presence=presence,
        order=order,
        orders=ORDERS,
    )


@blueprint.get("/devices/<identifier:name>")
@needs("view")
def show_device(name: str) -> str:
    """Show one device."""
    device = queries.devices.find(reading(), name)
    if device is None:
        abort(404, f"No device {name} is enrolled.")
    return render_template("device.html", device=device, happenings=queries.devices.happenings(reading(), name))
