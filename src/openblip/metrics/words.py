"""Splitting captions into words as the COCO caption evaluation does, without Java.

The published scores (BLEU, ROUGE, CIDEr) are computed on what Stanford's PTBTokenizer 3.4.1 makes of a
caption, in lower case and without punctuation. `split_words` gives the same words for captions as people
write them; tests/golden/metrics.json holds sentences with what the Java program answered. Its rules, found by
asking it:

- Contractions are parted before n't, 's, 'm, 'd, 're, 've, 'll, with straight or curled apostrophes
  (can't -> ca n't); so are cannot, gonna, gotta, lemme, gimme, wanna, 'tis, 'twas and y'all.
- Words keep inner hyphens, slashes, dots, ampersands and apostrophes (two-story, black/white, t.v., o'clock).
- Numbers keep their points, commas, colons and fractions (1,000 and 3:45 and 1/2); units and signs that follow
  them are words of their own, except letters that follow plain digits (10:30 am, 50 %, but 10am).
- A full stop belongs to the word in abbreviations (mr. and st., a.m., any single letter), else it is
  punctuation; no., fig. and the like keep it before a number only.
- Brackets become -lrb-, -rrb-, -lsb-, -rsb-, -lcb-, -rcb- and are kept: the evaluation forgets to drop
  them in lower case. Kept are also repeated marks such as !! and symbols such as & and #.
- Markup such as <a href="x"> and the brackets of (555) 123-4567 belong to one token, which its blanks then part.
- Chinese characters and Japanese kana, which no blanks part, are words of their own, and their marks are dropped.
  Here alone this is not the Java program, which takes a whole sentence of them for one word.
- Dropped are ' '' ` `` . ? ! , : - -- ... ; and pictographs beyond the basic plane.

tests/golden/words.json holds 310 hard strings, all split as the Java program does, and of the 35,000 captions of
Flickr8k none differs. What can still differ are rarer forms, such as four numbers joined by slashes.
"""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["split_words"]

_DROPPED = frozenset(
    "'\"`\u2018\u2019\u201b\u201c\u201d\u00ab\u00bb\u2039\u203a.?!,:-\u2013\u2014\u2015\u2026;"
    "\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f\u300c\u300d\u300e\u300f\u300a\u300b\uff08\uff09\u3010\u3011\u30fb\uff5e"
)

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

# Words whose full stop is part of them, wherever they stand.
_ABBREVIATIONS_TEXT = """
    al cf co ct dr ft ga jr ky lt md mo mr ms mt ph rd rt sq sr st va vs vt wm adj adm adv ala apr aug ave
    bhd cie col cos cpl dak dec det drs ens esq est etc ext feb fla fri gen gov hon inc ind jan jos jul jun
    kan ltd maj mar mfg mme mon mrs mtg neb nev nov oct pfc plc pte pty pvt rep rev sen sep seq sfc sgt spc
    ste sys tel thu tue wed wis wyo alex ariz assn asst atty bldg blvd brig bros capt cmdr colo conn corp
    dept elec govs insp intl invt kans mich minn mlle mont msgr natl okla penn ppte ppty pres prof ptes ptys
    reps sens sept supt tenn tues univ wisc attys assoc bancorp calif comdr lieut messrs profs supts thurs
    treas
"""
_ABBREVIATIONS = frozenset(_ABBREVIATIONS_TEXT.split())
# The same, in capitals only: in small letters they are words.
_CAPITAL_ABBREVIATIONS = {"az", "la", "pa", "ark", "del", "ill", "ore", "tex", "mass", "miss", "wash"}
_BEFORE_NUMBER = {"no", "nos", "fig", "figs", "pp", "art", "ca"}
# After a single letter and a full stop these, capitalised, begin a new sentence: "point b. The dog".
_BEGINNINGS_TEXT = """
    a about according additionally after an as at but earlier he her here however if in it last many more mr
    mrs ms now once one other our she since so some such that the their then there these they this we what
    when while yet you
"""
_BEGINNINGS = frozenset(_BEGINNINGS_TEXT.split())

_LETTER = r"[^\W\d_\u00b2\u00b3\u00b9\u00bc-\u00be\u2150-\u215e]"
_PART = rf"(?:{_LETTER}|\d)+"
_APOSTROPHE = "['\u2019]"
_END = rf"(?!{_LETTER}|\d)"

_CONTRACTED_NOT = re.compile(rf"({_LETTER}+?)n{_APOSTROPHE}t{_END}", re.IGNORECASE)
_CLITIC = re.compile(rf"{_APOSTROPHE}(s|m|d|re|ve|ll){_END}", re.IGNORECASE)
_ONE_AS_TWO = re.compile(
    rf"(?:(can)(not)|(gon)(na)|(got)(ta)|(lem)(me)|(gim)(me)|(wan)(na))(?!{_CLITIC.pattern}){_END}"
    rf"|('t)(is|was)(?:(?=n{_APOSTROPHE}t)|{_END})|(y{_APOSTROPHE})({_LETTER}+)",
    re.IGNORECASE,
)

# Tried in this order at each place; the longest of them wins, of equals the first.
_TOKENS = [
    re.compile(pattern, flags)
    for pattern, flags in (
        # Addresses, tags of people and topics, markup.
        (r"(?:https?|ftp)://[^\s<>\"\u201d]*[^\s<>\".,;:!?)\]}'\u2019\u201d]", re.IGNORECASE),
        (r"www\.[^\s<>\"\u201d]*[^\s<>\".,;:!?)\]}'\u2019\u201d]", re.IGNORECASE),
        (r"[A-Za-z\d][^\s\"<>|(){}@]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+", 0),
        (rf"(?:{_PART}\.)+(?:com|net|org|edu){_END}(?:/[^\s\"<>|()]+[^\s\"<>|().!?{{}},-])?", re.IGNORECASE),
        (rf"#{_LETTER}+|@[A-Za-z_][A-Za-z_\d]*", 0),
        # Words with apostrophes that stay whole.
        (
            rf"(?:{_LETTER}+[aeiouy]{_APOSTROPHE}[aeiou]{_LETTER}*|(?:[odl]|qu){_APOSTROPHE}{_LETTER}{{2,}}"
            rf"|(?:s{_APOSTROPHE}mores|nor{_APOSTROPHE}easter|c{_APOSTROPHE}mon|li{_APOSTROPHE}l|e{_APOSTROPHE}er"
            rf"|nat{_APOSTROPHE}l|cap{_APOSTROPHE}n|ev{_APOSTROPHE}ry|n{_APOSTROPHE}t)"
            rf"|{_APOSTROPHE}(?:em|till?|cause)){_END}(?:-{_PART})*",
            re.IGNORECASE,
        ),
        (rf"(?<!\w){_APOSTROPHE}\d\ds?(?!{_APOSTROPHE}){_END}", re.IGNORECASE),
        (rf"(?:ol|dunkin|somethin){_APOSTROPHE}{_END}", re.IGNORECASE),
        (rf"(?!{_LETTER}{_CLITIC.pattern})[djl]{_APOSTROPHE}(?={_LETTER})(?<!\w\w{_APOSTROPHE})", re.IGNORECASE),
        (rf"{_APOSTROPHE}n(?:{_APOSTROPHE}|{_END})|(?<=\w)\u2019n", re.IGNORECASE),
        # Words, with digits inside and letters after a single dot or mark; words joined by - / _ and &.
        (rf"{_LETTER}(?:{_LETTER}|\d|[.!?]{_LETTER})*", 0),
        (rf"{_PART}(?:[-_]{_PART})*", 0),
        (r"[A-Za-z\d]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z\d]+(?:-[A-Za-z]+){0,2}){1,2}", 0),
        (r"[A-Za-z\d][A-Za-z\d.,]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z\d]+))+", 0),
        (rf"(?:pro|anti)-|c{_APOSTROPHE}est|S&(?:P-500|Ls)", re.IGNORECASE),
        (r"(?:\d{1,4}-)?\d{1,4}/\d{1,4}", 0),
        (r"[A-Z]+(?:&[A-Z]+)+", 0),
        # Initials, with their last dot; what is joined to them.
        (rf"(?:{_PART}(?<=\w\w)-)*{_LETTER}(?:\.{_LETTER})+{_END}\.?(?:-{_PART})*", 0),
        (rf"{_PART}\.-{_PART}", 0),
        # Numbers and money.
        (r"(?:(?<![-\u2013\u2014])[-+])?(?:\d+(?:[.,:]\d+)*|(?:[.,:]\d+)+)", 0),
        (r"[A-Z]{1,2}\$", 0),
        # Smileys, runs of marks.
        (r"[:;=][-o]?[()DPp](?!\w)|\^_\^", 0),
        (r"[!?]{2,}|_+|\*+|\#+|<<|>>", 0),
    )
]

_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " "}
_FRACTIONS = {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
_SIGNS = {"\u00a3": "#", "\u20ac": "$", "\u00a2": "cents"}
_SEPARATE = re.compile("[\u00bc-\u00be\u2153\u2154]")
_UNPARTED = re.compile("[\u3040-\u30fa\u30fd-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_VANISHING = re.compile("[\u00ad\ufe0f\u200d]")  # soft hyphens, variation selectors, joiners
# What holds blanks: markup, and telephone numbers, whose brackets then stay with their digits.
_SPACED = re.compile(
    r"<(?:[!?][A-Za-z-][^>]*|/?[A-Za-z][\w:.-]*(?:\s+[A-Za-z][\w:.-]*(?:\s*=\s*(?:'[^']*'|\"[^\"]*\"))?)*\s*/?)>"
    r"|\(\d{2,3}\)[ \u00a0]?\d{3,4}[- \u00a0]?\d{3,5}"
)
_BLANK = re.compile("[\u200b\U00010000-\U0010ffff]")  # and pictographs beyond the basic plane


def split_words(caption: str) -> list[str]:
    """The words of a caption in lower case, without punctuation; empty for an empty caption."""
    caption = _UNPARTED.sub(r" \g<0> ", _VANISHING.sub("", caption))
    words: list[str] = []
    start = 0
    for match in _SPACED.finditer(caption):
        words += [*_split_text(caption[start : match.start()]), *_named_brackets(match.group().lower()).split()]
        start = match.end()
    return words + _split_text(caption[start:])


def _split_text(caption: str) -> list[str]:
    """The words of a stretch in which no token holds a blank."""
    if "&" in caption:
        for entity, character in _ENTITIES.items():
            caption = caption.replace(entity, character)
    caption = _SEPARATE.sub(lambda match: f" {_FRACTIONS[match.group()]} ", caption)
    chunks = _BLANK.sub(" ", caption).split()
    words: list[str] = []
    for place, chunk in enumerate(chunks):
        words += _split_chunk(chunk, _announce(chunks[place + 1]) if place + 1 < len(chunks) else "")
    return words


def _announce(chunk: str) -> str:
    """What the stretch after a full stop says about the stop: "number", "sentence" or nothing."""
    if chunk[0].isdigit():
        return "number"
    begins = chunk[0].isupper() and re.split(r"\W", chunk, maxsplit=1)[0].lower() in _BEGINNINGS
    return "sentence" if begins else ""


@lru_cache(maxsize=100_000)
def _split_chunk(chunk: str, following: str) -> tuple[str, ...]:
    """The words of a stretch without blanks; `following` as `_announce` says."""
    tokens: list[str] = []
    place = 0
    while place < len(chunk):
        found, place = _next_tokens(chunk, place, following)
        tokens += found
    return tuple(_named_brackets(token.lower()) for token in tokens if token not in _DROPPED)


def _named_brackets(token: str) -> str:
    """With the names of the brackets in it, as in smileys."""
    for bracket, name in _BRACKETS.items():
        token = token.replace(bracket, name)
    return token


def _next_tokens(chunk: str, place: int, following: str) -> tuple[list[str], int]:
    """The tokens that begin at `place`, nearly always one, and where they end."""
    match = _CLITIC.match(chunk, place)
    if match:
        return ["'" + match.group(1)], match.end()
    match = _CONTRACTED_NOT.match(chunk, place)
    if match:
        return [match.group(1), "n't"], match.end()
    found = [match.group() for match in (pattern.match(chunk, place) for pattern in _TOKENS) if match]
    text = max(found, key=len, default="")
    match = _ONE_AS_TWO.match(chunk, place)
    if match and match.end() - place >= len(text):
        return [part for part in match.groups() if part], match.end()
    if not text:
        return [_SIGNS.get(chunk[place], chunk[place])], place + 1
    end = place + len(text)
    if end < len(chunk) and chunk[end] == "." and _keeps_dot(text, chunk[end + 1 :], following):
        text, end = text + ".", end + 1
    return [text], end


def _keeps_dot(text: str, rest: str, following: str) -> bool:
    """Whether the full stop after `text` is part of it; `rest` is what follows the stop in the chunk."""
    lower = text.lower()
    if rest[:1] in (",", ";", ":") and text[-1].isalnum():
        return True
    if len(text) == 1 and text.isalpha():
        return bool(rest) or following != "sentence"
    if lower in _ABBREVIATIONS or lower in ("ph.d", "ed.d"):
        return True
    if lower in _CAPITAL_ABBREVIATIONS:
        return text[0].isupper()
    return lower in _BEFORE_NUMBER and (rest[0].isdigit() if rest else following == "number")
