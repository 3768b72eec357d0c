"""What a param may be drawn from, with the names of its arguments."""

DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "kaiming_uniform": ("a",),
    "xavier_uniform": ("gain",),
    "normal": ("std",),
    "uniform": ("bound",),
    "orthogonal": (),
    "vocabulary": ("text",),
}

DRAWS: dict[str, tuple[str, ...]] = {
    "integers": ("low", "high"),
    "nested": ("low",),
    "bernoulli": ("rate",),
    "normal": ("std",),
    "uniform": ("bound",),
}
"""What a `draw` of each step may be from; `integers` are from low up to high, both included; `nested`
is 1 at the first places of the last dim, at least at ``low`` of them, and 0 at the others."""
