"""Classes of tokens that a rule may speak of: overlapping sets, each with a phrase.

The kinds of `text/kinds.py` come first. Others go by a token's characters and by short lists of
words; those of words and their forms are in `families.py`.
"""

from __future__ import annotations

import keyword
import re
import unicodedata

from fastexplain.text.kinds import KINDS, kind_of, latin

KIND_PHRASES = {
    "newline": "a line break",
    "space": "white space",
    "word": "a lower-case word",
    "part": "unspaced lower-case letters",
    "name": "a capitalised word",
    "capitals": "letters in capitals",
    "number": "a number",
    "open": "an opening bracket",
    "close": "a closing bracket",
    "quote": "a quotation mark",
    "stop": "a full stop, '!' or '?'",
    "sign": "a sign such as ',' or '='",
    "script": "non-Latin letters",
    "other": "a mixed token",
}
PLURAL_KINDS = frozenset({"part", "capitals", "script"})
"""Kinds of which a verb is plural."""

_WORDS = {
    "an article": "a an the",
    "a preposition": "of in to for with on at from by about as into through between after over "
    "against during without before under around among",
    "a personal pronoun": "i you he she it we they me him her us them",
    "a possessive": "my your his its our their mine yours hers ours theirs",
    "a conjunction": "and or but nor so yet because although while if unless since",
    "a form of 'be', 'have' or 'do'": "be is are was were been being am have has had having do "
    "does did done doing",
    "a modal verb": "can could may might must shall should will would",
    "a question word": "who whom whose what which when where why how",
    "a negation": "not no never none nothing neither nor n't cannot",
    "a demonstrative": "this that these those",
    "a number word": "zero one two three four five six seven eight nine ten hundred thousand "
    "million first second third",
    "a quantity word": "all any some each every many much few more most less least several both",
    "a month or weekday": "january february march april june july august september october "
    "november december monday tuesday wednesday thursday friday saturday sunday",
    "a keyword of another programming language": "var let const function void int char bool float "
    "double struct enum public private static extern switch case typedef namespace unsigned",
}
_WORD_CLASSES: dict[str, list[str]] = {}
for _phrase, _words in _WORDS.items():
    for _word in _words.split():
        _WORD_CLASSES.setdefault(_word, []).append(_phrase)

_ENDINGS = ("ing", "ed", "ly", "tion", "ment", "ness", "able", "er", "est", "al", "ous", "ive")

_CHARACTERS = {
    ",": "a comma", ";": "a semicolon", ":": "a colon", ".": "a full stop", "?": "a question mark",
    "!": "an exclamation mark", "-": "a hyphen", "_": "an underscore", "/": "a slash",
    "=": "an equals sign", "*": "an asterisk", "#": "a '#'", "'": "an apostrophe",
    '"': "a double quotation mark", "(": "an opening parenthesis", "[": "an opening square bracket",
    "{": "an opening brace", ")": "a closing parenthesis", "]": "a closing square bracket",
    "}": "a closing brace", "%": "a percent sign", "@": "an '@'", "+": "a plus sign",
    "<": "a '<'", ">": "a '>'", "\\": "a backslash", "$": "a dollar sign", "|": "a '|'",
}  # fmt: skip


def classes_of(text: str, *, marked: bool = True) -> list[str]:
    """The phrases of all classes that a token's text belongs to, its kind's first.

    Args:
        marked: whether the vocabulary marks the beginnings of words by a space.
    """
    kind = KINDS[kind_of(text, marked=marked)]
    found = [KIND_PHRASES[kind]]
    body = text.strip()
    word = body.lower()
    letters = body.isalpha()
    if kind == "newline" and text.count("\n") > 1:
        found.append("a blank line")
    if kind == "space" and len(text) > 1:
        found.append("two or more spaces")
    if kind == "newline" or (kind == "space" and len(text) > 1):
        found.append("a line break or indentation")
    if letters and kind != "script":
        found.append("letters")
        if marked and text[0] == " ":
            found.append("the beginning of a word")
        if len(body) == 1:
            found.append("a single letter")
        found += [f"an ending '-{end}'" for end in _ENDINGS if word.endswith(end)]
        if not body.isascii():
            found.append("letters with accents")
    if kind in ("capitals", "name"):
        found.append("letters that begin with a capital")
    if kind == "script":
        found += sorted({_script(c) for c in body if not latin(c)} - {""})
    if kind == "number":
        found.append("a single digit" if len(body) == 1 else "a number of several digits")
        if re.fullmatch(r"(1[5-9]|20)\d\d", body):
            found.append("a year")
    if body and not any(c.isalnum() for c in body):
        found += [phrase for c, phrase in _CHARACTERS.items() if c in body]
        found.append("punctuation or a sign")
        if len(body) > 1:
            found.append("several signs together")
    if kind in ("open", "close"):
        found.append("a bracket")
    found += _WORD_CLASSES.get(word, [])
    if keyword.iskeyword(body):
        found.append("a Python keyword")
    return found


def _script(character: str) -> str:
    """The phrase of a letter's script; empty for letters of none, such as mathematical ones."""
    name = unicodedata.name(character, "")
    if name.startswith("CJK"):
        return "Chinese characters"
    found = re.match(r"(\S+) .*(LETTER|SYLLABLE)", name)
    return f"{found[1].capitalize()} letters" if found else ""
