from __future__ import annotations

import pytest

from forgetkit.anchors.dictionary import Anchor, Dictionary
from forgetkit.anchors.matcher import Matcher, looks_plural, plural, vowel_sound
from forgetkit.anchors.translate import translate

OZ = Dictionary(
    (
        Anchor(term="Dorothy", counterpart="Alice", kind="woman"),
        Anchor(term="Tin Woodman", counterpart="Copper Miller", kind="creature"),
        Anchor(term="Tin", counterpart="Lead", kind="object"),
        Anchor(term="Wizard of Oz", counterpart="Keeper of Ash", kind="title"),
        Anchor(term="Oz", counterpart="Ash", kind="place"),
        Anchor(term="silver shoes", counterpart="copper boots", kind="object"),
        Anchor(term="scarecrow", counterpart="wooden puppet", kind="creature"),
        Anchor(term="Munchkin", counterpart="villager", kind="group"),
        Anchor(term="Woggle-Bug", counterpart="Giant Beetle", kind="creature"),
        Anchor(term="Jack o'Lantern", counterpart="Tom Turnip", kind="person"),
        Anchor(term="Don", counterpart="Bob", kind="man"),
        Anchor(term="オズ", counterpart="森", kind="place"),
        Anchor(term="Dropped", counterpart="Wrong", keep=False),
    )
)


def swap(text: str, dictionary: Dictionary = OZ) -> str:
    return translate(text, Matcher(dictionary).find(text)).text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        # the longest at each place; a shorter term inside a word that is no match is still found
        ("the Tin Woodman of Tin", "the Copper Miller of Lead"),
        ("Tin Woodmanly", "Lead Woodmanly"),
        ("the Wizard of Oz in Oz", "the Keeper of Ash in Ash"),
        # words only
        ("Ozma Oz1 Oz_ Oz\u0301 aOz", "Ozma Oz1 Oz_ Oz\u0301 aOz"),
        ("Dropped", "Dropped"),
        # possessives stay in the copied text
        ("Dorothy's Dorothy’s DOROTHY'S Dorothy'll", "Alice's Alice’s ALICE'S Alice'll"),
        ("the Munchkins' hats", "the villagers' hats"),
        ("Don't, said Don. DON’T", "Don't, said Bob. DON’T"),
        # plurals
        ("two Tin Woodmen and Wizards of Oz", "two Copper Millers and Keepers of Ash"),
        ("scarecrows; SCARECROWS", "wooden puppets; WOODEN PUPPETS"),
        # case
        ("WIZARD OF OZ, Wizard Of Oz", "KEEPER OF ASH, Keeper Of Ash"),
        ("Silver shoes. Silver Shoes! silver shoes", "Copper boots. Copper Boots! copper boots"),
        ("SILVER SHOES", "COPPER BOOTS"),
        ("dorothy, tin", "dorothy, tin"),
        ('He saw Munchkins. Munchkins ran: "Munchkins!"', 'He saw villagers. Villagers ran: "Villagers!"'),
        # separators, also at the end of a line
        ("Tin-Woodman, Tin\nWoodman, Tin\u00a0Woodman", "Copper Miller, Copper Miller, Copper Miller"),
        ("Woggle Bug, Woggle-bug, WOGGLE-BUG", "Giant Beetle, Giant Beetle, GIANT BEETLE"),
        ("Oz-like, silver-shoes", "Ash-like, copper boots"),
        # quotes and brackets
        ("“Dorothy” 'Oz' \"Oz,\" ‘Oz’ (Oz) *Oz*", "“Alice” 'Ash' \"Ash,\" ‘Ash’ (Ash) *Ash*"),
        ("Jack o’Lantern, Jack o'Lantern", "Tom Turnip, Tom Turnip"),
        # code points, not bytes or UTF-16
        ("😀 İ Oz 😀", "😀 İ Ash 😀"),
        # scripts without spaces
        ("私はオズへ行く", "私は森へ行く"),
        ("在Oz里", "在Ash里"),
        ("", ""),
    ],
)
def test_forms(text: str, wanted: str) -> None:
    assert swap(text) == wanted


def test_spans_and_indices_refer_to_kept_anchors() -> None:
    dictionary = Dictionary((Anchor(term="Oz", counterpart="Ash", keep=False), Anchor(term="Em", counterpart="Al")))
    assert Matcher(dictionary).find("😀 Em's Oz") == [(2, 4, 0, "Al")]


def test_exact_term_wins_over_the_plural_of_another() -> None:
    dictionary = Dictionary(
        (Anchor(term="Mill", counterpart="Barn"), Anchor(term="Mills", counterpart="Jones", kind="man"))
    )
    assert swap("Mill Mills MILLS", dictionary) == "Barn Jones JONES"
    assert swap("Mill Mills", Dictionary(dictionary.anchors[::-1])) == "Barn Jones"


def test_plural_of_a_two_letter_term_is_not_another_word() -> None:
    assert swap("Hi, is it His?", Dictionary((Anchor(term="Hi", counterpart="Bo", kind="man"),))) == "Bo, is it His?"


def test_plural_counterpart_is_not_pluralised_again() -> None:
    assert swap("the Bands", Dictionary((Anchor(term="Band", counterpart="friends", kind="other"),))) == "the friends"


def test_article_is_left_as_printed() -> None:
    assert swap("an Oz", Dictionary((Anchor(term="Oz", counterpart="Barn"),))) == "an Barn"


def test_nothing_to_find() -> None:
    assert Matcher(Dictionary()).find("Oz") == []


def test_agrees_with_a_slow_search_on_every_position() -> None:
    """Leftmost, longest, whole words, disjoint: by trying every pattern at every position."""
    text = "Tin Woodman Tin Tin Woodmanly, Oz Wizard of Oz of Oz Wizard of Ozma DorothyDorothy Dorothy " * 5
    names = {
        a.term: k for k, a in enumerate(OZ.kept) if a.term in ("Tin", "Tin Woodman", "Oz", "Wizard of Oz", "Dorothy")
    }
    slow, at = [], 0
    while at < len(text):
        fits = [
            name
            for name in names
            if text.startswith(name, at)
            and not (at and text[at - 1].isalnum())
            and not text[at + len(name) : at + len(name) + 1].isalnum()
        ]
        if fits:
            best = max(fits, key=len)
            slow.append((at, at + len(best), names[best]))
        at += len(max(fits, key=len)) if fits else 1
    assert [m[:3] for m in Matcher(OZ).find(text)] == slow


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("witch", "witches"),
        ("Witch of the West", "Witches of the West"),
        ("city", "cities"),
        ("monkey", "monkeys"),
        ("box", "boxes"),
        ("Woodman", "Woodmen"),
        ("human", "humans"),
        ("Old Woman", "Old Women"),
        ("wolf", "wolves"),
        ("chief", "chiefs"),
        ("hero", "heroes"),
    ],
)
def test_plural(one: str, many: str) -> None:
    assert plural(one) == many
    assert looks_plural(many)
    assert not looks_plural(one)


def test_plural_of_a_name_keeps_its_y() -> None:
    assert plural("Dorothy", name=True) == "Dorothys"


def test_vowel_sound() -> None:
    assert all(map(vowel_sound, ("Ozma", "apple", "hour", "uncle", "Émile", "uninvited", "umbrella")))
    assert not any(map(vowel_sound, ("unicorn", "useful", "one man", "house", "Glinda", "Europe", "university")))
