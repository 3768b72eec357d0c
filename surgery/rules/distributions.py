"""What a param may be drawn from, with the names of its arguments."""

DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "kaiming_uniform": ("a",),
    "xavier_uniform": ("gain",),
    "normal": ("std",),
    "uniform": ("bound",),
    "orthogonal": (),
    "vocabulary": ("text",),
}
