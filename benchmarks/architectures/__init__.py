"""Every text architecture of transformers, tiny and random, under a column of specs each."""
