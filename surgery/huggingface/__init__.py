"""All that is known here of transformers and of its models, one idea a file.

Nothing outside of this package names a module of transformers, an argument of its models' forwards,
or what they return. transformers itself is imported only to read or write one of its checkpoints; all
else is told by what a model that came by has: its configuration, its arguments, its caches.
"""
