"""The report: one HTML file that shows what became of the backups, and needs nothing else to be read.

story     what there is to tell, out of the repository
charts    its drawings, as SVG that takes its colours from the page
page      the page around them
"""
