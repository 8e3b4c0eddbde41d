"""The grammar: from the JSON value of a model to the tree of its parts.

Invariants:
    * Whatever JSON value is walked, the outcome is a tree of parts or a `RecipeError` that names every fault.
    * Nothing is looked up, imported or called: names stay text.
    * Every spelling but the canonical one is refused, and every object that two places refer to is one part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from replayml.core.tape import TreeRef, Where
from replayml.recipe.faults import MODEL, Fault, Flaw, Place, refuse, shown
from replayml.recipe.format import Limits, canonical, is_plain_dict
from replayml.recipe.text.extent import Extent
from replayml.recipe.text.nesting import Nesting
from replayml.recipe.text.parts import (
    CallPart,
    ClassPart,
    CodecPart,
    Constant,
    DataclassPart,
    EntryPart,
    EnumPart,
    ItemsPart,
    LeafPart,
    NamedPart,
    NamedTuplePart,
    PairsPart,
    Part,
    PydanticPart,
    Reference,
    SharedPart,
)
from replayml.recipe.values.leaves import (
    LEAVES,
    Leaf,
    check_keys,
    check_keyword,
    check_tag,
    is_plain_float,
    read_fields,
)
from replayml.recipe.values.opaque import OpaquePart, read_pieces
from replayml.recipe.values.tensors import DATA_LEAVES

__all__ = ["TAGS", "Walk"]

_LEAVES: Mapping[str, Leaf] = MappingProxyType({leaf.tag: leaf for leaf in (*LEAVES, *DATA_LEAVES)})

_NOTHING = Constant(None)


class Walk(Nesting):
    """One walk through the model of a document.

    Args:
        limits: How much the document may hold.

    Attributes:
        named: Every part with a name, outer ones first.
        entries: Every tape entry, each with the call that has it on its tape.
        opaque: Every pickled value.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._limits = limits
        self._faults: list[Fault] = []
        self.named: list[NamedPart] = []
        self.entries: list[tuple[CallPart, EntryPart]] = []
        self.opaque: list[OpaquePart] = []
        self._calls = 0
        self._entry_count = 0
        self._extent = Extent(limits.values)
        self._numbers: list[bool | None] = []  # for each number: None while it is read, then whether calls are in it
        self._referred: set[int] = set()
        self._tapes = 0  # how many tape entries the walk is inside of
        self._met = 0  # how many calls it has met, references to them included

    def run(self, model: object) -> CallPart:
        """Return the constructor call that the model is.

        Raises:
            RecipeError: When there is any fault.
        """
        root = self._visit(model, MODEL)
        if isinstance(root, SharedPart):
            root = root.part
        if not self._faults and not isinstance(root, CallPart):
            self._fault(Flaw("bad-value", 'the model of a recipe is a {"$call": ...}.'), MODEL)
        self._check_count("calls", self._calls, self._limits.calls)
        self._check_count("entries", self._entry_count, self._limits.entries)
        for number in sorted(set(range(len(self._numbers))) - self._referred):
            self._fault(Flaw("not-canonical", f"nothing refers to the object with the number {number}."), MODEL)
            break
        if self._faults:
            refuse(self._faults)
        assert isinstance(root, CallPart)
        return root

    def _check_count(self, what: str, count: int, limit: int) -> None:
        if count > limit:
            self._fault(Flaw("too-many", f"{count} {what}; at most {limit} are read. Raise Limits({what}=)."), MODEL)

    def _fault(self, flaw: Flaw, place: Place) -> None:
        self._faults.append(flaw.at(place))

    def _meet(self, what: str) -> None:
        """Note a call, or refuse it where it would not be made."""
        if self._sealed:
            raise Flaw("bad-value", f"{what} stands in arguments, lists, tuples and dicts only.")
        self._met += 1

    # Nodes ----------------------------------------------------------------------------------------------------------

    def _visit(self, node: object, place: Place) -> Part:
        """Return the part of a node; a faulty node is noted, and stands for None."""
        self._extent.size += 1
        try:
            if isinstance(node, list):
                self._refuse_in_key("a list")
                return ItemsPart("$list", self._all(node, place), place)
            if isinstance(node, dict):
                return self._object(node, place)
            if isinstance(node, float) and not is_plain_float(node):
                raise Flaw("not-canonical", 'the negative zero is spelled {"$float": "-0.0"}.')
            return Constant(node)
        except Flaw as flaw:
            self._fault(flaw, place)
            return _NOTHING

    def _refuse_in_key(self, what: str) -> None:
        if self._keys:
            raise Flaw("bad-value", f"{what} cannot be a key, stand in a set, or in what does.")

    def _all(self, items: object, place: Place) -> tuple[Part, ...]:
        if not isinstance(items, list):
            raise Flaw("bad-value", f"a list is expected here, not {shown(items)}.")
        return tuple(self._visit(item, place.below(index)) for index, item in enumerate(items))

    def _object(self, node: dict[str, object], place: Place) -> Part:
        tags = [key for key in node if key.startswith("$") and key != "$id"]
        if not tags and "$id" not in node:
            self._refuse_in_key("a dict")
            pairs = tuple((Constant(key), self._visit(node[key], place.below(key))) for key in sorted(node))
            return PairsPart(False, pairs, place)
        if len(tags) != 1:
            raise Flaw("unknown-tag", f"an object with '$' keys has exactly one tag; this has {shown(sorted(tags))}.")
        tag = tags[0]
        if tag in _LEAVES:
            return self._leaf(_LEAVES[tag], node, place)
        form = _FORMS.get(tag)
        if form is None:
            raise Flaw("unknown-tag", f"the tag {shown(tag)} is unknown. The tags are: {', '.join(sorted(TAGS))}.")
        check_keys(node, (tag, *form.required), (*form.optional, *(("$id",) if form.has_identity else ())))
        if form.has_identity and tag != "$dataclass":
            self._refuse_in_key(f"a {tag}")
        return self._numbered(node, lambda: form.read(self, node, place))

    def _leaf(self, leaf: Leaf, node: dict[str, object], place: Place) -> Part:
        check_keys(node, (leaf.tag,), ("$id",) if leaf.has_identity else ())
        if not leaf.is_hashable:
            self._refuse_in_key(f"a {leaf.tag}")
        if leaf.tag == "$tree" and not self._tapes:
            raise Flaw("bad-reference", "$tree stands for a part of the tree; only a tape entry can refer to one.")
        if leaf.tag == "$tree":
            self._meet("a $tree")
        value = leaf.read(node[leaf.tag])
        if isinstance(value, range):
            self._extent.add_range(value)
        if isinstance(value, TreeRef) and value.outer >= self._tapes:
            raise Flaw("bad-reference", f"a model here is given to {self._tapes - 1} others, not to {value.outer}.")
        return self._numbered(node, lambda: LeafPart(leaf.read, node[leaf.tag]))

    def _numbered(self, node: dict[str, object], read: Callable[[], Part]) -> Part:
        """Read a node that may have a number, by which others refer to it."""
        if "$id" not in node:
            return read()
        number = node["$id"]
        if type(number) is not int or number != len(self._numbers):
            raise Flaw("bad-reference", f"the next $id is {len(self._numbers)}, not {shown(number)}.")
        if self._keys:
            raise Flaw("bad-reference", "what is a key or stands in a set has no $id.")
        self._numbers.append(None)
        met, size = self._met, self._extent.size
        try:
            return SharedPart(number, read())
        finally:
            self._numbers[number] = self._met > met
            self._extent.share(number, size)

    def _reference(self, node: dict[str, object], place: Place) -> Part:
        number = node["$ref"]
        self._refuse_in_key("a $ref")
        if type(number) is not int or not 0 <= number < len(self._numbers):
            raise Flaw("bad-reference", f"no object before this one has the $id {shown(number)}.")
        has_calls = self._numbers[number]
        if has_calls is None:
            raise Flaw("bad-reference", f"the object with the $id {number} cannot contain itself.")
        if has_calls:
            self._meet("a module")
        self._referred.add(number)
        self._extent.add_reference(number)
        return Reference(number)

    # Collections ----------------------------------------------------------------------------------------------------

    def _list(self, node: dict[str, object], place: Place) -> Part:
        if "$id" not in node:
            raise Flaw("not-canonical", "a list that stands in one place is spelled [...].")
        return ItemsPart("$list", self._all(node["$list"], place.below("$list")), place)

    def _tuple(self, node: dict[str, object], place: Place) -> Part:
        return ItemsPart("$tuple", self._all(node["$tuple"], place.below("$tuple")), place)

    def _set(self, node: dict[str, object], place: Place) -> Part:
        return self._unordered("$set", node, place)

    def _frozenset(self, node: dict[str, object], place: Place) -> Part:
        return self._unordered("$frozenset", node, place)

    def _unordered(self, tag: str, node: dict[str, object], place: Place) -> Part:
        items = node[tag]
        with self._inside(key=True):
            parts = self._all(items, place.below(tag))
        assert isinstance(items, list)
        texts = [canonical(item) for item in items]
        if texts != sorted(set(texts)):
            raise Flaw("not-canonical", "the elements of a set stand in the order of their texts, each once.")
        return ItemsPart(tag, parts, place)

    def _dict(self, node: dict[str, object], place: Place) -> Part:
        pairs = self._pairs(node["$dict"], place.below("$dict"))
        if "$id" not in node and is_plain_dict([key for key, _ in _raw_pairs(node["$dict"])]):
            raise Flaw("not-canonical", "a dict whose keys are strings in sorted order is spelled {...}.")
        return PairsPart(False, pairs, place)

    def _ordered(self, node: dict[str, object], place: Place) -> Part:
        with self._inside():
            return PairsPart(True, self._pairs(node["$ordered"], place.below("$ordered")), place)

    def _pairs(self, node: object, place: Place) -> tuple[tuple[Part, Part], ...]:
        pairs = []
        for index, (key, value) in enumerate(_raw_pairs(node)):
            with self._inside(key=True):
                key_part = self._visit(key, place.below(index).below(0))
            pairs.append((key_part, self._visit(value, place.below(index).below(1))))
        return tuple(pairs)

    # Names ----------------------------------------------------------------------------------------------------------

    def _name(self, node: dict[str, object], tag: str) -> str:
        name = node[tag]
        if not isinstance(name, str):
            raise Flaw("bad-value", f"{tag} is a name, not {shown(name)}.")
        return name

    def _class(self, node: dict[str, object], place: Place) -> Part:
        return self._note(ClassPart("class", self._name(node, "$class"), place))

    def _function(self, node: dict[str, object], place: Place) -> Part:
        return self._note(ClassPart("function", self._name(node, "$function"), place))

    def _enum(self, node: dict[str, object], place: Place) -> Part:
        member = node["member"]
        members: list[Any] = member if isinstance(member, list) else [member]
        if not all(isinstance(item, str) for item in members):
            raise Flaw("bad-value", f"a member is a name or a list of names, not {shown(member)}.")
        is_combined = isinstance(member, list)
        if is_combined and (len(members) == 1 or members != sorted(set(members))):
            raise Flaw(
                "not-canonical", "the names of combined flags stand in sorted order, each once; one stands alone."
            )
        return self._note(EnumPart("enum", self._name(node, "$enum"), place, tuple(members), is_combined))

    def _dataclass(self, node: dict[str, object], place: Place) -> Part:
        name, index = self._name(node, "$dataclass"), len(self.named)
        fields = node["fields"]
        if not isinstance(fields, dict):
            raise Flaw("bad-value", f"fields are an object, not {shown(fields)}.")
        with self._inside():
            parts = tuple((key, self._visit(fields[key], place.below("fields").below(key))) for key in sorted(fields))
        return self._note(DataclassPart("dataclass", name, place, parts, bool(self._keys)), index)

    def _pydantic(self, node: dict[str, object], place: Place) -> Part:
        name, index = self._name(node, "$pydantic"), len(self.named)
        fields, given = node["fields"], node["set"]
        if not isinstance(fields, dict):
            raise Flaw("bad-value", f"fields are an object, not {shown(fields)}.")
        if not isinstance(given, list) or not all(isinstance(key, str) and key in fields for key in given):
            raise Flaw("bad-value", f"'set' is a list of names of fields, not {shown(given)}.")
        if given != sorted(set(given)):
            raise Flaw("not-canonical", "the names of the fields that were given stand in sorted order, each once.")
        with self._inside():
            parts = tuple((key, self._visit(fields[key], place.below("fields").below(key))) for key in sorted(fields))
        return self._note(PydanticPart("pydantic", name, place, parts, tuple(given)), index)

    def _opaque(self, node: dict[str, object], place: Place) -> Part:
        part = OpaquePart(self._name(node, "type"), read_pieces(node["$opaque"]), place)
        self.opaque.append(part)
        return part

    def _namedtuple(self, node: dict[str, object], place: Place) -> Part:
        name, index = self._name(node, "$namedtuple"), len(self.named)
        with self._inside():
            items = self._all(node["items"], place.below("items"))
        return self._note(NamedTuplePart("namedtuple", name, place, items), index)

    def _codec(self, node: dict[str, object], place: Place) -> Part:
        name, index = self._name(node, "$codec"), len(self.named)
        with self._inside():
            data = self._visit(node["data"], place.below("data"))
        return self._note(CodecPart("codec", name, place, data), index)

    def _note(self, part: NamedPart, index: int | None = None) -> NamedPart:
        """Note a part with a name, at the index that it had before its own parts were read."""
        self.named.insert(len(self.named) if index is None else index, part)
        return part

    # Calls ----------------------------------------------------------------------------------------------------------

    def _call(self, node: dict[str, object], place: Place) -> Part:
        self._calls += 1
        self._meet("a $call")
        name, index, size = self._name(node, "$call"), len(self.named), self._extent.size
        args = self._all(node["args"], place.below("args"))
        kwargs = self._kwargs(node["kwargs"], place.below("kwargs"))
        if "tape" in node and node["tape"] == []:
            raise Flaw("not-canonical", "an empty tape is left out.")
        tape = self._tape(node["tape"], place.below("tape")) if "tape" in node else ()
        version = node.get("version", 0)
        if type(version) is not int or ("version" in node and version < 1):
            raise Flaw("bad-value", f"the version of a class is an integer from 1, not {shown(version)}.")
        call = CallPart("call", name, place, args, kwargs, tape, self._where(node), version)
        self.entries += [(call, entry) for entry in tape]
        self._extent.size = size  # a module is one value to whoever is given it
        return self._note(call, index)

    def _tape(self, entries: object, place: Place) -> tuple[EntryPart, ...]:
        if not isinstance(entries, list):
            raise Flaw("bad-value", f"a tape is a list, not {shown(entries)}.")
        self._tapes += 1
        tape = []
        for index, entry in enumerate(entries):
            try:
                tape.append(self._entry(entry, place.below(index)))
            except Flaw as flaw:
                self._fault(flaw, place.below(index))
        self._tapes -= 1
        return tuple(tape)

    def _entry(self, node: object, place: Place) -> EntryPart:
        self._entry_count += 1
        if not isinstance(node, dict):
            raise Flaw("bad-value", f"a tape entry is an object, not {shown(node)}.")
        check_keys(node, ("$entry", "args", "kwargs", "tags"), ("where",))
        tags = node["tags"]
        if not isinstance(tags, list):
            raise Flaw("bad-target", f"the tags of an entry are a list, not {shown(tags)}.")
        return EntryPart(
            self._name(node, "$entry"),
            tuple(check_tag(tag) for tag in tags),
            self._all(node["args"], place.below("args")),
            self._kwargs(node["kwargs"], place.below("kwargs")),
            self._where(node),
            place,
        )

    def _kwargs(self, node: object, place: Place) -> tuple[tuple[str, Part], ...]:
        """Return keyword arguments: a dict like any other, of names as they may stand in a call."""
        if not isinstance(node, dict):
            raise Flaw("bad-value", f"keyword arguments are an object, not {shown(node)}.")
        if "$dict" in node:
            raw = _raw_pairs(read_fields(node, "$dict")[0])
            if is_plain_dict([key for key, _ in raw]):
                raise Flaw("not-canonical", "keyword arguments in sorted order are spelled {...}.")
            place = place.below("$dict")
            pairs = [(key, value, place.below(index).below(1)) for index, (key, value) in enumerate(raw)]
        else:
            pairs = [(key, node[key], place.below(key)) for key in sorted(node)]
        names = [check_keyword(key) for key, _, _ in pairs]
        if len(set(names)) != len(names):
            raise Flaw("duplicate-key", "a keyword argument is given twice.")
        return tuple((name, self._visit(value, at)) for name, (_, value, at) in zip(names, pairs, strict=True))

    def _where(self, node: dict[str, object]) -> Where | None:
        if "where" not in node:
            return None
        where = node["where"]
        if isinstance(where, list) and len(where) == 2 and isinstance(where[0], str) and type(where[1]) is int:
            return Where(where[0], where[1])
        raise Flaw("bad-value", f"where is [file, line], not {shown(where)}.")


def _raw_pairs(node: object) -> list[Any]:
    if isinstance(node, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in node):
        return node
    raise Flaw("bad-value", f"a list of [key, value] is expected here, not {shown(node)}.")


@dataclass(frozen=True, slots=True)
class _Form:
    """Which keys an object with a tag has, and who reads it."""

    read: Callable[[Walk, dict[str, object], Place], Part]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    has_identity: bool = False


_FORMS: Mapping[str, _Form] = MappingProxyType(
    {
        "$call": _Form(Walk._call, ("args", "kwargs"), ("tape", "version", "where"), has_identity=True),
        "$class": _Form(Walk._class),
        "$codec": _Form(Walk._codec, ("data",), has_identity=True),
        "$dataclass": _Form(Walk._dataclass, ("fields",), has_identity=True),
        "$dict": _Form(Walk._dict, has_identity=True),
        "$enum": _Form(Walk._enum, ("member",)),
        "$frozenset": _Form(Walk._frozenset),
        "$function": _Form(Walk._function),
        "$list": _Form(Walk._list, has_identity=True),
        "$namedtuple": _Form(Walk._namedtuple, ("items",)),
        "$opaque": _Form(Walk._opaque, ("type",), has_identity=True),
        "$ordered": _Form(Walk._ordered, has_identity=True),
        "$pydantic": _Form(Walk._pydantic, ("fields", "set"), has_identity=True),
        "$ref": _Form(Walk._reference),
        "$set": _Form(Walk._set, has_identity=True),
        "$tuple": _Form(Walk._tuple),
    }
)
TAGS = frozenset({*_FORMS, *_LEAVES})
"""Every tag that a node may have."""
