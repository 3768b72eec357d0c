"""The words and signs of the language by the names the grammar gives them."""

from __future__ import annotations

ITEMS = {
    "ON": "on",
    "FREEZE": "freeze",
    "TRAIN": "train",
    "OPTIMIZE": "optimize",
    "PENALTY": "penalty",
    "LET": "let",
    "USE": "use",
    "METHOD": "method",
    "BLOCK": "block",
}
STEPS = {
    "MATCH": "match",
    "REQUIRE": "require",
    "PARAM": "param",
    "STATE": "state",
    "DRAW": "draw",
    "LET": "let",
    "APPLY": "apply",
    "OPTIMIZE": "optimize",
    "PENALTY": "penalty",
    "AFTER": "after",
    "RETURN": "return",
}
CLAUSES = {"IN": "in", "WHERE": "where", "EXCEPT": "except", "EXPECT": "expect"}
OTHERS = {
    "AS": "as",
    "OF": "of",
    "ALL": "all",
    "AND": "and",
    "OR": "or",
    "NOT": "not",
    "WITH": "with",
    "ELSE": "else",
}
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
    "OPTIMIZE": "optimize PARAMS of METHOD with lr * 16",
    "PENALTY": "penalty EXPRESSION of METHOD",
    "LET": "let NAME = EXPRESSION",
    "USE": 'use "file.peft" (name, name)',
    "METHOD": "method NAME(parameters) { match … }",
    "BLOCK": "block NAME(parameters) of h[*, d] { … return … }",
    "MATCH": "match y[*, n] = linear(x[*, m], W[n, m], b?)",
    "REQUIRE": "require TEST",
    "PARAM": "param A[r, m] ~ normal(std = 0.02)",
    "STATE": "state s[r] = 0",
    "DRAW": "draw b ~ integers(1, r)",
    "APPLY": "apply METHOD(arguments)",
    "AFTER": "after step { s = … }",
    "RETURN": "return EXPRESSION",
    "NAME": "NAME = EXPRESSION",
}
"""How what a word opens is written."""
