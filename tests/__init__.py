"""The tests of the project: one behaviour each, said as a sentence."""
