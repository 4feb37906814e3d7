"""YAML as the registry reads it: go-yaml v2, which CNCF Distribution 2 and 3 have.

::

    YamlError       one line: what is wrong, without a value; ``line`` where it is known

Other YAML readers differ from it in what a key counts for that is given twice or is overtaken by
``<<``. Where a difference could matter, the document is refused instead of read in one of the ways.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import yaml
from yaml.constructor import ConstructorError

from registry_drivers.parameters import Unquoted

_CORE = "tag:yaml.org,2002:"
_MERGE = _CORE + "merge"
_PLAIN = "registry:plain"  # a scalar without a tag and without quotes
# Tags that mean the same to every reader; any other is refused where it could matter.
_TAGS = frozenset(
    {_PLAIN, _MERGE}
    | {_CORE + kind for kind in ("str", "bool", "int", "float", "null", "timestamp", "binary")}
    | {_CORE + kind for kind in ("map", "seq")}
)
# What may be brought by ``<<``, and how often keys may be compared that are given more than once:
# a tenth of a second. A config has some tens, and a few lines of ``<<`` below ``<<`` could ask for
# more than ever ends. go-yaml has a limit of its own.
_MOST_STEPS = 100_000


class YamlError(Exception):
    """The text cannot be read as the registry's config; ``line`` counts from 1."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


def load(data: bytes | str, path: Sequence[str], read: Mapping[str, frozenset[str]]) -> object:
    """The first document in *data*, as Distribution's ``yaml.Unmarshal`` takes it.

    *path* is where in the config it stands, *read* the keys at the top that anyone asks for,
    with those below them; none where that is all of them.
    A scalar that the registry takes for something else than is written is an :class:`Unquoted`.

    :raises YamlError: it is no YAML, or YAML that could be read in more than one way.
    """
    try:
        loader = _Loader(data)
        try:
            node = loader.get_node() if loader.check_node() else None
            if node is None:
                return None
            _Check(loader, read).node(node, tuple(path))
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise YamlError(f"is not YAML: {_harmless(error)}", line) from None
    except (yaml.YAMLError, UnicodeError):
        raise YamlError("is not YAML: it is not text in UTF-8") from None
    except (RecursionError, ValueError):
        raise YamlError("is not YAML that makes sense: simplify it") from None


def _harmless(error: yaml.MarkedYAMLError) -> str:
    # PyYAML quotes aliases, tags and characters, which may be (part of) an unquoted password.
    problem = re.sub(r"'.*'", "'…'", error.problem or "malformed", flags=re.DOTALL)
    return " ".join(problem.split())


class _Pair(NamedTuple):
    """A key of a mapping with its value; *mark* is where it is brought, by ``<<`` or itself."""

    key: Any
    value: Any
    mark: Any
    merged: bool


class _Loader(yaml.SafeLoader):
    """PyYAML's, with go-yaml v2's rules for scalars, ``<<``, tabs, tags and anchors.

    Not libyaml's loader: that one ends the process with a segmentation fault on deeply nested
    input (measured).
    """

    def __init__(self, data: bytes | str) -> None:
        super().__init__(data)
        self._steps = 0

    def step(self, count: int, mark: Any) -> None:
        """Say before *count* steps more; a document that asks for too many is refused."""
        self._steps += count
        if self._steps > _MOST_STEPS:
            problem = "brings in too much by '<<', or one key too often: write each key once"
            raise YamlError(problem, mark.line + 1)

    def scan_to_next_token(self) -> None:
        # PyYAML skips spaces only; libyaml, and so go-yaml, a tab too where none can indent.
        if self.index == 0 and self.peek() == "\ufeff":
            self.forward()
        while True:
            blank = " \t" if self.flow_level or not self.allow_simple_key else " "
            while self.peek() in blank:
                self.forward()
            if self.peek() == "#":
                while self.peek() not in "\0\r\n\x85\u2028\u2029":
                    self.forward()
            if not self.scan_line_break():  # type: ignore[no-untyped-call]  # PyYAML has no types here
                return
            if not self.flow_level:
                self.allow_simple_key = True

    def compose_node(self, parent: Any, index: Any) -> Any:
        # An anchor may be defined again; from there on it means the new node.
        if not self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML has no types here
            self.anchors.pop(event.anchor, None)
            if isinstance(event, yaml.ScalarEvent):
                self._as_text(event)
        return super().compose_node(parent, index)

    def _as_text(self, event: Any) -> None:
        # To go-yaml, what stands behind a lone "!" is text; it knows no halves of characters.
        if event.tag == "!":
            event.tag = _CORE + "str"
        if not event.value.isascii() and any("\ud800" <= sign <= "\udfff" for sign in event.value):
            raise YamlError("has half of a character", event.start_mark.line + 1)

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0]:
            return _MERGE if value == "<<" else _PLAIN
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]  # the same

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        node.value = [(pair.key, pair.value) for pair in self.pairs(node)]

    def pairs(self, node: yaml.MappingNode) -> list[_Pair]:
        """What *node* says, the last word on a key last: ``<<`` counts where it stands."""
        pairs: list[_Pair] = []
        for key, value in node.value:
            if key.tag != _MERGE:
                pairs.append(_Pair(key, value, key.start_mark, merged=False))
                continue
            # Of several, the first wins.
            sources = value.value[::-1] if isinstance(value, yaml.SequenceNode) else [value]
            for source in sources:
                if not isinstance(source, yaml.MappingNode):
                    raise ConstructorError(
                        None, None, "expected a mapping to merge", key.start_mark
                    )
                brought = self.pairs(source)
                # One for the look itself: there may be nothing in it.
                self.step(1 + len(brought), key.start_mark)
                pairs += [pair._replace(mark=key.start_mark, merged=True) for pair in brought]
        return pairs

    def plain(self, node: yaml.ScalarNode) -> object:
        return _scalar(str(self.construct_scalar(node)))

    def binary(self, node: yaml.ScalarNode) -> str:
        return base64.b64decode(self.construct_scalar(node)).decode("utf-8", "surrogateescape")

    def untagged(self, node: yaml.Node) -> object:
        if isinstance(node, yaml.ScalarNode):
            return self.construct_scalar(node)
        if isinstance(node, yaml.SequenceNode):
            return self.construct_sequence(node, deep=True)
        assert isinstance(node, yaml.MappingNode)
        return self.construct_mapping(node, deep=True)


for _tag in (_PLAIN, *(_CORE + kind for kind in ("bool", "int", "float", "null", "timestamp"))):
    _Loader.add_constructor(_tag, _Loader.plain)
_Loader.add_constructor(_CORE + "binary", _Loader.binary)
_Loader.add_constructor(_MERGE, _Loader.untagged)
_Loader.add_constructor(None, _Loader.untagged)


class _Check:
    """Refuses what could be read in more than one way, where the collector reads it."""

    def __init__(self, loader: _Loader, read: Mapping[str, frozenset[str]]) -> None:
        self._loader = loader
        self._read = read
        self._seen: set[tuple[yaml.Node, bool]] = set()

    def node(self, node: yaml.Node, path: tuple[str, ...]) -> None:
        # Below ``storage`` the registry has maps, elsewhere structs.
        struct = path[:1] != ("storage",)
        if (node, struct) in self._seen:
            return  # by another alias, or an alias inside itself
        self._seen.add((node, struct))
        if node.tag not in _TAGS:
            raise _error(path, "has a tag that nobody knows: leave it out", node.start_mark)
        if isinstance(node, yaml.MappingNode):
            self._mapping(node, path, struct)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self.node(item, path)

    def _is_read(self, path: tuple[str, ...], key: str) -> bool:
        if not path:
            return key in self._read
        known = self._read.get(path[0]) if len(path) == 1 else None
        return not known or key in known

    def _mapping(self, node: yaml.MappingNode, path: tuple[str, ...], struct: bool) -> None:
        given: dict[str, list[_Pair]] = {}
        for pair in self._loader.pairs(node):
            key = pair.key.value
            if not isinstance(key, str) or not self._is_read(path, key):
                continue
            earlier_ones = given.setdefault(key, [])
            self._loader.step(len(earlier_ones), pair.mark)
            for earlier in earlier_ones:
                problem = _conflict(earlier, pair, struct)
                if problem:
                    raise _error((*path, key), problem, pair.mark)
            earlier_ones.append(pair)
            self.node(pair.value, (*path, key))


def _conflict(earlier: _Pair, later: _Pair, struct: bool) -> str:
    if _same(earlier.value, later.value):
        return ""
    if later.merged and not earlier.merged:
        # go-yaml v2 lets what ``<<`` brings win, most other readers the key itself.
        return (
            "is overtaken by the '<<' below it, or not, depending on who reads it:"
            " put '<<' first, or write the key once"
        )
    # A map's later value replaces the earlier. Of a struct, both stay in part; go-yaml v3 refuses.
    explicit = not (earlier.merged or later.merged)
    mappings = isinstance(earlier.value, yaml.MappingNode) and isinstance(
        later.value, yaml.MappingNode
    )
    if struct and (explicit or mappings):
        return "is given twice, and it depends on who reads it what counts: write it once"
    return ""


def _same(one: yaml.Node, other: yaml.Node) -> bool:
    scalars = isinstance(one, yaml.ScalarNode) and isinstance(other, yaml.ScalarNode)
    return one is other or (scalars and (one.tag, one.value) == (other.tag, other.value))


def _error(path: Sequence[str], problem: str, mark: Any) -> YamlError:
    where = " ".join(".".join(path).split())
    return YamlError(f"{where}: {problem}" if where else problem, mark.line + 1)


_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {
    spelling: value
    for value, words in ((True, "y yes true on"), (False, "n no false off"))
    for word in words.split()
    for spelling in (word, word.capitalize(), word.upper())
}
_SPECIAL = {
    sign + "." + spelling: float(sign + spelling)
    for sign, words in (("", "inf Inf INF nan NaN NAN"), ("+", "inf Inf INF"), ("-", "inf Inf INF"))
    for spelling in words.split()
}
_INTEGER = re.compile(
    r"([-+]?)(?:0[xX]([0-9a-fA-F]+)|0[oO]?([0-7]+)|0[bB]([01]+)|(0|[1-9][0-9]*))", re.ASCII
)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)


def _scalar(text: str) -> object:
    """What go-yaml v2's ``resolve`` makes of *text*; a date stays the text it is."""
    if text in _NULLS:
        return None
    value = _resolved(text)
    if value is None:
        return text
    # Drivers use the text that Go writes for the value.
    plain = _go(value) == text and (isinstance(value, bool) or str(value) == text)
    return value if plain else Unquoted(text, value)


def _resolved(text: str) -> bool | int | float | None:
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if text in _SPECIAL:
        return _SPECIAL[text]
    if text[0] not in "+-.0123456789":
        return None
    digits = text if text[0] == "." else text.replace("_", "")
    match = _INTEGER.fullmatch(digits)
    # More digits than 64 bits have are a float, and Python would refuse thousands of them.
    if match and len(digits) < 80:
        sign, *bases = match.groups()
        value = next(int(d, b) for d, b in zip(bases, (16, 8, 2, 10), strict=True) if d)
        if value < (1 << 63 if sign else 1 << 64) or (sign == "-" and value == 1 << 63):
            return -value if sign == "-" else value
    if _FLOAT.fullmatch(digits):
        number = float(digits)
        return None if number in (float("inf"), float("-inf")) else number
    return None


def _go(value: bool | int | float) -> str:
    """The text of *value* as Go's ``fmt.Sprint`` writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or value != value or value in (float("inf"), float("-inf")):
        return str(value)
    number = Decimal(repr(value)).normalize()
    exponent = number.adjusted()
    if -4 <= exponent < 6:
        return f"{number:f}"
    return f"{number.scaleb(-exponent):f}e{exponent:+03d}"
