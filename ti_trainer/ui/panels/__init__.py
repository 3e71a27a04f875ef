"""The panels of the page, one file per panel."""
