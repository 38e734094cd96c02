"""Core ML: ML Programs for Apple Silicon, and a reference interpreter that runs them anywhere."""
