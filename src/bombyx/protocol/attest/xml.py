# SPDX-License-Identifier: Apache-2.0
"""As much XML as a signed SWID tag needs: a bounded tree, and its canonical bytes (Canonical XML 1.1, no comments).

Not a general reader: a DOCTYPE, a processing instruction or an `xml:` attribute is refused, so nothing is ever
expanded, fetched or inherited.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from xml.parsers import expat  # DOCTYPE is refused below, and with it every entity

from bombyx.errors import MalformedMessage

MAX_XML: Final = 262_144  # bytes; NVIDIA's files have 20 kB
MAX_DEPTH: Final = 16
MAX_ELEMENTS: Final = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Element:
    """One element; names as written, prefixes and all."""

    name: str
    attributes: tuple[tuple[str, str], ...]
    children: tuple[Element | str, ...]

    @property
    def local(self) -> str:
        return self.name.rpartition(":")[2]

    def elements(self) -> tuple[Element, ...]:
        return tuple(child for child in self.children if isinstance(child, Element))

    def child(self, local: str) -> Element:
        """The only child of this name. Raises `MalformedMessage` when there is none, or more."""
        found = [one for one in self.elements() if one.local == local]
        if len(found) != 1:
            raise _malformed(f"{len(found)} elements {local}, expected 1")
        return found[0]

    def attribute(self, name: str, default: str | None = None) -> str:
        value = dict(self.attributes).get(name, default)
        if value is None:
            raise _malformed(f"{self.local} without {name}")
        return value

    def text(self) -> str:
        return "".join(child for child in self.children if isinstance(child, str))

    def without(self, gone: Element) -> Element:
        return replace(self, children=tuple(child for child in self.children if child is not gone))


def parse_xml(raw: bytes) -> Element:
    """Read one document. Raises `MalformedMessage`."""
    if len(raw) > MAX_XML:
        raise _malformed(f"{len(raw)} bytes, at most {MAX_XML}")
    builder = _Builder()
    parser = expat.ParserCreate()
    parser.ordered_attributes = True
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = builder.refuse
    parser.ProcessingInstructionHandler = builder.refuse
    try:
        parser.Parse(raw, True)
    except expat.ExpatError:
        raise _malformed("not well formed") from None
    if builder.root is None:
        raise _malformed("empty")
    return builder.root


class _Builder:
    """Collects expat's events."""

    def __init__(self) -> None:
        self.root: Element | None = None
        self._open: list[tuple[str, tuple[tuple[str, str], ...], list[Element | str]]] = []
        self._count = 0

    def start(self, name: str, attributes: list[str]) -> None:
        pairs = tuple(zip(attributes[::2], attributes[1::2], strict=True))
        self._count += 1
        if len(self._open) >= MAX_DEPTH or self._count > MAX_ELEMENTS:
            raise _malformed("too deep or too many elements")
        if any(key.startswith("xml:") for key, _ in pairs):
            raise _malformed("an attribute that is inherited")
        self._open.append((name, pairs, []))

    def end(self, _: str) -> None:
        name, attributes, children = self._open.pop()
        element = Element(name, attributes, tuple(children))
        if self._open:
            self._open[-1][2].append(element)
        else:
            self.root = element

    def data(self, text: str) -> None:
        if self._open:
            self._open[-1][2].append(text)

    def refuse(self, *_: Any) -> None:
        raise _malformed("a DOCTYPE or processing instruction")


# CANONICAL


def canonical(element: Element) -> bytes:
    """A whole document's canonical bytes."""
    return _written(element, {"": ""}, {"": ""}).encode()


def canonical_subset(document: Element, path: tuple[Element, ...]) -> bytes:
    """The canonical bytes of the last element of `path`, which leads down from `document`, with what it inherits."""
    inherited: dict[str, str] = {"": ""}
    for element in (document, *path[:-1]):
        inherited |= _declared(element)
    return _written(path[-1], inherited, {"": ""}).encode()


def _declared(element: Element) -> dict[str, str]:
    return {
        key.partition(":")[2]: value for key, value in element.attributes if key == "xmlns" or key.startswith("xmlns:")
    }


def _written(element: Element, scope: Mapping[str, str], said: Mapping[str, str]) -> str:
    """`scope`: the namespaces in force above; `said`: those an element above has written out already."""
    here = {**scope, **_declared(element)}
    new = sorted((prefix, uri) for prefix, uri in here.items() if said.get(prefix) != uri)
    start = element.name + "".join(f' xmlns{":" if prefix else ""}{prefix}="{_value(uri)}"' for prefix, uri in new)
    start += "".join(f' {name}="{_value(value)}"' for _, _, name, value in _ordered(element, here))
    inside = "".join(
        _text(child) if isinstance(child, str) else _written(child, here, {**said, **dict(new)})
        for child in element.children
    )
    return f"<{start}>{inside}</{element.name}>"


def _ordered(element: Element, scope: Mapping[str, str]) -> list[tuple[str, str, str, str]]:
    """Attributes by namespace, then name; those without a namespace first."""
    plain = [(key, value) for key, value in element.attributes if key != "xmlns" and not key.startswith("xmlns:")]
    rows = []
    for key, value in plain:
        prefix, _, local = key.rpartition(":")
        if prefix and prefix not in scope:
            raise _malformed("a prefix nobody declared")
        rows.append((scope[prefix] if prefix else "", local, key, value))
    return sorted(rows)


def _text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\r", "&#xD;")


def _value(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return escaped.replace("\t", "&#x9;").replace("\n", "&#xA;").replace("\r", "&#xD;")


def _malformed(what: str) -> MalformedMessage:
    return MalformedMessage(f"XML: {what}", rule="ATT-6.9")
