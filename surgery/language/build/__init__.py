"""From reductions to the syntax tree: one method for each rule of the grammar.

The methods run inside the parser, so no tree of another kind is ever built. Where the grammar is
wider than the language they note a problem and go on with something reasonable.
"""

from surgery.language.build.items import Builder as Builder
