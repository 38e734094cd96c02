"""GGUF: what llama.cpp, Ollama and LM Studio load."""
