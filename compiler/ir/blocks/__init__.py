"""ggml's block formats: bytes, the fields in them, what they decode to, and encoders.

They are words of the IR, beside ``QuantSpec`` and ``PaletteSpec``, since passes round into them (error
feedback needs the steps of a sub-block) and the emitter stores them. Facts: FORMATS A.1.1 to A.1.4.
"""
