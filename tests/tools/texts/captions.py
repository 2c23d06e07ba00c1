"""Captions as corpora have them: good, empty, broken, foreign, and far too long."""

from __future__ import annotations

import random

_SENTENCE = (
    "a red fox runs through deep snow while the camera pans slowly left and golden light falls over "
    "two old fishing boats near the pier people walk dogs on wet sand an aerial view of mountains "
    "close up hands kneading dough steam rises from coffee cinematic shallow depth of field 4k"
)
WORDS = _SENTENCE.split()
#: More tokens than any family takes, three times over, even where a word is one token.
_TOO_LONG = 3 * 1100

KINDS = (
    "",
    "fox",
    "A red fox runs through deep snow.",
    " ".join(WORDS * (_TOO_LONG // len(WORDS))),
    "The dog\u00e2\u20ac\u2122s ball \u2014 caf\u00c3\u00a9 fa\u00c3\u00a7ade",
    "Tom &amp;amp; Jerry &lt;b&gt;run&lt;/b&gt; &quot;fast&quot; &#39;now&#39;",
    "\u4e00\u53ea\u7ea2\u8272\u7684\u72d0\u72f8\u5728\u96ea\u5730\u91cc\u5954\u8dd1\u3002",
    "party \U0001f389\U0001f98a\U0001f468\u200d\U0001f469\u200d\U0001f467 time",
    "   leading, trailing   and\t\tinner \n\n blanks   ",
    "\n",
    " ",
    'A sign says "OPEN", another "OPEN", a third \u201cCLOSED\u201d.',
    '""',
    "braces {} {0} {name} and %s",
    "<|im_end|> <|eot_id|> </s> <pad> [IMG] <|endoftext|>",
    "\u202eright to left\u202c \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "e\u0301 and \u00e9 and \ufb01 ligature \uff21\uff22\uff23",
    "NUL\x00 and bell\x07 and \u200bzero width",
    "ALL CAPS AND \u201ccurly quotes\u201d \u2026",
    "1234567890 3.14 1/2 50% $9.99",
)


def captions(count: int) -> list[str]:
    """Return the first `count` captions: one of each kind, then random ones of any length."""
    draw = random.Random(7)
    more = [_random(draw) for _ in range(max(0, count - len(KINDS)))]
    return [*KINDS, *more][:count]


def _random(draw: random.Random) -> str:
    words = draw.choices(WORDS, k=draw.choice((1, 3, 12, 40, 90, 300)))
    return draw.choice((" ", "  ", "\n", ", ")).join(words + draw.sample(KINDS[4:], 1))
