"""What llama-swap's own solver (commit 0bdb372, internal/matrix) says of some matrices, as it was run on them.

Models have names of one letter. `together`: every set of more than one that may run at once. `evictions`: of models
that run and one that is asked for ("ab+c"), those that its solver stops, where that is not all of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen


@frozen
class Solved:
    """A matrix, and what its solver says."""

    models: str
    sets: Mapping[str, str]
    together: str
    evictions: str
    variables: Mapping[str, str] = field(factory=dict)
    costs: Mapping[str, int] = field(factory=dict)


SOLVED = [
    Solved("abcd", {"one": "a & b", "two": "c", "three": "d"}, "ab", ""),
    Solved("abcd", {"base": "(a | b) & c"}, "ac bc", "ac+b:a bc+a:b"),
    Solved("abc", {"ab": "a & b", "bc": "b & c", "ca": "c & a"}, "ab ac bc", "ab+c:a ac+b:c bc+a:c"),
    Solved(
        "abcd",
        {"s": "(a | b) & (c | d)"},
        "ac bc ad bd",
        "ac+b:a ac+d:c ad+b:a ad+c:d bc+a:b bc+d:c bd+a:b bd+c:d",
    ),
    Solved("abcd", {"s": "a | b & c"}, "bc", ""),
    Solved(
        "gqmvesl",
        {
            "standard": "(g1 | q | m1) & v1",
            "with_rerank": "(g1 | q1) & v1 & e1",
            "creative": "(g1 | q1) & s",
            "full": "l",
        },
        "gv qv mv ge qe ve gve qve gs qs",
        (
            "ge+q:g ge+s:e gs+e:s gs+q:g gs+v:s gv+m:g gv+q:g gv+s:v gve+m:eg gve+q:g gve+s:ev mv+e:m "
            "mv+g:m mv+q:m qe+g:q qe+s:e qs+e:s qs+g:q qs+v:s qv+g:q qv+m:q qv+s:v qve+g:q qve+m:eq "
            "qve+s:ev ve+m:e"
        ),
        variables={"e1": "e", "g1": "g", "m1": "m", "q1": "q", "v1": "v"},
        costs={"l": 30, "v1": 50},
    ),
    Solved(
        "abcde",
        {"all": "+llms & (d | e)", "llms": "a | b | c"},
        "ad bd cd ae be ce",
        (
            "ad+b:a ad+c:a ad+e:d ae+b:a ae+c:a ae+d:e bd+a:b bd+c:b bd+e:d be+a:b be+c:b be+d:e cd+a:c "
            "cd+b:c cd+e:d ce+a:c ce+b:c ce+d:e"
        ),
    ),
    Solved(
        "abc", {"a_with_c": "a & c", "a_with_b": "a & b"}, "ab ac", "ab+c:b ac+b:c", costs={"b": 10, "c": 1}
    ),
    Solved("abc", {"first": "a & b", "second": "a & c"}, "ab ac", "ab+c:b ac+b:c"),
    Solved("tab", {"s": "t & (a | (a & b))"}, "ta tb ab tab", ""),
    Solved(
        "abcdef",
        {"x": "a & b & c", "y": "c & d & e", "z": "e & f & a", "w": "b & d & f"},
        "ab ac bc abc bd cd ae ce de cde af bf df bdf ef aef",
        (
            "ab+d:a ab+e:b ab+f:b abc+d:ab abc+e:bc abc+f:bc ac+d:a ac+e:c ac+f:c ae+b:e ae+c:e ae+d:a "
            "aef+b:ae aef+c:ef aef+d:ae af+b:a af+c:f af+d:a bc+d:b bc+e:b bc+f:c bd+a:d bd+c:b bd+e:b "
            "bdf+a:bd bdf+c:bf bdf+e:bf bf+a:b bf+c:f bf+e:b cd+a:d cd+b:c cd+f:c cde+a:de cde+b:ce "
            "cde+f:ce ce+a:e ce+b:e ce+f:c de+a:d de+b:e de+f:e df+a:d df+c:f df+e:f ef+b:e ef+c:f "
            "ef+d:e"
        ),
        costs={"a": 2, "d": 5, "f": 3},
    ),
    Solved(
        "abcdef",
        {"three": "(a | b) & (c | d) & (e | f)", "pair": "a & b & e"},
        "ab ac bc ad bd ae be abe ce ace bce de ade bde af bf cf acf bcf df adf bdf",
        (
            "ab+c:a ab+d:a ab+f:a abe+c:a abe+d:a abe+f:ae ac+b:a ac+d:c ace+b:a ace+d:c ace+f:e "
            "acf+b:a acf+d:c acf+e:f ad+b:a ad+c:d ade+b:a ade+c:d ade+f:e adf+b:a adf+c:d adf+e:f "
            "ae+f:e af+b:a af+e:f bc+a:c bc+d:c bce+a:c bce+d:c bce+f:e bcf+a:cf bcf+d:c bcf+e:f bd+a:d "
            "bd+c:d bde+a:d bde+c:d bde+f:e bdf+a:df bdf+c:d bdf+e:f be+f:e bf+a:f bf+e:f ce+d:c ce+f:e "
            "cf+d:c cf+e:f de+c:d de+f:e df+c:d df+e:f"
        ),
        costs={"b": 4},
    ),
    Solved("abcd", {"s": "a & c", "t": "x & d"}, "bc ad", "", variables={"a": "b", "x": "a"}),
    Solved(
        "abcdef",
        {"deep": "((a | b) & c | d) & (+rest | f)", "rest": "e & a"},
        "ab ac bc abc ad ae be abe ce ace bce abce de ade af bf cf acf bcf df",
        (
            "ab+d:b ab+f:b abc+d:bc abc+f:b abce+d:bc abce+f:be abe+d:b abe+f:be ac+d:c ace+d:c ace+f:e "
            "acf+b:f acf+d:cf acf+e:f ad+b:d ad+c:d ad+f:d ade+b:d ade+c:d ade+f:de ae+f:e af+b:f "
            "af+d:f af+e:f bce+d:bc bce+f:e bcf+a:b bcf+d:bc bcf+e:f be+d:b be+f:e bf+a:b bf+d:b bf+e:f "
            "ce+d:c ce+f:e cf+d:c cf+e:f de+b:d de+c:d de+f:e df+a:d df+b:d df+c:d df+e:f"
        ),
    ),
    Solved("ab", {"s": "a & a"}, "", ""),
    Solved(
        "abcde",
        {"big": "a & b & c & d", "small": "d & e", "same": "b & a & c & d"},
        "ab ac bc abc ad bd abd cd acd bcd abcd de",
        "abcd+e:abc abd+e:ab acd+e:ac ad+e:a bcd+e:bc bd+e:b cd+e:c de+a:e de+b:e de+c:e",
    ),
]
