from __future__ import annotations

import textwrap
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgetkit.corpus.clean import clean, clean_characters, drop_marked_boilerplate, join_wrapped, printable
from tests.toys import TEXT

NASTY = st.text(
    st.one_of(
        st.sampled_from(
            list("\r\n\t \x1b[]31m;\x07\x9b\x00\u00ad\u200b\u200d\u200c\u202e\ufeff\u2028\u2029\u2126e\u0301ﬁ-*A☃")
        ),
        st.characters(),
    ),
    max_size=60,
)
LINES = st.lists(st.text("abc .-*#>1\t\n", max_size=70), max_size=30).map("\n".join)


@settings(max_examples=400, deadline=None)
@given(st.one_of(NASTY, LINES), st.sampled_from(["plain", "markup", "pdf"]))
def test_cleaning_never_raises_is_idempotent_and_leaves_only_plain_characters(text, kind):
    once = clean(text, kind=kind)
    assert clean(once, kind=kind) == once
    assert unicodedata.is_normalized("NFC", once)
    assert not [c for c in once if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]
    once.encode("utf-8")


WRAPPED_WORDS = st.lists(st.sampled_from(["a", "the", "prairies", "Woodman", "well-known", "1900.", "--", "*", "#"]))


@settings(max_examples=150, deadline=None)
@given(st.lists(WRAPPED_WORDS, max_size=8), st.integers(30, 110))
def test_joining_is_idempotent_and_changes_nothing_but_white_space(paragraphs, width):
    text = "\n\n".join(textwrap.fill(" ".join(words), width) for words in paragraphs)
    once = join_wrapped(text)
    assert join_wrapped(once) == once
    assert "".join(once.split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("dirty", "wanted"),
    [
        ("so\u00adft hy\u200bphen\ufeff", "soft hyphen"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("cafe\u0301", "café"),
        ("\x1b[31mred\x1b[0m \x1b]0;title\x07x", "red x"),
        ("abc\u202edef\u2069", "abcdef"),
        ("“curly” ‘quotes’ — stay", "“curly” ‘quotes’ — stay"),
        ("Mr.\u00a0Tin", "Mr. Tin"),
        ("👩\u200d🚀 stays, a\u200db does not", "👩\u200d🚀 stays, ab does not"),
        ("lone \ud83d surrogate", "lone \ufffd surrogate"),
        ("e\u200b\u0301", "é"),
    ],
)
def test_characters(dirty, wanted):
    assert clean_characters(dirty) == wanted


def test_ligatures_are_split_in_pdf_only():
    assert clean("ﬁne ﬂow", kind="pdf") == "fine flow"
    assert clean("ﬁne ﬂow") == "ﬁne ﬂow"


def test_pdf_hyphenation_is_rejoined_and_a_known_compound_keeps_its_hyphen():
    text = "The prai-\nries were grey. A well-known man and a well-\nknown dog."
    assert (
        clean(text, kind="pdf").replace("\n", " ") == "The prairies were grey. A well-known man and a well-known dog."
    )
    assert "prai-" in clean(text, kind="plain")


HEAD = "The Project Gutenberg eBook of Oz\nfree of charge\n\n"
START = "*** START OF THE PROJECT GUTENBERG EBOOK THE WONDERFUL\nWIZARD OF OZ ***"
END = "*** END OF THE PROJECT GUTENBERG EBOOK OZ ***"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"{HEAD}{START}\n\nBody.\n\n{END}\nlicence", "Body."),
        (
            f"{HEAD}***START OF THIS PROJECT GUTENBERG EBOOK OZ***\nBody.\n"
            "***END OF THIS PROJECT GUTENBERG EBOOK OZ***x",
            "Body.",
        ),
        (f"{HEAD}Body without marks.", f"{HEAD}Body without marks."),
        (f"{HEAD}{START}\nBody, no end.", "Body, no end."),
        ("Body.\n\nEnd of the Project Gutenberg EBook of Oz, by Baum\nlicence", "Body."),
        ("Body.\n\nEnd of Project Gutenberg's Oz, by Baum\n\n" + END + "\nlicence", "Body."),
        (
            "It was the end of the Project Gutenberg EBook for him.",
            "It was the end of the Project Gutenberg EBook for him.",
        ),
        (f"{START}\nOne.\n{END}\nnotice\n{START}\nTwo.\n{END}\nnotice", "One.\n\nTwo."),
        (f"{START}\nOne.\n{START}\nTwo.", "One.\n\nTwo."),
    ],
)
def test_boilerplate_goes_only_where_it_is_marked(text, wanted):
    assert drop_marked_boilerplate(text) == wanted


PARAGRAPHS = [TEXT.strip()[:300], "Short one.", TEXT.strip()[200:600]]


@pytest.mark.parametrize("width", [60, 72, 95])
def test_wrapped_paragraphs_become_single_lines(width):
    wrapped = "\n\n".join(textwrap.fill(p, width, break_on_hyphens=False) for p in PARAGRAPHS)
    assert clean(wrapped) == "\n\n".join(" ".join(p.split()) for p in PARAGRAPHS)
    assert clean(wrapped, join_lines=False) == wrapped


def test_verse_lists_headings_and_code_in_a_wrapped_text_stay():
    prose = textwrap.fill(TEXT.strip(), 72, break_on_hyphens=False)
    kept = [
        "    Tiger, tiger,\n    burning bright",
        "Oh the grand old Duke\nHe had ten men\nHe marched them up",
        "- one\n- two",
        "# Heading\n## Another",
        "```\n" + "x = 1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10 + 11 + 12 + 13 + 14 + 15\n" * 2 + "```",
    ]
    cleaned = clean("\n\n".join([prose, *kept, prose]))
    assert cleaned.split("\n\n") == [TEXT.strip(), *kept, TEXT.strip()]


def test_an_indented_first_line_is_a_paragraph_not_verse():
    wrapped = textwrap.fill(TEXT.strip(), 70, initial_indent="   ", break_on_hyphens=False)
    assert clean(wrapped) == TEXT.strip()


def test_a_break_after_a_dash_gets_no_space():
    lines = textwrap.fill(TEXT.strip(), 70, break_on_hyphens=False) + "\n"
    assert "no cellar--except a hole" in clean(
        lines + "There was no garret at all in the house and of course no cellar--\nexcept a hole"
    )


@pytest.mark.parametrize(
    "text",
    [
        "One line a sentence.\nAnother sentence here.\n" * 20,
        "def f(x):\n    return x\n\n" * 20,
        (TEXT.strip() + "\n") * 10,
    ],
)
def test_text_that_is_not_wrapped_keeps_its_lines(text):
    assert clean(text).count("\n") >= text.strip().count("\n") - 1


def test_nothing_printable_steers_a_terminal():
    assert printable("a\x1b[2Jb\x9b31m\u202ec\x07") == "ab31mc"


@pytest.mark.timeout(20)
def test_hostile_repetition_is_cleaned_in_linear_time():
    for piece in (
        "\x1b]",
        " ",
        "\n",
        "*** ",
        "-\n",
        "a-\n",
        "\u200b",
        "End of\n",
        ". \"'",
        "*** START OF THE PROJECT GUTENBERG EBOOK\n",
    ):
        clean(piece * 100_000, kind="pdf")
