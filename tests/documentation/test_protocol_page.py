"""docs/protocol.md names every topic, message, field and word of the wire, and nothing that does not exist.

The page has a heading for each struct of `messages`: `` ### `check-in` `` by its tag, `` ### `Plan` `` by its
name where it has none. The text under the heading names, as code, each field and each word that a field may hold.
"""

import re
import typing
from collections.abc import Iterator

import msgspec
import pytest

from federated_core.protocol import messages, topics
from tests.documentation.sources import ROOT

PAGE = ROOT / "docs" / "protocol.md"
PLACES = {"fleet": "<fleet>", "device": "<device>", "task": "<task>", "token": "<token>"}
STRUCTS = [
    value
    for value in vars(messages).values()
    if isinstance(value, type) and issubclass(value, msgspec.Struct) and value is not msgspec.Struct
]
ADDRESSES = typing.get_args(topics.Address)


def documented_name(struct: type[msgspec.Struct]) -> str:
    """The tag that stands on the wire, or the struct's own name if it is only ever a part of another."""
    return str(struct.__struct_config__.tag or struct.__name__)


def sections() -> dict[str, str]:
    """Text under each heading of the page that holds a code word, by that word."""
    found: dict[str, str] = {}
    for part in re.split(r"^(?=#{2,6} )", PAGE.read_text(), flags=re.MULTILINE):
        heading, _, text = part.partition("\n")
        for word in re.findall(r"`([^`]+)`", heading) if heading.startswith("#") else ():
            found[word] = text
    return found


def words(annotation: object) -> Iterator[str]:
    """Every string that a Literal anywhere inside ``annotation`` allows."""
    if typing.get_origin(annotation) is typing.Literal:
        yield from (value for value in typing.get_args(annotation) if isinstance(value, str))
    else:
        for part in typing.get_args(annotation):
            yield from words(part)


@pytest.mark.parametrize("struct", STRUCTS, ids=documented_name)
def test_a_message_is_documented_with_every_field(struct: type[msgspec.Struct]) -> None:
    text = sections().get(documented_name(struct))
    assert text is not None, f"docs/protocol.md: expected a heading with `{documented_name(struct)}`"
    expected = {field.name for field in msgspec.structs.fields(struct)}
    for field in msgspec.structs.fields(struct):
        expected |= set(words(field.type))
    assert sorted(word for word in expected if f"`{word}`" not in text) == [], "the section lacks these, as `code`"


def test_every_topic_is_documented() -> None:
    text = PAGE.read_text()
    spelled = [
        topics.spell(address(**{name: PLACES[name] for name in address.__struct_fields__})) for address in ADDRESSES
    ]
    assert [topic for topic in spelled if f"`{topic}`" not in text] == []


def test_the_page_names_no_topic_that_does_not_exist() -> None:
    for topic in re.findall(r"`(fallow/[^`#+*{]+)`", PAGE.read_text()):
        topics.parse(re.sub(r"<[a-z ]+>", "x", topic))


def test_the_page_has_no_section_for_a_message_that_does_not_exist() -> None:
    tags = re.compile(r"[a-z]+(-[a-z]+)+|[A-Z][A-Za-z]+")
    known = {documented_name(struct) for struct in STRUCTS} | {struct.__name__ for struct in STRUCTS}
    assert [word for word in sections() if tags.fullmatch(word) and word not in known] == []
