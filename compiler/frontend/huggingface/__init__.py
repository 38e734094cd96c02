"""A language model as a Hugging Face directory: its files, its graph, PyTorch's own version of it."""
