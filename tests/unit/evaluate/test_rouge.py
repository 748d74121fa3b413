from __future__ import annotations

import math

import numpy as np
import pytest

from forgetkit.evaluate.porter import stem
from forgetkit.evaluate.rouge import Convention, lcs_length, longest_run, rouge_l, words


def slow_lcs(a: list[int], b: list[int]) -> int:
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def slow_run(a: list[int], b: list[int]) -> int:
    spans = [(i, n) for i in range(len(a)) for n in range(1, len(a) - i + 1)]
    runs = [n for i, n in spans if any(b[j : j + n] == a[i : i + n] for j in range(len(b)))]
    return max(runs, default=0)


@pytest.mark.parametrize("seed", range(30))
def test_common_subsequence_and_run_equal_slow_ones(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = (generator.integers(0, 4, generator.integers(0, 15)).tolist() for _ in range(2))
    assert lcs_length(a, b) == slow_lcs(a, b)
    assert longest_run(a, b) == slow_run(a, b)


def test_common_subsequence_and_run_by_hand() -> None:
    assert lcs_length("abcbdab", "bdcaba") == 4  # bcba
    assert lcs_length("", "abc") == lcs_length("abc", "") == lcs_length("abc", "xyz") == 0
    assert longest_run([1, 2, 3, 4, 9], [7, 2, 3, 4, 1]) == 3
    assert longest_run([1, 2], []) == longest_run([], [1]) == longest_run([1], [2]) == 0
    assert longest_run([5, 5, 5], [5, 5]) == 2


# Precision, recall, F1 of the package rouge-score 0.1.2, without and with its stemmer.
PACKAGE = [
    (
        "The Tin Woodman chopped the trees, and the Scarecrow's brains were working.",
        "the tin woodmen were chopping a tree; the scarecrow worked",
        (0.4, 0.307692307692, 0.347826086957),
        (0.7, 0.538461538462, 0.608695652174),
    ),
    (
        "Dorothy lived in the midst of the great Kansas prairies",
        "great Kansas prairies, Dorothy lived",
        (0.6, 0.3, 0.4),
        (0.6, 0.3, 0.4),
    ),
    ("a b c d e f g", "a x c y e z g", (4 / 7, 4 / 7, 4 / 7), (4 / 7, 4 / 7, 4 / 7)),
    ("generously organised flies died happily", "generous organization fly dies happy", (0, 0, 0), (0.4, 0.4, 0.4)),
    ("Toto!", "nothing here", (0, 0, 0), (0, 0, 0)),
    ("one", "", (0, 0, 0), (0, 0, 0)),
]


@pytest.mark.parametrize(("reference", "candidate", "plain", "stemmed"), PACKAGE)
def test_equals_the_package_of_the_peers(
    reference: str, candidate: str, plain: tuple[float, ...], stemmed: tuple[float, ...]
) -> None:
    assert rouge_l(reference, candidate, "muse") == pytest.approx(plain)
    names: tuple[Convention, ...] = ("tofu", "openunlearning")
    for convention in names:
        assert rouge_l(reference, candidate, convention) == pytest.approx(stemmed)


def test_a_reference_without_words_is_not_measured() -> None:
    assert words("Дороти и Тото") == []
    for reference in ("", "...", "Дороти"):
        assert all(math.isnan(x) for x in rouge_l(reference, "anything"))


# Stems of nltk 3.10's PorterStemmer in its default mode, which rouge-score uses.
STEMS = """
caresses caress ponies poni ties tie dies die flies fli cats cat feed feed agreed agre plastered plaster bled
bled motoring motor sing sing conflated conflat troubled troubl sized size hopping hop tanned tan falling fall
hissing hiss fizzed fizz failing fail filing file happy happi sky sky enjoy enjoy spied spi died die
relational relat conditional condit rational ration valency valenc digitizer digit conformably conform
radically radic differently differ vileness vile analogously analog vietnamization vietnam operator oper
feudalism feudal decisiveness decis hopefulness hope callousness callous formality formal sensitivity sensit
sensibility sensibl triplicate triplic formative form formalize formal electricity electr electrical electr
goodness good revival reviv allowance allow inference infer airliner airlin gyroscopic gyroscop adjustable
adjust defensible defens irritant irrit replacement replac adjustment adjust dependent depend adoption adopt
option option communism commun activate activ effective effect bowdlerize bowdler probate probat rate rate
cease ceas controlling control rolling roll theology theolog geology geolog innings inning news news proceed
proceed dying die generously gener skillfully skill ion ion yyyy yyyi
"""


def test_stems() -> None:
    told = STEMS.split()
    for word, expected in zip(told[::2], told[1::2], strict=True):
        assert stem(word) == expected, word
