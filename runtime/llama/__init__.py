"""llama.cpp through the C functions that llama-cpp-python binds: models, contexts, their text."""
