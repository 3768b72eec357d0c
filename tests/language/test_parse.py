"""What each form of the language means as a tree."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from surgery.language import syntax
from surgery.language.parse import parse, parse_selector
from surgery.language.resources import resource
from surgery.language.source import SourceText, Span

S = Span(SourceText("", ""), 0, 0)


def item(text: str) -> syntax.Item:
    (only,) = parse(text).items
    return only


def value(text: str) -> syntax.Expression:
    statement = item(f"let it = {text}")
    assert isinstance(statement, syntax.Let)
    return statement.value


def shown(node: syntax.Expression) -> str:
    """An expression with every grouping written out."""
    match node:
        case syntax.Binary():
            return f"({shown(node.left)} {node.operator} {shown(node.right)})"
        case syntax.Unary():
            return f"({node.operator} {shown(node.operand)})"
        case syntax.Name():
            return node.name
        case _:
            return node.span.text


def test_the_sentence_of_the_design() -> None:
    text = (
        "on `*.q_proj|*.v_proj` apply lora(r=4); on `mlp` parallel adapter(64); "
        "freeze all except bias"
    )
    first, second, third = parse(text).items
    assert isinstance(first, syntax.On)
    assert isinstance(second, syntax.On)
    assert isinstance(third, syntax.Freeze)
    assert first.selector.union.parts == (syntax.Path("*.q_proj|*.v_proj", span=S),)
    assert first.application.operand is None
    assert first.application.arguments == (syntax.Argument("r", syntax.Number(4, span=S), span=S),)
    assert second.application.name == "parallel"
    assert second.application.operand
    assert second.application.operand.name == "adapter"
    assert third.selector.exceptions
    assert third.selector.exceptions.parts == (syntax.Role("bias", span=S),)


@pytest.mark.parametrize(
    ("text", "grouped"),
    [
        ("a or b and not c < d + e * -f", "(a or (b and (not (c < (d + (e * (- f)))))))"),
        ("a - b - c", "((a - b) - c)"),
        ("a / b * c @ d % e", "((((a / b) * c) @ d) % e)"),
        ("-a * b", "((- a) * b)"),
        ("- -a", "(- (- a))"),
        ("not not a", "(not (not a))"),
        ("not a == b", "(not (a == b))"),
        ("(a + b) * c", "((a + b) * c)"),
        ("a and b or c and d", "((a and b) or (c and d))"),
    ],
)
def test_precedence(text: str, grouped: str) -> None:
    assert shown(value(text)) == grouped


@pytest.mark.parametrize(
    ("text", "number"), [("8", 8), ("0.5", 0.5), ("5e-4", 5e-4), ("1e3", 1000.0), ("007", 7)]
)
def test_numbers(text: str, number: float) -> None:
    node = value(text)
    assert isinstance(node, syntax.Number)
    assert node.value == number
    assert type(node.value) is type(number)


def test_strings() -> None:
    node = value(r'"a \"b\" \\ \n\t#"')
    assert isinstance(node, syntax.Text)
    assert node.value == 'a "b" \\ \n\t#'


def test_spans_hold_the_text() -> None:
    text = "on (q|v)[1:] in layer where (a + b) * c > 2 expect 3 gated(k = 1) lora as one"
    node = item(text)
    assert isinstance(node, syntax.On)
    assert node.span.text == text
    assert node.selector.span.text == text[3 : text.index(" gated")]
    assert node.selector.union.span.text == "(q|v)[1:]"
    assert isinstance(node.selector.where, syntax.Binary)
    assert node.selector.where.left.span.text == "(a + b) * c"
    assert node.application.span.text == "gated(k = 1) lora"
    assert node.application.name_span.text == "gated"
    assert node.application.arguments[0].span.text == "k = 1"


@pytest.mark.parametrize(
    ("text", "subscript"),
    [
        ("layer[3]", syntax.Index(3, span=S)),
        ("layer[-1]", syntax.Index(-1, span=S)),
        ("layer[:]", syntax.Slice(None, None, None, span=S)),
        ("layer[-4:]", syntax.Slice(-4, None, None, span=S)),
        ("layer[:2]", syntax.Slice(None, 2, None, span=S)),
        ("layer[::2]", syntax.Slice(None, None, 2, span=S)),
        ("layer[1:-1:-3]", syntax.Slice(1, -1, -3, span=S)),
    ],
)
def test_subscripts(text: str, subscript: syntax.Node) -> None:
    (part,) = parse_selector(text).union.parts
    assert part == syntax.Sliced(syntax.Role("layer", span=S), subscript, span=S)


def test_kinds_of_name() -> None:
    parts = parse_selector("`a.b`|attention.self|Linear|all|(q in layer)").union.parts
    kinds = [syntax.Path, syntax.Role, syntax.Class, syntax.All, syntax.Group]
    assert [type(part) for part in parts] == kinds


def test_definitions() -> None:
    method, block = parse(
        """
        method m(r = 2, f: block, g: method = other) {
          "One." "Two."
          match y[*, n] = linear(x, W[n, m], b[n]?)
          param shared frozen A[] = r
          apply g(f); y -= A
        }
        block b() of h[*, d] { return h }
        """
    ).items
    assert isinstance(method, syntax.Method)
    assert isinstance(block, syntax.Block)
    assert [(p.name, p.kind, p.default is None) for p in method.parameters] == [
        ("r", "value", False),
        ("f", "block", True),
        ("g", "method", False),
    ]
    assert method.doc == "One.\nTwo."
    match, param, apply, assign = method.body
    assert isinstance(match, syntax.Match)
    assert [operand.optional for operand in match.operands] == [False, False, True]
    assert match.operands[0].dims is None
    assert isinstance(param, syntax.Param)
    assert (param.frozen, param.shared, param.random, param.dims) == (True, "shared", False, ())
    assert isinstance(apply, syntax.Apply)
    assert isinstance(assign, syntax.Assign)
    assert assign.operator == "-="
    assert (block.doc, block.input.name, len(block.body)) == (None, "h", 1)


def test_comments_are_told_from_strings_and_paths() -> None:
    text = 'let a = "# no" # yes\non `b#` apply c #\n'
    assert [comment.text for comment in parse(text).comments] == ["yes", ""]
    assert [text[comment.offset] for comment in parse(text).comments] == ["#", "#"]


def test_windows_files() -> None:
    assert parse("\ufefffreeze all\r\ntrain norm\r\n") == parse("freeze all train norm")


@pytest.mark.parametrize("text", ["", "  \n", ";;", "# only this"])
def test_nothing(text: str) -> None:
    assert parse(text).items == ()


def test_threads_do_not_meet() -> None:
    texts = [f"let number_{n} = {n}\n" * 1 + "freeze all\n" * 200 for n in range(8)]
    with ThreadPoolExecutor(4) as pool:
        files = list(pool.map(lambda text: parse(text, text[:12]), texts))
    for text, file in zip(texts, files, strict=True):
        assert {node.span.source.name for node in file.items} == {text[:12]}


def test_reading_a_text_needs_no_framework() -> None:
    """`check` and `fmt` start in a blink."""
    program = (
        "import sys\nfrom surgery.language.format import format_text\n"
        "format_text('freeze all')\n"
        "print([m for m in ('torch', 'networkx', 'typer', 'rich') if m in sys.modules])"
    )
    root = resource("grammar").parent
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_resources() -> None:
    assert resource("grammar", "peft.lark").is_file()
