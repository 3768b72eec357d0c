"""The words and signs of the language by the names the grammar gives them."""

from __future__ import annotations

ITEMS = {
    "ON": "on",
    "FREEZE": "freeze",
    "TRAIN": "train",
    "LET": "let",
    "USE": "use",
    "METHOD": "method",
    "BLOCK": "block",
}
STEPS = {
    "MATCH": "match",
    "REQUIRE": "require",
    "PARAM": "param",
    "LET": "let",
    "APPLY": "apply",
    "RETURN": "return",
}
CLAUSES = {"IN": "in", "WHERE": "where", "EXCEPT": "except", "EXPECT": "expect"}
OTHERS = {"AS": "as", "OF": "of", "ALL": "all", "AND": "and", "OR": "or", "NOT": "not"}
RESERVED = ITEMS | STEPS | CLAUSES | OTHERS

SIGNS = {
    "SEMICOLON": ";",
    "EQUAL": "=",
    "COMMA": ",",
    "LPAR": "(",
    "RPAR": ")",
    "LSQB": "[",
    "RSQB": "]",
    "LBRACE": "{",
    "RBRACE": "}",
    "VBAR": "|",
    "DOT": ".",
    "COLON": ":",
    "TILDE": "~",
    "QMARK": "?",
    "PLUS": "+",
    "MINUS": "-",
    "STAR": "*",
    "SLASH": "/",
    "AT": "@",
    "PERCENT": "%",
}
CLOSERS = {"LPAR": "RPAR", "LSQB": "RSQB", "LBRACE": "RBRACE"}

FORMS = {
    "ON": "on SELECTOR apply METHOD(arguments)",
    "FREEZE": "freeze SELECTOR",
    "TRAIN": "train SELECTOR",
    "LET": "let NAME = EXPRESSION",
    "USE": 'use "file.peft" (name, name)',
    "METHOD": "method NAME(parameters) { match … }",
    "BLOCK": "block NAME(parameters) of h[*, d] { … return … }",
    "MATCH": "match y[*, n] = linear(x[*, m], W[n, m], b?)",
    "REQUIRE": "require TEST",
    "PARAM": "param A[r, m] ~ normal(std = 0.02)",
    "APPLY": "apply METHOD(arguments)",
    "RETURN": "return EXPRESSION",
    "NAME": "NAME = EXPRESSION",
}
"""How what a word opens is written."""
