"""A link whose news a test waits for."""

import dataclasses
import queue
import time
from collections.abc import Callable
from typing import Self

from federated_core.adapters.link import LinkDown, LinkNews, LinkSettings, LinkUp, MessageArrived, MessageSent
from federated_core.adapters.mqtt_link import MqttLink

DEADLINE_S = 10.0


class Listener:
    """Opens a link with short waits and keeps its news; the link is closed with the block."""

    def __init__(self, settings: LinkSettings) -> None:
        self.news: queue.Queue[LinkNews] = queue.Queue()
        self.heard: list[MessageArrived] = []
        self.up_count = 0
        self.down: list[LinkDown] = []
        self.sent_tickets: list[int] = []
        self.link = MqttLink(dataclasses.replace(settings, reconnect_min_s=0.02, reconnect_max_s=0.2), self.news.put)

    def next(self) -> LinkNews:
        """Take one piece of news and keep it where it belongs."""
        news = self.news.get(timeout=DEADLINE_S)
        match news:
            case MessageArrived():
                self.heard.append(news)
            case LinkDown():
                self.down.append(news)
            case LinkUp():
                self.up_count += 1
            case MessageSent(ticket):
                self.sent_tickets.append(ticket)
        return news

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Take news until ``condition`` holds; the deadline is for all of it, for a link may fail again and again."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline_s, f"still waiting; down so far: {self.down[-3:]}"
            self.next()

    def wait_up(self) -> Self:
        former_count = self.up_count
        self.wait_until(lambda: self.up_count > former_count)
        return self

    def wait_down(self) -> str:
        former_count = len(self.down)
        self.wait_until(lambda: len(self.down) > former_count)
        return self.down[-1].reason

    def wait_for_payload(self, payload: bytes) -> None:
        self.wait_until(lambda: any(message.payload == payload for message in self.heard))

    def wait_sent(self, count: int) -> None:
        self.wait_until(lambda: len(self.sent_tickets) >= count)

    def drain(self) -> None:
        while not self.news.empty():
            self.next()

    def topics_before(self, payload: bytes) -> set[str]:
        """Wait for ``payload`` and return the topics of all that came with other payloads."""
        self.wait_for_payload(payload)
        return {message.topic for message in self.heard if message.payload != payload}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()
