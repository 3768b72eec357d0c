"""What a rule or a constant would grow into forever is an error, and at once."""

from __future__ import annotations

import pytest
import torch

import surgery
from surgery.language.diagnostics import SurgeryError
from surgery.language.parse import parse
from surgery.language.source import SourceText
from surgery.planning.spec import read_spec, resolve
from surgery.rules.dims import FUNCTIONS
from surgery.rules.library import memory_reader, prelude

BODY = "method m() {{ match y[*, n] = linear(x[*, m], W[n, m], b?)\n param A[n, n] = 0\n{}\n}}\n"


def squares(first: str, sign: str, count: int = 60) -> str:
    return f"let a0 = {first}\n" + "\n".join(
        f"let a{i + 1} = a{i} {sign} a{i}" for i in range(count)
    )


def told(text: str) -> set[str]:
    with pytest.raises(SurgeryError) as caught:
        surgery.plan(torch.nn.Sequential(torch.nn.Linear(4, 4)), text)
    assert all(d.labels for d in caught.value.diagnostics)
    return {d.code for d in caught.value.diagnostics}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (squares("3", "*"), "S243"),
        (squares("1.5", "*"), "S243"),
        (squares("2", "+", 80), "S243"),
        (BODY.format(squares("n", "*") + " y += a60"), "S243"),
        (BODY.format(squares("n + m + 1", "*") + " y += a60"), "S242"),
        (BODY.format(squares("A", "@") + " y += linear(y, a60)"), "S242"),
        (BODY.format(squares("A", "+") + " y += linear(y, a60)"), "S242"),
        (BODY.format(squares("n < m", "and") + " require a60  y += linear(y, A)"), "S242"),
        (BODY.format("y = y + y\n" * 60), "S242"),
        (BODY.format("x = x + x\n" * 60), "S242"),
        (BODY.format("y += linear(y, A)\n" * 300), "S242"),
        (BODY.format("y += A @ kron(kron(kron(A, A), A), A)"), "S211"),
        (BODY.format(squares("n", "+").replace("+ a", "+ min(n, a").replace("\n", ")\n")), "S1"),
        ("let a = divisor(1e11, 7)", "S208"),
        ("let a = min(1)", "S208"),
        ("let a = divisor(k = 2, n = 4)", "S208"),
        ("let a = remainder(1, 0)", "S208"),
        ("let a = sqrt(0 - 1)", "S208"),
        ("let a = 99999999999999999999", "S112"),
        (f"on Linear {'gated ' * 1000} lora", "S123"),
        ("on Linear apply lora(" + "-" * 1000 + "1)", "S123"),
    ],
)
def test_what_grows_too_large(text: str, code: str) -> None:
    lead = (
        "" if text.startswith("on ") else "on Linear apply m" if "method" in text else "freeze all"
    )
    found = told(f"{text}\n{lead}")
    assert any(c.startswith(code) for c in found), found


def test_negations_take_no_time() -> None:
    for count in (20, 60):
        body = BODY.format(f"require {'not ' * count} n < 0  y += linear(y, A)")
        assert told(body + "on Linear apply m") == {"S404"}
        read_spec(body.replace("require", "require not") + "on Linear apply m")


def test_the_largest_divisor_is_what_counting_down_finds() -> None:
    divisor = FUNCTIONS["divisor"]
    for number in (*range(1, 70), 97 * 89, 1024, 5040):
        for limit in (-1, 0, 0.5, 1, 2, 3.7, 12, number - 1, number, number + 1, 1e11):
            counted = [k for k in range(1, number + 1) if number % k == 0 and k <= limit]
            assert divisor(number, limit) == max(counted, default=0), (number, limit)


LOOPS = {
    "itself": "method a() { match y = linear(x)  apply a() }",
    "one another": "method a() { match y = linear(x)  apply b() }\n"
    "method b() { match y = linear(x)  apply a() }",
    "a verb's argument": "method a() { match y = module(x)  apply gated(a()) }",
    "a default": "method a(m: method = a) { match y = module(x)  apply m() }",
    "a block": "block f() of h[*, d] { return f(h) }\n"
    "method a() { match y = linear(x)  y += f(x) }",
    "a function handed on": "method a(m: method) { match y = module(x)  apply m(m = m) }",
    "sixty-five others": "\n".join(
        f"method m{i}() {{ match y = linear(x)  apply m{i + 1}() }}" for i in range(66)
    )
    + "\nmethod m66() { match y = linear(x)  y += 1 }\n"
    "method a() { match y = linear(x)  apply m0() }",
    "itself twice as often at each step": "\n".join(
        f"method m{i}() {{ match y = linear(x)  apply m{i + 1}()  apply m{i + 1}() }}"
        for i in range(40)
    )
    + "\nmethod m40() { match y = linear(x)  y = y }\n"
    "method a() { match y = linear(x)  apply m0() }",
}


@pytest.mark.parametrize("how", LOOPS)
def test_rules_that_come_to_no_end(how: str) -> None:
    applied = "a a lora" if "m: method)" in LOOPS[how] else "apply a"
    assert "S241" in told(f"{LOOPS[how]}\non Linear {applied}")


def test_files_that_use_one_another_again_and_again() -> None:
    files = {f"{i}.peft": f'use "{i + 1}.peft"\nuse "{i + 1}.peft"' for i in range(60)}
    files["60.peft"] = "method last() { match y = linear(x)  y = 2 * y }"
    text = 'use "0.peft"\non q apply last'
    spec = resolve(parse(SourceText("spec", text)), memory_reader(files), prelude())
    assert len(spec.files) == 61
    deep = {f"{i}.peft": f'use "{i + 1}.peft"' for i in range(999)}
    with pytest.raises(SurgeryError, match="S241"):
        resolve(parse(text), memory_reader(deep), prelude())
    with pytest.raises(SurgeryError, match="S204"):
        resolve(parse(text), memory_reader({"0.peft": 'use "0.peft"'}), prelude())


def test_dims_may_have_the_name_of_a_method() -> None:
    text = "method m(k = 1) { match y[*, n] = linear(x[*, m])  y = y * sqrt(n - m + k) }"
    read_spec(text)
