"""The backup report: one self-contained HTML file.

story     gathers the facts from the repository
charts    the drawings: marks and bars placed by the page's style
page      the page around them

May import the engine; nothing in the report is fetched from elsewhere.
"""
