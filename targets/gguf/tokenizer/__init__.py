"""A Hugging Face tokenizer as fields of a GGUF file, and the proof that llama.cpp reads them alike."""
