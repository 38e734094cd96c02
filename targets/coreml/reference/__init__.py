"""The reference interpreter: reads a saved ``.mlpackage`` and runs it op by op in torch."""
