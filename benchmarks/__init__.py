"""Speed and memory, beside Hugging Face PEFT in the same run: ``python -m benchmarks``."""
