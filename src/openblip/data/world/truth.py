"""Is a text true of a scene? The judge behind caption truth, coverage and every figure that rests on them.

`judge` reads a text with the parser and looks for the assignment of its phrases to distinct objects under
which most of its facts hold. The text is true if all hold. Facts, by kind:

    shape, colour, texture, size   one for each that a phrase names; "object" for the bare noun "object"
    place                          one for each side or corner word ("top left" has two)
    count                          "two stars": exactly two objects of the scene fit the phrase
    relation                       one for each relation; of a counted phrase it holds for each object
    ground                         one if the ground is named

With no object left for a phrase, its facts are all false. `measure` gathers verdicts over many captions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from openblip.core.errors import UserError
from openblip.data.world.geometry import holds, is_at
from openblip.data.world.language import matches
from openblip.data.world.object import Object
from openblip.data.world.parser import UngrammaticalText, parse
from openblip.data.world.scene import Scene
from openblip.data.world.words import Phrase, Statement, tokenize

__all__ = ["Verdict", "caption_report", "evaluate", "is_true", "judge", "retrieval_ceiling"]

Group = tuple[Object, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge found."""

    parsed: bool
    """the text is of the grammar; else nothing of it counts as true"""
    true: bool
    """every fact holds"""
    num_facts: int = 0
    num_true: int = 0
    """facts that hold under the best assignment"""
    coverage: float = 0.0
    """share of the scene's objects that the text names rightly (all attributes of their phrase hold)"""
    reason: str = ""
    """what is false, or where the text stops being grammatical; "" for a true text"""
    false_facts: tuple[str, ...] = field(default=())
    """kinds of the false facts"""


def judge(text: str, scene: Scene) -> Verdict:
    """Decide whether `text` is true of `scene`; see the head of this file."""
    try:
        statement = parse(text)
    except UngrammaticalText as error:
        return Verdict(False, False, reason=str(error))
    return evaluate(statement, scene)


def is_true(statement: Statement, scene: Scene) -> bool:
    """True if every fact of `statement` holds in `scene`; the same as `evaluate(...).true`, and faster."""
    if statement.ground not in (None, scene.ground):
        return False
    return _assign_all(statement, scene, ()) is not None


def evaluate(statement: Statement, scene: Scene) -> Verdict:
    """`judge` for a text that is parsed already."""
    total = _num_facts(statement)
    groups = _assign_all(statement, scene, ())
    if groups is not None and statement.ground in (None, scene.ground):
        named = sum(len(group) for group in groups)
        return Verdict(True, True, total, total, named / len(scene.objects))
    best = _best_assignment(statement, scene)
    false = _false_facts(statement, scene, best)
    named = sum(
        len(group)
        for phrase, group in zip(statement.phrases, best, strict=True)
        if group and all(matches(phrase, thing) for thing in group)
    )
    kinds = tuple(kind for kind, _ in false)
    reason = "; ".join(detail for _, detail in false)
    return Verdict(True, False, total, total - len(false), named / len(scene.objects), reason, kinds)


# The search ----------------------------------------------------------------------------------------------


def _assign_all(statement: Statement, scene: Scene, groups: tuple[Group, ...]) -> tuple[Group, ...] | None:
    """The first assignment under which everything but the ground holds, given the groups chosen so far."""
    position = len(groups)
    if position == len(statement.phrases):
        return groups
    phrase = statement.phrases[position]
    fitting = [thing for thing in scene.objects if matches(phrase, thing)]
    if phrase.count is not None and len(fitting) != phrase.count:
        return None
    taken = {thing.order for group in groups for thing in group}
    free = [thing for thing in fitting if thing.order not in taken]
    for group in combinations(free, phrase.num_objects):
        extended = (*groups, group)
        if all(
            _relation_holds(relation.kind, extended[relation.first], extended[relation.second])
            for relation in statement.relations
            if max(relation.first, relation.second) == position
        ):
            found = _assign_all(statement, scene, extended)
            if found is not None:
                return found
    return None


def _relation_holds(kind: str, first: Group, second: Group) -> bool:
    return bool(first) and bool(second) and all(holds(kind, a, b) for a in first for b in second)


def _best_assignment(statement: Statement, scene: Scene) -> tuple[Group, ...]:
    """The assignment with the fewest false facts; the empty group where no object is left for a phrase.

    Among equals, one that keeps the nouns right: where a red circle is, "a blue circle" has a wrong colour.
    """
    best: tuple[Group, ...] = ()
    fewest = (_num_facts(statement) + 1, 0)
    stack: list[tuple[Group, ...]] = [()]
    while stack:
        groups = stack.pop()
        if len(groups) == len(statement.phrases):
            kinds = [kind for kind, _ in _false_facts(statement, scene, groups)]
            rank = (len(kinds), kinds.count("shape") + kinds.count("object"))
            if rank < fewest:
                best, fewest = groups, rank
            continue
        taken = {thing.order for group in groups for thing in group}
        free = [thing for thing in scene.objects if thing.order not in taken]
        stack.append((*groups, ()))
        # A counted phrase may speak of fewer objects than it claims; then its count is what is wrong.
        for size in range(1, statement.phrases[len(groups)].num_objects + 1):
            stack.extend((*groups, group) for group in combinations(free, size))
    return best


# The facts -----------------------------------------------------------------------------------------------


def _attributes(phrase: Phrase) -> list[tuple[str, str]]:
    """(kind, value) of everything a phrase says of each of its objects."""
    named = [
        ("shape", phrase.shape),
        ("colour", phrase.colour),
        ("texture", phrase.texture),
        ("size", phrase.size),
    ]
    facts = [(kind, value) for kind, value in named if value is not None]
    facts += [("place", place) for place in phrase.places]
    return facts if phrase.shape is not None else [("object", "object"), *facts]


def _num_facts(statement: Statement) -> int:
    facts = len(statement.relations) + (statement.ground is not None)
    for phrase in statement.phrases:
        # "no star" is one fact: that the count is zero.
        facts += 1 if phrase.count == 0 else len(_attributes(phrase)) + (phrase.count is not None)
    return facts


def _fact_holds(kind: str, value: str, thing: Object) -> bool:
    if kind == "object":
        return True
    return is_at(value, thing) if kind == "place" else getattr(thing, kind) == value


def _false_facts(statement: Statement, scene: Scene, groups: Sequence[Group]) -> list[tuple[str, str]]:
    """(kind, detail) of every fact that does not hold when phrase i speaks of groups[i]."""
    false: list[tuple[str, str]] = []
    for phrase, group in zip(statement.phrases, groups, strict=True):
        if phrase.count != 0:
            for kind, value in _attributes(phrase):
                if not group or not all(_fact_holds(kind, value, thing) for thing in group):
                    false.append((kind if group else "object", f"no {value}" if not group else f"not {value}"))
        if phrase.count is not None:
            number = sum(matches(phrase, thing) for thing in scene.objects)
            if number != phrase.count or len(group) != phrase.count:
                false.append(("count", f"{min(number, len(group) or number)}, not {phrase.count}"))
    for relation in statement.relations:
        if not _relation_holds(relation.kind, groups[relation.first], groups[relation.second]):
            false.append(("relation", f"not {relation.kind}"))
    if statement.ground not in (None, scene.ground):
        false.append(("ground", f"not on {statement.ground}"))
    return false


# Many captions -------------------------------------------------------------------------------------------


def caption_report(captions: Sequence[str], scenes: Sequence[Scene]) -> dict[str, Any]:
    """Measure captions, the i-th of which should be true of the i-th scene.

    Returns:
        num, truth (share that is true), parsed (share that is grammatical), coverage (mean share of a scene's
        objects that is named rightly), fact_accuracy (true facts of all facts stated), mean_facts, mean_words,
        distinct (different captions of all), chance (share of captions that is true of the *next* scene),
        failures ({kind: share of the captions with a false fact of this kind}, and "ungrammatical").

    Raises:
        UserError: lengths differ, or there is nothing to measure.
    """
    if len(captions) != len(scenes):
        raise UserError(
            f"{len(captions)} captions cannot be judged against {len(scenes)} scenes; give one for each"
        )
    if not captions:
        raise UserError("there are no captions to judge")
    num = len(captions)
    verdicts = [judge(text, scene) for text, scene in zip(captions, scenes, strict=True)]
    shifted = [judge(text, scenes[(i + 1) % num]).true for i, text in enumerate(captions)] if num > 1 else []
    failures: Counter[str] = Counter()
    for verdict in verdicts:
        failures.update(set(verdict.false_facts) if verdict.parsed else {"ungrammatical"})
    facts = sum(verdict.num_facts for verdict in verdicts)
    return {
        "num": num,
        "truth": sum(verdict.true for verdict in verdicts) / num,
        "parsed": sum(verdict.parsed for verdict in verdicts) / num,
        "coverage": sum(verdict.coverage for verdict in verdicts) / num,
        "fact_accuracy": sum(verdict.num_true for verdict in verdicts) / max(facts, 1),
        "mean_facts": facts / num,
        "mean_words": sum(len(tokenize(text)) for text in captions) / num,
        "distinct": len({" ".join(tokenize(text)) for text in captions}) / num,
        "chance": sum(shifted) / max(len(shifted), 1),
        "failures": {kind: count / num for kind, count in failures.most_common()},
    }


def retrieval_ceiling(captions: Sequence[str], scenes: Sequence[Scene], *, k: int = 1) -> float:
    """Return the text-to-image recall@k that one who knows the truth reaches among these scenes.

    A caption that is true of n of the scenes names its own with a chance of min(k / n, 1); a caption that is
    false of its own scene counts as a miss. Below 1 since a short caption fits several images.
    """
    if len(captions) != len(scenes) or not captions:
        raise UserError(f"{len(captions)} captions and {len(scenes)} scenes: give one caption for each scene")
    total = 0.0
    for text, own in zip(captions, scenes, strict=True):
        try:
            statement = parse(text)
        except UngrammaticalText:
            continue
        if is_true(statement, own):
            total += min(k / sum(is_true(statement, scene) for scene in scenes), 1.0)
    return total / len(captions)
