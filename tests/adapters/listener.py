"""A link whose news a test waits for."""

import dataclasses
import queue
from typing import Self, TypeVar

from federated_core.adapters.link import LinkDown, LinkNews, LinkSettings, LinkUp, MessageArrived
from federated_core.adapters.mqtt_link import MqttLink

DEADLINE_S = 10.0
News = TypeVar("News", LinkUp, LinkDown, MessageArrived, LinkNews)


class Listener:
    """Opens a link with short waits and keeps its news; the link is closed with the block."""

    def __init__(self, settings: LinkSettings) -> None:
        self.news: queue.Queue[LinkNews] = queue.Queue()
        self.heard: list[MessageArrived] = []
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
                pass
            case _:
                self.sent_tickets.append(news.ticket)
        return news

    def wait_up(self) -> Self:
        while not isinstance(self.next(), LinkUp):
            pass
        return self

    def wait_down(self) -> str:
        while not isinstance(news := self.next(), LinkDown):
            pass
        return news.reason

    def wait_for_payload(self, payload: bytes) -> None:
        while not any(message.payload == payload for message in self.heard):
            self.next()

    def wait_sent(self, count: int) -> None:
        while len(self.sent_tickets) < count:
            self.next()

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
